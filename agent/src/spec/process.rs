//! `process`: what runs, as whom, with which limits.

use super::{absolute, limited, refuse};
use crate::init::plan::{Capabilities, Process};
use crate::{Error, Result};
use oci_spec::runtime::{self, PosixRlimitType};

/// Capabilities by number (linux/capability.h).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Checks and translates a process.
pub(super) fn convert(process: &runtime::Process) -> Result<Process> {
    let some = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    refuse("process.apparmorProfile", some(process.apparmor_profile()))?;
    refuse("process.selinuxLabel", some(process.selinux_label()))?;
    refuse("process.scheduler", process.scheduler().is_some())?;
    refuse("process.ioPriority", process.io_priority().is_some())?;
    refuse(
        "process.execCPUAffinity",
        process.exec_cpu_affinity().is_some(),
    )?;
    // Both are Windows'.
    refuse("process.commandLine", some(process.command_line()))?;
    refuse("process.user.username", some(process.user().username()))?;
    let args = limited(process.args(), "process.args")?.to_vec();
    if args.first().is_none_or(String::is_empty) {
        return Err(Error::Invalid(
            "The process has no program in args".to_owned(),
        ));
    }
    let env = limited(process.env(), "process.env")?.to_vec();
    if args.iter().chain(&env).any(|text| text.contains('\0')) {
        return Err(Error::Invalid(
            "An argument or variable has a null byte in it".to_owned(),
        ));
    }
    let user = process.user();
    let cwd = process.cwd().to_string_lossy();
    let oom_score_adj = process.oom_score_adj();
    if oom_score_adj.is_some_and(|score| !(-1000..=1000).contains(&score)) {
        return Err(Error::Invalid(
            "process.oomScoreAdj is not within -1000 and 1000".to_owned(),
        ));
    }
    Ok(Process {
        args,
        env,
        cwd: absolute(if cwd.is_empty() { "/" } else { &cwd }, "cwd")?,
        uid: user.uid(),
        gid: user.gid(),
        groups: limited(user.additional_gids(), "process.user.additionalGids")?.to_vec(),
        user_name: None,
        strict_groups: false,
        umask: user.umask().map(|umask| umask & 0o777),
        capabilities: process
            .capabilities()
            .as_ref()
            .map(capabilities)
            .unwrap_or_default(),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        seccomp: None,
        limits: limits(process)?,
        oom_score_adj,
        terminal: None,
    })
}

fn limits(process: &runtime::Process) -> Result<Vec<(u32, u64, u64)>> {
    limited(process.rlimits(), "process.rlimits")?
        .iter()
        .map(|limit| {
            if limit.soft() > limit.hard() {
                return Err(Error::Invalid(format!(
                    "{} has a soft limit above the hard one",
                    limit.typ()
                )));
            }
            Ok((resource(limit.typ()), limit.soft(), limit.hard()))
        })
        .collect()
}

fn resource(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

fn capabilities(sets: &runtime::LinuxCapabilities) -> Capabilities {
    let bits = |set: &Option<runtime::Capabilities>| {
        let names = set.iter().flatten().map(ToString::to_string);
        names
            .filter_map(|name| number(&name))
            .fold(0, |bits, number| bits | 1u64 << number)
    };
    Capabilities {
        bounding: bits(sets.bounding()),
        effective: bits(sets.effective()),
        permitted: bits(sets.permitted()),
        inheritable: bits(sets.inheritable()),
        ambient: bits(sets.ambient()),
    }
}

/// The number of a capability, named with or without the prefix.
pub(super) fn number(name: &str) -> Option<usize> {
    let name = name.strip_prefix("CAP_").unwrap_or(name);
    CAPABILITIES.iter().position(|known| *known == name)
}
