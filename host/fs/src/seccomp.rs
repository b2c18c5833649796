//! The system calls that the process may make; any other one kills it (SIGSYS).
//!
//! The list is what the `virtiofsd` library needs (its own `seccomp.rs`, version 1.14, which lists the calls
//! and looks at no argument), less what a process does not need that only serves. It is root, so the
//! arguments matter: it signals nobody but itself, makes no user namespace, and memory never becomes code.
//! Sources: seccomp(2), clone(2), tgkill(2).

use crate::error::Error;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;
use std::io;

/// Calls that may be made with any argument.
const CALLS: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_brk,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_clock_gettime,
    // Answered with ENOSYS by the second filter.
    libc::SYS_clone3,
    libc::SYS_close,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fallocate,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_flock,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_getxattr,
    libc::SYS_linkat,
    libc::SYS_listxattr,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mkdirat,
    // Without CAP_MKNOD, so no devices.
    libc::SYS_mknodat,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_name_to_handle_at,
    libc::SYS_newfstatat,
    libc::SYS_open,
    libc::SYS_open_by_handle_at,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_recvmsg,
    libc::SYS_removexattr,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendmsg,
    libc::SYS_set_robust_list,
    libc::SYS_setgroups,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setxattr,
    libc::SYS_sigaltstack,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_syncfs,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Every flag of clone(2) that makes a namespace.
const NAMESPACES: libc::c_int = libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS;

/// Confines the process, which has one thread yet, for good.
///
/// # Errors
/// [`Error::Host`] when the kernel does not take a filter.
pub(crate) fn confine() -> Result<(), Error> {
    for program in programs() {
        let failed = Error::host("confine system calls");
        let program = program.map_err(|error| failed(io::Error::other(error)))?;
        seccompiler::apply_filter(&program)
            .map_err(|error| Error::host("confine system calls")(io::Error::other(error)))?;
    }
    Ok(())
}

/// The filters, in the order in which they are installed. Of their answers the strictest counts.
fn programs() -> [Result<BpfProgram, seccompiler::BackendError>; 2] {
    [no_clone3(), allowed()]
}

/// clone3(2) keeps its flags in memory, where no filter sees them: the C library falls back to clone(2).
fn no_clone3() -> Result<BpfProgram, seccompiler::BackendError> {
    // The error number is positive.
    let refused = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    SeccompFilter::new(rules, SeccompAction::Allow, refused, TargetArch::x86_64)?.try_into()
}

fn allowed() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        CALLS.iter().map(|call| (*call, Vec::new())).collect();
    // abort(3) signals its own thread.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![rule(0, SeccompCmpOp::Eq, own)?]);
    // A flag without the others: nothing is left of the mask.
    let none_of = |mask: libc::c_int| SeccompCmpOp::MaskedEq(u64::from(mask.cast_unsigned()));
    rules.insert(libc::SYS_clone, vec![rule(0, none_of(NAMESPACES), 0)?]);
    let own_directory = u64::from(libc::CLONE_FS.cast_unsigned());
    let unshare = rule(0, SeccompCmpOp::Eq, own_directory)?;
    rules.insert(libc::SYS_unshare, vec![unshare]);
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![rule(2, none_of(libc::PROT_EXEC), 0)?]);
    }
    // A thread's name, and what libcap-ng asks before a thread drops FSETID for a request: which capabilities are
    // in its bounding and its ambient set.
    let option = |option: libc::c_int| u64::from(option.cast_unsigned());
    let is_set = condition(1, SeccompCmpOp::Eq, option(libc::PR_CAP_AMBIENT_IS_SET))?;
    let ambient = condition(0, SeccompCmpOp::Eq, option(libc::PR_CAP_AMBIENT))?;
    let options = vec![
        rule(0, SeccompCmpOp::Eq, option(libc::PR_SET_NAME))?,
        rule(0, SeccompCmpOp::Eq, option(libc::PR_CAPBSET_READ))?,
        SeccompRule::new(vec![ambient, is_set])?,
    ];
    rules.insert(libc::SYS_prctl, options);
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
