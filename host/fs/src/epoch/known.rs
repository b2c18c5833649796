//! What the guest knows of the library's inodes: the library counts, and does not tell.

use crate::gauge::Gauge;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Room that is kept when inodes are forgotten.
const KEPT: usize = 1024;

/// The inodes that the guest, or a volume, holds lookups of.
pub(super) struct Known {
    lookups: Mutex<HashMap<u64, u64>>,
    gauge: Gauge,
}

impl Known {
    pub(super) fn new(gauge: Gauge) -> Self {
        Self {
            lookups: Mutex::default(),
            gauge,
        }
    }

    /// An inode was looked up.
    pub(super) fn add(&self, inode: u64) {
        let mut lookups = self.lock();
        let count = lookups.entry(inode).or_insert(0);
        *count = count.saturating_add(1);
        self.tell(&lookups);
    }

    /// So many lookups of an inode are forgotten; more than there were is all of them.
    pub(super) fn forget(&self, inode: u64, count: u64) {
        let mut lookups = self.lock();
        let Some(left) = lookups.get_mut(&inode) else {
            return;
        };
        *left = left.saturating_sub(count);
        if *left == 0 {
            lookups.remove(&inode);
            if lookups.len() < lookups.capacity() / 8 {
                let room = KEPT.max(2 * lookups.len());
                lookups.shrink_to(room);
            }
        }
        self.tell(&lookups);
    }

    pub(super) fn forget_all(&self) {
        let mut lookups = self.lock();
        *lookups = HashMap::new();
        self.tell(&lookups);
    }

    /// While the lock is held, so that the last number is the true one.
    fn tell(&self, lookups: &HashMap<u64, u64>) {
        self.gauge.set(lookups.len() as u64);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, u64>> {
        self.lookups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
