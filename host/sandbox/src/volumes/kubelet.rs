//! Volumes that the kubelet has prepared, known by where they are: below `pods/UID/volumes`, in a directory named
//! after the kind of volume.

use super::tree::Kind;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, StatxAttributes, StatxFlags, fstat, fstatfs, openat,
    readlinkat, statat, statx,
};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Kinds whose content the kubelet replaces as a whole, by a link `..data`.
const REPLACED: [&str; 4] = [
    "kubernetes.io~configmap",
    "kubernetes.io~secret",
    "kubernetes.io~projected",
    "kubernetes.io~downward-api",
];
pub(super) const EMPTY_DIR: &str = "kubernetes.io~empty-dir";
/// `TMPFS_MAGIC` and `HUGETLBFS_MAGIC` (linux/magic.h).
const TMPFS: i64 = 0x0102_1994;
const HUGETLBFS: i64 = 0x9584_58f6;
/// How far below a volume one of its sub-paths is looked for, and among how many directories.
const MAX_DEPTH: usize = 16;
const MAX_DIRECTORIES: usize = 4096;

/// An emptyDir volume as the kubelet has prepared it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct EmptyDir {
    pub(crate) name: String,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Its size in bytes, if it is in memory.
    pub(crate) memory: Option<u64>,
    /// What of it the container gets.
    pub(crate) sub_path: Option<String>,
}

/// What a path names, and `opened` is.
///
/// # Errors
/// Huge pages ([`io::ErrorKind::Unsupported`]), and what looking says.
pub(super) fn kind(path: &Path, opened: BorrowedFd<'_>, read_only: bool) -> io::Result<Kind> {
    let parts: Option<Vec<&str>> = path.iter().map(|part| part.to_str()).collect();
    let Some(parts) = parts else {
        return Ok(Kind::Shared);
    };
    match parts.as_slice() {
        [.., "pods", _, "volumes", kind, _] if REPLACED.contains(kind) => {
            let replaced = read_only && replaces(opened)?;
            Ok(if replaced { Kind::Mirror } else { Kind::Shared })
        }
        [.., "pods", _, "volumes", EMPTY_DIR, name] => empty_dir(name, opened).map(Kind::EmptyDir),
        [.., "pods", _, "volume-subpaths", name, _container, _index] => {
            let Some(pod) = path.ancestors().nth(4) else {
                return Ok(Kind::Shared);
            };
            let whole = pod.join("volumes").join(EMPTY_DIR).join(name);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let whole = match openat(CWD, &whole, flags, Mode::empty()) {
                // The sub-path of a volume of another kind.
                Err(Errno::NOENT) => return Ok(Kind::Shared),
                result => result?,
            };
            let mut volume = empty_dir(name, whole.as_fd())?;
            let wanted = fstat(opened)?;
            let found = find(&whole, (wanted.st_dev, wanted.st_ino))?;
            let missing = || io::Error::other("its sub-path is not in the emptyDir volume");
            volume.sub_path = Some(found.ok_or_else(missing)?);
            Ok(Kind::EmptyDir(volume))
        }
        _ => Ok(Kind::Shared),
    }
}

/// Whether a directory has a link `..data`.
fn replaces(directory: BorrowedFd<'_>) -> io::Result<bool> {
    match readlinkat(directory, "..data", Vec::new()) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::INVAL) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// One in memory is a mount of its own, of its size.
fn empty_dir(name: &str, directory: BorrowedFd<'_>) -> io::Result<EmptyDir> {
    let status = statx(directory, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    let mounted = status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    let mut memory = None;
    if mounted {
        let system = fstatfs(directory)?;
        match system.f_type {
            TMPFS => memory = Some(system.f_blocks * u64::try_from(system.f_bsize).unwrap_or(0)),
            HUGETLBFS => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "an emptyDir volume of huge pages",
                ));
            }
            _ => {}
        }
    }
    Ok(EmptyDir {
        name: name.to_owned(),
        mode: u32::from(status.stx_mode) & 0o7777,
        uid: status.stx_uid,
        gid: status.stx_gid,
        memory,
        sub_path: None,
    })
}

/// Looks for a directory or file, by device and inode, in another. In a volume that is empty on the node there is
/// nothing but the sub-paths that the kubelet has made.
pub(super) fn find(directory: &OwnedFd, wanted: (u64, u64)) -> io::Result<Option<String>> {
    find_in(directory, wanted, MAX_DEPTH, &mut 0)
}

fn find_in(
    directory: &OwnedFd,
    wanted: (u64, u64),
    depth: usize,
    seen: &mut usize,
) -> io::Result<Option<String>> {
    if depth == 0 {
        return Ok(None);
    }
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else {
            continue;
        };
        if name == "." || name == ".." {
            continue;
        }
        *seen += 1;
        if *seen > MAX_DIRECTORIES {
            return Ok(None);
        }
        let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if (stat.st_dev, stat.st_ino) == wanted {
            return Ok(Some(name.to_owned()));
        }
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && stat.st_dev == wanted.0 {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let inner = openat(directory, name, flags, Mode::empty())?;
            if let Some(below) = find_in(&inner, wanted, depth - 1, seen)? {
                return Ok(Some(format!("{name}/{below}")));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
