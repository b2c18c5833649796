//! The status machine of a virtio device (virtio 1.2, 2.1 and 3.1.1), once for every transport.
//!
//! ```text
//!           ACKNOWLEDGE, DRIVER        FEATURES_OK            DRIVER_OK
//! (reset) ----------------------> (1) -------------> (2) --------------> (3)
//!    ^      features unread           features frozen     queues frozen,     |
//!    |      queues frozen             queues writable     moved to device    |
//!    +------------------------- status 0 written ----------------------------+
//!                           DEVICE_NEEDS_RESET added to (3)
//! ```
//!
//! A write that the present state does not allow changes nothing. The driver may set bits but clear
//! none, except by writing 0.

use super::notify::Notifier;
use super::queue::{Queue, QueueLayout};
use super::{Device, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use crate::machine::memory::GuestRam;
use std::sync::Arc;

/// ACKNOWLEDGE (2.1).
pub const ACKNOWLEDGE: u32 = 1;
/// DRIVER (2.1).
pub const DRIVER: u32 = 2;
/// DRIVER_OK (2.1).
pub const DRIVER_OK: u32 = 4;
/// FEATURES_OK (2.1).
pub const FEATURES_OK: u32 = 8;
/// DEVICE_NEEDS_RESET (2.1).
pub const NEEDS_RESET: u32 = 64;
/// FAILED (2.1).
pub const FAILED: u32 = 128;

/// A device with its driver's progress.
#[derive(Debug)]
pub struct Core {
    device: Arc<dyn Device>,
    notifier: Arc<Notifier>,
    ram: GuestRam,
    status: u32,
    driver_features: u64,
    queues: Vec<QueueLayout>,
}

/// A part of a queue's layout that the driver writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueField {
    /// Number of descriptors.
    Size(u16),
    /// Descriptor table.
    Descriptors(Half),
    /// Available ring.
    Available(Half),
    /// Used ring.
    Used(Half),
    /// Whether the queue is to be used.
    Ready(bool),
}

/// Half of a 64-bit address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// The low 32 bits.
    Low(u32),
    /// The high 32 bits.
    High(u32),
}

impl Half {
    fn put(self, address: &mut u64) {
        *address = match self {
            Self::Low(low) => *address & !0xffff_ffff | u64::from(low),
            Self::High(high) => *address & 0xffff_ffff | u64::from(high) << 32,
        };
    }
}

impl Core {
    /// A device in reset.
    #[must_use]
    pub fn new(device: Arc<dyn Device>, notifier: Arc<Notifier>, ram: GuestRam) -> Self {
        let queues = device
            .queue_sizes()
            .iter()
            .map(|max| QueueLayout::new(*max))
            .collect();
        Self {
            device,
            notifier,
            ram,
            status: 0,
            driver_features: 0,
            queues,
        }
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &dyn Device {
        self.device.as_ref()
    }

    /// The device's line to its driver.
    #[must_use]
    pub fn notifier(&self) -> &Notifier {
        &self.notifier
    }

    /// Everything that is offered.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.device.features() | F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC
    }

    /// The driver accepts features: 32 bits, number `page` of them.
    pub fn accept_features(&mut self, page: u32, bits: u32) {
        let writable = self.status & DRIVER != 0 && self.status & FEATURES_OK == 0;
        if writable {
            match page {
                0 => Half::Low(bits).put(&mut self.driver_features),
                1 => Half::High(bits).put(&mut self.driver_features),
                // Nothing is offered there, so accepting something there is remembered as an error.
                _ if bits != 0 => self.driver_features = !0,
                _ => {}
            }
        }
    }

    /// The status field as the driver reads it.
    #[must_use]
    pub fn status(&self) -> u32 {
        let needs_reset = if self.notifier.needs_reset() {
            NEEDS_RESET
        } else {
            0
        };
        self.status | needs_reset
    }

    /// The driver writes the status field.
    pub fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let known = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;
        let value = value & known;
        if value & self.status != self.status {
            // A bit was cleared.
            return;
        }
        let new = value & !self.status;
        if new & FAILED != 0 {
            self.status |= FAILED;
            return;
        }
        for (bit, needs) in [
            (ACKNOWLEDGE, 0),
            (DRIVER, ACKNOWLEDGE),
            (FEATURES_OK, DRIVER),
            (DRIVER_OK, FEATURES_OK),
        ] {
            if new & bit == 0 {
                continue;
            }
            if self.status & needs != needs || self.status & FAILED != 0 {
                return;
            }
            match bit {
                FEATURES_OK if !self.features_acceptable() => return,
                DRIVER_OK => {
                    self.status |= DRIVER_OK;
                    self.activate();
                }
                _ => self.status |= bit,
            }
        }
    }

    /// A queue's largest size; 0 when there is no such queue.
    #[must_use]
    pub fn queue_max(&self, index: u32) -> u16 {
        self.queue(index).map_or(0, |queue| queue.max)
    }

    /// Whether a queue is in use.
    #[must_use]
    pub fn queue_ready(&self, index: u32) -> bool {
        self.queue(index).is_some_and(|queue| queue.ready)
    }

    /// The driver writes a field of a queue's layout. All are frozen while the queue is ready, and
    /// before FEATURES_OK and after DRIVER_OK altogether.
    pub fn set_queue(&mut self, index: u32, field: QueueField) {
        if self.status & (FEATURES_OK | DRIVER_OK | FAILED) != FEATURES_OK {
            return;
        }
        let queue = usize::try_from(index)
            .ok()
            .and_then(|index| self.queues.get_mut(index));
        let Some(queue) = queue else { return };
        match field {
            QueueField::Ready(ready) => queue.ready = ready,
            _ if queue.ready => {}
            QueueField::Size(size) => queue.size = size,
            QueueField::Descriptors(half) => half.put(&mut queue.descriptors),
            QueueField::Available(half) => half.put(&mut queue.available),
            QueueField::Used(half) => half.put(&mut queue.used),
        }
    }

    fn queue(&self, index: u32) -> Option<&QueueLayout> {
        self.queues.get(usize::try_from(index).ok()?)
    }

    fn features_acceptable(&self) -> bool {
        self.driver_features & F_VERSION_1 != 0 && self.driver_features & !self.features() == 0
    }

    /// Moves the queues into the device, or asks for a reset when they make no sense.
    fn activate(&mut self) {
        self.notifier.activate();
        let event_idx = self.driver_features & F_EVENT_IDX != 0;
        let queues: Option<Vec<Queue>> = self
            .queues
            .iter()
            .take(self.device.queues_in_use(self.driver_features))
            .map(|layout| Queue::new(layout, &self.ram, event_idx).ok())
            .collect();
        match queues {
            Some(queues) => {
                self.device.activate(queues, self.driver_features);
                // The driver may have notified before DRIVER_OK.
                let _ = self.device.kick().write(1);
            }
            None => self.notifier.ask_for_reset(),
        }
    }

    fn reset(&mut self) {
        self.device.reset();
        self.notifier.reset();
        self.status = 0;
        self.driver_features = 0;
        for queue in &mut self.queues {
            *queue = QueueLayout::new(queue.max);
        }
    }
}

#[cfg(test)]
mod tests;
