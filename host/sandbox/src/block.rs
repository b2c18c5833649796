//! Raw block volumes: block devices of the node that a container asks for by path (`config.devices`).
//!
//! The device is opened once, by the path as the caller means it, and only for reading unless it may be
//! written: what the guest makes of it cannot be more than that. It goes to a slot of the VM
//! ([`crate::disks`]); in the container its node has the owner and mode that it has on the node.

use crate::disks::PodDisks;
use crate::place::Place;
use crate::store::blocking;
use crate::{Result, SandboxError};
use bulkhead_agent_api::agent::BlockDevice;
use bulkhead_cri::v1;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The most devices of one container; a pod has at most 32 slots of a kind.
const MAX_DEVICES: usize = 64;

/// A block device that a container asks for, opened.
#[derive(Debug)]
pub(crate) struct Volume {
    /// `st_rdev` on the node.
    number: u64,
    device: OwnedFd,
    write: bool,
    /// What the agent is told; the disk's serial is not known yet.
    node: BlockDevice,
}

/// Checks and opens the devices of a container.
///
/// # Errors
/// [`SandboxError::InvalidField`], [`SandboxError::NotFound`], and what opening them says.
pub(crate) async fn open(devices: Vec<v1::Device>) -> Result<Vec<Volume>> {
    if devices.len() > MAX_DEVICES {
        return Err(wrong(format!("more than {MAX_DEVICES} devices")));
    }
    if devices.is_empty() {
        return Ok(Vec::new());
    }
    // Opening a device may wait for it.
    blocking(move || devices.iter().map(open_one).collect()).await
}

/// Puts them behind slots and tells what the agent must be told.
pub(crate) async fn bind(
    place: &dyn Place,
    disks: &PodDisks,
    volumes: Vec<Volume>,
) -> Result<Vec<BlockDevice>> {
    let mut bound = Vec::with_capacity(volumes.len());
    for volume in volumes {
        let Volume {
            number,
            device,
            write,
            mut node,
        } = volume;
        let slot = disks.take_device(place, number, write, device).await?;
        node.disk = slot.serial();
        bound.push(node);
    }
    Ok(bound)
}

fn open_one(device: &v1::Device) -> Result<Volume> {
    let access = access(&device.permissions)?;
    for path in [&device.container_path, &device.host_path] {
        if !Path::new(path).is_absolute() {
            return Err(wrong(format!("{path:?} is not an absolute path")));
        }
    }
    let path = PathBuf::from(&device.host_path);
    let what = || SandboxError::io(format!("open the device {}", path.display()));
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let found = match rustix::fs::open(&path, flags, Mode::empty()) {
        Ok(found) => found,
        Err(Errno::NOENT | Errno::NOTDIR) => {
            return Err(SandboxError::NotFound {
                what: "device",
                id: device.host_path.clone(),
            });
        }
        Err(error) => return Err(what()(error.into())),
    };
    let stat = rustix::fs::fstat(&found).map_err(|error| what()(error.into()))?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::BlockDevice {
        return Err(wrong(format!(
            "{:?} is no block device ({kind:?}); a virtual machine can have no other device of the node",
            device.host_path
        )));
    }
    let write = access.contains('w');
    let mode = match write {
        true => OFlags::RDWR,
        false => OFlags::RDONLY,
    };
    // The very file that was looked at, whatever the path has become.
    let same = format!("/proc/self/fd/{}", found.as_raw_fd());
    let opened = rustix::fs::open(same, mode | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| what()(error.into()))?;
    let mut node = BlockDevice::new();
    node.path.clone_from(&device.container_path);
    node.access = access;
    node.mode = stat.st_mode & 0o7777;
    node.uid = stat.st_uid;
    node.gid = stat.st_gid;
    Ok(Volume {
        number: stat.st_rdev,
        device: opened,
        write,
        node,
    })
}

/// Checks `permissions`: letters of "rwm", all of them if there is none.
fn access(permissions: &str) -> Result<String> {
    if let Some(letter) = permissions.chars().find(|letter| !"rwm".contains(*letter)) {
        return Err(wrong(format!(
            "permissions {permissions:?} has {letter:?}; it is made of r, w and m"
        )));
    }
    match permissions {
        "" => Ok("rwm".to_owned()),
        letters => Ok(letters.to_owned()),
    }
}

fn wrong(problem: String) -> SandboxError {
    SandboxError::InvalidField {
        field: "config.devices",
        problem,
    }
}

#[cfg(test)]
mod tests {
    use super::{access, open};
    use crate::error::Kind;
    use bulkhead_cri::v1::Device;

    fn device(host_path: &str, container_path: &str, permissions: &str) -> Vec<Device> {
        vec![Device {
            container_path: container_path.to_owned(),
            host_path: host_path.to_owned(),
            permissions: permissions.to_owned(),
        }]
    }

    #[tokio::test]
    async fn what_is_no_block_device_is_refused_by_name() {
        for (host_path, kind, text) in [
            ("/dev/null", Kind::InvalidArgument, "no block device"),
            ("/", Kind::InvalidArgument, "no block device"),
            ("dev/sda", Kind::InvalidArgument, "absolute"),
            ("/dev/there-is-none", Kind::NotFound, "there-is-none"),
        ] {
            let error = open(device(host_path, "/dev/x", "rw")).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{host_path}: {error}");
            assert!(error.to_string().contains(text), "{error}");
        }
        let relative = open(device("/dev/null", "dev/x", "rw")).await.unwrap_err();
        assert!(relative.to_string().contains("absolute"), "{relative}");
        let many = (0..65).flat_map(|_| device("/dev/null", "/x", ""));
        assert!(open(many.collect()).await.is_err());
    }

    #[test]
    fn permissions_are_letters() {
        assert_eq!(access("").unwrap(), "rwm");
        assert_eq!(access("mr").unwrap(), "mr");
        assert!(access("rx").is_err());
    }
}
