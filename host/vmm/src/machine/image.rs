//! Putting the kernel and the initramfs into guest memory.
//!
//! Whole pages are mapped from the file, privately, in the place of the memory's own: nothing is
//! copied, and all VMs of the node share what their guests do not write through the host's page
//! cache. Only the odd bytes at a segment's ends are copied. All reading is by offset, so a
//! descriptor whose position others share does no harm.
//!
//! The kernel is an ELF64 image with a PVH entry point (note XEN_ELFNOTE_PHYS32_ENTRY; x86/HVM
//! direct boot ABI, <https://xenbits.xen.org/docs/unstable/misc/pvh.html>).

use super::layout::HIGH_MEMORY;
use super::memory::GuestRam;
use crate::error::Error;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

const PAGE: u64 = 4096;
const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;
/// A kernel has about five program headers.
const MAX_PROGRAM_HEADERS: u16 = 64;
/// A kernel's notes take some hundred bytes.
const MAX_NOTES: u64 = 64 * 1024;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const EM_X86_64: u16 = 62;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// Where the kernel came to lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// The PVH entry point.
    pub entry: u64,
    /// First byte behind the kernel.
    pub end: u64,
}

/// Where the initramfs came to lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initrd {
    /// First byte.
    pub start: u64,
    /// Length in bytes; zero if there is none.
    pub length: u64,
}

/// Loads the kernel.
///
/// # Errors
/// [`Error::Kernel`].
pub fn load_kernel(ram: &GuestRam, file: &File) -> Result<Kernel, Error> {
    let refuse = |text: &str| Error::Kernel(text.to_owned());
    let mut header = [0; HEADER_SIZE];
    file.read_exact_at(&mut header, 0)
        .map_err(|_| refuse("it is too short for an ELF header"))?;
    if !header.starts_with(b"\x7fELF\x02\x01") || u16_at(&header, 18) != EM_X86_64 {
        return Err(refuse("it is not a 64-bit x86 ELF image"));
    }
    let (offset, size, count) = (
        u64_at(&header, 32),
        u16_at(&header, 54),
        u16_at(&header, 56),
    );
    if usize::from(size) != PROGRAM_HEADER_SIZE || count == 0 || count > MAX_PROGRAM_HEADERS {
        return Err(refuse("its program headers make no sense"));
    }
    let mut table = vec![0; PROGRAM_HEADER_SIZE * usize::from(count)];
    file.read_exact_at(&mut table, offset)
        .map_err(|_| refuse("its program headers lie behind its end"))?;

    let (mut entry, mut end) = (None, 0);
    for header in table.chunks_exact(PROGRAM_HEADER_SIZE) {
        match u32_at(header, 0) {
            PT_LOAD => end = end.max(load_segment(ram, file, header)?),
            PT_NOTE if entry.is_none() => entry = find_entry(file, header)?,
            _ => {}
        }
    }
    let entry = entry.ok_or_else(|| refuse("it has no PVH entry point (CONFIG_PVH)"))?;
    if !(HIGH_MEMORY..end).contains(&entry) {
        return Err(refuse("its entry point lies outside of it"));
    }
    Ok(Kernel { entry, end })
}

/// Loads one segment and returns its end in guest memory.
fn load_segment(ram: &GuestRam, file: &File, header: &[u8]) -> Result<u64, Error> {
    let refuse = |text: &str| Error::Kernel(text.to_owned());
    let (offset, start) = (u64_at(header, 8), u64_at(header, 24));
    let (file_size, memory_size) = (u64_at(header, 32), u64_at(header, 40));
    if memory_size == 0 {
        return Ok(0);
    }
    let end = start
        .checked_add(memory_size)
        .filter(|_| start >= HIGH_MEMORY && file_size <= memory_size)
        .ok_or_else(|| refuse("a segment has an impossible address or size"))?;
    let fits = usize::try_from(memory_size)
        .is_ok_and(|size| GuestMemoryBackend::check_range(ram, GuestAddress(start), size));
    if !fits {
        return Err(refuse("it does not fit into the guest's memory"));
    }
    place(ram, file, offset, start, file_size).map_err(|error| Error::Kernel(error.to_string()))?;
    Ok(end)
}

/// Reads the PVH entry point out of a note segment.
fn find_entry(file: &File, header: &[u8]) -> Result<Option<u64>, Error> {
    let (offset, size) = (u64_at(header, 8), u64_at(header, 32));
    let refuse = |text: &str| Error::Kernel(text.to_owned());
    if size > MAX_NOTES {
        return Err(refuse("its notes are too long"));
    }
    let mut notes = vec![0; usize::try_from(size).unwrap_or_default()];
    file.read_exact_at(&mut notes, offset)
        .map_err(|_| refuse("its notes lie behind its end"))?;
    let align = |length: u32| (length as usize).next_multiple_of(4);
    let mut rest = notes.as_slice();
    while rest.len() >= 12 {
        let (name_size, content_size) = (align(u32_at(rest, 0)), align(u32_at(rest, 4)));
        let kind = u32_at(rest, 8);
        let name = rest.get(12..12 + name_size);
        let content = rest.get(12 + name_size..12 + name_size + content_size);
        let (Some(name), Some(content)) = (name, content) else {
            return Err(refuse("a note is longer than all of them"));
        };
        if kind == XEN_ELFNOTE_PHYS32_ENTRY && name == b"Xen\0" {
            // The descriptor is as wide as the linker made it; the address is 32 bits.
            return Ok(Some(u64::from(u32_at(content, 0))));
        }
        rest = rest
            .get(12 + name_size + content_size..)
            .unwrap_or_default();
    }
    Ok(None)
}

/// Loads the initramfs at the end of low RAM, behind the kernel.
///
/// # Errors
/// [`Error::Initrd`].
pub fn load_initrd(
    ram: &GuestRam,
    file: &File,
    low_end: u64,
    kernel: Kernel,
) -> Result<Initrd, Error> {
    let refuse = |text: String| Error::Initrd(text);
    let length = file
        .metadata()
        .map_err(|error| refuse(error.to_string()))?
        .len();
    // Linux unpacks the initramfs into as much memory again; less than that cannot boot.
    let start = low_end
        .checked_sub(length)
        .map(|start| start / PAGE * PAGE)
        .filter(|start| *start >= kernel.end.next_multiple_of(PAGE))
        .ok_or_else(|| {
            refuse(format!(
                "its {length} bytes do not fit beside the kernel into {} MiB",
                low_end >> 20
            ))
        })?;
    place(ram, file, 0, start, length).map_err(|error| refuse(error.to_string()))?;
    Ok(Initrd { start, length })
}

/// Puts `length` bytes of `file` at `offset` to guest address `start`.
fn place(
    ram: &GuestRam,
    file: &File,
    offset: u64,
    start: u64,
    length: u64,
) -> Result<(), std::io::Error> {
    if length == 0 {
        return Ok(());
    }
    let file_length = file.metadata()?.len();
    let last = offset.checked_add(length);
    if last.is_none_or(|last| last > file_length) {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let end = start + length;
    let first_page = start.next_multiple_of(PAGE).min(end);
    let last_page = (end / PAGE * PAGE).max(first_page);
    let can_map = start % PAGE == offset % PAGE
        && map_pages(
            ram,
            file,
            offset + (first_page - start),
            first_page,
            last_page - first_page,
        )?;
    if can_map {
        copy(ram, file, offset, start, first_page - start)?;
        copy(
            ram,
            file,
            offset + (last_page - start),
            last_page,
            end - last_page,
        )
    } else {
        copy(ram, file, offset, start, length)
    }
}

/// Maps whole pages of the file over guest memory; `false` when this file cannot be mapped.
fn map_pages(
    ram: &GuestRam,
    file: &File,
    offset: u64,
    start: u64,
    length: u64,
) -> Result<bool, std::io::Error> {
    if length == 0 {
        return Ok(true);
    }
    let size = usize::try_from(length).map_err(std::io::Error::other)?;
    let slice = ram
        .get_slice(GuestAddress(start), size)
        .map_err(std::io::Error::other)?;
    let offset = i64::try_from(offset).map_err(std::io::Error::other)?;
    // SAFETY: `get_slice` has shown that the whole range lies in one region of guest memory, which
    // this crate mapped and only reaches through volatile accesses; replacing its pages keeps the
    // range mapped readable and writable, so no pointer into it becomes invalid. Start and length
    // are multiples of the page size.
    let result = unsafe {
        libc::mmap(
            slice.ptr_guard_mut().as_ptr().cast(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            offset,
        )
    };
    if result == libc::MAP_FAILED {
        let error = std::io::Error::last_os_error();
        // A file system without mmap is read instead. MAP_FIXED may have unmapped the range before
        // it failed for another reason, so that is an end.
        return match error.raw_os_error() {
            Some(libc::ENODEV) => Ok(false),
            _ => Err(error),
        };
    }
    Ok(true)
}

/// Copies bytes of the file into guest memory.
fn copy(
    ram: &GuestRam,
    file: &File,
    mut offset: u64,
    mut start: u64,
    length: u64,
) -> Result<(), std::io::Error> {
    let mut buffer = vec![0; usize::try_from(length.min(64 * 1024)).unwrap_or_default()];
    let mut left = length;
    while left > 0 {
        let size = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let part = buffer.get_mut(..size).unwrap_or_default();
        file.read_exact_at(part, offset)?;
        ram.write_slice(part, GuestAddress(start))
            .map_err(std::io::Error::other)?;
        left -= size as u64;
        offset += size as u64;
        start += size as u64;
    }
    Ok(())
}

fn bytes_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes
        .get(offset..offset + N)
        .and_then(|slice| slice.try_into().ok())
        .unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(bytes_at(bytes, offset))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes_at(bytes, offset))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes_at(bytes, offset))
}
