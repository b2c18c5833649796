//! Where the threads that run or serve the guest stop while the VM is paused.
//!
//! ```text
//!          close                    the last member stops
//! (open) --------> (closing) ------------------------------> (stopped)
//!    ^                 |                                          |
//!    +---- open -------+---------------- open --------------------+
//! ```
//!
//! A member calls [`Gate::pass`] where it holds nothing that others wait for. One that waits for
//! descriptors also waits for the gate's, which is readable from [`Gate::close`] to [`Gate::open`]; a vCPU is
//! driven out of the guest by a signal, see [`crate::vcpu`].

use crate::error::Error;
use crate::sync::lock;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The gate.
#[derive(Debug)]
pub struct Gate {
    /// The same as `state.closed`, to look at in passing.
    closed: AtomicBool,
    state: Mutex<State>,
    opened: Condvar,
    /// Readable while the gate is closed.
    ring: EventFd,
    /// Signalled when the last member has stopped.
    stopped: EventFd,
}

#[derive(Debug, Default)]
struct State {
    members: usize,
    /// How many have stopped since the gate was closed.
    waiting: usize,
    closed: bool,
    /// Counts the openings, so that a member that waited through one goes on although the gate was
    /// closed again at once.
    openings: u64,
}

impl Gate {
    /// An open gate with this many members.
    ///
    /// # Errors
    /// When the host gives no eventfd.
    pub fn new(members: usize) -> Result<Self, Error> {
        let event =
            || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(Error::host("create an eventfd"));
        Ok(Self {
            closed: AtomicBool::new(false),
            state: Mutex::new(State {
                members,
                ..State::default()
            }),
            opened: Condvar::new(),
            ring: event()?,
            stopped: event()?,
        })
    }

    /// Asks all members to stop; of no effect on a closed gate.
    pub fn close(&self) {
        let mut state = lock(&self.state);
        if !state.closed {
            state.closed = true;
            self.closed.store(true, Ordering::SeqCst);
            // Counters of one cannot overflow, here and below.
            let _ = self.ring.write(1);
            if state.members == 0 {
                let _ = self.stopped.write(1);
            }
        }
    }

    /// Lets all members go on; of no effect on an open gate.
    pub fn open(&self) {
        let mut state = lock(&self.state);
        if state.closed {
            state.closed = false;
            // None of those who wait counts for the next closing, even before it has woken.
            state.waiting = 0;
            state.openings = state.openings.wrapping_add(1);
            self.closed.store(false, Ordering::SeqCst);
            let _ = self.ring.read();
            let _ = self.stopped.read();
            self.opened.notify_all();
        }
    }

    /// Whether the gate is closed, whoever has stopped at it.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Whether the gate is closed and every member waits at it.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        let state = lock(&self.state);
        state.closed && state.waiting == state.members
    }

    /// Waits here while the gate is closed. Answers whether it was.
    pub fn pass(&self) -> bool {
        if !self.is_closed() {
            return false;
        }
        let mut state = lock(&self.state);
        if !state.closed {
            return false;
        }
        let openings = state.openings;
        state.waiting += 1;
        if state.waiting == state.members {
            let _ = self.stopped.write(1);
        }
        while state.openings == openings {
            let result = self.opened.wait(state);
            state = result.unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    /// Readable while the gate is closed.
    #[must_use]
    pub fn ring(&self) -> BorrowedFd<'_> {
        borrow(&self.ring)
    }

    /// Readable while every member has stopped at the closed gate.
    #[must_use]
    pub fn stopped(&self) -> BorrowedFd<'_> {
        borrow(&self.stopped)
    }
}

fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as the eventfd, from which the result borrows.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

#[cfg(test)]
mod tests;
