//! How a device reaches its driver, whatever the transport.

use crate::sync::lock;
use std::fmt;
use std::sync::Mutex;

/// The transport's way of interrupting the driver.
pub trait Interrupt: Send + Sync + fmt::Debug {
    /// Used buffer notification for a queue (2.3).
    fn queue(&self, index: u16);
    /// Configuration change notification (2.3).
    fn config(&self);
}

/// A device's line to its driver.
///
/// The device keeps it for life; what is said while no driver is ready is not sent, but for a
/// configuration change, which the driver is told of when it becomes ready.
#[derive(Debug)]
pub struct Notifier {
    interrupt: Box<dyn Interrupt>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// A driver is ready (DRIVER_OK).
    active: bool,
    /// The device has met nonsense (DEVICE_NEEDS_RESET).
    needs_reset: bool,
    /// Configuration generation (2.5.1).
    generation: u32,
    /// The generation when the driver began.
    known: u32,
}

impl Notifier {
    /// A notifier over a transport's interrupt.
    #[must_use]
    pub fn new(interrupt: Box<dyn Interrupt>) -> Self {
        Self {
            interrupt,
            state: Mutex::default(),
        }
    }

    /// Buffers of this queue were used.
    pub fn used(&self, queue: u16) {
        // The lock is held so that nothing is sent once `reset` has returned.
        let state = lock(&self.state);
        if state.active {
            self.interrupt.queue(queue);
        }
    }

    /// Runs `change` on the configuration space and tells the driver.
    ///
    /// The generation changes together with the space: a driver that reads a field in two parts
    /// sees, by the generation, that they may not belong together.
    pub fn change_config(&self, change: impl FnOnce()) {
        let mut state = lock(&self.state);
        change();
        state.generation = state.generation.wrapping_add(1);
        if state.active {
            self.interrupt.config();
        }
    }

    /// The driver's requests make no sense: the device stops until it is reset (2.1.2).
    pub fn ask_for_reset(&self) {
        let mut state = lock(&self.state);
        if state.active && !state.needs_reset {
            state.needs_reset = true;
            self.interrupt.config();
        }
    }

    /// Whether the device has asked for a reset since the last one.
    pub fn needs_reset(&self) -> bool {
        lock(&self.state).needs_reset
    }

    /// The configuration generation.
    pub fn generation(&self) -> u32 {
        lock(&self.state).generation
    }

    /// The driver is ready.
    pub(crate) fn activate(&self) {
        let mut state = lock(&self.state);
        state.active = true;
        if state.generation != state.known {
            self.interrupt.config();
        }
    }

    /// The driver has reset the device.
    pub(crate) fn reset(&self) {
        let mut state = lock(&self.state);
        state.active = false;
        state.needs_reset = false;
        state.known = state.generation;
    }
}
