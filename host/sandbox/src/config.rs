//! What the daemon's configuration says about pods.

use bulkhead_network::NetworkConfig;
use bulkhead_vmm_api::{NetworkLimits, Rate, RateLimits};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where things are on the node.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// What survives a reboot: the state store, the scratch template.
    pub root: PathBuf,
    /// What does not: sockets, scratch disks.
    pub state: PathBuf,
    /// The VMM's program.
    pub vmm: PathBuf,
    /// The file daemon's program.
    pub file_daemon: PathBuf,
    /// The parent of pod cgroups for pods whose request names none, beneath the cgroup v2 mount.
    pub cgroup_parent: PathBuf,
    /// The users that VMMs run as.
    pub vmm_users: VmmUsers,
    /// Where Localhost seccomp profiles are whose path is not absolute.
    pub seccomp_profiles: PathBuf,
    /// The kubelet's directory.
    pub kubelet: PathBuf,
    /// Where pods get their networks from.
    pub network: NetworkConfig,
}

/// A range of user ids, and of group ids of the same numbers, that belong to VMMs alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VmmUsers {
    /// The first; not 0.
    pub first: u32,
    /// How many there are: so many VMs can run at once.
    pub count: u32,
}

impl Default for VmmUsers {
    /// In a part of the range that systemd leaves to others (its document "Users, Groups, UIDs and
    /// GIDs"), below the numbers that some programs take for negative.
    fn default() -> Self {
        Self {
            first: 1_900_000_000,
            count: 65_536,
        }
    }
}

/// A seccomp profile that needs no file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompDefault {
    /// The built-in profile.
    #[default]
    RuntimeDefault,
    /// None.
    Unconfined,
}

/// A runtime handler: how its pods' VMs are built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimeConfig {
    /// The guest kernel, an ELF image.
    pub kernel: PathBuf,
    /// The initramfs with the agent.
    pub initramfs: PathBuf,
    /// Virtual CPUs of a pod whose request says nothing.
    pub cpus: u8,
    /// Memory in MiB for the containers of a pod whose request says nothing.
    pub memory_mib: u64,
    /// Memory in MiB that the guest's kernel and agent get on top.
    pub overhead_mib: u64,
    /// Memory in MiB that the VMM, and the node's kernel for it, may use besides the VM's own; the
    /// limit of the pod's cgroup has it.
    pub vmm_overhead_mib: u64,
    /// The seccomp profile of a container whose request says nothing of it.
    pub seccomp_default: SeccompDefault,
    /// Size of the scratch disk in MiB; it is sparse.
    pub scratch_mib: u64,
    /// Slots for image disks: so many different images a pod can use.
    pub read_only_slots: u8,
    /// Slots for the scratch disk and block volumes.
    pub read_write_slots: u8,
    /// The most requests that each disk of a pod serves in a second; 0 is no limit.
    pub disk_max_ops_per_second: u64,
    /// The most data that each disk of a pod moves in a second, in MiB; 0 is no limit.
    pub disk_max_mib_per_second: u64,
    /// How long a guest may take from the start of its VMM until it announces itself, in seconds.
    pub boot_timeout_seconds: u64,
    /// Packets with addresses that are not the pod's own may leave it.
    pub allow_spoofing: bool,
    /// Annotations of a pod may ask for addresses, a MAC and aliases.
    pub network_annotations: bool,
    /// The most packets that a pod receives in a second; 0 is no limit.
    pub ingress_max_packets_per_second: u64,
    /// The most data that a pod receives in a second, in MiB; 0 is no limit.
    pub ingress_max_mib_per_second: u64,
    /// The most packets that a pod sends in a second; 0 is no limit.
    pub egress_max_packets_per_second: u64,
    /// The most data that a pod sends in a second, in MiB; 0 is no limit.
    pub egress_max_mib_per_second: u64,
    /// The node's kernel moves packets between taps and guests; without limits only.
    pub vhost_net: bool,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self {
            kernel: "/usr/lib/bulkhead/vmlinux".into(),
            initramfs: "/usr/lib/bulkhead/initramfs".into(),
            cpus: 1,
            memory_mib: 256,
            overhead_mib: 64,
            vmm_overhead_mib: 64,
            seccomp_default: SeccompDefault::RuntimeDefault,
            scratch_mib: 10 * 1024,
            read_only_slots: 16,
            read_write_slots: 8,
            disk_max_ops_per_second: 0,
            disk_max_mib_per_second: 0,
            boot_timeout_seconds: 30,
            allow_spoofing: false,
            network_annotations: false,
            ingress_max_packets_per_second: 0,
            ingress_max_mib_per_second: 0,
            egress_max_packets_per_second: 0,
            egress_max_mib_per_second: 0,
            vhost_net: false,
        }
    }
}

impl RuntimeConfig {
    /// The limits of a pod's network interface. After a pause it may do at once what it may do in a second.
    #[must_use]
    pub fn network_limits(&self) -> NetworkLimits {
        let rate = |per_second: u64| {
            let burst = per_second;
            (per_second > 0).then_some(Rate { per_second, burst })
        };
        let limits = |packets, mebibytes: u64| RateLimits {
            ops: rate(packets),
            bytes: rate(mebibytes.saturating_mul(1 << 20)),
        };
        NetworkLimits {
            ingress: limits(
                self.ingress_max_packets_per_second,
                self.ingress_max_mib_per_second,
            ),
            egress: limits(
                self.egress_max_packets_per_second,
                self.egress_max_mib_per_second,
            ),
        }
    }
}

impl RuntimeConfig {
    /// The limits of each disk. After a pause a disk may do at once what it may do in a second.
    pub(crate) fn disk_limits(&self) -> RateLimits {
        let rate = |per_second| {
            let burst = per_second;
            (per_second > 0).then_some(Rate { per_second, burst })
        };
        RateLimits {
            ops: rate(self.disk_max_ops_per_second),
            bytes: rate(self.disk_max_mib_per_second.saturating_mul(1 << 20)),
        }
    }
}
