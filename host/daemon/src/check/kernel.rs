//! What the node's kernel must have.

use super::Finding;
use std::fs;
use std::path::Path;

/// `cgroup.kill` came with 5.14.
const OLDEST: (u32, u32) = (5, 14);
/// Controllers that limit a pod.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

pub(super) fn version() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    match number(release) {
        Some(version) if version >= OLDEST => Finding::ok("kernel", format!("Linux {release}")),
        _ => Finding::failed(
            "kernel",
            format!("Linux {release}"),
            format!(
                "use Linux {}.{} or newer, for cgroup.kill",
                OLDEST.0, OLDEST.1
            ),
        ),
    }
}

pub(super) fn number(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|letter: char| !letter.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

pub(super) fn cgroup() -> Finding {
    match fs::read_to_string("/sys/fs/cgroup/cgroup.controllers") {
        Err(_) => Finding::failed(
            "cgroup",
            "cgroup v2 is not mounted at /sys/fs/cgroup",
            "boot with systemd.unified_cgroup_hierarchy=1, or mount -t cgroup2 none /sys/fs/cgroup",
        ),
        Ok(text) => controllers(&text),
    }
}

pub(super) fn controllers(text: &str) -> Finding {
    let present: Vec<&str> = text.split_whitespace().collect();
    let missing: Vec<&str> = CONTROLLERS
        .into_iter()
        .filter(|name| !present.contains(name))
        .collect();
    match missing.is_empty() {
        true => Finding::ok("cgroup", format!("cgroup v2 with {}", present.join(", "))),
        false => Finding::warning(
            "cgroup",
            format!("cgroup v2 without {}", missing.join(", ")),
            "take these controllers away from cgroup v1 (cgroup_no_v1=all), so that pods can be limited",
        ),
    }
}

pub(super) fn namespaces() -> Finding {
    match Path::new("/proc/self/ns/net").exists() {
        true => Finding::ok("namespaces", "network namespaces"),
        false => Finding::failed(
            "namespaces",
            "the kernel has no network namespaces",
            "use a kernel with CONFIG_NET_NS",
        ),
    }
}
