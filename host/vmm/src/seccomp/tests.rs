use super::{Thread, program};
use seccompiler::apply_filter;

const ALL: [Thread; 6] = [
    Thread::Control,
    Thread::Vcpu,
    Thread::Devices,
    Thread::Disks,
    Thread::DiskPool,
    Thread::Net,
];

/// How a process ends that confines itself and then makes this call.
fn end_of(thread: Thread, call: i64, arguments: [u64; 3]) -> libc::c_int {
    end_of_with(thread, false, call, arguments)
}

fn end_of_with(thread: Thread, vhost: bool, call: i64, arguments: [u64; 3]) -> libc::c_int {
    let program = program(thread, vhost).unwrap();
    let [first, second, third] = arguments;
    // SAFETY: the child makes system calls only: the filter is ready, nothing is allocated or locked.
    let child = unsafe { libc::fork() };
    if child == 0 {
        if apply_filter(&program).is_err() {
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(99) };
        }
        // SAFETY: bad arguments are the kernel's to refuse, a refused call ends the child, and none of
        // the calls of these tests writes to memory.
        unsafe {
            libc::syscall(call, first, second, third, 0, 0, 0);
            libc::_exit(7)
        }
    }
    let mut status = 0;
    // SAFETY: waits for the child just made.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status
}

fn assert_killed(thread: Thread, call: i64, arguments: [u64; 3]) {
    let status = end_of(thread, call, arguments);
    assert!(
        libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS,
        "{thread:?} made call {call} and ended with {status:#x}"
    );
}

fn assert_allowed(thread: Thread, call: i64, arguments: [u64; 3]) {
    let status = end_of(thread, call, arguments);
    assert!(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7,
        "{thread:?} made call {call} and ended with {status:#x}"
    );
}

#[test]
fn no_thread_can_reach_beyond_what_it_holds() {
    for thread in ALL {
        for call in [
            libc::SYS_open,
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_execve,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_ptrace,
            libc::SYS_process_vm_writev,
            libc::SYS_kill,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_register,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_setuid,
            libc::SYS_getdents64,
            libc::SYS_memfd_create,
            libc::SYS_keyctl,
        ] {
            assert_killed(thread, call, [u64::MAX; 3]);
        }
    }
}

#[test]
fn calls_of_one_thread_are_not_another_s() {
    for thread in ALL {
        assert_killed(thread, libc::SYS_clone3, [0; 3]);
        assert_killed(thread, libc::SYS_clone, [0; 3]);
        assert_killed(thread, libc::SYS_prctl, [libc::PR_SET_NAME as u64, 0, 0]);
    }
    for thread in [Thread::Vcpu, Thread::Disks, Thread::DiskPool, Thread::Net] {
        assert_killed(thread, libc::SYS_sendmsg, [u64::MAX, 0, 0]);
        assert_killed(thread, libc::SYS_accept4, [u64::MAX, 0, 0]);
    }
    for thread in ALL {
        let nowhere = [u64::MAX, 0, 0];
        for (call, its) in [
            (libc::SYS_pwritev, Thread::DiskPool),
            (libc::SYS_fallocate, Thread::DiskPool),
            (libc::SYS_io_uring_enter, Thread::Disks),
            (libc::SYS_preadv2, Thread::Disks),
        ] {
            if thread == its {
                assert_allowed(thread, call, nowhere);
            } else {
                assert_killed(thread, call, nowhere);
            }
        }
    }
}

#[test]
fn arguments_count() {
    const NOWHERE: u64 = u64::MAX;
    let executable = (libc::PROT_READ | libc::PROT_EXEC) as u64;
    for thread in ALL {
        // A descriptor that is not open: an allowed call answers EBADF.
        if thread == Thread::DiskPool {
            assert_killed(thread, libc::SYS_ioctl, [NOWHERE, super::KVM_IRQ_LINE, 0]);
        } else {
            assert_allowed(thread, libc::SYS_ioctl, [NOWHERE, super::KVM_IRQ_LINE, 0]);
        }
        for request in [
            0xae01_u64, /* KVM_CREATE_VM */
            0x5412,     /* TIOCSTI */
        ] {
            assert_killed(thread, libc::SYS_ioctl, [NOWHERE, request, 0]);
        }
        assert_allowed(thread, libc::SYS_fcntl, [NOWHERE, libc::F_GETFD as u64, 0]);
        assert_killed(thread, libc::SYS_fcntl, [NOWHERE, libc::F_SETFL as u64, 0]);
        assert_killed(thread, libc::SYS_fcntl, [NOWHERE, libc::F_DUPFD as u64, 0]);
        assert_allowed(thread, libc::SYS_mmap, [0, 0, libc::PROT_READ as u64]);
        assert_killed(thread, libc::SYS_mmap, [0, 4096, executable]);
        assert_killed(thread, libc::SYS_mprotect, [0, 4096, executable]);
    }
    assert_allowed(Thread::Vcpu, libc::SYS_ioctl, [NOWHERE, super::KVM_RUN, 0]);
    for thread in [Thread::Control, Thread::Devices, Thread::Disks, Thread::Net] {
        assert_killed(thread, libc::SYS_ioctl, [NOWHERE, super::KVM_RUN, 0]);
    }
    // One signal, to this process; there is no thread -1.
    let process = u64::from(std::process::id());
    let kick = crate::vcpu::KICK as u64;
    assert_allowed(Thread::Control, libc::SYS_tgkill, [process, NOWHERE, kick]);
    for (process, signal) in [(process, 9), (process, 0), (1, kick), (process + 1, kick)] {
        assert_killed(
            Thread::Control,
            libc::SYS_tgkill,
            [process, NOWHERE, signal],
        );
    }
    for thread in [Thread::Vcpu, Thread::Devices, Thread::Disks, Thread::Net] {
        assert_killed(thread, libc::SYS_tgkill, [process, NOWHERE, kick]);
    }
    let (socket, size) = (libc::SOL_SOCKET as u64, libc::SO_SNDBUF as u64);
    let force = libc::SO_SNDBUFFORCE as u64;
    assert_allowed(
        Thread::Devices,
        libc::SYS_setsockopt,
        [NOWHERE, socket, size],
    );
    for (level, name) in [(socket, force), (libc::SOL_TCP as u64, size)] {
        assert_killed(
            Thread::Devices,
            libc::SYS_setsockopt,
            [NOWHERE, level, name],
        );
    }
    for thread in [Thread::Control, Thread::Vcpu, Thread::Disks, Thread::Net] {
        assert_killed(thread, libc::SYS_setsockopt, [NOWHERE, socket, size]);
    }
    // The queue's other settings are made before it carries packets.
    assert_allowed(
        Thread::Net,
        libc::SYS_ioctl,
        [NOWHERE, super::TUNSETQUEUE, 0],
    );
    for request in [super::TUNSETOFFLOAD, super::TUNSETVNETHDRSZ, super::FIONBIO] {
        assert_killed(Thread::Net, libc::SYS_ioctl, [NOWHERE, request, 0]);
    }
    assert_killed(
        Thread::Control,
        libc::SYS_prctl,
        [libc::PR_SET_DUMPABLE as u64, 1, 0],
    );
}

#[test]
fn vhost_is_started_and_stopped_by_two_kinds_of_threads_only() {
    const SET_OWNER: u64 = 0xaf01;
    const SET_MEM_TABLE: u64 = 0x4008_af03;
    let allowed = |thread, vhost, request| {
        let status = end_of_with(thread, vhost, libc::SYS_ioctl, [u64::MAX, request, 0]);
        libc::WIFEXITED(status)
    };
    for thread in ALL {
        let may = matches!(thread, Thread::Vcpu | Thread::Control);
        for request in super::VHOST {
            assert_eq!(
                allowed(thread, true, request),
                may,
                "{thread:?} {request:#x}"
            );
            assert!(!allowed(thread, false, request), "{thread:?} {request:#x}");
        }
        // What memory it sees was said before the guest ran.
        assert!(!allowed(thread, true, SET_MEM_TABLE));
        assert!(!allowed(thread, true, SET_OWNER));
    }
}
