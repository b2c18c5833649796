//! A pod's volumes, from the mount namespace of one file daemon to that of the next.

use super::tree;
use rustix::fs::{AtFlags, CWD, FileType, StatxAttributes, StatxFlags, statx};
use rustix::mount::{OpenTreeFlags, open_tree};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// A volume's mount once more, not yet anywhere.
struct Copied {
    name: String,
    tree: OwnedFd,
    is_directory: bool,
}

/// Puts every volume of a namespace, whose process may have ended, into another one. What a volume is was decided
/// when its container was made: its mount is copied, and nothing on the node is resolved by path again.
pub(super) fn all(from: &File, to: &File) -> io::Result<()> {
    for one in tree::inside(from, volumes)? {
        tree::attach(to.try_clone()?, one.tree, &one.name, one.is_directory)?;
    }
    Ok(())
}

/// What is mounted below the root of this thread's namespace.
fn volumes() -> io::Result<Vec<Copied>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/")? {
        let name = entry?.file_name().into_string();
        let name = name.map_err(|name| io::Error::other(format!("{name:?} is no volume")))?;
        let path = Path::new("/").join(&name);
        let stat = statx(CWD, &path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE)?;
        // A volume that is half made or half gone has no mount.
        if !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            continue;
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE
            | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
        found.push(Copied {
            name,
            tree: open_tree(CWD, &path, flags)?,
            is_directory: FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory,
        });
    }
    Ok(found)
}
