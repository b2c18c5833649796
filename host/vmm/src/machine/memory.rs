//! Guest memory: private anonymous pages, touched when the guest touches them.

use super::layout::{HOLE_END, HOLE_START};
use crate::error::Error;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use std::io;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

/// The guest's RAM.
pub type GuestRam = GuestMemoryMmap<()>;

/// The RAM ranges of a machine with this much memory: start and length in bytes.
#[must_use]
pub fn ranges(memory_mib: u64) -> Vec<(u64, u64)> {
    let bytes = memory_mib << 20;
    if bytes <= HOLE_START {
        vec![(0, bytes)]
    } else {
        vec![(0, HOLE_START), (HOLE_END, bytes - HOLE_START)]
    }
}

/// Maps guest memory. No page is touched and no swap is reserved.
///
/// # Errors
/// [`Error::Memory`].
pub fn map(memory_mib: u64) -> Result<GuestRam, Error> {
    let failed = |source: io::Error| Error::Memory {
        mebibytes: memory_mib,
        source,
    };
    let mut regions = Vec::new();
    for (start, length) in ranges(memory_mib) {
        let length = usize::try_from(length).map_err(|error| failed(io::Error::other(error)))?;
        let mapping = MmapRegionBuilder::<()>::new(length)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
            .map_err(|error| failed(io::Error::other(error)))?;
        // SAFETY: the range is the mapping just made; leaving it out of core dumps changes no
        // content. Best effort: an old kernel may not know the advice.
        unsafe { libc::madvise(mapping.as_ptr().cast(), length, libc::MADV_DONTDUMP) };
        let region = GuestRegionMmap::new(mapping, GuestAddress(start))
            .ok_or_else(|| failed(io::Error::other("the address range overflows")))?;
        regions.push(region);
    }
    GuestRam::from_regions(regions).map_err(|error| failed(io::Error::other(error)))
}

/// Makes the mapping the VM's memory.
///
/// # Errors
/// [`Error::Kvm`].
pub fn attach(vm: &VmFd, ram: &GuestRam) -> Result<(), Error> {
    for (slot, region) in (0_u32..).zip(ram.iter()) {
        let memory_region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the mapping is as long as the region says and lives until the process ends: the
        // VM's `Machine` holds it together with the VM's descriptor.
        unsafe { vm.set_user_memory_region(memory_region) }
            .map_err(Error::kvm("take the guest's memory"))?;
    }
    Ok(())
}
