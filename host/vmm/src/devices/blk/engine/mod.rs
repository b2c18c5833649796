//! Where the disks' file operations are done: several at a time, without the thread that asks for them
//! waiting for any.
//!
//! [`Uring`] where the kernel lets this process have an io_uring, [`Pool`] of threads otherwise; which
//! one is found out once, when the VMM starts ([`Engine::new`]). Operations may end in any order.

#[cfg(test)]
pub(super) mod held;
mod pool;
mod uring;

use crate::error::Error;
use pool::Pool;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use uring::Uring;

/// The most operations at a time, of all disks together.
pub(super) const MAX_RUNNING: usize = 256;

/// Threads that an engine may need at a time, the kernel's for an io_uring included.
pub const MAX_THREADS: u64 = 8;

/// A file operation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    /// The file.
    pub(super) fd: RawFd,
    /// What to do with it.
    pub(super) action: Action,
}

/// What to do with a file. Lists are of `count` ranges.
#[derive(Debug, Clone, Copy)]
pub(super) enum Action {
    /// `preadv(2)`.
    Read {
        list: *const libc::iovec,
        count: u32,
        offset: u64,
    },
    /// `pwritev(2)`.
    Write {
        list: *const libc::iovec,
        count: u32,
        offset: u64,
    },
    /// `fdatasync(2)`.
    Sync,
    /// `fallocate(2)`.
    Allocate { mode: i32, offset: u64, length: u64 },
}

// SAFETY: the pointers are only handed to the kernel, and what they point to does not depend on the
// thread: see `Engine::push`.
unsafe impl Send for Call {}

/// An operation that has ended.
#[derive(Debug)]
pub(super) struct Done {
    /// As it was given to [`Engine::push`].
    pub(super) token: usize,
    /// Bytes moved, or the error.
    pub(super) result: io::Result<u32>,
}

/// The way file operations are done.
#[derive(Debug)]
pub(super) enum Engine {
    Uring(Box<Uring>),
    Pool(Pool),
    #[cfg(test)]
    Held(held::Held),
}

/// Which [`Engine`] to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// An io_uring.
    Uring,
    /// Threads.
    Pool,
}

impl Engine {
    /// The best engine that this host has, or the one that is wanted.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub(super) fn new(wanted: Option<EngineKind>) -> Result<Self, Error> {
        if wanted != Some(EngineKind::Pool) {
            match Uring::new() {
                Ok(uring) => return Ok(Self::Uring(Box::new(uring))),
                Err(error) if wanted.is_some() => {
                    return Err(Error::host("create an io_uring")(error));
                }
                // Too old a kernel, or the host does not let us: both are common.
                Err(_) => {}
            }
        }
        Pool::new().map(Self::Pool)
    }

    /// Which one it is.
    pub(super) fn kind(&self) -> EngineKind {
        match self {
            Self::Uring(_) => EngineKind::Uring,
            Self::Pool(_) => EngineKind::Pool,
            #[cfg(test)]
            Self::Held(_) => EngineKind::Pool,
        }
    }

    /// Starts an operation, at the latest with the next [`Engine::submit`].
    ///
    /// # Safety
    /// Until the operation's [`Done`] has been reaped, the file must stay open, the list must stay where
    /// it is, and each of its ranges must lie in one mapping that stays; only the kernel may rely on the
    /// bytes not changing, and it does not.
    ///
    /// # Errors
    /// [`Error::Host`] when the host cannot go on.
    pub(super) unsafe fn push(&mut self, token: usize, call: Call) -> Result<(), Error> {
        // SAFETY: the caller's promise is the same.
        unsafe {
            match self {
                Self::Uring(uring) => uring.push(token, &call),
                Self::Pool(pool) => {
                    pool.push(token, call);
                    Ok(())
                }
                #[cfg(test)]
                Self::Held(held) => {
                    held.push(token, call);
                    Ok(())
                }
            }
        }
    }

    /// Gives the host what was pushed. Answers whether the host took it all; if it is short of memory
    /// it does not, and must be asked again.
    ///
    /// # Errors
    /// [`Error::Host`] when the host cannot go on.
    pub(super) fn submit(&mut self) -> Result<bool, Error> {
        match self {
            Self::Uring(uring) => uring.submit(),
            Self::Pool(_) => Ok(true),
            #[cfg(test)]
            Self::Held(_) => Ok(true),
        }
    }

    /// Takes what has ended.
    pub(super) fn reap(&mut self, done: &mut Vec<Done>) {
        match self {
            Self::Uring(uring) => uring.reap(done),
            Self::Pool(pool) => pool.reap(done),
            #[cfg(test)]
            Self::Held(held) => held.pool.reap(done),
        }
    }

    /// Readable while something has ended that was not reaped.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Uring(uring) => uring.fd(),
            Self::Pool(pool) => pool.fd(),
            #[cfg(test)]
            Self::Held(held) => held.pool.fd(),
        }
    }
}

#[cfg(test)]
mod tests;
