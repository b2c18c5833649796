//! virtio-balloon (virtio 1.2, 5.5) with free page reporting (5.5.6.7): memory that the guest has freed
//! goes back to the host.
//!
//! The guest tells of blocks that it does not use; the host forgets their content and takes the pages. The
//! guest may use them again at any time without a word: they come back as zeroes. The balloon itself is
//! never blown up by the host; a guest that puts pages into it loses nothing but their content.

use crate::devices::counters::Counters;
use crate::error::Error;
use crate::machine::memory::GuestRam;
use crate::sync::lock;
use crate::virtio::Device;
use crate::virtio::buffers::Chain;
use crate::virtio::notify::Notifier;
use crate::virtio::queue::{Queue, QueueError};
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

const ID: u32 = 5;
/// VIRTIO_BALLOON_F_DEFLATE_ON_OOM: the guest may take pages back when it needs them.
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// VIRTIO_BALLOON_F_REPORTING.
const F_REPORTING: u64 = 1 << 5;
/// inflateq, deflateq, reporting_vq: queues of features that are not offered are not counted. Linux reports
/// 32 blocks at once and asks for a queue of at least as many entries.
const QUEUE_SIZES: &[u16] = &[16, 16, 64];
const REPORTING: usize = 2;
/// Chains of one queue in one turn, so that a driver that never stops leaves time for others.
const TURN: usize = 64;

/// The balloon.
#[derive(Debug)]
pub struct Balloon {
    ram: GuestRam,
    notifier: Arc<Notifier>,
    kick: EventFd,
    queues: Mutex<Vec<Queue>>,
    counters: Counters,
}

impl Balloon {
    /// The device.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn new(ram: GuestRam, notifier: Arc<Notifier>) -> Result<Self, Error> {
        Ok(Self {
            ram,
            notifier,
            kick: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
                .map_err(Error::host("create an eventfd"))?,
            queues: Mutex::default(),
            counters: Counters::default(),
        })
    }

    /// What the device has done; the bytes are those that went back to the host.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Serves the queues once around.
    pub fn serve(&self) {
        let _ = self.kick.read();
        let mut queues = lock(&self.queues);
        let mut more = false;
        for (index, queue) in queues.iter_mut().enumerate() {
            match self.serve_queue(index, queue) {
                Ok(rest) => more |= rest,
                Err(_) => {
                    queues.clear();
                    self.counters.failed();
                    self.notifier.ask_for_reset();
                    return;
                }
            }
        }
        if more {
            let _ = self.kick.write(1);
        }
    }

    /// Answers whether there may be more.
    fn serve_queue(&self, index: usize, queue: &mut Queue) -> Result<bool, QueueError> {
        for _ in 0..TURN {
            let Some(chain) = queue.pop(&self.ram)? else {
                if queue.set_notifications(&self.ram, true)? {
                    continue;
                }
                return Ok(false);
            };
            if index == REPORTING {
                self.give_back(&chain);
            }
            queue.push_used(&self.ram, chain.head, 0)?;
            if queue.wants_interrupt(&self.ram)? {
                self.notifier.used(u16::try_from(index).unwrap_or_default());
            }
        }
        Ok(true)
    }

    fn give_back(&self, chain: &Chain) {
        match chain.writable.discard(&self.ram) {
            Ok(()) => self.counters.served(u64::from(chain.writable.len())),
            // The pages stay; the guest does not depend on it.
            Err(_) => self.counters.failed(),
        }
    }
}

impl Device for Balloon {
    fn id(&self) -> u32 {
        ID
    }

    fn features(&self) -> u64 {
        F_DEFLATE_ON_OOM | F_REPORTING
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    /// `num_pages` and `actual` (5.5.4) are 0: nothing is asked of the guest.
    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}

    fn activate(&self, queues: Vec<Queue>, _features: u64) {
        *lock(&self.queues) = queues;
    }

    fn reset(&self) {
        lock(&self.queues).clear();
    }

    fn kick(&self) -> &EventFd {
        &self.kick
    }
}

#[cfg(test)]
mod tests;
