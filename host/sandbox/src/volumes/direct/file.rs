//! `direct-volume.json`: what a CSI driver says of a direct volume (`docs/volumes.md`).

use serde::Deserialize;
use std::path::{Component, Path, PathBuf};

/// The largest file in bytes.
pub(super) const MAX_SIZE: u64 = 64 * 1024;
/// The most mount options, and how long the path of a device may be.
const MAX_OPTIONS: usize = 32;
const MAX_PATH: usize = 4095;
/// What the guest's kernel has.
const FILE_SYSTEMS: [&str; 1] = ["ext4"];
/// The options that a volume can have. The agent knows the same.
pub(crate) const OPTIONS: [&str; 21] = [
    "defaults",
    "ro",
    "rw",
    "nodev",
    "nosuid",
    "suid",
    "noexec",
    "exec",
    "noatime",
    "relatime",
    "strictatime",
    "atime",
    "nodiratime",
    "diratime",
    "lazytime",
    "nolazytime",
    "sync",
    "async",
    "dirsync",
    "discard",
    "nodiscard",
];

/// What a file says, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Description {
    /// Absolute, without `..`.
    pub(crate) device: PathBuf,
    /// One that the guest's kernel has.
    pub(crate) file_system: String,
    /// Those that are allowed.
    pub(crate) options: Vec<String>,
    /// The group that the volume is given to.
    pub(crate) fs_group: Option<u32>,
    /// Only if its root is not the group's.
    pub(crate) on_root_mismatch: bool,
}

impl Description {
    /// Whether nobody may write, by the last option that says so.
    pub(crate) fn is_read_only(&self) -> bool {
        let mut options = self.options.iter().rev();
        let last = options.find(|option| matches!(option.as_str(), "ro" | "rw"));
        last.is_some_and(|option| option == "ro")
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct File {
    volume_type: String,
    device: String,
    fstype: String,
    #[serde(default)]
    options: Vec<String>,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Metadata {
    fs_group: Option<Number>,
    fs_group_change_policy: Option<Policy>,
}

/// Kata has text in all its metadata.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Number(u32),
    Text(String),
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Always,
    OnRootMismatch,
}

/// Reads a file's content.
///
/// # Errors
/// What is wrong, with the key.
pub(crate) fn parse(content: &[u8]) -> Result<Description, String> {
    let file: File = serde_json::from_slice(content).map_err(|error| error.to_string())?;
    if file.volume_type != "block" {
        return Err(format!(
            "volume-type is {:?}; only \"block\" is supported",
            file.volume_type
        ));
    }
    if !FILE_SYSTEMS.contains(&file.fstype.as_str()) {
        return Err(format!(
            "fstype is {:?}; the guest's kernel has {}",
            file.fstype,
            FILE_SYSTEMS.join(", ")
        ));
    }
    let device = PathBuf::from(&file.device);
    let climbs = device.components().any(|part| part == Component::ParentDir);
    let fits = file.device.len() <= MAX_PATH && !file.device.contains('\0');
    if !device.is_absolute() || climbs || !fits {
        return Err(format!(
            "device is {:?}, no absolute path without \"..\"",
            shortened(&file.device)
        ));
    }
    if file.options.len() > MAX_OPTIONS {
        return Err(format!("there are more than {MAX_OPTIONS} options"));
    }
    if let Some(other) = not_allowed(&file.options) {
        return Err(format!(
            "option {:?} is not allowed for a direct volume",
            shortened(other)
        ));
    }
    let fs_group = match file.metadata.fs_group {
        None => None,
        Some(Number::Number(number)) => Some(number),
        Some(Number::Text(text)) => match text.parse() {
            Ok(number) => Some(number),
            Err(_) => return Err(format!("fsGroup is {:?}, no number", shortened(&text))),
        },
    };
    // The kernel takes it for "leave it as it is".
    if fs_group == Some(u32::MAX) {
        return Err("fsGroup is no group".to_owned());
    }
    let policy = file.metadata.fs_group_change_policy;
    Ok(Description {
        device,
        file_system: file.fstype,
        options: file.options,
        fs_group,
        on_root_mismatch: policy == Some(Policy::OnRootMismatch),
    })
}

fn not_allowed(options: &[String]) -> Option<&str> {
    let other = options.iter().find(|one| !OPTIONS.contains(&one.as_str()));
    other.map(String::as_str)
}

/// For a message.
fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}

/// The volume that a path of the node belongs to, below the kubelet's directory: its directory, which has the file
/// `direct-volume.json` if it is a direct volume, and where in it the path leads.
pub(crate) fn place(path: &Path) -> Option<Place> {
    let parts: Option<Vec<&str>> = path.iter().map(|part| part.to_str()).collect();
    match parts?.as_slice() {
        ["pods", pod, "volumes", super::CSI, name, "mount", rest @ ..] => Some(Place {
            volume: Path::new("pods")
                .join(pod)
                .join("volumes")
                .join(super::CSI)
                .join(name),
            part: match rest {
                [] => Part::Whole,
                rest => Part::Below(rest.join("/")),
            },
        }),
        ["pods", pod, "volume-subpaths", name, _container, _index] => Some(Place {
            volume: Path::new("pods")
                .join(pod)
                .join("volumes")
                .join(super::CSI)
                .join(name),
            part: Part::Bound,
        }),
        _ => None,
    }
}

/// A volume, and what of it a path means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Below the kubelet's directory.
    pub(crate) volume: PathBuf,
    pub(crate) part: Part,
}

/// A part of a volume.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    Below(String),
    /// What the kubelet has bound to the path.
    Bound,
}
