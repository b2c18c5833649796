//! What pods must not leave behind on a node.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Everything on the node that could be a pod's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    things: BTreeSet<String>,
}

impl Snapshot {
    /// Looks at processes, mounts, network namespaces, links, address leases, rules of the firewall, cgroups, block devices, and, where they are
    /// given, at the files below a daemon's state directory and its descriptors.
    #[must_use]
    pub fn take(state: Option<&Path>, daemon: Option<u32>) -> Self {
        let mut things = BTreeSet::new();
        processes(&mut things);
        cgroups(Path::new("/sys/fs/cgroup"), &mut things);
        for line in read("/proc/self/mounts").lines() {
            things.insert(format!("mount {line}"));
        }
        for entry in entries(Path::new("/run/netns")) {
            things.insert(format!("netns {entry}"));
        }
        networks(&mut things);
        for device in entries(Path::new("/sys/block")) {
            let backing = read(&format!("/sys/block/{device}/loop/backing_file"));
            if !backing.is_empty() {
                things.insert(format!("loop device {device}: {}", backing.trim()));
            }
        }
        if let Some(state) = state {
            for pod in entries(&state.join("pods")) {
                things.insert(format!("directory of pod {pod}"));
            }
            for pod in entries(&state.join("netns")) {
                things.insert(format!("network namespace of pod {pod}"));
            }
        }
        if let Some(pid) = daemon {
            descriptors(pid, &mut things);
        }
        Self { things }
    }

    /// What is there that was not there before.
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<String> {
        self.things.difference(&before.things).cloned().collect()
    }
}

fn processes(things: &mut BTreeSet<String>) {
    for pid in entries(Path::new("/proc")) {
        let name = read(&format!("/proc/{pid}/comm"));
        let state = read(&format!("/proc/{pid}/stat"));
        let zombie = state
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('Z'));
        if name.starts_with("bulkhead-vmm") || (zombie && name.starts_with("bulkhead")) {
            things.insert(format!("process {pid} {}", name.trim()));
        }
    }
}

/// What CNI plugins make outside of a pod's namespace (its tap goes with that).
fn networks(things: &mut BTreeSet<String>) {
    for link in entries(Path::new("/sys/class/net")) {
        things.insert(format!("link {link}"));
    }
    let pools = Path::new("/var/lib/cni/networks");
    for pool in entries(pools) {
        for lease in entries(&pools.join(&pool)) {
            if lease != "lock" && !lease.starts_with("last_reserved_ip") {
                things.insert(format!("lease of {lease} in {pool}"));
            }
        }
    }
    // Rules of a pod carry its id in a comment. Where there is no nft there are no such plugins.
    let rules = Command::new("nft").args(["list", "ruleset"]).output();
    let rules = rules.map(|output| output.stdout).unwrap_or_default();
    for rule in String::from_utf8_lossy(&rules).lines() {
        if rule.contains("id: ") {
            things.insert(format!("rule {}", rule.trim()));
        }
    }
}

fn cgroups(path: &Path, things: &mut BTreeSet<String>) {
    for name in entries(path) {
        let child = path.join(&name);
        if child.is_dir() {
            if name.starts_with("bulkhead-") {
                things.insert(format!("cgroup {}", child.display()));
            }
            cgroups(&child, things);
        }
    }
}

/// Descriptors by what they are, counted: numbers and inodes differ from pod to pod.
fn descriptors(pid: u32, things: &mut BTreeSet<String>) {
    let directory = format!("/proc/{pid}/fd");
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    for fd in entries(Path::new(&directory)) {
        if let Ok(target) = fs::read_link(format!("{directory}/{fd}")) {
            let target = target.display().to_string();
            let kind = target.split(":[").next().unwrap_or_default().to_owned();
            *counts.entry(kind).or_default() += 1;
        }
    }
    // The runtime's own descriptors come and go; what a pod has is files and pidfds.
    for (kind, count) in counts {
        let of_a_pod = kind.contains("/pods/") || kind.contains("pidfd") || kind.contains(".erofs");
        if of_a_pod {
            things.insert(format!("{count} descriptor(s) of the daemon: {kind}"));
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn entries(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}
