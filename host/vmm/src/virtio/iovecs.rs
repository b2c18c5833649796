//! Ranges of guest memory in the form that the kernel's vectored calls take.
//!
//! Data moves between a descriptor and guest memory in one system call, without a copy of this
//! process's own and, once a list has grown to its working size, without an allocation.

use super::buffers::{ChainError, MAX_IOVECS};
use crate::machine::memory::GuestRam;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// A list of ranges, taken from the front.
///
/// What the ranges point at is guest memory, or memory of this process that [`Iovecs::with_tail`] adds
/// for one call. It is never made a reference: only the kernel, and volatile copies here, touch it.
#[derive(Debug)]
pub struct Iovecs {
    list: Vec<libc::iovec>,
    /// How many entries of the list have been taken.
    start: usize,
    /// Keeps what the ranges point at mapped.
    _ram: GuestRam,
}

// SAFETY: the pointers are addresses of guest memory, which every thread may use as this type does, and
// `_ram` keeps it mapped.
unsafe impl Send for Iovecs {}

impl Iovecs {
    /// An empty list for ranges of this memory.
    #[must_use]
    pub fn new(ram: &GuestRam) -> Self {
        Self {
            list: Vec::new(),
            start: 0,
            _ram: ram.clone(),
        }
    }

    /// How many ranges there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len() - self.start
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all ranges.
    pub fn clear(&mut self) {
        self.list.clear();
        self.start = 0;
    }

    /// Adds a range of guest memory, split where mappings meet. `ram` is the memory of [`Iovecs::new`].
    pub(super) fn push(
        &mut self,
        ram: &GuestRam,
        address: GuestAddress,
        length: u32,
    ) -> Result<(), ChainError> {
        for slice in ram.get_slices(address, length as usize) {
            let slice = slice.map_err(ChainError::Memory)?;
            self.list.push(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
        }
        Ok(())
    }

    /// Removes the first `count` ranges.
    pub fn drop_front(&mut self, count: usize) {
        self.start = self.list.len().min(self.start + count);
        if self.start == self.list.len() {
            self.clear();
        } else if self.start >= MAX_IOVECS {
            self.list.drain(..self.start);
            self.start = 0;
        }
    }

    /// Removes the ranges behind the first `count`.
    pub fn truncate(&mut self, count: usize) {
        self.list.truncate(self.start + count);
    }

    /// Removes the first `count` bytes, or all if there are fewer.
    pub fn drop_bytes(&mut self, count: usize) {
        let mut left = count;
        let mut whole = 0;
        for part in self.list.iter_mut().skip(self.start) {
            if left < part.iov_len {
                // SAFETY: `left` is within the range.
                part.iov_base = unsafe { part.iov_base.cast::<u8>().add(left) }.cast();
                part.iov_len -= left;
                break;
            }
            left -= part.iov_len;
            whole += 1;
        }
        self.drop_front(whole);
    }

    /// Leaves only the first `count` bytes.
    pub fn keep_bytes(&mut self, count: usize) {
        let mut left = count;
        let mut whole = 0;
        for part in self.list.iter_mut().skip(self.start) {
            if left == 0 {
                break;
            }
            part.iov_len = part.iov_len.min(left);
            left -= part.iov_len;
            whole += 1;
        }
        self.truncate(whole);
    }

    /// Moves the first `count` bytes, or all if there are fewer, to the end of another list; answers how
    /// many there were. Both are of the same memory.
    pub fn move_front(&mut self, count: usize, to: &mut Self) -> usize {
        let mut left = count;
        for part in self.list.iter().skip(self.start) {
            if left == 0 {
                break;
            }
            let length = part.iov_len.min(left);
            to.list.push(libc::iovec {
                iov_base: part.iov_base,
                iov_len: length,
            });
            left -= length;
        }
        self.drop_bytes(count - left);
        count - left
    }

    /// Copies bytes out, from `offset` on; answers how many there were.
    pub fn copy_out(&self, offset: usize, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        self.parts(offset, bytes.len(), |pointer, length| {
            for (to, index) in bytes.iter_mut().skip(done).zip(0..length) {
                // SAFETY: `length` bytes from `pointer` are guest memory that `_ram` keeps mapped; the
                // guest may change them meanwhile, so they are read one by one as volatile.
                *to = unsafe { pointer.add(index).read_volatile() };
            }
            done += length;
        });
        done
    }

    /// Copies bytes in, from `offset` on; answers for how many there was room.
    pub fn copy_in(&self, offset: usize, bytes: &[u8]) -> usize {
        let mut done = 0;
        self.parts(offset, bytes.len(), |pointer, length| {
            for (from, index) in bytes.iter().skip(done).zip(0..length) {
                // SAFETY: as in `copy_out`.
                unsafe { pointer.add(index).write_volatile(*from) };
            }
            done += length;
        });
        done
    }

    fn parts(&self, offset: usize, length: usize, mut each: impl FnMut(*mut u8, usize)) {
        let (mut skip, mut left) = (offset, length);
        for part in self.list.iter().skip(self.start) {
            if left == 0 {
                return;
            }
            if skip >= part.iov_len {
                skip -= part.iov_len;
                continue;
            }
            let count = left.min(part.iov_len - skip);
            // SAFETY: `skip` is within the range.
            each(unsafe { part.iov_base.cast::<u8>().add(skip) }, count);
            skip = 0;
            left -= count;
        }
    }

    /// `readv(2)` into the first `count` ranges and then into `tail`, which may be empty.
    ///
    /// # Errors
    /// What the call answers; interruptions are retried.
    pub fn read_with_tail(
        &mut self,
        fd: BorrowedFd<'_>,
        count: usize,
        tail: &mut [u8],
    ) -> Result<usize, io::Error> {
        let end = self.list.len().min(self.start + count);
        // The entry behind the ranges that count, if there is one, makes room for the call.
        let moved = self.list.get(end).copied();
        let own = libc::iovec {
            iov_base: tail.as_mut_ptr().cast(),
            iov_len: tail.len(),
        };
        match self.list.get_mut(end) {
            Some(entry) => *entry = own,
            None => self.list.push(own),
        }
        let result = self.call(fd, end + 1 - self.start, libc::readv);
        match (moved, self.list.get_mut(end)) {
            (Some(moved), Some(entry)) => *entry = moved,
            _ => self.list.truncate(end),
        }
        result
    }

    /// `readv(2)` of at most `most` bytes.
    ///
    /// # Errors
    /// What the call answers; interruptions are retried.
    pub fn read(&mut self, fd: BorrowedFd<'_>, most: usize) -> Result<usize, io::Error> {
        let (mut left, mut count, mut cut) = (most, 0, 0);
        for part in self.list.iter_mut().skip(self.start).take(MAX_IOVECS) {
            if left == 0 {
                break;
            }
            count += 1;
            cut = part.iov_len.saturating_sub(left);
            part.iov_len -= cut;
            left -= part.iov_len;
        }
        let result = self.call(fd, count, libc::readv);
        // Only the last entry was made shorter.
        let last = (self.start + count).checked_sub(1);
        if let Some(part) = last.and_then(|last| self.list.get_mut(last)) {
            part.iov_len += cut;
        }
        result
    }

    /// `writev(2)` from all ranges, the first [`MAX_IOVECS`] at the most.
    ///
    /// # Errors
    /// What the call answers; interruptions are retried.
    pub fn write(&self, fd: BorrowedFd<'_>) -> Result<usize, io::Error> {
        self.call(fd, self.len(), libc::writev)
    }

    /// `writev(2)` from `front` and then from all ranges but for their first `skip` bytes, which `front`
    /// stands for.
    ///
    /// # Errors
    /// What the call answers; interruptions are retried.
    pub fn write_replacing(
        &mut self,
        fd: BorrowedFd<'_>,
        front: &mut [u8],
        skip: usize,
    ) -> Result<usize, io::Error> {
        self.drop_bytes(skip);
        let own = libc::iovec {
            iov_base: front.as_mut_ptr().cast(),
            iov_len: front.len(),
        };
        self.list.insert(self.start, own);
        let result = self.write(fd);
        self.clear();
        result
    }

    fn call(
        &self,
        fd: BorrowedFd<'_>,
        count: usize,
        call: unsafe extern "C" fn(i32, *const libc::iovec, i32) -> isize,
    ) -> Result<usize, io::Error> {
        let list = self.list.get(self.start..).unwrap_or_default();
        // At most MAX_IOVECS, so the conversion keeps the value.
        let count = count.min(list.len()).min(MAX_IOVECS) as i32;
        loop {
            // SAFETY: `list` holds `count` entries. Each was taken from `get_slices`, so it lies in one
            // mapping of guest memory, which `_ram` keeps; or it is memory of this process that the
            // caller has borrowed for the call. The kernel alone touches the bytes, and that the guest
            // may change its own meanwhile does this process no harm.
            let result = unsafe { call(fd.as_raw_fd(), list.as_ptr(), count) };
            if let Ok(done) = usize::try_from(result) {
                return Ok(done);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

#[cfg(test)]
mod tests;
