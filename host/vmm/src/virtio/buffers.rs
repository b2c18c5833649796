//! Descriptor chains (virtio 1.2, 2.7.5) as checked lists of guest ranges.
//!
//! A chain is walked once, when it is taken from the queue. What comes out lies wholly in guest
//! memory, has its readable part before its writable one, and is no longer than the queue. The
//! descriptors are not looked at again. All access goes through guest addresses; where a system call
//! needs pointers they are made for that call, split at the borders of memory regions.

use crate::machine::memory::{self, GuestRam};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, VolatileSlice};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const DESCRIPTOR_SIZE: u64 = 16;
/// Linux takes at most this many ranges in a system call (IOV_MAX).
pub(super) const MAX_IOVECS: usize = 1024;

/// What a driver can do wrong with a descriptor chain.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// A descriptor number is not below the table's size.
    #[error("Descriptor {0} does not exist")]
    Index(u16),
    /// The chain has more descriptors than the queue: a loop, or longer than 2.7.5.3.1 permits.
    #[error("The chain is longer than the queue")]
    TooLong,
    /// A readable descriptor follows a writable one (2.7.4.2).
    #[error("A readable descriptor follows a writable one")]
    Order,
    /// An indirect table is nested, empty, oddly sized, or continued (2.7.5.3.1).
    #[error("An indirect table is malformed")]
    Indirect,
    /// A buffer does not lie in guest memory.
    #[error("A buffer at {0:#x} of {1} bytes lies outside of guest memory")]
    Range(u64, u32),
    /// The chain describes more than 4 GiB.
    #[error("The chain describes more than 4 GiB")]
    TooLarge,
    /// A descriptor could not be read.
    #[error("A descriptor could not be read")]
    Memory(#[from] GuestMemoryError),
}

/// A descriptor chain.
#[derive(Debug)]
pub struct Chain {
    /// The first descriptor, by which the chain is given back.
    pub head: u16,
    /// What the device may read.
    pub readable: Buffers,
    /// What the device may write.
    pub writable: Buffers,
}

struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    /// Reads descriptor `index` of a table, once.
    fn read(ram: &GuestRam, table: GuestAddress, index: u16) -> Result<Self, ChainError> {
        let address = table
            .0
            .checked_add(u64::from(index) * DESCRIPTOR_SIZE)
            .ok_or(ChainError::Indirect)?;
        let mut bytes = [0; 16];
        ram.read_slice(&mut bytes, GuestAddress(address))?;
        let [
            a0,
            a1,
            a2,
            a3,
            a4,
            a5,
            a6,
            a7,
            l0,
            l1,
            l2,
            l3,
            f0,
            f1,
            n0,
            n1,
        ] = bytes;
        Ok(Self {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            length: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        })
    }
}

impl Chain {
    /// Reads the chain that starts at `head` in a table of `size` descriptors.
    pub(super) fn read(
        ram: &GuestRam,
        table: GuestAddress,
        size: u16,
        head: u16,
    ) -> Result<Self, ChainError> {
        let mut chain = Self {
            head,
            readable: Buffers::default(),
            writable: Buffers::default(),
        };
        let lengths = walk(ram, table, size, head, |address, length, writable| {
            let part = if writable {
                &mut chain.writable
            } else {
                &mut chain.readable
            };
            part.ranges.push_back((address, length));
            Ok(())
        })?;
        (chain.readable.length, chain.writable.length) = lengths;
        Ok(chain)
    }
}

/// Walks the chain that starts at `head` in a table of `size` descriptors, each of which is read once
/// and checked before `visit` gets its address, its length and whether the device writes it. Answers how
/// many bytes the device may read and write.
pub(super) fn walk(
    ram: &GuestRam,
    table: GuestAddress,
    size: u16,
    head: u16,
    mut visit: impl FnMut(GuestAddress, u32, bool) -> Result<(), ChainError>,
) -> Result<(u32, u32), ChainError> {
    let (mut table, mut table_size) = (table, u32::from(size));
    let (mut index, mut indirect) = (head, false);
    let (mut readable, mut writable) = (0_u32, 0_u32);
    let (mut ranges, mut writes) = (0_u16, false);
    // Every descriptor counts, so a loop ends here.
    for _ in 0..=u32::from(size) {
        if u32::from(index) >= table_size {
            return Err(ChainError::Index(index));
        }
        let descriptor = Descriptor::read(ram, table, index)?;
        let (address, length) = (descriptor.address, descriptor.length);
        if descriptor.flags & INDIRECT != 0 {
            let usable = !indirect
                && descriptor.flags & NEXT == 0
                && length != 0
                && u64::from(length) % DESCRIPTOR_SIZE == 0;
            if !usable {
                return Err(ChainError::Indirect);
            }
            indirect = true;
            table = GuestAddress(address);
            table_size = length / DESCRIPTOR_SIZE as u32;
            index = 0;
            continue;
        }
        if ranges >= size {
            return Err(ChainError::TooLong);
        }
        ranges += 1;
        let write = descriptor.flags & WRITE != 0;
        if writes && !write {
            return Err(ChainError::Order);
        }
        writes = write;
        let address = GuestAddress(address);
        if !GuestMemoryBackend::check_range(ram, address, length as usize) {
            return Err(ChainError::Range(address.0, length));
        }
        let sum = if write { &mut writable } else { &mut readable };
        *sum = sum.checked_add(length).ok_or(ChainError::TooLarge)?;
        visit(address, length, write)?;
        if descriptor.flags & NEXT == 0 {
            return Ok((readable, writable));
        }
        index = descriptor.next;
    }
    Err(ChainError::TooLong)
}

/// Ranges of guest memory, read or written from the front.
#[derive(Debug, Clone, Default)]
pub struct Buffers {
    ranges: VecDeque<(GuestAddress, u32)>,
    length: u32,
}

impl Buffers {
    /// Where they begin.
    #[cfg(test)]
    pub(crate) fn start(&self) -> Option<u64> {
        self.ranges.front().map(|(address, _)| address.0)
    }

    /// How many bytes are left.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.length
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Removes the first `count` bytes, or all if there are fewer, and returns them.
    pub fn take_front(&mut self, count: u32) -> Self {
        let mut taken = Self::default();
        let mut left = count.min(self.length);
        while left > 0 {
            let Some((address, length)) = self.ranges.pop_front() else {
                break;
            };
            let part = length.min(left);
            if part > 0 {
                taken.ranges.push_back((address, part));
            }
            if part < length {
                // The range was checked, so its inner addresses exist.
                let rest = GuestAddress(address.0.wrapping_add(u64::from(part)));
                self.ranges.push_front((rest, length - part));
            }
            left -= part;
            taken.length += part;
            self.length -= part;
        }
        taken
    }

    /// Removes the last `count` bytes and returns them; `None` when there are fewer.
    pub fn take_back(&mut self, count: u32) -> Option<Self> {
        let front = self.length.checked_sub(count)?;
        let front = self.take_front(front);
        Some(std::mem::replace(self, front))
    }

    /// Copies the first bytes out and removes them.
    ///
    /// # Errors
    /// When there are fewer than `bytes.len()`; nothing is removed then.
    pub fn read(&mut self, ram: &GuestRam, bytes: &mut [u8]) -> Result<(), io::Error> {
        let part = self.exactly(bytes.len())?;
        let mut rest = bytes;
        for (address, length) in part.ranges {
            let (now, later) = rest.split_at_mut(rest.len().min(length as usize));
            ram.read_slice(now, address).map_err(io::Error::other)?;
            rest = later;
        }
        Ok(())
    }

    /// Copies bytes to the front and removes the room that they took.
    ///
    /// # Errors
    /// When there is room for fewer than `bytes.len()`; nothing is written then.
    pub fn write(&mut self, ram: &GuestRam, bytes: &[u8]) -> Result<(), io::Error> {
        let part = self.exactly(bytes.len())?;
        let mut rest = bytes;
        for (address, length) in part.ranges {
            let (now, later) = rest.split_at(rest.len().min(length as usize));
            ram.write_slice(now, address).map_err(io::Error::other)?;
            rest = later;
        }
        Ok(())
    }

    fn exactly(&mut self, count: usize) -> Result<Self, io::Error> {
        match u32::try_from(count) {
            Ok(count) if count <= self.length => Ok(self.take_front(count)),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Copies all bytes to a place in another memory.
    ///
    /// # Errors
    /// When there is no room for them there.
    pub fn copy_to(
        &mut self,
        ram: &GuestRam,
        to: &GuestRam,
        at: GuestAddress,
    ) -> Result<(), GuestMemoryError> {
        self.copy(ram, to, at, |here, there| {
            here.copy_to_volatile_slice(there)
        })
    }

    /// Fills all bytes from a place in another memory.
    ///
    /// # Errors
    /// When there are fewer there.
    pub fn copy_from(
        &mut self,
        ram: &GuestRam,
        from: &GuestRam,
        at: GuestAddress,
    ) -> Result<(), GuestMemoryError> {
        self.copy(ram, from, at, |here, there| {
            there.copy_to_volatile_slice(here)
        })
    }

    fn copy(
        &self,
        ram: &GuestRam,
        other: &GuestRam,
        at: GuestAddress,
        copy: impl Fn(VolatileSlice<'_>, VolatileSlice<'_>),
    ) -> Result<(), GuestMemoryError> {
        let mut at = at;
        for (address, length) in &self.ranges {
            for here in ram.get_slices(*address, *length as usize) {
                let here = here?;
                let there = other.get_slice(at, here.len())?;
                copy(here, there);
                // The slice is within the memory, so the sum is at most its end.
                at = GuestAddress(at.0.wrapping_add(here.len() as u64));
            }
        }
        Ok(())
    }

    /// Forgets the content of all whole pages in the ranges: the host takes them, and the guest finds
    /// zeroes when it touches them again.
    ///
    /// # Errors
    /// What `madvise(2)` answers.
    pub fn discard(&self, ram: &GuestRam) -> Result<(), io::Error> {
        for (address, length) in &self.ranges {
            memory::discard(ram, *address, *length as usize)?;
        }
        Ok(())
    }

    /// Fills `list` with the ranges as a system call wants them, the first [`MAX_IOVECS`] at the most,
    /// split where memory regions meet. Each points into a mapping that lives as long as `ram`.
    ///
    /// # Errors
    /// A range does not lie in guest memory, which was checked when the chain was read.
    pub fn iovecs(&self, ram: &GuestRam, list: &mut Vec<libc::iovec>) -> Result<(), io::Error> {
        list.clear();
        for (address, length) in &self.ranges {
            for slice in ram.get_slices(*address, *length as usize) {
                let slice = slice.map_err(io::Error::other)?;
                list.push(libc::iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                });
            }
        }
        list.truncate(MAX_IOVECS);
        Ok(())
    }

    /// Runs a vectored system call over all of the ranges, the first [`MAX_IOVECS`] at the most.
    ///
    /// # Errors
    /// What the call answers; interruptions are retried.
    pub fn vectored(
        &self,
        ram: &GuestRam,
        fd: BorrowedFd<'_>,
        call: Call,
    ) -> Result<u32, io::Error> {
        let mut iovecs = Vec::with_capacity(self.ranges.len());
        self.iovecs(ram, &mut iovecs)?;
        // At most MAX_IOVECS, so the conversion keeps the value.
        let count = iovecs.len() as i32;
        loop {
            let (fd, list) = (fd.as_raw_fd(), iovecs.as_ptr());
            // SAFETY: every range was just taken from `get_slices`, so it lies in one mapping of
            // guest memory, which lives as long as `ram`; the kernel alone touches the bytes, which
            // the guest may change meanwhile without harm to this process. `list` holds `count`
            // entries.
            let result = unsafe {
                match call {
                    Call::ReadAt(offset) => libc::preadv(fd, list, count, offset),
                    Call::WriteAt(offset) => libc::pwritev(fd, list, count, offset),
                    Call::Read => libc::readv(fd, list, count),
                    Call::Write => libc::writev(fd, list, count),
                }
            };
            if let Ok(done) = u32::try_from(result) {
                return Ok(done);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

/// A vectored system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// `preadv(2)` at an offset.
    ReadAt(i64),
    /// `pwritev(2)` at an offset.
    WriteAt(i64),
    /// `readv(2)`.
    Read,
    /// `writev(2)`.
    Write,
}

#[cfg(test)]
mod tests;
