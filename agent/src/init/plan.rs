//! What the agent tells the process that is to become a container's or an exec's, and what that
//! process answers.
//!
//! The plan is JSON in a sealed memory file, made by the agent from a checked specification. The
//! answers are single messages on a `SOCK_SEQPACKET` pair; they come from a process that a hostile
//! container may be able to reach, so they are untrusted.

use crate::Error;
use crate::seccomp::Filter;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Descriptors that the process starts with, besides 0, 1 and 2.
pub mod fds {
    use std::os::fd::RawFd;

    /// Its end of the control socket.
    pub const CONTROL: RawFd = 3;
    /// The memory file with the plan.
    pub const PLAN: RawFd = 4;
    /// A pidfd of the container's first process, for an exec.
    pub const CONTAINER: RawFd = 5;
    /// The first of the namespace files to join, in the order of the plan; those of
    /// [`super::Container::user_namespaces`] follow.
    pub const NAMESPACES: RawFd = 6;
    /// The most namespace files.
    pub const MAX_NAMESPACES: RawFd = 20;
}

/// The message by which the agent lets the program run.
pub const GO: &[u8] = b"go";
/// The message that says that all is prepared; the master of the terminal, if there is one, comes
/// along (`SCM_RIGHTS`). Who the process is follows as JSON, if it has a program to run and that fits.
pub const READY: &[u8] = b"ready";
/// The longest answer in bytes.
pub const MAX_ANSWER: usize = 16 * 1024;

/// All that the process needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// How it gets where the program is to run.
    pub place: Place,
    /// The user namespace that it ends in; none when empty.
    pub ids: IdMaps,
    /// What it becomes.
    pub process: Process,
}

/// Where the program is to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// In a container that it makes.
    Make(Box<Container>),
    /// In the container whose first process is [`fds::CONTAINER`].
    Join {
        /// Whether that has a cgroup namespace. Then the process gets one too, whose root is the
        /// cgroup that it is born into.
        cgroup_namespace: bool,
    },
    /// Nowhere: it is the first process of the pod's pid namespace, or holds a user namespace open
    /// until the agent has it, and stays until the agent closes the control socket. The path is an
    /// empty directory to be its root; without one it has the agent's.
    Stay(Option<PathBuf>),
}

/// Which ids of a user namespace are which of the guest (user_namespaces(7)).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdMaps {
    /// User ids.
    pub uids: Vec<IdMap>,
    /// Group ids.
    pub gids: Vec<IdMap>,
}

/// A range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdMap {
    /// The first in the namespace.
    pub inside: u32,
    /// The first in the guest.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

impl IdMaps {
    /// Whether there is no user namespace at all.
    pub fn is_empty(&self) -> bool {
        self.uids.is_empty() && self.gids.is_empty()
    }

    /// The guest's user id for one of the namespace; the same where there is no namespace.
    pub fn uid(&self, inside: u32) -> Option<u32> {
        self.outside(&self.uids, inside)
    }

    /// As [`Self::uid`] for a group.
    pub fn gid(&self, inside: u32) -> Option<u32> {
        self.outside(&self.gids, inside)
    }

    /// The guest's ids of the namespace's root.
    pub fn root(&self) -> (u32, u32) {
        // Without a root nobody in the namespace owns what is made for it.
        (self.uid(0).unwrap_or(0), self.gid(0).unwrap_or(0))
    }

    fn outside(&self, maps: &[IdMap], inside: u32) -> Option<u32> {
        if self.is_empty() {
            return Some(inside);
        }
        maps.iter().find_map(|map| {
            let offset = inside.checked_sub(map.inside)?;
            (offset < map.count).then(|| map.outside.checked_add(offset))?
        })
    }
}

/// A container to make.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The read-only directory under the root.
    pub image: PathBuf,
    /// The directory that takes the changes.
    pub upper: PathBuf,
    /// The overlay's working directory, on the same file system as `upper`.
    pub work: PathBuf,
    /// An empty directory, where the root is mounted until it is the root.
    pub mount_point: PathBuf,
    /// Namespaces made by the clone: `CLONE_NEWNS` and others.
    pub new_namespaces: i32,
    /// Namespaces to join, `CLONE_NEW*`, whose files are from [`fds::NAMESPACES`] on.
    pub join_namespaces: Vec<i32>,
    /// User namespaces for id-mapped mounts and for the container itself, whose files follow those
    /// of `join_namespaces`.
    pub user_namespaces: Vec<IdMaps>,
    /// Whether it gets a cgroup namespace.
    pub cgroup_namespace: bool,
    /// Host name, in a uts namespace of its own.
    pub hostname: Option<String>,
    /// Domain name, in a uts namespace of its own.
    pub domainname: Option<String>,
    /// In the order of the specification.
    pub mounts: Vec<Mount>,
    /// Besides the default ones.
    pub devices: Vec<Device>,
    /// Paths that show nothing.
    pub masked: Vec<String>,
    /// Paths that cannot be changed.
    pub read_only: Vec<String>,
    /// Whether the root itself cannot be changed.
    pub root_read_only: bool,
    /// Programs of the guest, run before the root is entered (OCI `createContainer`).
    pub create_hooks: Vec<Hook>,
    /// Programs of the container, run just before its own (OCI `startContainer`).
    pub start_hooks: Vec<Hook>,
    /// What the hooks are told of the container.
    pub state: State,
}

/// A program to run at a certain moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Absolute.
    pub path: String,
    /// With argv 0; only that when empty.
    pub args: Vec<String>,
    /// All of its environment.
    pub env: Vec<String>,
    /// Seconds after which it is killed and has failed.
    pub timeout: Option<u64>,
}

/// The state of a container as hooks read it (OCI runtime specification, "State"), but for `status`
/// and `pid`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Version of the specification.
    pub oci_version: String,
    /// The container.
    pub id: String,
    /// Where its files are, in the guest.
    pub bundle: PathBuf,
    /// Of the specification.
    pub annotations: BTreeMap<String, String>,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute, without `..`; resolved inside the root.
    pub target: String,
    /// What is mounted.
    pub what: Source,
    /// `MOUNT_ATTR_*` bits to set and to clear.
    pub set: u64,
    /// See `set`.
    pub clear: u64,
    /// The same for the mounts below a recursive bind.
    pub set_recursive: u64,
    /// See `set_recursive`.
    pub clear_recursive: u64,
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE` or `MS_UNBINDABLE`; `true` is recursive.
    pub propagation: Option<(u64, bool)>,
    /// The mapping of an id-mapped mount; `true` is recursive.
    pub ids: Option<(IdMaps, bool)>,
    /// Whether a new tmpfs begins with what the image has in its place.
    pub copy_up: bool,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// A file or directory of the guest.
    Bind {
        /// Its path, resolved in the agent's root.
        path: String,
        /// With the mounts below it.
        recursive: bool,
        /// Make the directory when it is not there.
        create: bool,
    },
    /// A part of an image.
    Image {
        /// Serial of its disk.
        disk: String,
        /// Where the guest has it mounted; empty in a specification.
        root: PathBuf,
        /// What of it, resolved inside it.
        sub_path: String,
    },
    /// A volume that the pod shares with the node.
    Shared {
        /// Its name.
        name: String,
        /// Of a volume whose content the node replaces as a whole: its mirror in memory.
        mirror: bool,
        /// Where the guest has it; empty in a specification.
        root: PathBuf,
    },
    /// An emptyDir volume of the pod.
    EmptyDir {
        /// Which.
        volume: EmptyDir,
        /// What of it, resolved inside it; a directory is made when nothing is there.
        sub_path: String,
        /// Where the guest has it; empty in a specification.
        root: PathBuf,
    },
    /// A file system of the pod's own on a disk.
    Direct {
        /// Which.
        volume: DirectVolume,
        /// What of it, resolved inside it; a directory is made when nothing is there.
        sub_path: String,
        /// Where the guest has it; empty in a specification.
        root: PathBuf,
    },
    /// A new instance of a file system.
    New {
        /// As `tmpfs`.
        kind: String,
        /// What tables of mounts show as the source.
        source: String,
        /// Parameters of that file system; `None` is a flag.
        parameters: Vec<(String, Option<String>)>,
    },
}

/// An emptyDir volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmptyDir {
    /// Its name in the pod.
    pub name: String,
    /// Permissions that it is made with.
    pub mode: u32,
    /// Its first owner.
    pub uid: u32,
    /// Its first group.
    pub gid: u32,
    /// In memory, and no more bytes than this; on the scratch disk otherwise.
    pub memory: Option<u64>,
}

/// A file system on a disk that is mounted in the guest only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectVolume {
    /// Serial of the disk.
    pub disk: String,
    /// As `ext4`.
    pub file_system: String,
    /// As mount(8) takes them; see [`crate::pod::mount_options`].
    pub options: Vec<String>,
    /// Whose it becomes when it is mounted.
    pub fs_group: Option<FsGroup>,
}

/// The group that a volume is given, as the kubelet gives it (`fsGroup`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsGroup {
    /// Its number.
    pub gid: u32,
    /// Only if the root of the volume is not as it should be.
    pub on_root_mismatch: bool,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Absolute, without `..`.
    pub path: String,
    /// `S_IFCHR`, `S_IFBLK` or `S_IFIFO` and the permissions.
    pub mode: u32,
    /// Number.
    pub major: u32,
    /// Number.
    pub minor: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A program and what it runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Not empty.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Absolute, without `..`.
    pub cwd: String,
    /// Unless `user_name` is there.
    pub uid: u32,
    /// Unless `user_name` is there.
    pub gid: u32,
    /// Besides those of the image's `/etc/group` when `user_name` is there.
    pub groups: Vec<u32>,
    /// `user` or `user:group`, to be resolved in the image.
    pub user_name: Option<String>,
    /// Leave out the groups that the image has for `user_name`.
    pub strict_groups: bool,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// Capability sets, bit by number.
    pub capabilities: Capabilities,
    /// See prctl(2).
    pub no_new_privileges: bool,
    /// Installed as the last thing before the program runs.
    pub seccomp: Option<Filter>,
    /// `RLIMIT_*`, soft, hard.
    pub limits: Vec<(u32, u64, u64)>,
    /// See proc(5).
    pub oom_score_adj: Option<i32>,
    /// Columns and rows of its terminal, when it has one.
    pub terminal: Option<(u16, u16)>,
}

/// Capability sets, bit by number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// What can ever be gained.
    pub bounding: u64,
    /// What counts.
    pub effective: u64,
    /// What can be made effective.
    pub permitted: u64,
    /// What survives `execve` with a file's help.
    pub inheritable: u64,
    /// What survives `execve` without it.
    pub ambient: u64,
}

/// Why the program does not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What it means to the caller.
    pub kind: FailureKind,
    /// A sentence.
    pub message: String,
}

/// See [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// There is no such program, user or mount source.
    NotFound,
    /// The program is not executable.
    Denied,
    /// The specification does not fit the image.
    Invalid,
    /// The system refused.
    Other,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure.kind {
            FailureKind::NotFound => Self::NotFound(failure.message),
            FailureKind::Denied => Self::Denied(failure.message),
            FailureKind::Invalid => Self::Invalid(failure.message),
            FailureKind::Other => Self::Internal(failure.message),
        }
    }
}

impl Failure {
    /// Reads an answer that is not [`READY`].
    pub fn parse(message: &[u8]) -> Self {
        serde_json::from_slice(message).unwrap_or_else(|_| Self {
            kind: FailureKind::Other,
            message: "The process sent an answer that makes no sense".to_owned(),
        })
    }
}
