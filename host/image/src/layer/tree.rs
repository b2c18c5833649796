//! The tree that layers are unpacked into.
//!
//! Every path of a layer is resolved by the kernel with the tree as the root (`openat2(2)`,
//! `RESOLVE_IN_ROOT`), so neither `..` nor an absolute path nor a symbolic link that a layer has
//! made leads out of it. Nobody else changes the tree, so the canonical path of a directory that
//! the kernel has resolved stays valid until the next change by us.

use super::{LayerError, LayerResult, invalid};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Deeper directories are refused: whoever walks the tree later keeps a descriptor a level.
const MAX_DEPTH: usize = 256;
const MAX_RESOLVE_TRIES: usize = 128;

/// A directory that acts as the root of everything below it.
pub(super) struct Tree {
    root: OwnedFd,
    path: PathBuf,
}

/// A directory of the tree.
pub(super) struct Place {
    pub(super) fd: OwnedFd,
    /// Its canonical path in the tree, without a leading slash.
    pub(super) path: PathBuf,
}

/// Splits an entry's path into its components.
pub(super) fn components(path: &[u8]) -> LayerResult<Vec<&OsStr>> {
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                return invalid(format!(
                    "the path \"{}\" leads upwards",
                    path.escape_ascii()
                ));
            }
            _ if part.contains(&0) => return invalid("a path contains a zero byte"),
            _ => parts.push(OsStr::from_bytes(part)),
        }
    }
    if parts.len() > MAX_DEPTH {
        return invalid(format!("a path has more than {MAX_DEPTH} components"));
    }
    Ok(parts)
}

impl Tree {
    pub(super) fn open(path: &Path) -> LayerResult<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let open = || -> std::io::Result<Self> {
            let root = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
            let path = std::fs::read_link(proc_path(&root))?;
            Ok(Self { root, path })
        };
        open().map_err(|source| LayerError::Io {
            doing: "opening the staging tree".to_owned(),
            source,
        })
    }

    /// The path of something in the tree, for the file system calls that take no descriptor.
    pub(super) fn outside_path(&self, place: &Place, name: &OsStr) -> PathBuf {
        self.path.join(&place.path).join(name)
    }

    /// The directory with these components; nothing when it does not exist.
    pub(super) fn find(&self, parts: &[&OsStr]) -> LayerResult<Option<Place>> {
        match self.resolve(parts, ResolveFlags::empty()) {
            Ok(fd) => self.place(fd).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(path_error(parts, error)),
        }
    }

    /// The directory with these components, made with `made` called for every new one.
    pub(super) fn find_or_make(
        &self,
        parts: &[&OsStr],
        mut made: impl FnMut(&Path),
    ) -> LayerResult<Place> {
        if let Some(place) = self.find(parts)? {
            return Ok(place);
        }
        let mut place = self.place_of(&[])?;
        for count in 1..=parts.len() {
            let so_far = parts.get(..count).unwrap_or_default();
            let name = so_far.last().copied().unwrap_or_default();
            place = match self.find(so_far)? {
                Some(next) => next,
                None => {
                    make_plain_directory(&place.fd, name)
                        .map_err(|error| path_error(so_far, error))?;
                    let next = self.place_of(so_far)?;
                    made(&next.path);
                    next
                }
            };
        }
        Ok(place)
    }

    /// A directory that was seen before, if no symbolic link has come into its way since.
    pub(super) fn find_exactly(&self, path: &Path) -> Option<OwnedFd> {
        let parts: Vec<&OsStr> = path.iter().collect();
        self.resolve(&parts, ResolveFlags::NO_SYMLINKS).ok()
    }

    /// Names and types of what is in a directory.
    pub(super) fn children(&self, place: &Place) -> LayerResult<Vec<(PathBuf, FileType)>> {
        let list = || -> rustix::io::Result<Vec<(PathBuf, FileType)>> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(&place.fd, ".", flags, Mode::empty())?;
            let mut children = Vec::new();
            for entry in Dir::new(fd)? {
                let entry = entry?;
                let name = entry.file_name();
                if !matches!(name.to_bytes(), b"." | b"..") {
                    let name = OsStr::from_bytes(name.to_bytes());
                    let stat = rustix::fs::statat(&place.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
                    let kind = FileType::from_raw_mode(stat.st_mode);
                    children.push((PathBuf::from(name), kind));
                }
            }
            Ok(children)
        };
        list().map_err(|error| io_error("reading a directory of the staging tree", error))
    }

    /// Removes a file or a directory with everything in it.
    pub(super) fn remove(&self, place: &Place, name: &OsStr) -> LayerResult<()> {
        match rustix::fs::unlinkat(&place.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(io_error("removing a file of a lower layer", error)),
        }
        std::fs::remove_dir_all(self.outside_path(place, name)).map_err(|source| LayerError::Io {
            doing: "removing a directory of a lower layer".to_owned(),
            source,
        })
    }

    fn place_of(&self, parts: &[&OsStr]) -> LayerResult<Place> {
        let fd = self
            .resolve(parts, ResolveFlags::empty())
            .map_err(|error| path_error(parts, error))?;
        self.place(fd)
    }

    fn place(&self, fd: OwnedFd) -> LayerResult<Place> {
        let Ok(full) = std::fs::read_link(proc_path(&fd)) else {
            return invalid("a path is too long");
        };
        let path = match full.strip_prefix(&self.path) {
            Ok(path) => path.to_owned(),
            Err(_) => return invalid("a path leads out of the image"),
        };
        if path.iter().count() > MAX_DEPTH {
            return invalid(format!("a directory is more than {MAX_DEPTH} levels deep"));
        }
        Ok(Place { fd, path })
    }

    fn resolve(&self, parts: &[&OsStr], more: ResolveFlags) -> rustix::io::Result<OwnedFd> {
        let path: PathBuf = std::iter::once(OsStr::new("."))
            .chain(parts.iter().copied())
            .collect();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve =
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV | more;
        let mut tries = 0;
        loop {
            tries += 1;
            match rustix::fs::openat2(self.root.as_fd(), &path, flags, Mode::empty(), resolve) {
                // A rename anywhere on the node makes the kernel unsure about "..".
                Err(Errno::AGAIN) if tries < MAX_RESOLVE_TRIES => {}
                result => return result,
            }
        }
    }
}

/// Makes a directory of root with mode 0755, whatever our umask and the parent's set-group-ID say.
fn make_plain_directory(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
    let mode = Mode::from_raw_mode(0o755);
    rustix::fs::mkdirat(parent, name, mode)?;
    let no_follow = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(parent, name, Some(Uid::ROOT), Some(Gid::ROOT), no_follow)?;
    rustix::fs::chmodat(parent, name, mode, AtFlags::empty())
}

fn proc_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// An error about a path of the layer: the layer's fault unless the disk is at fault.
pub(super) fn path_error(parts: &[&OsStr], error: Errno) -> LayerError {
    match error {
        Errno::NOTDIR
        | Errno::LOOP
        | Errno::EXIST
        | Errno::NAMETOOLONG
        | Errno::NOENT
        | Errno::ISDIR
        | Errno::INVAL
        | Errno::XDEV
        | Errno::MLINK => {
            let path: PathBuf = parts.iter().collect();
            let path = path.as_os_str().as_bytes().escape_ascii().to_string();
            LayerError::Invalid(format!("\"{path}\" can not be made ({error})"))
        }
        _ => io_error("unpacking a layer", error),
    }
}

pub(super) fn io_error(doing: &str, error: Errno) -> LayerError {
    LayerError::Io {
        doing: doing.to_owned(),
        source: error.into(),
    }
}
