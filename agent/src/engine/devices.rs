//! Device nodes that no specification describes: disks by their serial, and for containers that get all
//! of them those of the guest.

use super::BlockDevice;
use crate::Result;
use crate::cgroup::devices::{Kind, Rule};
use crate::error::Context;
use crate::init::plan::Device;
use crate::spec;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// The node of a disk, and the rule that lets a container use it.
pub(super) fn of_disk(asked: &BlockDevice, number: u64) -> Result<(Device, Rule)> {
    let node = Device {
        path: spec::device_path(&asked.path)?,
        mode: libc::S_IFBLK | (asked.mode & 0o7777),
        major: rustix::fs::major(number),
        minor: rustix::fs::minor(number),
        uid: asked.uid,
        gid: asked.gid,
    };
    let rule = Rule {
        allow: true,
        kind: Kind::Block,
        major: Some(node.major),
        minor: Some(node.minor),
        access: spec::device_access(&asked.access)?,
    };
    Ok((node, rule))
}

/// Directories and files below /dev that a container has of its own.
const OWN: [&str; 6] = ["pts", "shm", "mqueue", "fd", "console", "ptmx"];
/// How deep below /dev nodes are looked for.
const MAX_DEPTH: u32 = 8;

/// Every character and block device below a directory, with the path that it has in `/dev`.
pub(super) fn of_guest(dev: &Path) -> Result<Vec<Device>> {
    let mut devices = Vec::new();
    list(dev, "/dev", MAX_DEPTH, &mut devices)?;
    // A directory has no order; the same guest gives the same.
    devices.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(devices)
}

fn list(directory: &Path, shown: &str, depth: u32, devices: &mut Vec<Device>) -> Result<()> {
    let what = || format!("Cannot list {}", directory.display());
    for entry in fs::read_dir(directory).context(what)? {
        let entry = entry.context(what)?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        // A node may have gone since.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        let path = format!("{shown}/{name}");
        let kind = metadata.file_type();
        if shown == "/dev" && OWN.contains(&name.as_str()) {
            continue;
        }
        if kind.is_dir() && depth > 0 {
            list(&entry.path(), &path, depth - 1, devices)?;
        } else if kind.is_char_device() || kind.is_block_device() {
            devices.push(Device {
                path,
                mode: metadata.mode(),
                major: rustix::fs::major(metadata.rdev()),
                minor: rustix::fs::minor(metadata.rdev()),
                uid: metadata.uid(),
                gid: metadata.gid(),
            });
        }
    }
    Ok(())
}
