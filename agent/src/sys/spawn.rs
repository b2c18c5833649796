//! Making a process with `clone3(2)`.
//!
//! The agent has threads, so between the clone and the `execve` the child may do nothing but
//! system calls: it moves its descriptors into place and becomes the agent's own program again
//! (from an open descriptor, by `execveat`), single-threaded and with a fresh heap, whose
//! [`crate::init`] does all the rest with ordinary code. Everything the child uses is made before
//! the clone.
#![allow(unsafe_code)] // clone3 and what the child does until execveat.

use super::process::pointers;
use rustix::process::Pid;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The name (argv 0) by which the agent's program knows that it is to be a container's process.
pub const INIT_NAME: &str = "bulkhead-init";
/// Descriptors are moved here first, out of the way of their targets.
const LOW: RawFd = 32;
/// The exit code of a child whose `execveat` failed.
const EXEC_FAILED: libc::c_int = 126;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What a child starts with.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// The agent's program.
    pub program: BorrowedFd<'a>,
    /// New namespaces, `CLONE_NEW*`.
    pub namespaces: libc::c_int,
    /// A pid namespace to be born into: a pidfd of a process in it, or its namespace file.
    pub pid_namespace: Option<BorrowedFd<'a>>,
    /// The directory of the cgroup to be born into.
    pub cgroup: BorrowedFd<'a>,
    /// Descriptors and their numbers in the child, which has no others. All below 32.
    pub fds: &'a [(BorrowedFd<'a>, RawFd)],
}

/// A child that was just made.
#[derive(Debug)]
pub struct Spawned {
    /// In the agent's pid namespace. Stays its own until it is waited for.
    pub pid: Pid,
    /// Names the process for ever.
    pub pidfd: OwnedFd,
}

/// `struct clone_args`, its version 2.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

impl Spawn<'_> {
    /// Makes the child. With a pid namespace to join, from a thread of its own: `setns` changes
    /// where the children of the calling thread are born, and a thread that has done it should do
    /// nothing else.
    pub fn run(&self) -> io::Result<Spawned> {
        match self.pid_namespace {
            None => self.clone(),
            Some(namespace) => std::thread::scope(|scope| {
                std::thread::Builder::new()
                    .stack_size(64 * 1024)
                    .spawn_scoped(scope, || {
                        super::process::enter(namespace, libc::CLONE_NEWPID)?;
                        self.clone()
                    })?
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("The spawning thread panicked")))
            }),
        }
    }

    fn clone(&self) -> io::Result<Spawned> {
        let moved = self
            .fds
            .iter()
            .map(|(fd, target)| Ok((rustix::io::fcntl_dupfd_cloexec(fd, LOW)?, *target)))
            .collect::<io::Result<Vec<(OwnedFd, RawFd)>>>()?;
        let plan: Vec<(RawFd, RawFd)> = moved
            .iter()
            .map(|(fd, target)| (fd.as_raw_fd(), *target))
            .collect();
        let program = rustix::io::fcntl_dupfd_cloexec(self.program, LOW)?;
        let args = [CString::new(INIT_NAME)?];
        let args = pointers(&args);
        let env = pointers(&[]);

        let mut pidfd: RawFd = -1;
        let cgroup = u64::try_from(self.cgroup.as_raw_fd()).unwrap_or(0);
        let mut clone = CloneArgs {
            flags: libc::CLONE_PIDFD as u64 | self.namespaces as u64 | CLONE_INTO_CGROUP,
            pidfd: (&raw mut pidfd).expose_provenance() as u64,
            exit_signal: libc::SIGCHLD as u64,
            cgroup,
            ..CloneArgs::default()
        };
        // SAFETY: without CLONE_VM the child has a copy of all memory. The struct is of the size
        // that is passed along, its pidfd points to an int that outlives the call.
        let pid =
            unsafe { libc::syscall(libc::SYS_clone3, &raw mut clone, size_of::<CloneArgs>()) };
        if pid == 0 {
            // SAFETY: this is the child.
            unsafe { become_init(&plan, program.as_raw_fd(), &args, &env) }
        }
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: CLONE_PIDFD has just made this descriptor, nobody else has it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("clone3 returned no pid"))?;
        Ok(Spawned { pid, pidfd })
    }
}

/// Moves the descriptors into place and runs the agent's program.
///
/// # Safety
/// Only for the child of a clone. It allocates nothing and takes no lock: the threads that might
/// have held one do not exist here.
unsafe fn become_init(
    plan: &[(RawFd, RawFd)],
    program: RawFd,
    args: &[*const libc::c_char],
    env: &[*const libc::c_char],
) -> ! {
    // The child gets the descriptors of the plan and no others, whatever the agent was born with.
    // SAFETY: plain numbers.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    for &(from, to) in plan {
        // SAFETY: plain numbers. The copy is not close-on-exec.
        if unsafe { libc::dup2(from, to) } < 0 {
            // SAFETY: ends this process without running any handler.
            unsafe { libc::_exit(EXEC_FAILED) }
        }
    }
    // SAFETY: an empty C string and two lists that end with a null pointer.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program,
            c"".as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
        libc::_exit(EXEC_FAILED)
    }
}

/// The running program, to be run again by [`Spawn`].
pub fn own_program() -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    Ok(rustix::fs::open(
        "/proc/self/exe",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// A descriptor for "nothing": /dev/null.
pub fn null() -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    Ok(rustix::fs::open(
        "/dev/null",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

impl AsFd for Spawned {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}
