//! A request on its way through the file operations that it takes.

use super::engine::{Action, Call};
use super::request::{Status, Work};
use crate::machine::memory::GuestRam;
use crate::virtio::buffers::Buffers;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// What is written where the file system cannot clear a range.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];
/// As many [`ZEROES`] at a time: 4 MiB.
const MAX_ZERO_RANGES: u64 = 64;

/// A request in the hands of the engine.
#[derive(Debug)]
pub(super) struct Job {
    /// Index of the disk.
    pub(super) disk: usize,
    /// The queue that it came from, if that is still there.
    pub(super) generation: u64,
    pub(super) head: u16,
    pub(super) status: Buffers,
    file: Arc<File>,
    step: Step,
    /// Whether the driver may take for written what is only in the host's cache.
    cached: bool,
    /// Bytes read for the guest.
    pub(super) filled: u32,
    /// Bytes moved either way.
    pub(super) moved: u64,
    ranges: Ranges,
}

/// The ranges of the operation that is running.
#[derive(Debug, Default)]
struct Ranges(Vec<libc::iovec>);

// SAFETY: the pointers lead into guest memory and into a static, which any thread may hand to the kernel.
unsafe impl Send for Ranges {}

#[derive(Debug)]
enum Step {
    Read { rest: Buffers, offset: u64 },
    Write { rest: Buffers, offset: u64 },
    Sync,
    Clear(Clear),
    Zero { offset: u64, length: u64 },
}

#[derive(Debug, Clone, Copy)]
struct Clear {
    mode: i32,
    offset: u64,
    length: u64,
    /// Nobody relies on it: a file system that cannot do it has done enough.
    hint: bool,
}

/// What a job needs besides its work.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) disk: usize,
    pub(super) generation: u64,
    pub(super) head: u16,
    pub(super) status: Buffers,
    pub(super) file: Arc<File>,
    pub(super) cached: bool,
}

/// How it goes on after an operation has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// With [`Job::call`].
    Call,
    /// It has ended.
    End(Status),
}

impl Job {
    /// A job, or the end of what needs no file operation.
    pub(super) fn new(origin: Origin, work: Work) -> Result<Self, (Status, Origin)> {
        let step = match work {
            Work::Read { to, .. } if to.is_empty() => return Err((Status::Ok, origin)),
            Work::Read { to, offset } => Step::Read { rest: to, offset },
            Work::Write { from, .. } if from.is_empty() => return Err((Status::Ok, origin)),
            Work::Write { from, offset } => Step::Write { rest: from, offset },
            Work::Flush => Step::Sync,
            Work::Discard { length: 0, .. } | Work::Zero { length: 0, .. } => {
                return Err((Status::Ok, origin));
            }
            Work::Discard { offset, length } => Step::Clear(Clear {
                mode: libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                offset,
                length,
                hint: true,
            }),
            Work::Zero {
                offset,
                length,
                unmap,
            } => {
                let how = if unmap {
                    libc::FALLOC_FL_PUNCH_HOLE
                } else {
                    libc::FALLOC_FL_ZERO_RANGE
                };
                Step::Clear(Clear {
                    mode: how | libc::FALLOC_FL_KEEP_SIZE,
                    offset,
                    length,
                    hint: false,
                })
            }
            Work::Identify { .. } => return Err((Status::Unsupported, origin)),
        };
        Ok(Self {
            disk: origin.disk,
            generation: origin.generation,
            head: origin.head,
            status: origin.status,
            file: origin.file,
            step,
            cached: origin.cached,
            filled: 0,
            moved: 0,
            ranges: Ranges::default(),
        })
    }

    /// The next operation. What it points to is this job's: it stays until the job is dropped or asked
    /// again, and the guest's memory as long as `ram`.
    pub(super) fn call(&mut self, ram: &GuestRam) -> Result<Call, Status> {
        let list = &mut self.ranges.0;
        let action = match &self.step {
            Step::Read { rest, offset } => {
                rest.iovecs(ram, list).map_err(|_| Status::IoError)?;
                Action::Read {
                    list: list.as_ptr(),
                    count: list.len() as u32,
                    offset: *offset,
                }
            }
            Step::Write { rest, offset } => {
                rest.iovecs(ram, list).map_err(|_| Status::IoError)?;
                Action::Write {
                    list: list.as_ptr(),
                    count: list.len() as u32,
                    offset: *offset,
                }
            }
            Step::Sync => Action::Sync,
            Step::Clear(clear) => Action::Allocate {
                mode: clear.mode,
                offset: clear.offset,
                length: clear.length,
            },
            Step::Zero { offset, length } => {
                zero_ranges(*length, list);
                Action::Write {
                    list: list.as_ptr(),
                    count: list.len() as u32,
                    offset: *offset,
                }
            }
        };
        Ok(Call {
            fd: self.file.as_raw_fd(),
            action,
        })
    }

    /// An operation has ended.
    pub(super) fn ended(&mut self, result: &io::Result<u32>) -> Next {
        let done = match result {
            Ok(done) => *done,
            Err(error) => return self.failed(error),
        };
        let whole = match &mut self.step {
            Step::Read { rest, offset } | Step::Write { rest, offset } => {
                let done = done.min(rest.len());
                rest.take_front(done);
                *offset += u64::from(done);
                self.moved += u64::from(done);
                rest.is_empty()
            }
            Step::Zero { offset, length } => {
                let done = u64::from(done).min(*length);
                *offset += done;
                *length -= done;
                *length == 0
            }
            Step::Clear(_) | Step::Sync => true,
        };
        if !whole && done == 0 {
            // The file has become shorter than the capacity.
            return Next::End(Status::IoError);
        }
        if !whole {
            return Next::Call;
        }
        match &self.step {
            Step::Read { .. } => {
                self.filled = u32::try_from(self.moved).unwrap_or(u32::MAX);
                Next::End(Status::Ok)
            }
            Step::Write { .. } | Step::Zero { .. } => self.written(),
            Step::Clear(clear) if !clear.hint => self.written(),
            Step::Clear(_) | Step::Sync => Next::End(Status::Ok),
        }
    }

    /// After the last byte was written: without a cache that the driver knows of, the host's is flushed.
    fn written(&mut self) -> Next {
        if self.cached {
            return Next::End(Status::Ok);
        }
        self.step = Step::Sync;
        Next::Call
    }

    fn failed(&mut self, error: &io::Error) -> Next {
        let code = error.raw_os_error();
        if matches!(code, Some(libc::EINTR | libc::EAGAIN)) {
            return Next::Call;
        }
        if let Step::Clear(clear) = self.step
            && code == Some(libc::EOPNOTSUPP)
        {
            if clear.hint {
                return Next::End(Status::Ok);
            }
            self.step = Step::Zero {
                offset: clear.offset,
                length: clear.length,
            };
            return Next::Call;
        }
        // Virtio has one status for all of them: EIO, ENOSPC, EFBIG, EDQUOT, ...
        Next::End(Status::IoError)
    }
}

fn zero_ranges(length: u64, list: &mut Vec<libc::iovec>) {
    list.clear();
    let block = ZEROES.len() as u64;
    let mut left = length.min(MAX_ZERO_RANGES * block);
    while left > 0 {
        let part = left.min(block);
        list.push(libc::iovec {
            // Only ever written from: the kernel does not change it.
            iov_base: ZEROES.as_ptr().cast_mut().cast(),
            iov_len: part as usize,
        });
        left -= part;
    }
}
