//! `tmpcopyup`: a new tmpfs begins with what the image has in its place.

use super::root::Root;
use crate::sys::copy;
use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::OwnedFd;

/// Copies what is at a path of the container into the root of a detached mount.
pub(super) fn copy(root: &Root, path: &str, tree: &OwnedFd) -> io::Result<()> {
    let from = root.open(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let to = rustix::fs::openat(tree, ".", flags, Mode::empty())?;
    copy::directory(&from, &to, copy::MAX_DEPTH)
}
