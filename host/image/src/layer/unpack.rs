//! Applies layers to a tree, one above the other.

use super::archive::{Archive, Entry, Kind, unreadable};
use super::content::Content;
use super::tree::{Place, Tree, components, io_error, path_error};
use super::{LayerError, LayerResult, invalid};
use crate::digest::Digest;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

const WHITEOUT: &[u8] = b".wh.";
/// Hides everything that lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names that begin so are AUFS bookkeeping.
const AUFS: &[u8] = b".wh..wh.";
/// Every file system keeps so many bytes of attributes.
const ROOMY_XATTRS: usize = 2048;
const COPY_BUFFER: usize = 256 << 10;
/// Directories that a layer uses but does not list get this time, so that the same layers always
/// make the same file system.
const NO_TIME: (i64, u32) = (0, 0);

/// What the layers of one image may unpack to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
}

/// Unpacks the layers of one image, lowest first.
pub(crate) struct Unpacker<'a> {
    tree: Tree,
    left: Limits,
    cancelled: &'a AtomicBool,
    /// Paths that the current layer has made, and their parents: its whiteouts spare them.
    seen: HashSet<PathBuf>,
    /// Unpacking into a directory changes its time, so the times are set at the end.
    times: HashMap<PathBuf, (i64, u32)>,
    buffer: Vec<u8>,
}

impl<'a> Unpacker<'a> {
    /// Unpacks into `root`, an empty directory that nobody else uses.
    pub(crate) fn new(root: &Path, limits: Limits, cancelled: &'a AtomicBool) -> LayerResult<Self> {
        Ok(Self {
            tree: Tree::open(root)?,
            left: limits,
            cancelled,
            seen: HashSet::new(),
            times: HashMap::from([(PathBuf::new(), NO_TIME)]),
            buffer: vec![0; COPY_BUFFER],
        })
    }

    /// Applies one layer and checks that its uncompressed bytes are what the image's
    /// configuration says.
    pub(crate) fn apply(&mut self, layer: File, diff_id: &Digest) -> LayerResult<()> {
        self.seen.clear();
        let content = Content::open(layer, diff_id, self.left.bytes).map_err(unreadable)?;
        let mut archive = Archive::new(content);
        while let Some(entry) = archive.next()? {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(LayerError::Cancelled);
            }
            match self.left.entries.checked_sub(1) {
                Some(left) => self.left.entries = left,
                None => return invalid("it has more files than an image may have"),
            }
            self.entry(&mut archive, &entry)?;
        }
        let (digest, left) = archive.into_content().finish().map_err(unreadable)?;
        self.left.bytes = left;
        match digest {
            Some(digest) if digest != *diff_id => Err(LayerError::WrongDiffId(digest)),
            _ => Ok(()),
        }
    }

    /// Sets the times of directories; nothing is to be applied afterwards.
    pub(crate) fn finish(self) -> LayerResult<()> {
        for (path, mtime) in &self.times {
            // A later layer may have replaced the directory or one above it.
            if let Some(fd) = self.tree.find_exactly(path) {
                rustix::fs::utimensat(&fd, ".", &timestamps(*mtime), AtFlags::empty())
                    .map_err(|error| io_error("setting the time of a directory", error))?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, archive: &mut Archive, entry: &Entry) -> LayerResult<()> {
        let parts = components(&entry.path)?;
        let Some((name, parents)) = parts.split_last() else {
            return self.root(entry);
        };
        if name.as_bytes().starts_with(WHITEOUT) {
            return self.whiteout(parents, name);
        }
        let times = &mut self.times;
        let place = self.tree.find_or_make(parents, |made| {
            times.insert(made.to_owned(), NO_TIME);
        })?;
        let path = place.path.join(name);
        self.see(&path);
        let failed = |error| path_error(&parts, error);
        let exists = match rustix::fs::statat(&place.fd, *name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(failed(error)),
        };
        if exists == Some(FileType::Directory) && entry.kind == Kind::Directory {
            self.clear_xattrs(&place, name)?;
        } else {
            if let Kind::HardLink(target) = &entry.kind {
                return self.hard_link(&place, name, target, exists.is_some());
            }
            if exists.is_some() {
                self.tree.remove(&place, name)?;
            }
            self.make(archive, &place, name, entry)
                .map_err(|error| match error {
                    MakeError::System(error) => failed(error),
                    MakeError::Layer(error) => error,
                })?;
        }
        self.describe(&place, name, entry)?;
        if entry.kind == Kind::Directory {
            self.times.insert(path, entry.mtime);
        }
        Ok(())
    }

    /// An entry for the root directory itself.
    fn root(&mut self, entry: &Entry) -> LayerResult<()> {
        if entry.kind != Kind::Directory {
            return invalid("it replaces the root directory with something else");
        }
        let place = self.tree.find_or_make(&[], |_| {})?;
        self.clear_xattrs(&place, OsStr::new("."))?;
        self.describe(&place, OsStr::new("."), entry)?;
        self.times.insert(PathBuf::new(), entry.mtime);
        Ok(())
    }

    /// Makes what an entry is, without its owner, mode, attributes and time.
    fn make(
        &mut self,
        archive: &mut Archive,
        place: &Place,
        name: &OsStr,
        entry: &Entry,
    ) -> Result<(), MakeError> {
        let private = Mode::from_raw_mode(0o600);
        let node = |kind, major, minor| {
            rustix::fs::mknodat(
                &place.fd,
                name,
                kind,
                private,
                rustix::fs::makedev(major, minor),
            )
        };
        match &entry.kind {
            Kind::Directory => rustix::fs::mkdirat(&place.fd, name, Mode::from_raw_mode(0o700))?,
            Kind::Symlink(target) => {
                rustix::fs::symlinkat(OsStr::from_bytes(target), &place.fd, name)?;
            }
            Kind::CharDevice(major, minor) => node(FileType::CharacterDevice, *major, *minor)?,
            Kind::BlockDevice(major, minor) => node(FileType::BlockDevice, *major, *minor)?,
            Kind::Fifo => node(FileType::Fifo, 0, 0)?,
            // Handled where it can not be described a second time.
            Kind::HardLink(_) => {}
            Kind::File { .. } => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(&place.fd, name, flags, private)?;
                self.copy(archive, File::from(fd))?;
            }
        }
        Ok(())
    }

    fn copy(&mut self, archive: &mut Archive, mut file: File) -> LayerResult<()> {
        loop {
            let count = archive.read_data(&mut self.buffer)?;
            let bytes = self.buffer.get(..count).unwrap_or_default();
            if bytes.is_empty() {
                return Ok(());
            }
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(LayerError::Cancelled);
            }
            file.write_all(bytes).map_err(|source| LayerError::Io {
                doing: "unpacking a file".to_owned(),
                source,
            })?;
        }
    }

    /// Links to a file that this or a lower layer has made. The link shares the file's owner,
    /// mode and times, whatever its own entry says.
    fn hard_link(
        &mut self,
        place: &Place,
        name: &OsStr,
        target: &[u8],
        exists: bool,
    ) -> LayerResult<()> {
        let parts = components(target)?;
        let target_place = match parts.split_last() {
            Some((base, parents)) => self.tree.find(parents)?.map(|place| (place, *base)),
            None => None,
        };
        let Some((target_place, base)) = target_place else {
            return invalid(format!(
                "a hard link's target \"{}\" does not exist",
                target.escape_ascii()
            ));
        };
        if target_place.path.join(base) == place.path.join(name) {
            return invalid("a hard link leads to itself");
        }
        if exists {
            self.tree.remove(place, name)?;
        }
        rustix::fs::linkat(&target_place.fd, base, &place.fd, name, AtFlags::empty()).map_err(
            |error| match error {
                Errno::PERM => LayerError::Invalid("a hard link leads to a directory".to_owned()),
                error => path_error(&parts, error),
            },
        )
    }

    fn describe(&self, place: &Place, name: &OsStr, entry: &Entry) -> LayerResult<()> {
        let set = || -> rustix::io::Result<()> {
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            let no_follow = AtFlags::SYMLINK_NOFOLLOW;
            // A change of the owner takes away set-user-ID and capabilities: it comes first.
            rustix::fs::chownat(&place.fd, name, Some(uid), Some(gid), no_follow)?;
            if !matches!(entry.kind, Kind::Symlink(_)) {
                let mode = Mode::from_raw_mode(entry.mode);
                rustix::fs::chmodat(&place.fd, name, mode, AtFlags::empty())?;
            }
            self.set_xattrs(place, name, entry)?;
            rustix::fs::utimensat(&place.fd, name, &timestamps(entry.mtime), no_follow)
        };
        set().map_err(|error| {
            let path = entry.path.escape_ascii();
            let attributes: usize = entry.xattrs.iter().map(|(_, value)| value.len()).sum();
            // ext4 says so too when there is no room for attributes in one inode's block.
            if error == Errno::NOSPC && attributes > ROOMY_XATTRS {
                return LayerError::Invalid(format!(
                    "{path} has more extended attributes than the store's file system can keep"
                ));
            }
            io_error(
                &format!("setting owner, mode, attributes or time of {path}"),
                error,
            )
        })
    }

    fn set_xattrs(&self, place: &Place, name: &OsStr, entry: &Entry) -> rustix::io::Result<()> {
        let path = self.tree.outside_path(place, name);
        for (key, value) in entry.xattrs.iter().filter(|(key, _)| is_kept(key)) {
            match rustix::fs::lsetxattr(&path, key.as_slice(), value, XattrFlags::empty()) {
                // The file system of the store has no such attributes, or not for such a file.
                // Without capabilities a program would not work and nobody would know why.
                Err(Errno::OPNOTSUPP | Errno::PERM) if key != b"security.capability" => {
                    tracing::warn!(attribute = %key.escape_ascii(), "Left out an extended attribute");
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// A directory that a layer lists again has only the attributes of that layer.
    fn clear_xattrs(&self, place: &Place, name: &OsStr) -> LayerResult<()> {
        let path = self.tree.outside_path(place, name);
        let clear = || -> rustix::io::Result<()> {
            let mut names = vec![0_u8; rustix::fs::llistxattr_query(&path)?];
            let length = rustix::fs::llistxattr(&path, names.as_mut_slice())?;
            let names = names.get(..length).unwrap_or_default();
            for key in names.split(|byte| *byte == 0).filter(|key| is_kept(key)) {
                rustix::fs::lremovexattr(&path, key)?;
            }
            Ok(())
        };
        match clear() {
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(io_error("removing extended attributes", error)),
        }
    }

    fn whiteout(&mut self, parents: &[&OsStr], name: &OsStr) -> LayerResult<()> {
        let Some(place) = self.tree.find(parents)? else {
            return Ok(());
        };
        let bytes = name.as_bytes();
        if bytes == OPAQUE {
            return self.hide_lower(&place);
        }
        if bytes.starts_with(AUFS) {
            return Ok(());
        }
        match bytes.strip_prefix(WHITEOUT).unwrap_or_default() {
            b"" | b"." | b".." => invalid("a whiteout names no file"),
            hidden => self.hide(&place, OsStr::from_bytes(hidden)),
        }
    }

    /// Removes what lower layers have made in a directory.
    fn hide_lower(&mut self, place: &Place) -> LayerResult<()> {
        for (name, _) in self.tree.children(place)? {
            self.hide(place, name.as_os_str())?;
        }
        Ok(())
    }

    /// Removes what lower layers have made under a name.
    fn hide(&mut self, place: &Place, name: &OsStr) -> LayerResult<()> {
        let path = place.path.join(name);
        if !self.seen.contains(&path) {
            return self.tree.remove(place, name);
        }
        let parts: Vec<&OsStr> = path.iter().collect();
        match rustix::fs::statat(&place.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                match self.tree.find(&parts)? {
                    Some(directory) => self.hide_lower(&directory),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// Notes that the current layer has this path.
    fn see(&mut self, path: &Path) {
        for ancestor in path.ancestors() {
            if !self.seen.insert(ancestor.to_owned()) && ancestor != path {
                return;
            }
        }
    }
}

/// Why an entry could not be made.
enum MakeError {
    System(Errno),
    Layer(LayerError),
}

impl From<Errno> for MakeError {
    fn from(error: Errno) -> Self {
        Self::System(error)
    }
}

impl From<LayerError> for MakeError {
    fn from(error: LayerError) -> Self {
        Self::Layer(error)
    }
}

/// Attributes that mean something in a guest. `trusted.overlay.*` steers the overlay above the
/// image and is not the image's to set; labels of the build machine's security modules are void.
fn is_kept(key: &[u8]) -> bool {
    let is = |prefix: &[u8]| key.starts_with(prefix);
    key == b"security.capability"
        || is(b"user.")
        || is(b"system.posix_acl_")
        || (is(b"trusted.") && !is(b"trusted.overlay."))
}

/// EROFS has no time before 1970.
fn timestamps((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds.max(0),
        tv_nsec: nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
