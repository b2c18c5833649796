//! How a VM ended: the first to know decides, `main` hears of it.

use crate::error::Error;
use crate::sync::lock;
use bulkhead_vmm_api::ExitReason;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The reason and one sentence about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Becomes the exit status.
    pub reason: ExitReason,
    /// Printed on stderr.
    pub sentence: String,
}

/// The place where the end is written down once.
#[derive(Debug)]
pub struct Verdict {
    end: Mutex<Option<End>>,
    decided: AtomicBool,
    wake: EventFd,
}

impl Verdict {
    /// An open verdict.
    ///
    /// # Errors
    /// When the host gives no eventfd.
    pub fn new() -> Result<Self, Error> {
        let wake =
            EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(Error::host("create an eventfd"))?;
        Ok(Self {
            end: Mutex::new(None),
            decided: AtomicBool::new(false),
            wake,
        })
    }

    /// Says how the VM ended; only the first call counts.
    pub fn decide(&self, reason: ExitReason, sentence: impl Into<String>) {
        let mut end = lock(&self.end);
        if end.is_none() {
            *end = Some(End {
                reason,
                sentence: sentence.into(),
            });
            self.decided.store(true, Ordering::Release);
            // A counter of one cannot overflow, so this write cannot fail.
            let _ = self.wake.write(1);
        }
    }

    /// Whether the end has come.
    pub fn is_decided(&self) -> bool {
        self.decided.load(Ordering::Acquire)
    }

    /// The end, if it has come.
    pub fn end(&self) -> Option<End> {
        lock(&self.end).clone()
    }
}

impl AsFd for Verdict {
    /// Readable once the end has come.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd lives as long as `self`, from which the result borrows.
        unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&self.wake)) }
    }
}
