//! File operations by a few threads, for hosts without io_uring.
//!
//! What the page cache has is read by the asking thread at once (`RWF_NOWAIT`); the rest goes to the
//! threads, whose queue is bounded by the number of operations that the disks may have running.

use super::{Action, Call, Done};
use crate::error::Error;
use crate::seccomp;
use crate::sync::lock;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// As many operations can wait for the host's disks at a time.
const THREADS: usize = 4;
/// They have no deep calls.
const STACK: usize = 64 * 1024;

/// Threads that do file operations.
#[derive(Debug)]
pub(in super::super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Done by the asking thread.
    at_once: Vec<Done>,
}

/// What the threads share with the one that asks.
#[derive(Debug)]
pub(super) struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
    done: Mutex<Vec<Done>>,
    /// Readable while `done` is not empty.
    event: EventFd,
}

#[derive(Debug, Default)]
struct Queue {
    calls: VecDeque<(usize, Call)>,
    stop: bool,
}

impl Pool {
    /// Starts the threads, each in its seccomp filter.
    pub(super) fn new() -> Result<Self, Error> {
        let event =
            EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(Error::host("create an eventfd"))?;
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            more: Condvar::new(),
            done: Mutex::default(),
            event,
        });
        let mut pool = Self {
            shared,
            threads: Vec::new(),
            at_once: Vec::new(),
        };
        let confined = Arc::new(Barrier::new(2));
        let failed = Arc::new(AtomicBool::new(false));
        for index in 0..THREADS {
            let shared = Arc::clone(&pool.shared);
            let (ready, broken) = (Arc::clone(&confined), Arc::clone(&failed));
            let thread = std::thread::Builder::new()
                .name(format!("disk-io-{index}"))
                .stack_size(STACK)
                .spawn(move || {
                    let result = seccomp::confine(seccomp::Thread::DiskPool);
                    broken.fetch_or(result.is_err(), Ordering::SeqCst);
                    ready.wait();
                    if result.is_ok() {
                        shared.work();
                    }
                })
                .map_err(Error::host("start a thread"))?;
            pool.threads.push(thread);
            confined.wait();
        }
        if failed.load(Ordering::SeqCst) {
            let error = io::Error::from(io::ErrorKind::PermissionDenied);
            return Err(Error::host("confine a thread's system calls")(error));
        }
        Ok(pool)
    }

    /// See [`super::Engine::push`], whose conditions are this one's.
    pub(super) unsafe fn push(&mut self, token: usize, call: Call) {
        // SAFETY: the caller's promise.
        if let Some(result) = unsafe { read_now(&call) } {
            self.at_once.push(Done { token, result });
            return;
        }
        self.shared.push(token, call);
    }

    #[cfg(test)]
    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// See [`super::Engine::reap`].
    pub(super) fn reap(&mut self, done: &mut Vec<Done>) {
        done.append(&mut self.at_once);
        let mut ended = lock(&self.shared.done);
        if !ended.is_empty() {
            done.append(&mut ended);
            let _ = self.shared.event.read();
        }
    }

    /// See [`super::Engine::fd`].
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the eventfd, from which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.shared.event.as_raw_fd()) }
    }
}

impl Drop for Pool {
    /// What is queued is still done: somebody's memory depends on its end.
    fn drop(&mut self) {
        lock(&self.shared.queue).stop = true;
        self.shared.more.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has ended the process.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Queues a call; whoever does so keeps what it points to until its end was reaped.
    pub(super) fn push(&self, token: usize, call: Call) {
        lock(&self.queue).calls.push_back((token, call));
        self.more.notify_one();
    }

    fn work(&self) {
        loop {
            let mut queue = lock(&self.queue);
            let (token, call) = loop {
                if let Some(next) = queue.calls.pop_front() {
                    break next;
                }
                if queue.stop {
                    return;
                }
                queue = self
                    .more
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
            };
            drop(queue);
            // SAFETY: whoever pushed the call keeps what it points to until it is reaped.
            let result = unsafe { run(&call) };
            let mut done = lock(&self.done);
            if done.is_empty() {
                let _ = self.event.write(1);
            }
            done.push(Done { token, result });
        }
    }
}

/// Does a call and waits for its end.
///
/// # Safety
/// The file is open, and a list is of as many ranges as it says, each within a mapping.
unsafe fn run(call: &Call) -> io::Result<u32> {
    // SAFETY: the caller's promise; the kernel alone touches the ranges.
    let result = unsafe {
        match call.action {
            Action::Read {
                list,
                count,
                offset,
            } => libc::preadv(call.fd, list, count as i32, offset as i64),
            Action::Write {
                list,
                count,
                offset,
            } => libc::pwritev(call.fd, list, count as i32, offset as i64),
            Action::Sync => libc::fdatasync(call.fd) as isize,
            Action::Allocate {
                mode,
                offset,
                length,
            } => libc::fallocate(call.fd, mode, offset as i64, length as i64) as isize,
        }
    };
    answer(result)
}

/// Reads what needs no waiting; nothing when it does, or is no read.
///
/// # Safety
/// As for [`run`].
unsafe fn read_now(call: &Call) -> Option<io::Result<u32>> {
    let Action::Read {
        list,
        count,
        offset,
    } = call.action
    else {
        return None;
    };
    // SAFETY: the caller's promise; the kernel alone touches the ranges.
    let result =
        unsafe { libc::preadv2(call.fd, list, count as i32, offset as i64, libc::RWF_NOWAIT) };
    // Whatever went wrong shows again where waiting is possible.
    answer(result).ok().map(Ok)
}

fn answer(result: isize) -> io::Result<u32> {
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}
