#![allow(unsafe_code, clippy::unwrap_used)]

use super::programs;
use seccompiler::apply_filter;

/// How a process ends that confines itself and then makes this call, and whether the call succeeded.
fn end_of(call: i64, arguments: impl Fn() -> [u64; 3]) -> libc::c_int {
    // SAFETY: the child builds a filter, makes system calls and ends; it takes no lock of this program.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // The filter names its own process, so it is made here. Rust's allocator is the C library's,
        // which can be used after fork(2).
        let programs = programs().map(Result::unwrap);
        // SAFETY: a system call without arguments.
        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        let [first, second, third] = arguments();
        if programs
            .iter()
            .any(|program| apply_filter(program).is_err())
        {
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(99) };
        }
        // SAFETY: bad arguments are the kernel's to refuse, a refused call ends the child, and none of
        // the calls of these tests writes to memory.
        unsafe {
            let failed = libc::syscall(call, first, second, third, 0, 0) < 0;
            libc::_exit(if failed { 8 } else { 7 })
        }
    }
    let mut status = 0;
    // SAFETY: waits for the child just made.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status
}

fn assert_killed(call: i64, arguments: [u64; 3]) {
    let status = end_of(call, || arguments);
    assert!(
        libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS,
        "call {call} ended with {status:#x}"
    );
}

fn assert_exits(expected: libc::c_int, call: i64, arguments: impl Fn() -> [u64; 3]) {
    let status = end_of(call, arguments);
    assert!(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == expected,
        "call {call} ended with {status:#x}"
    );
}

#[test]
fn what_only_serves_needs_no_more() {
    for call in [
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_execve,
        libc::SYS_fork,
        libc::SYS_ptrace,
        libc::SYS_mount,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_setns,
        libc::SYS_kill,
        libc::SYS_tkill,
        libc::SYS_pidfd_send_signal,
        libc::SYS_bpf,
        libc::SYS_keyctl,
        libc::SYS_io_uring_setup,
        libc::SYS_ioctl,
    ] {
        assert_killed(call, [0; 3]);
    }
}

#[test]
fn it_signals_nobody_else() {
    // The parent, with no signal: only whether it may.
    let parent = u64::from(std::process::id());
    assert_killed(libc::SYS_tgkill, [parent, parent, 0]);
    let own = || {
        [
            u64::from(std::process::id()),
            u64::from(std::process::id()),
            0,
        ]
    };
    assert_exits(7, libc::SYS_tgkill, own);
}

#[test]
fn it_makes_no_namespace_and_no_code() {
    let flag = |flag: libc::c_int| u64::from(flag.cast_unsigned());
    assert_killed(libc::SYS_clone, [flag(libc::CLONE_NEWUSER), 0, 0]);
    assert_killed(libc::SYS_unshare, [flag(libc::CLONE_NEWUSER), 0, 0]);
    assert_exits(7, libc::SYS_unshare, || [flag(libc::CLONE_FS), 0, 0]);
    // ENOSYS, so that the C library takes clone(2).
    assert_exits(8, libc::SYS_clone3, || [0; 3]);
    assert_killed(libc::SYS_mmap, [0, 4096, flag(libc::PROT_EXEC)]);
    assert_killed(libc::SYS_mprotect, [0, 0, flag(libc::PROT_EXEC)]);
    assert_exits(7, libc::SYS_mprotect, || [0; 3]);
}

#[test]
fn it_asks_for_capabilities_and_sets_none_but_its_effective_ones() {
    let option = |option: libc::c_int| u64::from(option.cast_unsigned());
    // Asked by libcap-ng when a request is to be served without FSETID.
    assert_exits(7, libc::SYS_prctl, || [option(libc::PR_CAPBSET_READ), 0, 0]);
    let ambient = |what| [option(libc::PR_CAP_AMBIENT), option(what), 0];
    assert_exits(7, libc::SYS_prctl, || ambient(libc::PR_CAP_AMBIENT_IS_SET));
    assert_killed(libc::SYS_prctl, ambient(libc::PR_CAP_AMBIENT_RAISE));
    for other in [
        libc::PR_CAPBSET_DROP,
        libc::PR_SET_SECUREBITS,
        libc::PR_SET_DUMPABLE,
        libc::PR_SET_MM,
    ] {
        assert_killed(libc::SYS_prctl, [option(other), 0, 0]);
    }
}
