//! Reads one layer: file data and inodes go to the EROFS file at once, names to a log.

use super::archive::{Archive, Entry, Kind};
use super::change::Change;
use super::content::{Budget, Content};
use super::merge::MAX_DEPTH;
use super::spool::Spool;
use super::{LayerError, LayerResult, Stop, invalid};
use crate::digest::Digest;
use crate::erofs::{Attributes, FileKind, MAX_NAME, Stream, Usage, is_kept};
use std::path::Path;

const WHITEOUT: &[u8] = b".wh.";
/// Hides everything that lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names that begin so are AUFS bookkeeping.
const AUFS: &[u8] = b".wh..wh.";
/// `PATH_MAX` without its zero byte.
const MAX_PATH: usize = 4095;

/// What remains of a layer when it has been read.
pub(super) struct Layer {
    pub(super) log: Spool,
    pub(super) usage: Usage,
}

/// Reads a layer to its end and checks that its uncompressed bytes are what the image's
/// configuration says.
pub(super) fn read(
    content: Content<'_>,
    mut stream: Stream<'_>,
    diff_id: &Digest,
    budget: &Budget,
    stop: &Stop<'_>,
    directory: &Path,
) -> LayerResult<Layer> {
    let mut log = Spool::default();
    let mut archive = Archive::new(content);
    while let Some(entry) = archive.next()? {
        stop.check()?;
        budget.take_entry()?;
        if let Some(change) = change(&mut archive, &mut stream, entry, stop)? {
            change.put(&mut log, directory).map_err(spooling)?;
        }
    }
    let digest = archive.into_content().finish()?;
    if digest != *diff_id && !cfg!(fuzzing) {
        return Err(LayerError::WrongDiffId(digest));
    }
    let usage = stream.finish()?;
    Ok(Layer { log, usage })
}

fn spooling(source: std::io::Error) -> LayerError {
    LayerError::Io {
        doing: "unpacking a layer".to_owned(),
        source,
    }
}

/// Writes what an entry is and tells where its name belongs.
fn change(
    archive: &mut Archive<'_>,
    stream: &mut Stream<'_>,
    entry: Entry,
    stop: &Stop<'_>,
) -> LayerResult<Option<Change>> {
    let path = normal(&entry.path)?;
    let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (
            path.get(..at).unwrap_or_default(),
            path.get(at.saturating_add(1)..).unwrap_or_default(),
        ),
        None => (b"".as_slice(), path.as_slice()),
    };
    if name.is_empty() && entry.kind != Kind::Directory {
        return invalid("it replaces the root directory with something else");
    }
    if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        return Ok(match hidden {
            _ if name == OPAQUE => Some(Change::Opaque(parent.to_vec())),
            _ if name.starts_with(AUFS) => None,
            b"" | b"." | b".." => return invalid("a whiteout names no file"),
            _ => Some(Change::Whiteout(parent.to_vec(), hidden.to_vec())),
        });
    }
    let kind = match &entry.kind {
        Kind::File { .. } | Kind::Sparse(_) => FileKind::File,
        Kind::Directory => FileKind::Directory,
        Kind::Symlink(_) => FileKind::Symlink,
        Kind::CharDevice(..) => FileKind::CharDevice,
        Kind::BlockDevice(..) => FileKind::BlockDevice,
        Kind::Fifo => FileKind::Fifo,
        Kind::HardLink(target) => {
            let target = normal(target)?;
            if target.is_empty() {
                return invalid("a hard link leads to a directory");
            }
            return Ok(Some(Change::Link(path, target)));
        }
    };
    let attributes = Attributes {
        mode: match kind {
            FileKind::Symlink => 0o777,
            _ => entry.mode,
        },
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        xattrs: xattrs(entry.xattrs, kind)?,
    };
    let nid = match &entry.kind {
        Kind::Directory => return Ok(Some(Change::Directory(path, attributes))),
        Kind::File { size } => {
            stream.begin(&attributes, *size)?;
            copy(archive, stream, stop)?
        }
        Kind::Sparse(map) if map.is_dense() => {
            stream.begin(&attributes, map.size)?;
            copy(archive, stream, stop)?
        }
        Kind::Sparse(map) => {
            stream.begin_sparse(&attributes, map.size, &map.segments)?;
            copy(archive, stream, stop)?
        }
        Kind::Symlink(target) if target.is_empty() || target.len() > MAX_PATH => {
            return invalid("a symbolic link has an empty or too long target");
        }
        Kind::Symlink(target) if target.contains(&0) => {
            return invalid("a symbolic link's target contains a zero byte");
        }
        Kind::Symlink(target) => stream.symlink(&attributes, target)?,
        Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => {
            if *major > 0xfff || *minor > 0xf_ffff {
                return invalid("a device has no usable number");
            }
            stream.special(kind, &attributes, (*major, *minor))?
        }
        Kind::Fifo | Kind::HardLink(_) => stream.special(kind, &attributes, (0, 0))?,
    };
    Ok(Some(Change::Node(path, kind, nid)))
}

fn copy(archive: &mut Archive<'_>, stream: &mut Stream<'_>, stop: &Stop<'_>) -> LayerResult<u64> {
    loop {
        let bytes = archive.data()?;
        let count = bytes.len();
        if count == 0 {
            return Ok(stream.end()?);
        }
        stop.check()?;
        stream.write(bytes)?;
        archive.consume(count);
    }
}

/// The components of a path that mean something, with a slash between them.
pub(super) fn normal(path: &[u8]) -> LayerResult<Vec<u8>> {
    let mut out = Vec::with_capacity(path.len());
    let mut depth = 0_usize;
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => {
                return invalid(format!(
                    "the path \"{}\" leads upwards",
                    path.escape_ascii()
                ));
            }
            _ if part.contains(&0) => return invalid("a path contains a zero byte"),
            _ if part.len() > MAX_NAME => {
                return invalid(format!("a name has more than {MAX_NAME} bytes"));
            }
            _ => {}
        }
        if !out.is_empty() {
            out.push(b'/');
        }
        out.extend_from_slice(part);
        depth = depth.saturating_add(1);
    }
    if depth > MAX_DEPTH {
        return invalid(format!("a path has more than {MAX_DEPTH} components"));
    }
    if out.len() > MAX_PATH {
        return invalid(format!("a path has more than {MAX_PATH} bytes"));
    }
    Ok(out)
}

/// Sorts attributes and leaves out what a guest must not see; of a name that comes twice the last
/// one counts.
fn xattrs(
    mut all: Vec<(Vec<u8>, Vec<u8>)>,
    kind: FileKind,
) -> LayerResult<Vec<(Vec<u8>, Vec<u8>)>> {
    all.retain(|(name, _)| is_kept(name, kind));
    all.reverse();
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    all.dedup_by(|(later, _), (first, _)| later == first);
    for (name, value) in &all {
        if name.starts_with(b"system.posix_acl_") && !is_acl(value) {
            return invalid("an access control list is not well-formed");
        }
    }
    Ok(all)
}

/// `struct posix_acl_xattr_header`, version 2, and entries of 8 bytes.
fn is_acl(value: &[u8]) -> bool {
    value.starts_with(&[2, 0, 0, 0]) && value.len() % 8 == 4
}
