//! Signals, namespaces, limits and identity of processes.
#![allow(unsafe_code)] // Raw system calls with plain arguments.

use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The highest signal number.
pub const MAX_SIGNAL: u32 = 64;

/// Sends a signal, real-time ones too, to the process of a pidfd.
pub fn signal(pidfd: impl AsFd, signal: u32) -> io::Result<()> {
    // SAFETY: no pointer but the null one, which asks for a signal as kill(2) sends it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Leaves the calling process's namespaces for new ones.
pub fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: no memory is involved; the file descriptor table stays shared with no one.
    if unsafe { libc::unshare(flags) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Enters namespaces: those in `flags` of the process of a pidfd, or the one of a namespace file.
pub fn enter(fd: impl AsFd, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: no memory is involved.
    if unsafe { libc::setns(fd.as_fd().as_raw_fd(), flags) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Sets a resource limit of the calling process.
pub fn set_limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the pointer is to a limit; the null one asks for no old value.
    if unsafe { libc::prlimit64(0, resource, &raw const limit, std::ptr::null_mut()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// By itself, with this code.
    Exited(u8),
    /// By this signal.
    Signaled(u32),
}

/// Waits until a child has ended and returns its pid, without reaping it. ECHILD: there is none.
pub fn wait_for_any() -> io::Result<libc::pid_t> {
    let info = wait(libc::P_ALL, 0, libc::WEXITED | libc::WNOWAIT)?;
    // SAFETY: waitid fills this member for every child that has ended.
    Ok(unsafe { info.si_pid() })
}

/// Reaps a child that has ended.
pub fn reap(pid: libc::pid_t) -> io::Result<Status> {
    let id = libc::id_t::try_from(pid).map_err(io::Error::other)?;
    let info = wait(libc::P_PID, id, libc::WEXITED | libc::WNOHANG)?;
    // SAFETY: as above.
    let status = unsafe { info.si_status() }.unsigned_abs();
    Ok(if info.si_code == libc::CLD_EXITED {
        Status::Exited((status & 0xff) as u8)
    } else {
        Status::Signaled(status)
    })
}

fn wait(kind: libc::idtype_t, id: libc::id_t, options: libc::c_int) -> io::Result<libc::siginfo_t> {
    // SAFETY: siginfo_t is plain data, for which all zeroes is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a siginfo_t.
    if unsafe { libc::waitid(kind, id, &raw mut info, options) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(info)
}

/// Every signal as a new program expects it: none blocked, none ignored. Rust's runtime ignores
/// SIGPIPE, and both survive `execve`.
pub fn default_signals() {
    for number in 1..=MAX_SIGNAL.cast_signed() {
        // SAFETY: SIG_DFL runs no code of ours. SIGKILL, SIGSTOP and libc's own are refused: fine.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    // SAFETY: the set is initialized by sigemptyset before it is read.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Joins a new, empty session keyring, so that none is inherited.
pub fn new_session_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: the null name asks for an anonymous keyring.
    if unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            JOIN_SESSION_KEYRING,
            std::ptr::null::<c_char>(),
        )
    } < 0
    {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Replaces the calling process by a program. Returns only the error.
pub fn execute(program: &CString, args: &[CString], env: &[CString]) -> io::Error {
    let args = pointers(args);
    let env = pointers(env);
    // SAFETY: the path is a C string, both lists end with a null pointer and outlive the call.
    unsafe { libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// The list of pointers that `execve` takes.
pub(super) fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([std::ptr::null()])
        .collect()
}

/// Lets the kernel reap the children of the calling process, those that it inherits too.
pub fn ignore_children() -> io::Result<()> {
    // SAFETY: SIG_IGN runs no code of ours.
    if unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
