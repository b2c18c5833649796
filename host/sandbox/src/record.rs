//! What is remembered of pods and containers, in memory and in the store.

use crate::volumes::SharedVolume;
use bulkhead_cri::v1;
use bulkhead_vmm_api::DiskSlot;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::PathBuf;

use crate::config::RuntimeConfig;
use crate::phases::Phases;

/// Where a sandbox is in its life; see [`crate::sandbox`] for who moves it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SandboxState {
    /// Being set up.
    #[default]
    Starting,
    /// The agent serves.
    Ready,
    /// Being taken down.
    Stopping,
    /// Nothing of it is left but this record.
    Ended {
        /// Why.
        cause: String,
    },
}

impl SandboxState {
    /// A word for messages.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
            Self::Ended { .. } => "stopped",
        }
    }
}

/// A pod sandbox as it is stored.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Its id.
    pub id: String,
    /// As the caller gave it.
    pub config: v1::PodSandboxConfig,
    /// The runtime handler's name.
    pub handler: String,
    /// The handler's settings when the pod was made.
    pub runtime: RuntimeConfig,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Where it is in its life.
    pub state: SandboxState,
    /// The pod's cgroup on the host, beneath the cgroup v2 mount.
    pub cgroup: PathBuf,
    /// How long starting took, by phase.
    #[serde(default)]
    pub phases: Phases,
    /// `uname -r` of the guest, once it has announced itself.
    #[serde(default)]
    pub guest_kernel: String,
    /// Its addresses, the first one first, while it has a network.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// The VMM, while it runs.
    #[serde(default)]
    pub vmm: Option<VmmIdentity>,
    /// The file daemon, once the pod has shared volumes.
    #[serde(default)]
    pub file_daemon: Option<FileDaemonRecord>,
    /// What the VM was booted with; nothing before.
    #[serde(default)]
    pub size: Option<VmSize>,
    /// What UpdatePodSandboxResources has set since.
    #[serde(default)]
    pub resources: Option<v1::LinuxContainerResources>,
    /// The block devices of the node that its containers have asked for.
    #[serde(default)]
    pub block_volumes: Vec<BlockVolume>,
}

/// A block device of the node behind a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockVolume {
    /// The slot.
    pub slot: DiskSlot,
    /// `st_rdev` on the node.
    pub number: u64,
    /// The directory of the direct volume that it is; nothing if the guest's containers see it as a device.
    #[serde(default)]
    pub volume: Option<String>,
}

impl BlockVolume {
    /// Whether a guest may have something in its memory that has to go to one of these.
    pub(crate) fn any_is_written(volumes: &[Self]) -> bool {
        let mut slots = volumes.iter().map(|volume| volume.slot);
        slots.any(|slot| matches!(slot, DiskSlot::ReadWrite(_)))
    }
}

/// What a VM was booted with. It never changes shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSize {
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Memory in MiB, with what the guest's kernel and agent need.
    pub memory_mib: u64,
    /// The part of it that is meant for the containers.
    pub pod_memory_mib: u64,
}

/// A process and a way to know it from another that got its number later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmIdentity {
    /// Process id.
    pub pid: i32,
    /// Start time, field 22 of `/proc/PID/stat`, in clock ticks since the boot of the node.
    pub start_ticks: u64,
    /// The user and group that it runs as.
    #[serde(default)]
    pub user: u32,
}

/// A pod's file daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDaemonRecord {
    /// Its process.
    pub identity: VmmIdentity,
    /// Which of the pod's it is, from 1.
    pub epoch: u16,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContainerState {
    /// Its first process waits to be started.
    #[default]
    Created,
    /// It runs.
    Running {
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// It has ended and its log is complete.
    Exited(ExitRecord),
}

impl ContainerState {
    /// When its program was started, nanoseconds since the epoch; nothing if it never was.
    #[must_use]
    pub fn started_at(&self) -> Option<i64> {
        match self {
            Self::Created => None,
            Self::Running { started_at } => Some(*started_at),
            Self::Exited(exit) => Some(exit.started_at).filter(|at| *at != 0),
        }
    }
}

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Nanoseconds since the epoch, 0 if it never ran.
    pub started_at: i64,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
    /// 0 to 255; 128 + signal when a signal ended it.
    pub code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError` or `SandboxEnded`.
    pub reason: String,
    /// More, for people.
    pub message: String,
}

/// A container as it is stored.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its id.
    pub id: String,
    /// Its pod sandbox.
    pub sandbox_id: String,
    /// As the caller gave it.
    pub config: v1::ContainerConfig,
    /// The image's id (digest of its configuration).
    pub image_id: String,
    /// How the image can be pulled again, by digest where that is known.
    pub image_ref: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Where it is in its life.
    pub state: ContainerState,
    /// The log on the host, empty for none.
    pub log_path: PathBuf,
    /// Its streams in the guest.
    pub streams: StreamIds,
    /// The signal that stops it.
    pub stop_signal: u32,
    /// What runs in it, for more processes like it.
    pub process: oci_spec::runtime::Process,
    /// "user[:group]" to be resolved in the image.
    pub user: String,
    /// Leave out the groups that the image has for the user.
    #[serde(default)]
    pub strict_groups: bool,
    /// Its first process, by its number in the guest; 0 if it is not known.
    #[serde(default)]
    pub pid: u32,
    /// Who its first process is, as its agent found it in the image; absent if that is not known.
    #[serde(default)]
    pub identity: Option<Identity>,
    /// The slot of its image.
    pub image_slot: u8,
    /// The images that it has as volumes, and their slots.
    #[serde(default)]
    pub image_volumes: Vec<ImageVolume>,
    /// The volumes that it shares with the node.
    #[serde(default)]
    pub shared_volumes: Vec<SharedVolume>,
}

/// Who a process runs as; in a user namespace the numbers are those inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups, the primary one among them.
    pub groups: Vec<u32>,
}

impl Identity {
    /// As an agent tells it.
    pub(crate) fn from_agent(told: bulkhead_agent_api::agent::Identity) -> Self {
        Self {
            uid: told.uid,
            gid: told.gid,
            groups: told.groups,
        }
    }
}

/// An image that a container has as a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageVolume {
    /// The image's id.
    pub image_id: String,
    /// The slot that it is on.
    pub slot: u8,
}

/// Stream ids of a process, 0 where there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamIds {
    /// Standard input.
    pub stdin: u64,
    /// Standard output, or the terminal.
    pub stdout: u64,
    /// Standard error.
    pub stderr: u64,
    /// Whether it has a terminal.
    pub terminal: bool,
}
