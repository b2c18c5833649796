//! Mirrors: copies in memory of shared volumes whose content the node replaces as a whole (ConfigMap, Secret,
//! projected, downward API). What a container watches is in the guest's own kernel, so that changes reach it as
//! events (inotify), which a file system over virtio never has.
//!
//! The node's kubelet keeps the content in a directory named after the time, a link `..data` that leads to it, and
//! for each entry a link of the same name into `..data`. Renaming a new link over `..data` changes everything at
//! once. A mirror changes in the same steps and the same order.

use crate::error::Context;
use crate::sys::copy;
use crate::{Error, Result};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

const DATA: &CStr = c"..data";
const NEXT: &CStr = c"..data_tmp";
/// Bytes that a mirror can have, its old and its new content together: several times what the node's API takes.
const SIZE: &CStr = c"size=64m,mode=700";
/// How deep directories may be.
const MAX_DEPTH: u32 = 16;

/// A mirror. Dropped, it is unmounted.
#[derive(Debug)]
pub struct Mirror {
    source: PathBuf,
    path: PathBuf,
    mounted: bool,
    /// Held by the one who updates it.
    busy: Mutex<()>,
}

impl Mirror {
    /// Mounts a mirror of the directory `source` at `path` and fills it.
    ///
    /// # Errors
    /// What mounting and copying say.
    pub fn mount(source: PathBuf, path: PathBuf) -> Result<Self> {
        let what = || format!("Cannot mount the mirror of {}", source.display());
        std::fs::create_dir_all(&path).context(what)?;
        let flags = MountFlags::NODEV | MountFlags::NOSUID;
        rustix::mount::mount("tmpfs", &path, "tmpfs", flags, SIZE).context(what)?;
        let mut mirror = Self::at(source, path);
        mirror.mounted = true;
        mirror.update()?;
        Ok(mirror)
    }

    /// Of a directory, in another that is there.
    fn at(source: PathBuf, path: PathBuf) -> Self {
        Self {
            source,
            path,
            mounted: false,
            busy: Mutex::default(),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes over what the volume has now. Blocks.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is not laid out as the node's kubelet does it, and what copying says.
    pub fn update(&self) -> Result<()> {
        let _turn = self.busy.lock();
        let what = || format!("Cannot mirror {}", self.source.display());
        let source = open(CWD, &self.source).context(what)?;
        let target = open(CWD, &self.path).context(what)?;
        same_owner(&source, &target).context(what)?;
        loop {
            let name = link(&source, DATA)
                .context(what)?
                .filter(|name| is_plain(name));
            let name = name.ok_or_else(|| {
                Error::Invalid(format!("{} has no link ..data", self.source.display()))
            })?;
            let before = link(&target, DATA).context(what)?;
            if before.as_ref() == Some(&name) {
                return Ok(());
            }
            match fill(&source, &target, &name) {
                Ok(()) => return flip(&target, &name, before.as_deref()).context(what),
                // The node has replaced it meanwhile: what is there now is what counts.
                Err(_) if link(&source, DATA).context(what)?.as_ref() != Some(&name) => {
                    remove(&target, &name).context(what)?;
                }
                Err(error) => {
                    remove(&target, &name).context(what)?;
                    return Err(error).context(what);
                }
            }
        }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        if !self.mounted {
            return;
        }
        // Some process of the container may still have it open.
        if let Err(error) = rustix::mount::unmount(&self.path, UnmountFlags::DETACH) {
            tracing::warn!("Cannot unmount mirror {}: {error}", self.path.display());
        }
        // A directory that is left is used again.
        let _ = std::fs::remove_dir(&self.path);
    }
}

fn open(at: impl std::os::fd::AsFd, path: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, path, flags, Mode::empty())
}

/// Where a link leads to; nothing if there is none.
fn link(directory: &OwnedFd, name: &CStr) -> rustix::io::Result<Option<CString>> {
    match rustix::fs::readlinkat(directory, name, Vec::new()) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a name is one of the directory itself.
fn is_plain(name: &CStr) -> bool {
    let bytes = name.to_bytes();
    !bytes.contains(&b'/') && !matches!(bytes, b"" | b"." | b"..") && name != DATA && name != NEXT
}

fn same_owner(source: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    let stat = rustix::fs::fstat(source)?;
    std::os::unix::fs::fchown(target, Some(stat.st_uid), Some(stat.st_gid))?;
    Ok(rustix::fs::fchmod(
        target,
        Mode::from_raw_mode(stat.st_mode),
    )?)
}

/// Copies the directory `name`.
fn fill(source: &OwnedFd, target: &OwnedFd, name: &CStr) -> io::Result<()> {
    let from = open(source, name)?;
    let stat = rustix::fs::fstat(&from)?;
    // Left over from one that failed.
    remove(target, name)?;
    rustix::fs::mkdirat(target, name, Mode::RWXU)?;
    let to = open(target, name)?;
    copy::directory(&from, &to, MAX_DEPTH)?;
    std::os::unix::fs::fchown(&to, Some(stat.st_uid), Some(stat.st_gid))?;
    Ok(rustix::fs::fchmod(&to, Mode::from_raw_mode(stat.st_mode))?)
}

/// Shows what is in `name`, and nothing else.
fn flip(target: &OwnedFd, name: &CStr, before: Option<&CStr>) -> io::Result<()> {
    remove(target, NEXT)?;
    rustix::fs::symlinkat(name, target, NEXT)?;
    rustix::fs::renameat(target, NEXT, target, DATA)?;
    let content = open(target, name)?;
    for entry in names(&content)? {
        let leads = CString::new([b"..data/", entry.to_bytes()].concat())?;
        if link(target, &entry)?.is_none() {
            rustix::fs::symlinkat(&leads, target, &entry)?;
        }
    }
    for entry in names(target)? {
        let shown = link_target_in_data(target, &entry)?;
        if shown && rustix::fs::statat(&content, &entry, AtFlags::SYMLINK_NOFOLLOW).is_err() {
            rustix::fs::unlinkat(target, &entry, AtFlags::empty())?;
        }
    }
    match before.filter(|before| is_plain(before)) {
        Some(before) => remove(target, before),
        None => Ok(()),
    }
}

/// Whether an entry is a link into `..data`.
fn link_target_in_data(directory: &OwnedFd, name: &CStr) -> io::Result<bool> {
    match rustix::fs::readlinkat(directory, name, Vec::new()) {
        Ok(target) => Ok(target.to_bytes().starts_with(b"..data/")),
        Err(Errno::INVAL) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn names(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// Removes an entry with everything in it, if it is there.
fn remove(directory: &OwnedFd, name: &CStr) -> io::Result<()> {
    let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        result => result?,
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(rustix::fs::unlinkat(directory, name, AtFlags::empty())?);
    }
    let inner = open(directory, name)?;
    for entry in names(&inner)? {
        remove(&inner, &entry)?;
    }
    Ok(rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR)?)
}

#[cfg(test)]
mod tests;
