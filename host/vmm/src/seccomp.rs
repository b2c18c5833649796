//! The system calls that each kind of thread may make; any other one kills the process (SIGSYS).
//!
//! A thread takes its filter on itself before the guest runs.
//! What is listed is what the threads were seen to do in all tests of the project, and what their code can
//! reach besides (an allocation that grows, the way out of the process); the numbers of `ioctl`s are part
//! of the rules. Sources: seccomp(2), `Documentation/userspace-api/seccomp_filter.rst` of Linux.

use crate::error::Error;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;
use std::io;

/// The kinds of threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thread {
    /// The main thread, which serves the control socket.
    Control,
    /// Runs a virtual CPU.
    Vcpu,
    /// Serves the devices.
    Devices,
    /// Serves the disk slots.
    Disks,
    /// Does file operations where there is no io_uring.
    DiskPool,
    /// Serves a pair of the network interface's queues.
    Net,
}

// `ioctl` requests, from <linux/kvm.h>, <linux/fs.h>, <linux/if_tun.h> and <asm-generic/ioctls.h>.
const KVM_RUN: u64 = 0xae80;
const KVM_KVMCLOCK_CTRL: u64 = 0xaead;
const KVM_IRQ_LINE: u64 = 0x4008_ae61;
const KVM_IOEVENTFD: u64 = 0x4040_ae79;
const FIONBIO: u64 = 0x5421;
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
const TUNSETVNETHDRSZ: u64 = 0x4004_54d8;
const TUNSETQUEUE: u64 = 0x4004_54d9;
const TUNGETIFF: u64 = 0x8004_54d2;
// From <linux/vhost.h>, `vhost.rs` of the network interface: SET_FEATURES, SET_VRING_NUM, SET_VRING_ADDR,
// SET_VRING_BASE, NET_SET_BACKEND.
const VHOST: [u64; 5] = [
    0x4008_af00,
    0x4008_af10,
    0x4028_af11,
    0x4008_af12,
    0x4008_af30,
];

/// Heap, locks, clock, and the ways out.
const EVERY: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_read,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_write,
];
/// Sockets of the guest's connections, and what the device thread waits on.
const DEVICES: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_close,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
    libc::SYS_writev,
];
/// The disk slots' queues and limits, operations on files by an io_uring that permits nothing else (see
/// [`crate::devices::blk`]), and reading what the page cache has where there is none.
const DISKS: &[i64] = &[
    libc::SYS_close,
    libc::SYS_epoll_pwait,
    libc::SYS_io_uring_enter,
    libc::SYS_preadv2,
    libc::SYS_timerfd_settime,
];
/// A disk's file, where there is no io_uring.
const DISK_POOL: &[i64] = &[
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_preadv,
    libc::SYS_pwritev,
];
/// Packets between a tap and the guest.
const NET: &[i64] = &[
    libc::SYS_close,
    libc::SYS_epoll_pwait,
    libc::SYS_readv,
    libc::SYS_timerfd_settime,
    libc::SYS_writev,
];
/// What a device's activation and its registers need.
const VCPU: &[i64] = &[libc::SYS_close, libc::SYS_epoll_ctl];
/// The control socket, and files that come through it.
const CONTROL: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_close,
    libc::SYS_epoll_ctl,
    libc::SYS_lseek,
    libc::SYS_ppoll,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_statx,
];

impl Thread {
    fn calls(self) -> Vec<i64> {
        let lists: &[&[i64]] = match self {
            Self::Vcpu => &[EVERY, VCPU],
            Self::Devices => &[EVERY, DEVICES],
            Self::Disks => &[EVERY, DISKS],
            Self::DiskPool => &[EVERY, DISK_POOL],
            Self::Net => &[EVERY, NET],
            Self::Control => &[EVERY, CONTROL],
        };
        lists.concat()
    }

    fn ioctls(self) -> &'static [u64] {
        match self {
            Self::Vcpu => &[
                KVM_RUN,
                KVM_KVMCLOCK_CTRL,
                KVM_IRQ_LINE,
                TUNSETOFFLOAD,
                TUNSETQUEUE,
            ],
            Self::Devices => &[KVM_IRQ_LINE, FIONBIO],
            Self::Disks => &[KVM_IRQ_LINE],
            Self::DiskPool => &[],
            Self::Net => &[KVM_IRQ_LINE, TUNSETQUEUE],
            Self::Control => &[
                KVM_IRQ_LINE,
                KVM_IOEVENTFD,
                FIONBIO,
                TUNSETOFFLOAD,
                TUNSETQUEUE,
                TUNSETVNETHDRSZ,
                TUNGETIFF,
            ],
        }
    }
}

/// Confines the calling thread, for good.
///
/// # Errors
/// [`Error::Host`] when the kernel does not take the filter.
pub fn confine(thread: Thread) -> Result<(), Error> {
    confine_with(thread, false)
}

/// Confines the calling thread, for good; with vhost-net those that start and stop the network interface
/// may tell it so.
///
/// # Errors
/// [`Error::Host`] when the kernel does not take the filter.
pub fn confine_with(thread: Thread, vhost: bool) -> Result<(), Error> {
    let failed = Error::host("confine a thread's system calls");
    let program = match program(thread, vhost) {
        Ok(program) => program,
        Err(error) => return Err(failed(io::Error::other(error))),
    };
    seccompiler::apply_filter(&program).map_err(|error| failed(io::Error::other(error)))
}

fn program(thread: Thread, vhost: bool) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = thread
        .calls()
        .into_iter()
        .map(|call| (call, Vec::new()))
        .collect();
    let vhost = vhost && matches!(thread, Thread::Vcpu | Thread::Control);
    let vhost: &[u64] = if vhost { &VHOST } else { &[] };
    let ioctls = thread.ioctls().iter().chain(vhost);
    let ioctls = ioctls.map(|request| rule(1, SeccompCmpOp::Eq, *request));
    let ioctls: Vec<SeccompRule> = ioctls.collect::<Result<_, _>>()?;
    // A call without rules would be allowed whatever its arguments.
    if !ioctls.is_empty() {
        rules.insert(libc::SYS_ioctl, ioctls);
    }
    let reads = match thread {
        Thread::Control => [libc::F_GETFD, libc::F_GETFL, libc::F_GET_SEALS].as_slice(),
        // A debug build looks at every descriptor before it closes it.
        _ => &[libc::F_GETFD],
    };
    let reads = reads.iter();
    let reads = reads.map(|command| rule(1, SeccompCmpOp::Eq, *command as u64));
    rules.insert(libc::SYS_fcntl, reads.collect::<Result<_, _>>()?);
    // Memory never becomes code.
    let executable = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![rule(2, executable.clone(), 0)?]);
    }
    if thread == Thread::Control {
        // To get the vCPUs out of the guest: one signal, to threads of this process.
        let kick = SeccompRule::new(vec![
            condition(0, SeccompCmpOp::Eq, std::process::id().into())?,
            condition(2, SeccompCmpOp::Eq, crate::vcpu::KICK as u64)?,
        ])?;
        rules.insert(libc::SYS_tgkill, vec![kick]);
    }
    if thread == Thread::Devices {
        // How much the host's kernel keeps of what the guest sends on a vsock connection.
        let conditions = [(1, libc::SOL_SOCKET), (2, libc::SO_SNDBUF)];
        let conditions = conditions.map(|(argument, value)| {
            let size = SeccompCmpArgLen::Dword;
            SeccompCondition::new(argument, size, SeccompCmpOp::Eq, value as u64)
        });
        let conditions = conditions.into_iter().collect::<Result<_, _>>()?;
        rules.insert(libc::SYS_setsockopt, vec![SeccompRule::new(conditions)?]);
    }
    SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?
    .try_into()
}

/// Allows a call by the lower half of one argument.
fn rule(
    argument: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![condition(argument, operator, value)?])
}

fn condition(
    argument: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}

#[cfg(test)]
mod tests;
