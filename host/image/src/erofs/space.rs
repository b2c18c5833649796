//! Who may write where: layers stream into one file at the same time, and still the same layers
//! make the same file.
//!
//! Each layer has a region whose place depends only on what is known before anything is read. A
//! layer that needs more goes on behind all regions, where layers take their turns in order.

use super::format::{BLOCK, block_number};
use super::{ErofsError, ErofsResult};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The regions of all layers of one file.
pub(crate) struct Plan {
    regions: Vec<(u64, u64)>,
    turn: Mutex<Turn>,
    changed: Condvar,
}

struct Turn {
    /// Layers below this one are complete.
    layer: usize,
    done: Vec<bool>,
    /// First free byte behind all regions.
    next: u64,
    stopped: bool,
}

impl Plan {
    /// Reserves so many bytes for each layer, from `start`.
    pub(crate) fn new(start: u64, reserve: &[u64]) -> Self {
        let mut next = start.next_multiple_of(BLOCK);
        let regions = reserve
            .iter()
            .map(|bytes| {
                let from = next;
                next = next.saturating_add(bytes.next_multiple_of(BLOCK));
                (from, next)
            })
            .collect();
        Self {
            regions,
            turn: Mutex::new(Turn {
                layer: 0,
                done: vec![false; reserve.len()],
                next,
                stopped: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// The place of one layer.
    pub(crate) fn region(&self, layer: usize) -> Region<'_> {
        let (next, end) = self.regions.get(layer).copied().unwrap_or_default();
        Region {
            plan: self,
            layer,
            next,
            end,
        }
    }

    /// Wakes who waits for a turn that never comes.
    pub(crate) fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    /// The first byte behind everything, when all layers are done.
    pub(crate) fn end(&self) -> u64 {
        self.lock().next
    }

    fn lock(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_overflow(&self, layer: usize, bytes: u64) -> ErofsResult<u64> {
        let mut turn = self.lock();
        while turn.layer < layer && !turn.stopped {
            turn = self
                .changed
                .wait(turn)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if turn.stopped {
            return Err(ErofsError::Stopped);
        }
        let at = turn.next;
        turn.next = at.saturating_add(bytes);
        Ok(at)
    }
}

/// The place of one layer.
pub(crate) struct Region<'a> {
    plan: &'a Plan,
    layer: usize,
    next: u64,
    end: u64,
}

impl Region<'_> {
    /// Takes whole blocks in a row for so many bytes and returns where they start.
    pub(super) fn take(&mut self, bytes: u64) -> ErofsResult<u64> {
        let bytes = bytes.next_multiple_of(BLOCK);
        let at = match self.next.checked_add(bytes) {
            Some(next) if next <= self.end => std::mem::replace(&mut self.next, next),
            _ => {
                // What is left stays free, so that it does not depend on the size of later files.
                self.next = self.end;
                self.plan.take_overflow(self.layer, bytes)?
            }
        };
        block_number(at.saturating_add(bytes))?;
        Ok(at)
    }

    /// Lets the next layer have its turn behind all regions.
    pub(crate) fn finish(self) {
        let mut turn = self.plan.lock();
        if let Some(done) = turn.done.get_mut(self.layer) {
            *done = true;
        }
        while turn.done.get(turn.layer) == Some(&true) {
            turn.layer = turn.layer.saturating_add(1);
        }
        self.plan.changed.notify_all();
    }
}
