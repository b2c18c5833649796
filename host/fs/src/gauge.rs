//! A number that the daemon can read while this process serves.
//!
//! It lies in a file in memory that is found by its name among the process's descriptors (`/proc/PID/fd`), so the
//! daemon needs no connection, and one that has been started meanwhile finds it too.

use crate::error::Error;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::fs::File;
use std::sync::atomic::Ordering;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

/// The file's name; `bulkhead-sandbox` looks for it.
const NAME: &str = "bulkhead-inodes";
/// One number in the byte order of the machine.
const LENGTH: usize = size_of::<u64>();

/// A number, 0 at first.
pub(crate) struct Gauge(MmapRegion);

impl Gauge {
    /// Makes the file; before the process is confined.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub(crate) fn new() -> Result<Self, Error> {
        let failed = || Error::host("make a file in memory");
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create(NAME, flags).map_err(failed())?;
        ftruncate(&file, LENGTH as u64).map_err(failed())?;
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW;
        fcntl_add_seals(&file, seals).map_err(failed())?;
        let file = FileOffset::new(File::from(file), 0);
        let region = MmapRegion::from_file(file, LENGTH);
        let region = region.map_err(|error| Error::Memory(error.to_string()))?;
        Ok(Self(region))
    }

    pub(crate) fn set(&self, value: u64) {
        // The mapping is as long as the number, and begins at a page.
        let _ = self
            .0
            .as_volatile_slice()
            .store(value, 0, Ordering::Relaxed);
    }
}
