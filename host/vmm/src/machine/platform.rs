//! The ports of the fixed machine: ACPI PM1a block and reset register, keyboard controller's reset,
//! pvpanic, serial console.
//!
//! Everything else reads as ones, as an empty bus does, and takes no writes.

use super::acpi::SLEEP_TYPE_OFF;
use super::layout::{
    I8042_COMMAND, PM1A_CONTROL, PM1A_EVENT, PVPANIC_PORT, RESET_PORT, RESET_VALUE, SERIAL_PORT,
};
use crate::devices::serial::Serial;
use crate::sync::lock;
use crate::verdict::Verdict;
use bulkhead_vmm_api::ExitReason;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

const SCI_EN: u16 = 1;
const SLP_TYP_SHIFT: u16 = 10;
const SLP_EN: u16 = 1 << 13;
/// What pvpanic says that it understands, and what a panicking guest writes.
const PVPANIC_PANICKED: u8 = 1;
const I8042_RESET: u8 = 0xfe;

/// The machine's ports.
#[derive(Debug)]
pub struct Platform {
    serial: Arc<Serial>,
    verdict: Arc<Verdict>,
    pm1: Mutex<Pm1>,
    accesses: AtomicU64,
}

/// ACPI 6.5, 4.8.3.1 and 4.8.3.2. No event is ever raised, so the status stays zero.
#[derive(Debug, Default)]
struct Pm1 {
    enable: u16,
    control: u16,
}

impl Platform {
    /// The ports, with the serial console behind its own.
    #[must_use]
    pub fn new(serial: Arc<Serial>, verdict: Arc<Verdict>) -> Self {
        Self {
            serial,
            verdict,
            pm1: Mutex::default(),
            accesses: AtomicU64::new(0),
        }
    }

    /// How often the guest came to a port, the serial ones included.
    #[must_use]
    pub fn accesses(&self) -> u64 {
        self.accesses.load(Ordering::Relaxed)
    }

    /// The guest reads `data.len()` bytes from a port.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        self.accesses.fetch_add(1, Ordering::Relaxed);
        data.fill(0xff);
        match port {
            SERIAL_PORT..=0x3ff => {
                if let [byte] = data {
                    *byte = self.serial.read((port - SERIAL_PORT) as u8);
                }
            }
            I8042_COMMAND => data.fill(0),
            PVPANIC_PORT => data.fill(PVPANIC_PANICKED),
            PM1A_EVENT..=0x605 => {
                let pm1 = lock(&self.pm1);
                let registers = [0, pm1.enable, pm1.control | SCI_EN];
                drop(pm1);
                let bytes = registers.map(u16::to_le_bytes).concat();
                let rest = bytes.get(usize::from(port - PM1A_EVENT)..);
                for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
                    *to = *from;
                }
            }
            _ => {}
        }
    }

    /// The guest writes to a port.
    pub fn write(&self, port: u16, data: &[u8]) {
        self.accesses.fetch_add(1, Ordering::Relaxed);
        let value = match *data {
            [byte] => u16::from(byte),
            [low, high, ..] => u16::from_le_bytes([low, high]),
            [] => return,
        };
        let byte = value as u8;
        match port {
            SERIAL_PORT..=0x3ff if data.len() == 1 => {
                self.serial.write((port - SERIAL_PORT) as u8, byte);
            }
            I8042_COMMAND if byte == I8042_RESET => self.reset("the keyboard controller"),
            RESET_PORT if byte == RESET_VALUE => self.reset("the ACPI reset register"),
            PVPANIC_PORT if byte & PVPANIC_PANICKED != 0 => self.verdict.decide(
                ExitReason::GuestPanic,
                "The guest kernel panicked; its console says why.",
            ),
            port if port == PM1A_EVENT + 2 => lock(&self.pm1).enable = value,
            PM1A_CONTROL => self.control(value),
            _ => {}
        }
    }

    fn control(&self, value: u16) {
        lock(&self.pm1).control = value & !SLP_EN;
        let sleep_type = (value >> SLP_TYP_SHIFT & 7) as u8;
        if value & SLP_EN != 0 && sleep_type == SLEEP_TYPE_OFF {
            self.verdict
                .decide(ExitReason::GuestPowerOff, "The guest powered off.");
        }
    }

    fn reset(&self, by: &str) {
        self.verdict.decide(
            ExitReason::GuestReset,
            format!("The guest asked for a reset through {by}."),
        );
    }
}
