//! Device nodes and links that every container has (OCI runtime specification, config-linux,
//! "Default Devices"; runtime-linux, "Dev symbolic links"), and those that it asks for.

use super::plan::{Device, Failure, FailureKind, IdMaps};
use super::root::Root;
use super::{Doing, Step};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, makedev};
use rustix::io::Errno;
use std::os::fd::AsFd;

const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("/dev/ptmx", "pts/ptmx"),
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

const CORE: (&str, &str) = ("/dev/core", "/proc/kcore");

/// Makes them all.
pub(super) fn create(root: &Root, devices: &[Device], ids: &IdMaps) -> Step {
    for (path, major, minor) in DEFAULT {
        // One that the specification describes counts.
        if devices.iter().any(|device| device.path == path) {
            continue;
        }
        node(
            root,
            &Device {
                path: path.to_owned(),
                mode: libc::S_IFCHR | 0o666,
                major,
                minor,
                uid: 0,
                gid: 0,
            },
            ids,
        )?;
    }
    for device in devices {
        node(root, device, ids)?;
    }
    // As other runtimes: only where the kernel has it.
    let core = root.open(CORE.1, rustix::fs::OFlags::PATH).is_ok();
    let core = core.then_some(CORE);
    for (path, target) in LINKS.into_iter().chain(core) {
        let (parent, name) = root.parent(path)?;
        match rustix::fs::symlinkat(target, &parent, name) {
            // The image or a mount brings its own.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).doing(&format!("make the link {path}")),
        }
    }
    Ok(())
}

fn node(root: &Root, device: &Device, ids: &IdMaps) -> Step {
    let what = format!("make the device {}", device.path);
    let (parent, name) = root.parent(&device.path)?;
    let kind = FileType::from_raw_mode(device.mode);
    let mode = Mode::from_raw_mode(device.mode);
    let number = makedev(device.major, device.minor);
    match rustix::fs::mknodat(&parent, name, kind, mode, number) {
        Ok(()) => {}
        Err(Errno::EXIST) if is_it(parent.as_fd(), name, device) => return Ok(()),
        Err(Errno::EXIST) => {
            return Err(Failure {
                kind: FailureKind::Invalid,
                message: format!("{} is there already and is something else", device.path),
            });
        }
        Err(error) => return Err(error).doing(&what),
    }
    let owner = (
        ids.uid(device.uid).map(Uid::from_raw),
        ids.gid(device.gid).map(Gid::from_raw),
    );
    rustix::fs::chownat(&parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW).doing(&what)
}

/// Whether what is there is the device that was to be made.
fn is_it(parent: std::os::fd::BorrowedFd<'_>, name: &str, device: &Device) -> bool {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::from_raw_mode(device.mode)
            && stat.st_rdev == makedev(device.major, device.minor)
    })
}
