//! Capabilities and hidden paths.

use crate::{Result, SandboxError};
use bulkhead_cri::v1;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Every capability of Linux 6.12, capabilities(7).
const ALL: [&str; 41] = [
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

/// What a container has unless it asks: the default of containerd and Docker.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

pub(super) fn capabilities(security: &v1::LinuxContainerSecurityContext) -> Result<Value> {
    let request = security.capabilities.clone().unwrap_or_default();
    let mut set: BTreeSet<&str> = match security.privileged {
        true => ALL.into(),
        false => DEFAULT.into(),
    };
    // "ALL" goes first, whatever its place: dropping ALL and adding one leaves that one.
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    if request.add_capabilities.iter().any(is_all) {
        set.extend(ALL);
    }
    if request.drop_capabilities.iter().any(is_all) {
        set.clear();
    }
    for name in request.add_capabilities.iter().filter(|name| !is_all(name)) {
        set.insert(known(name)?);
    }
    for name in request
        .drop_capabilities
        .iter()
        .filter(|name| !is_all(name))
    {
        set.remove(known(name)?);
    }
    let ambient = request
        .add_ambient_capabilities
        .iter()
        .map(|name| known(name))
        .collect::<Result<BTreeSet<&str>>>()?;
    set.extend(&ambient);
    let names = |set: &BTreeSet<&str>| {
        set.iter()
            .map(|name| format!("CAP_{name}"))
            .collect::<Vec<_>>()
    };
    Ok(json!({
        "bounding": names(&set), "effective": names(&set), "permitted": names(&set),
        "inheritable": names(&ambient), "ambient": names(&ambient),
    }))
}

fn known(name: &str) -> Result<&'static str> {
    let plain = name.to_uppercase();
    let plain = plain.strip_prefix("CAP_").unwrap_or(&plain);
    let found = ALL.into_iter().find(|known| *known == plain);
    found.ok_or_else(|| SandboxError::InvalidField {
        field: "config.linux.security_context.capabilities",
        problem: format!("{name:?} is no capability of Linux"),
    })
}

/// Which devices it may use besides those that every container has: none, or all of the guest's.
pub(super) fn device_rules(security: &v1::LinuxContainerSecurityContext) -> Value {
    json!([{ "allow": security.privileged, "access": "rwm" }])
}

pub(super) fn masked_paths(security: &v1::LinuxContainerSecurityContext) -> Vec<String> {
    if security.privileged {
        return Vec::new();
    }
    if !security.masked_paths.is_empty() {
        return security.masked_paths.clone();
    }
    [
        "/proc/asound",
        "/proc/acpi",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/sys/firmware",
        "/sys/devices/virtual/powercap",
    ]
    .map(str::to_owned)
    .into()
}

pub(super) fn readonly_paths(security: &v1::LinuxContainerSecurityContext) -> Vec<String> {
    if security.privileged {
        return Vec::new();
    }
    if !security.readonly_paths.is_empty() {
        return security.readonly_paths.clone();
    }
    [
        "/proc/bus",
        "/proc/fs",
        "/proc/irq",
        "/proc/sys",
        "/proc/sysrq-trigger",
    ]
    .map(str::to_owned)
    .into()
}
