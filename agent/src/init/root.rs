//! A container's root as a place to resolve paths in: symbolic links of the image lead nowhere
//! outside it, magic links of procfs nowhere at all (`openat2(2)`, RESOLVE_IN_ROOT and
//! RESOLVE_NO_MAGICLINKS).

use super::plan::{Failure, FailureKind};
use super::{Doing, Step};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The most links that are followed to make something.
const MAX_LINKS: u32 = 16;

/// The root of a container, seen from outside or from inside.
#[derive(Debug)]
pub struct Root {
    directory: OwnedFd,
    /// Whose is what is made in it: the root of the container's user namespace.
    owner: (Uid, Gid),
}

impl Root {
    /// The root of the calling process.
    pub(super) fn current() -> Step<Self> {
        Self::at("/")
    }

    /// A directory as the root.
    pub fn at(path: &str) -> Result<Self, Failure> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).doing(&format!("open {path}"))?;
        Ok(Self {
            directory: fd,
            owner: (Uid::ROOT, Gid::ROOT),
        })
    }

    /// What is made in it belongs to this user and group, ids of the guest.
    pub fn owned_by(mut self, (uid, gid): (u32, u32)) -> Self {
        self.owner = (Uid::from_raw(uid), Gid::from_raw(gid));
        self
    }

    /// Gives something that was just made to the owner.
    fn give(&self, directory: impl AsFd, name: &str) -> rustix::io::Result<()> {
        if self.owner == (Uid::ROOT, Gid::ROOT) {
            return Ok(());
        }
        let (uid, gid) = (Some(self.owner.0), Some(self.owner.1));
        rustix::fs::chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Opens a path inside the root.
    pub fn open(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            // EAGAIN: something was renamed meanwhile and the kernel cannot vouch for a "..".
            match rustix::fs::openat2(
                &self.directory,
                path,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                inside,
            ) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
    }

    /// A directory inside the root, made with its parents when it is not there. A link of the image
    /// that leads to nothing is followed, inside the root, to make what it leads to.
    pub fn directory(&self, path: &str, mode: u32) -> Result<OwnedFd, Failure> {
        self.make_directory(path, mode, MAX_LINKS)
    }

    fn make_directory(&self, path: &str, mode: u32, links: u32) -> Result<OwnedFd, Failure> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        if let Ok(fd) = self.open(path, flags) {
            return Ok(fd);
        }
        let what = format!("make the directory {path} in the container");
        let mut here = self.open("/", flags).doing(&what)?;
        let mut so_far = String::new();
        for name in components(path) {
            let parent = so_far.clone();
            so_far.push('/');
            so_far.push_str(name);
            here = match self.open(&so_far, flags) {
                Err(Errno::NOENT) => {
                    if let Some(target) = link_target(&here, &parent, name) {
                        let links = links.checked_sub(1).ok_or(Errno::LOOP).doing(&what)?;
                        self.make_directory(&target, mode, links)?;
                    } else {
                        match rustix::fs::mkdirat(&here, name, Mode::from_raw_mode(mode)) {
                            Ok(()) => self.give(&here, name).doing(&what)?,
                            Err(Errno::EXIST) => {}
                            Err(error) => return Err(error).doing(&what),
                        }
                    }
                    self.open(&so_far, flags).doing(&what)?
                }
                result => result.doing(&what)?,
            };
        }
        Ok(here)
    }

    /// Something that is no directory inside the root; an empty file is made when nothing is there,
    /// where a link leads to if it is a link.
    pub fn file(&self, path: &str) -> Result<OwnedFd, Failure> {
        self.make_file(path, MAX_LINKS)
    }

    fn make_file(&self, path: &str, links: u32) -> Result<OwnedFd, Failure> {
        match self.open(path, OFlags::PATH) {
            Err(Errno::NOENT) => {}
            result => return result.doing(&format!("open {path} in the container")),
        }
        let what = format!("make the file {path} in the container");
        let (parent, name) = self.parent(path)?;
        let above = path.trim_end_matches('/').strip_suffix(name).unwrap_or("/");
        if let Some(target) = link_target(&parent, above, name) {
            let links = links.checked_sub(1).ok_or(Errno::LOOP).doing(&what)?;
            return self.make_file(&target, links);
        }
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
            Ok(_) => self.give(&parent, name).doing(&what)?,
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error).doing(&what),
        }
        self.open(path, OFlags::PATH).doing(&what)
    }

    /// The directory of a path, made when it is not there, and the last name.
    pub fn parent<'a>(&self, path: &'a str) -> Result<(OwnedFd, &'a str), Failure> {
        let trimmed = path.trim_end_matches('/');
        let (parent, name) = trimmed.rsplit_once('/').unwrap_or(("", trimmed));
        if name.is_empty() || name == "." || name == ".." {
            return Err(Failure {
                kind: FailureKind::Invalid,
                message: format!("{path} is not a path to a file in the container"),
            });
        }
        Ok((self.directory(&format!("/{parent}"), 0o755)?, name))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// Where a link leads, as a path from the root. The kernel keeps it inside when it is opened.
fn link_target(directory: &OwnedFd, above: &str, name: &str) -> Option<String> {
    let target = rustix::fs::readlinkat(directory, name, Vec::new()).ok()?;
    let target = target.into_string().ok()?;
    Some(match target.starts_with('/') {
        true => target,
        false => format!("{above}/{target}"),
    })
}

fn components(path: &str) -> impl Iterator<Item = &str> {
    path.split('/')
        .filter(|name| !name.is_empty() && *name != ".")
}

#[cfg(test)]
#[path = "root/tests.rs"]
mod tests;
