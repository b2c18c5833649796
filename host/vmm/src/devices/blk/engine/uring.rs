//! File operations by io_uring(7).
//!
//! The ring can do what disks need and nothing else: it is created disabled, restricted
//! (IORING_REGISTER_RESTRICTIONS, Linux 5.10), and only then enabled, after which nothing can be
//! registered with it any more. That matters because operations of a ring do not pass the thread's
//! seccomp filter. A kernel that cannot restrict it is not given a ring.

use super::{Action, Call, Done, MAX_RUNNING};
use crate::error::Error;
use io_uring::register::{Probe, Restriction};
use io_uring::{IoUring, opcode, squeue, types};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Entries of the submission queue: a fuller batch is submitted in parts.
const ENTRIES: u32 = 64;
/// The kernel's threads for what it cannot do without waiting: for files and block devices, and for
/// anything else, which there is not. Their number is within the process's limit of threads.
const WORKERS: [u32; 2] = [6, 1];
const OPERATIONS: [u8; 4] = [
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
];

/// A restricted ring.
pub(in super::super) struct Uring {
    ring: IoUring,
    /// Operations that the kernel has not given back yet.
    running: usize,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring")
            .field("running", &self.running)
            .finish_non_exhaustive()
    }
}

impl Uring {
    /// Makes a ring, restricts and enables it.
    pub(super) fn new() -> io::Result<Self> {
        let ring = build(true).or_else(|_| build(false))?;
        let submitter = ring.submitter();
        let mut probe = Probe::new();
        submitter.register_probe(&mut probe)?;
        if !OPERATIONS.into_iter().all(|code| probe.is_supported(code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        submitter.register_iowq_max_workers(&mut WORKERS.clone())?;
        let mut restrictions = OPERATIONS.map(Restriction::sqe_op);
        submitter.register_restrictions(&mut restrictions)?;
        submitter.register_enable_rings()?;
        Ok(Self { ring, running: 0 })
    }

    /// See [`super::Engine::push`], whose conditions are this one's.
    pub(super) unsafe fn push(&mut self, token: usize, call: &Call) -> Result<(), Error> {
        let fd = types::Fd(call.fd);
        let entry: squeue::Entry = match call.action {
            Action::Read {
                list,
                count,
                offset,
            } => opcode::Readv::new(fd, list, count).offset(offset).build(),
            Action::Write {
                list,
                count,
                offset,
            } => opcode::Writev::new(fd, list, count).offset(offset).build(),
            Action::Sync => opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            Action::Allocate {
                mode,
                offset,
                length,
            } => opcode::Fallocate::new(fd, length)
                .offset(offset)
                .mode(mode)
                .build(),
        };
        let entry = entry.user_data(token as u64);
        // SAFETY: what the entry points to stays until the operation has ended: the caller's promise.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            // The queue is full. Waiting for an end makes room where submitting alone does not.
            if !self.submit()? {
                self.wait()?;
            }
        }
        self.running += 1;
        Ok(())
    }

    /// See [`super::Engine::submit`].
    pub(super) fn submit(&mut self) -> Result<bool, Error> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // Short of memory, or ends must be reaped first.
                    Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => return Ok(false),
                    _ => return Err(Error::host("start a disk's operation")(error)),
                },
            }
        }
        Ok(true)
    }

    fn wait(&mut self) -> Result<(), Error> {
        match self.ring.submit_and_wait(1) {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => Ok(()),
                _ => Err(Error::host("wait for a disk's operation")(error)),
            },
        }
    }

    /// See [`super::Engine::reap`].
    pub(super) fn reap(&mut self, done: &mut Vec<Done>) {
        for entry in self.ring.completion() {
            self.running = self.running.saturating_sub(1);
            let result = entry.result();
            done.push(Done {
                // It came from a `usize`.
                token: entry.user_data() as usize,
                result: u32::try_from(result)
                    .map_err(|_| io::Error::from_raw_os_error(result.saturating_neg())),
            });
        }
    }

    /// See [`super::Engine::fd`].
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the ring, from which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

#[cfg(test)]
impl Uring {
    /// What the kernel answers to an entry.
    pub(super) fn try_entry(&mut self, entry: squeue::Entry) -> i32 {
        // SAFETY: the entries of the tests point to nothing but constants.
        unsafe { self.ring.submission().push(&entry) }.unwrap();
        self.ring.submit_and_wait(1).unwrap();
        self.ring.completion().next().unwrap().result()
    }

    /// Whether the kernel refuses to register anything more.
    pub(super) fn cannot_register(&self) -> bool {
        let refused = self.ring.submitter().register_files(&[0]);
        refused.unwrap_err().raw_os_error() == Some(libc::EACCES)
    }
}

impl Drop for Uring {
    /// Waits for what the kernel still does with the memory of others.
    fn drop(&mut self) {
        let mut done = Vec::new();
        while self.running > 0 && self.wait().is_ok() {
            self.reap(&mut done);
        }
    }
}

/// `quiet`: the kernel does not interrupt the thread to tell of an end; it is told with the next system
/// call, and wakes it from waiting. Linux 5.19.
fn build(quiet: bool) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    // An overflow of the completion queue would cost the kernel's memory.
    builder
        .setup_cqsize(MAX_RUNNING as u32)
        .setup_r_disabled()
        .dontfork();
    if quiet {
        builder.setup_coop_taskrun();
    }
    builder.build(ENTRIES)
}
