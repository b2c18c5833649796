//! Guest memory: one file in memory that has no name and that nobody else holds, its pages allocated
//! when the guest touches them.
//!
//! A file, because a machine that shall become a template can then lend its memory for others to map
//! copy-on-write. It is mapped shared, for a private mapping would copy each page on the first write
//! and leave the file empty. What the guest frees is cut out of the file (see [`discard`]):
//! MADV_DONTNEED would only unmap it. `docs/decisions/guest-memory.md` has the figures.

use super::layout::{HOLE_END, HOLE_START};
use crate::error::Error;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
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

/// Makes and maps guest memory: the ranges one after the other in one file. No page is touched and none is
/// reserved.
///
/// # Errors
/// [`Error::Memory`].
pub fn map(memory_mib: u64) -> Result<GuestRam, Error> {
    let failed = |source: io::Error| Error::Memory {
        mebibytes: memory_mib,
        source,
    };
    let file = Arc::new(file(memory_mib << 20).map_err(failed)?);
    let mut offset = 0;
    let mut regions = Vec::new();
    for (start, length) in ranges(memory_mib) {
        let size = usize::try_from(length).map_err(|error| failed(io::Error::other(error)))?;
        let mapping = MmapRegionBuilder::<()>::new(size)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(Arc::clone(&file), offset))
            .build()
            .map_err(|error| failed(io::Error::other(error)))?;
        // SAFETY: the range is the mapping just made; leaving it out of core dumps changes no
        // content. Best effort: an old kernel may not know the advice.
        unsafe { libc::madvise(mapping.as_ptr().cast(), size, libc::MADV_DONTDUMP) };
        let region = GuestRegionMmap::new(mapping, GuestAddress(start))
            .ok_or_else(|| failed(io::Error::other("the address range overflows")))?;
        regions.push(region);
        offset += length;
    }
    GuestRam::from_regions(regions).map_err(|error| failed(io::Error::other(error)))
}

/// A file in memory whose size is for good. Further seals can be added: against writing, once the
/// machine has become a template.
fn file(bytes: u64) -> Result<File, io::Error> {
    let make = |flags| rustix::fs::memfd_create("guest-memory", MemfdFlags::CLOEXEC | flags);
    // Memory never becomes a program; kernels before 6.3 do not know how to say so.
    let file = match make(MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => make(MemfdFlags::ALLOW_SEALING)?,
        other => other?,
    };
    let file = File::from(file);
    file.set_len(bytes)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK)?;
    Ok(file)
}

/// How many bytes of guest memory the host holds, in memory or in its swap space. Pages of the kernel's
/// image and the initramfs, which are mapped from their files, are not counted, nor is what the guest has changed in
/// them.
///
/// # Errors
/// What `statx(2)` answers.
pub fn resident(ram: &GuestRam) -> Result<u64, io::Error> {
    // All regions are of one file.
    let file = ram.iter().find_map(|region| region.file_offset());
    file.map_or(Ok(0), |at| Ok(at.file().metadata()?.blocks() * 512))
}

/// Forgets the content of all whole pages of a range: the host takes them, and the guest finds zeroes
/// when it touches them again.
///
/// # Errors
/// When the range is not guest memory; what `madvise(2)` or `mmap(2)` answer.
pub fn discard(ram: &GuestRam, address: GuestAddress, length: usize) -> Result<(), io::Error> {
    let page = rustix::param::page_size();
    let mut address = address;
    for slice in ram.get_slices(address, length) {
        let slice = slice.map_err(io::Error::other)?;
        // A slice lies within one region.
        let region = ram.find_region(address);
        address = GuestAddress(address.0.wrapping_add(slice.len() as u64));
        let guard = slice.ptr_guard_mut();
        let skip = guard.as_ptr().align_offset(page);
        let (Some(region), Some(whole)) = (region, slice.len().checked_sub(skip)) else {
            continue;
        };
        let whole = whole - whole % page;
        if whole > 0 {
            // `skip` bytes further is still in the slice.
            discard_pages(region, guard.as_ptr().wrapping_add(skip), whole)?;
        }
    }
    Ok(())
}

/// Discards whole pages that lie in one region.
fn discard_pages(region: &GuestRegionMmap, start: *mut u8, length: usize) -> Result<(), io::Error> {
    let advise = |advice| {
        // SAFETY: the range is guest memory, whole pages of one region's mapping; no reference to its
        // bytes exists in this process, and its content is what the guest has given up.
        match unsafe { libc::madvise(start.cast(), length, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    let file = match region.file_offset() {
        Some(file) if region.flags() & libc::MAP_SHARED != 0 => file,
        // Private to this process, where it is only to be unmapped.
        _ => return advise(libc::MADV_DONTNEED),
    };
    match advise(libc::MADV_REMOVE) {
        // Pages of the kernel's image or the initramfs lie here, privately mapped (see `image`). What
        // was freed is not an image any more: the memory's own file takes their place.
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            let within = start as u64 - region.as_ptr() as u64;
            let offset = i64::try_from(file.start() + within).map_err(io::Error::other)?;
            // SAFETY: replaces pages of guest memory, as above, by others of the same protection at
            // the place of the file that belongs to them; the range stays mapped all the time.
            let result = unsafe {
                libc::mmap(
                    start.cast(),
                    length,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE,
                    file.file().as_raw_fd(),
                    offset,
                )
            };
            if result == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let _ = advise(libc::MADV_DONTDUMP);
            advise(libc::MADV_REMOVE)
        }
        other => other,
    }
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

#[cfg(test)]
mod tests;
