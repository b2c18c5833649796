//! The serial console: an 8250 whose output goes into a ring of constant size.
//!
//! Nobody reads the ring while the guest writes, so a guest that prints without end only overwrites
//! its own oldest lines. There is no input.
//!
//! There is no limit on the rate: each byte is an exit of the guest's own CPU time, goes nowhere but into the
//! ring, and a limit would drop the newest lines, which are those that tell of a panic
//! (`docs/decisions/console.md`, with a measurement).

use crate::devices::counters::Counters;
use crate::sync::lock;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use vm_superio::Trigger;
use vm_superio::serial::NoEvents;

/// How many bytes of console output are kept.
pub const RING: usize = 64 * 1024;

/// Pulses the port's interrupt.
pub type Pulse = Box<dyn Fn() + Send + Sync>;

struct Irq(Pulse);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        (self.0)();
        Ok(())
    }
}

/// The newest [`RING`] bytes.
#[derive(Debug, Default)]
pub struct Ring(VecDeque<u8>);

impl Ring {
    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.0.len() == RING {
                self.0.pop_front();
            }
            self.0.push_back(*byte);
        }
    }

    /// The newest `max` bytes.
    #[must_use]
    pub fn newest(&self, max: usize) -> Vec<u8> {
        let skip = self.0.len().saturating_sub(max);
        self.0.iter().skip(skip).copied().collect()
    }
}

struct Output {
    ring: Arc<Mutex<Ring>>,
    counters: Arc<Counters>,
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.ring).push(bytes);
        self.counters.served(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The port and its ring.
pub struct Serial {
    port: Mutex<vm_superio::Serial<Irq, NoEvents, Output>>,
    ring: Arc<Mutex<Ring>>,
    counters: Arc<Counters>,
    accesses: AtomicU64,
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial").finish_non_exhaustive()
    }
}

impl Serial {
    /// A port that pulses its interrupt like this.
    #[must_use]
    pub fn new(pulse: Pulse) -> Self {
        let ring = Arc::<Mutex<Ring>>::default();
        let counters = Arc::<Counters>::default();
        let output = Output {
            ring: Arc::clone(&ring),
            counters: Arc::clone(&counters),
        };
        Self {
            port: Mutex::new(vm_superio::Serial::new(Irq(pulse), output)),
            ring,
            counters,
            accesses: AtomicU64::new(0),
        }
    }

    /// The guest reads a register.
    pub fn read(&self, register: u8) -> u8 {
        self.accesses.fetch_add(1, Ordering::Relaxed);
        lock(&self.port).read(register)
    }

    /// The guest writes a register.
    pub fn write(&self, register: u8, value: u8) {
        self.accesses.fetch_add(1, Ordering::Relaxed);
        // Neither the ring nor the interrupt can fail.
        let _ = lock(&self.port).write(register, value);
    }

    /// The newest `max` bytes of output.
    pub fn newest(&self, max: usize) -> Vec<u8> {
        lock(&self.ring).newest(max)
    }

    /// How often the guest came to the port.
    #[must_use]
    pub fn accesses(&self) -> u64 {
        self.accesses.load(Ordering::Relaxed)
    }

    /// Bytes written so far and the like.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[cfg(test)]
mod tests;
