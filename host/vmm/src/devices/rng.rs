//! virtio-rng (virtio 1.2, 5.4): entropy from the host.

use crate::devices::counters::Counters;
use crate::error::Error;
use crate::machine::memory::GuestRam;
use crate::sync::lock;
use crate::virtio::Device;
use crate::virtio::notify::Notifier;
use crate::virtio::queue::{Queue, QueueError};
use rustix::rand::{GetRandomFlags, getrandom};
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

const ID: u32 = 4;
const QUEUE_SIZES: &[u16] = &[8];
/// The most bytes for one request; the driver asks again for more (5.4.6).
pub const MAX_REQUEST: usize = 256;

/// The entropy device.
#[derive(Debug)]
pub struct Rng {
    ram: GuestRam,
    notifier: Arc<Notifier>,
    kick: EventFd,
    queue: Mutex<Option<Queue>>,
    counters: Counters,
}

impl Rng {
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
            queue: Mutex::new(None),
            counters: Counters::default(),
        })
    }

    /// What the device has done.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Serves the queue once around: a driver that never stops asking leaves time for others.
    pub fn serve(&self) {
        let _ = self.kick.read();
        let mut guard = lock(&self.queue);
        let Some(queue) = guard.as_mut() else { return };
        for _ in 0..QUEUE_SIZES.iter().copied().sum() {
            match self.serve_one(queue) {
                Ok(true) => {}
                Ok(false) => return,
                Err(_) => {
                    *guard = None;
                    self.counters.failed();
                    self.notifier.ask_for_reset();
                    return;
                }
            }
        }
        let _ = self.kick.write(1);
    }

    fn serve_one(&self, queue: &mut Queue) -> Result<bool, QueueError> {
        let Some(mut chain) = queue.pop(&self.ram)? else {
            return queue.set_notifications(&self.ram, true);
        };
        let mut bytes = [0; MAX_REQUEST];
        let wanted = (chain.writable.len() as usize).min(MAX_REQUEST);
        let bytes = bytes.get_mut(..wanted).unwrap_or_default();
        // Up to 256 bytes come whole and without blocking once the host has booted.
        let got = getrandom(&mut *bytes, GetRandomFlags::NONBLOCK).unwrap_or(0);
        let bytes = bytes.get(..got).unwrap_or_default();
        if chain.writable.write(&self.ram, bytes).is_err() {
            return Err(QueueError::Layout);
        }
        // At most MAX_REQUEST.
        queue.push_used(&self.ram, chain.head, got as u32)?;
        self.counters.served(got as u64);
        if queue.wants_interrupt(&self.ram)? {
            self.notifier.used(0);
        }
        Ok(true)
    }
}

impl Device for Rng {
    fn id(&self) -> u32 {
        ID
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}

    fn activate(&self, queues: Vec<Queue>, _features: u64) {
        *lock(&self.queue) = queues.into_iter().next();
    }

    fn reset(&self) {
        *lock(&self.queue) = None;
    }

    fn kick(&self) -> &EventFd {
        &self.kick
    }
}

#[cfg(test)]
mod tests;
