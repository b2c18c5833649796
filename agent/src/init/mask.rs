//! Paths that a container must not see or must not change.
//!
//! Everything goes by descriptors opened inside the root; what covers a file is the guest's own
//! /dev/null, opened before anything of the container was looked at, not the container's.

use super::mounts::{attach, copy, new, open_path};
use super::plan::IdMaps;
use super::root::Root;
use super::{Doing, Failure, FailureKind, Step};
use crate::sys::mount::{attr, set_attributes};
use rustix::fs::{FileType, OFlags, makedev};
use rustix::io::Errno;
use std::os::fd::OwnedFd;

/// The guest's /dev/null.
pub(super) struct Null(OwnedFd);

impl Null {
    pub(super) fn open() -> Step<Self> {
        let what = "open /dev/null";
        let fd = open_path("/dev/null").doing(what)?;
        let stat = rustix::fs::fstat(&fd).doing(what)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::CharacterDevice || stat.st_rdev != makedev(1, 3) {
            return Err(Failure {
                kind: FailureKind::Other,
                message: "The guest's /dev/null is not the null device".to_owned(),
            });
        }
        Ok(Self(fd))
    }
}

/// Covers a file with nothing, a directory with an empty one. What is not there need not be hidden.
pub(super) fn hide(root: &Root, path: &str, null: &Null) -> Step {
    let what = format!("mask {path}");
    let place = match root.open(path, OFlags::PATH) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        place => place.doing(&what)?,
    };
    let stat = rustix::fs::fstat(&place).doing(&what)?;
    let cover = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        let size = ("size".to_owned(), Some("0".to_owned()));
        new("tmpfs", "tmpfs", &[size], &IdMaps::default(), &what)?
    } else {
        copy(&null.0, false).doing(&what)?
    };
    set_attributes(
        &cover,
        attr::RDONLY | attr::NOEXEC | attr::NOSUID,
        0,
        0,
        false,
    )
    .doing(&what)?;
    attach(&cover, &place, &what)
}

/// Covers a path with a read-only view of itself.
pub(super) fn make_read_only(root: &Root, path: &str) -> Step {
    let what = format!("make {path} read-only");
    let place = match root.open(path, OFlags::PATH) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        place => place.doing(&what)?,
    };
    let cover = copy(&place, true).doing(&what)?;
    set_attributes(&cover, attr::RDONLY, 0, 0, true).doing(&what)?;
    attach(&cover, &place, &what)
}
