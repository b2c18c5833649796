//! The VM generation ID: 128 random bits in guest memory that change when there are two of what was one
//! VM, so that the guest renews what must be unique, its random numbers first.
//!
//! Microsoft, "Virtual Machine Generation ID"; QEMU, `docs/specs/vmgenid`; Linux `drivers/virt/vmgenid.c`.
//! The page lies in the range that the memory map reserves. ACPI says where, and a generic event device
//! (ACPI 6.5, 5.6.9) turns the interrupt into the notification.

use super::layout::GENERATION;
use super::memory::GuestRam;
use crate::devices::serial::Pulse;
use crate::error::Error;
use rustix::rand::{GetRandomFlags, getrandom};
use std::fmt;
use vm_memory::{Bytes, GuestAddress};

/// The device.
pub struct Generation {
    ram: GuestRam,
    pulse: Pulse,
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation").finish_non_exhaustive()
    }
}

impl Generation {
    /// The device with its first ID; `pulse` pulses its interrupt.
    ///
    /// # Errors
    /// [`Error::Host`], [`Error::GuestMemory`].
    pub fn new(ram: GuestRam, pulse: Pulse) -> Result<Self, Error> {
        let generation = Self { ram, pulse };
        generation.write()?;
        Ok(generation)
    }

    /// Changes the ID and tells the guest.
    ///
    /// # Errors
    /// [`Error::Host`], [`Error::GuestMemory`].
    pub fn renew(&self) -> Result<(), Error> {
        self.write()?;
        (self.pulse)();
        Ok(())
    }

    fn write(&self) -> Result<(), Error> {
        let mut id = [0; 16];
        // So few bytes come whole.
        getrandom(&mut id, GetRandomFlags::empty()).map_err(Error::host("give random bytes"))?;
        self.ram
            .write_slice(&id, GuestAddress(GENERATION))
            .map_err(|source| Error::GuestMemory {
                what: "generation ID",
                source,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::{GENERATION, Generation};
    use crate::machine::memory::map;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn the_id_changes_with_an_interrupt_and_nothing_beside_it_does() {
        let ram = map(64).unwrap();
        let pulses = Arc::<AtomicU32>::default();
        let counted = Arc::clone(&pulses);
        let pulse = Box::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let page = || {
            let mut bytes = [0; 4096];
            ram.read_slice(&mut bytes, GuestAddress(GENERATION))
                .unwrap();
            bytes
        };
        let generation = Generation::new(ram.clone(), pulse).unwrap();
        let first = page();
        assert_ne!(first[..16], [0; 16]);
        assert_eq!(pulses.load(Ordering::SeqCst), 0);
        generation.renew().unwrap();
        assert_ne!(page()[..16], first[..16]);
        assert_eq!(page()[16..], [0; 4080]);
        assert_eq!(pulses.load(Ordering::SeqCst), 1);
    }
}
