//! The group of a volume (`fsGroup`), as the kubelet gives it to those that it mounts itself: everything in it gets
//! the group and may be read and written by it, and directories hand the group on to what is made in them.

use crate::init::plan::FsGroup;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, fstat, openat, statat};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Directories in directories; each is two open descriptors. A path has no room for more.
const MAX_DEPTH: usize = 2048;
/// What the group may do with a file, and with a directory.
const FILE: u32 = 0o660;
const DIRECTORY: u32 = 0o770;
const SET_GID: u32 = 0o2000;

/// A directory that is being gone through.
struct Level {
    directory: OwnedFd,
    entries: Dir,
}

impl Level {
    fn new(directory: OwnedFd) -> io::Result<Self> {
        let entries = Dir::read_from(&directory)?;
        Ok(Self { directory, entries })
    }
}

/// Gives a volume to its group. The root comes last, so that one that was given half is not taken for whole; when
/// `stop` is set it ends early, with an error. Blocks. Links are not followed.
pub(super) fn give(root: &Path, group: FsGroup, stop: &AtomicBool) -> io::Result<()> {
    let gid = Gid::from_raw(group.gid);
    let root = open_directory(CWD, root)?;
    if group.on_root_mismatch && is_given(&fstat(&root)?, group.gid) {
        return Ok(());
    }
    let mut levels = vec![Level::new(root)?];
    while let Some(level) = levels.last_mut() {
        if stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("The pod ends"));
        }
        let Some(entry) = level.entries.next() else {
            let mode = fstat(&level.directory)?.st_mode;
            change(&level.directory, gid, mode | DIRECTORY | SET_GID)?;
            levels.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if let Some(inner) = give_entry(&level.directory, name, gid)? {
            if levels.len() >= MAX_DEPTH {
                return Err(io::Error::other("Directories are nested too deep"));
            }
            levels.push(Level::new(inner)?);
        }
    }
    Ok(())
}

/// Whether a root is as [`give`] leaves it.
fn is_given(root: &Stat, gid: u32) -> bool {
    let wanted = DIRECTORY | SET_GID;
    root.st_gid == gid && root.st_mode & wanted == wanted
}

/// Gives what is in a directory, unless it is a directory itself, which is answered.
fn give_entry(directory: &OwnedFd, name: &CStr, gid: Gid) -> io::Result<Option<OwnedFd>> {
    let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Ok(Some(open_directory(directory, name)?)),
        // Has no permissions of its own.
        FileType::Symlink => {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(directory, name, None, Some(gid), flags)?;
            Ok(None)
        }
        _ => {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = openat(directory, name, flags, Mode::empty())?;
            change(&file, gid, stat.st_mode | FILE)?;
            Ok(None)
        }
    }
}

/// The group first: to change it takes set-user-id bits away, which the mode brings back.
fn change(file: &OwnedFd, gid: Gid, mode: u32) -> io::Result<()> {
    rustix::fs::chownat(file, "", None, Some(gid), AtFlags::EMPTY_PATH)?;
    // chmod(2) takes no descriptor that was opened as a path.
    let same = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::chmod(same, Mode::from_raw_mode(mode & 0o7777))?)
}

fn open_directory(at: impl std::os::fd::AsFd, path: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(at, path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests;
