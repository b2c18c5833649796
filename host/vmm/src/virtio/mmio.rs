//! The virtio-mmio transport, version 2 (virtio 1.2, 4.2): one window of registers and one interrupt
//! pin, which devices share.
//!
//! The pin is level-triggered: it is high while any device on it has a cause that its driver has not
//! acknowledged. An interrupt that is raised while its cause is pending already costs nothing.

use super::notify::{Interrupt, Notifier};
use super::status::{Core, Half, QueueField};
use crate::sync::lock;
use std::fmt;
use std::sync::{Arc, Mutex};

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"BLKH");
const USED_BUFFER: u32 = 1;
const CONFIG_CHANGE: u32 = 2;

// Registers (4.2.2).
const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SEL: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM_MAX: u64 = 0x34;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
/// QueueNotify: the machine has KVM turn writes to it into the device's kick.
pub const QUEUE_NOTIFY: u64 = 0x50;
const INTERRUPT_STATUS: u64 = 0x60;
const INTERRUPT_ACK: u64 = 0x64;
const STATUS: u64 = 0x70;
const QUEUE_DESC: u64 = 0x80;
const QUEUE_DRIVER: u64 = 0x90;
const QUEUE_DEVICE: u64 = 0xa0;
const SHM_FIRST: u64 = 0xb0;
const SHM_LAST: u64 = 0xbc;
const CONFIG_GENERATION: u64 = 0xfc;
const CONFIG: u64 = 0x100;

/// An interrupt pin.
pub type SetPin = Box<dyn Fn(bool) + Send + Sync>;

/// A level-triggered pin that several devices share.
pub struct Pin {
    set: SetPin,
    /// One bit for each device that has a cause.
    raised: Mutex<u64>,
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pin")
            .field("raised", &self.raised)
            .finish_non_exhaustive()
    }
}

impl Pin {
    /// A pin that is low.
    #[must_use]
    pub fn new(set: SetPin) -> Self {
        Self {
            set,
            raised: Mutex::new(0),
        }
    }

    fn drive(&self, device: u64, high: bool) {
        let mut raised = lock(&self.raised);
        let before = *raised != 0;
        if high {
            *raised |= device;
        } else {
            *raised &= !device;
        }
        let now = *raised != 0;
        if before != now {
            (self.set)(now);
        }
    }
}

/// A device's InterruptStatus on its pin.
#[derive(Debug)]
pub struct Causes {
    pin: Arc<Pin>,
    /// This device's bit on the pin.
    bit: u64,
    status: Mutex<u32>,
}

impl Causes {
    /// Nothing pending. `index` tells the devices of one pin apart and is below 64.
    #[must_use]
    pub fn new(pin: Arc<Pin>, index: u32) -> Self {
        Self {
            pin,
            bit: 1_u64.wrapping_shl(index),
            status: Mutex::new(0),
        }
    }

    fn add(&self, cause: u32) {
        let mut status = lock(&self.status);
        *status |= cause;
        self.pin.drive(self.bit, true);
    }

    fn remove(&self, causes: u32) {
        let mut status = lock(&self.status);
        *status &= !causes;
        if *status == 0 {
            self.pin.drive(self.bit, false);
        }
    }

    fn get(&self) -> u32 {
        *lock(&self.status)
    }
}

impl Interrupt for Arc<Causes> {
    fn queue(&self, _index: u16) {
        self.add(USED_BUFFER);
    }

    fn config(&self) {
        self.add(CONFIG_CHANGE);
    }
}

/// A device in its window.
#[derive(Debug)]
pub struct Window {
    core: Core,
    causes: Arc<Causes>,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
}

impl Window {
    /// A device in reset.
    #[must_use]
    pub fn new(core: Core, causes: Arc<Causes>) -> Self {
        Self {
            core,
            causes,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
        }
    }

    /// What the driver talks to.
    #[must_use]
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// The driver reads at an offset of the window.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG) {
            if let Ok(offset) = usize::try_from(offset) {
                self.core.device().read_config(offset, data);
            }
            return;
        }
        // Registers are 32 bits wide and read as a whole (4.2.2.2).
        if let ([_, _, _, _], 0) = (&*data, offset % 4) {
            data.copy_from_slice(&self.register(offset).to_le_bytes());
        }
    }

    fn register(&self, offset: u64) -> u32 {
        let notifier: &Notifier = self.core.notifier();
        match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => self.core.device().id(),
            0x0c => VENDOR,
            DEVICE_FEATURES => match self.device_features_sel {
                0 => self.core.features() as u32,
                1 => (self.core.features() >> 32) as u32,
                _ => 0,
            },
            QUEUE_NUM_MAX => u32::from(self.core.queue_max(self.queue_sel)),
            QUEUE_READY => u32::from(self.core.queue_ready(self.queue_sel)),
            INTERRUPT_STATUS => self.causes.get(),
            STATUS => self.core.status(),
            // There are no shared memory regions, which is told by a length of all ones (4.2.2.1).
            SHM_FIRST..=SHM_LAST => u32::MAX,
            CONFIG_GENERATION => notifier.generation(),
            _ => 0,
        }
    }

    /// The driver writes at an offset of the window.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        // No device has a configuration field that its driver writes.
        let (&[a, b, c, d], true) = (data, offset < CONFIG) else {
            return;
        };
        let value = u32::from_le_bytes([a, b, c, d]);
        let address = |base: u64| {
            if offset == base {
                Half::Low(value)
            } else {
                Half::High(value)
            }
        };
        let field = match offset {
            QUEUE_NUM => QueueField::Size(u16::try_from(value).unwrap_or(0)),
            QUEUE_READY => QueueField::Ready(value & 1 != 0),
            0x80 | 0x84 => QueueField::Descriptors(address(QUEUE_DESC)),
            0x90 | 0x94 => QueueField::Available(address(QUEUE_DRIVER)),
            0xa0 | 0xa4 => QueueField::Used(address(QUEUE_DEVICE)),
            _ => return self.write_register(offset, value),
        };
        self.core.set_queue(self.queue_sel, field);
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            DEVICE_FEATURES_SEL => self.device_features_sel = value,
            DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            DRIVER_FEATURES => self.core.accept_features(self.driver_features_sel, value),
            QUEUE_SEL => self.queue_sel = value,
            QUEUE_NOTIFY => {
                // The counter is far from overflowing, so this cannot fail.
                let queue = u16::try_from(value).unwrap_or(u16::MAX);
                let _ = self.core.device().kick_of(queue).write(1);
            }
            INTERRUPT_ACK => self.causes.remove(value),
            STATUS => {
                self.core.set_status(value);
                if value == 0 {
                    self.causes.remove(!0);
                    self.device_features_sel = 0;
                    self.driver_features_sel = 0;
                    self.queue_sel = 0;
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
