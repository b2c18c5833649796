//! What a layer does to the tree below it: written down while the layer is read, done when its
//! turn comes.

use super::spool::Spool;
use crate::erofs::{Attributes, FileKind};
use std::io::{self, Read};
use std::path::Path;

/// One entry of a layer. Paths have no empty, `.` or `..` components and no leading slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// A file, link or device whose inode is written.
    Node(Vec<u8>, FileKind, u64),
    Directory(Vec<u8>, Attributes),
    /// Another name for what is at the second path.
    Link(Vec<u8>, Vec<u8>),
    /// Hides what lower layers have under the name.
    Whiteout(Vec<u8>, Vec<u8>),
    /// Hides what lower layers have in the directory.
    Opaque(Vec<u8>),
}

const KINDS: [FileKind; 6] = [
    FileKind::File,
    FileKind::Directory,
    FileKind::Symlink,
    FileKind::CharDevice,
    FileKind::BlockDevice,
    FileKind::Fifo,
];

pub(super) fn kind_code(kind: FileKind) -> u8 {
    let at = KINDS.iter().position(|other| *other == kind);
    u8::try_from(at.unwrap_or(0)).unwrap_or(0)
}

pub(super) fn kind_of(code: u8) -> Option<FileKind> {
    KINDS.get(usize::from(code)).copied()
}

impl Change {
    pub(super) fn put(&self, log: &mut Spool, directory: &Path) -> io::Result<()> {
        let mut out = Vec::new();
        match self {
            Self::Node(path, kind, nid) => {
                out.extend([0, kind_code(*kind)]);
                out.extend(nid.to_le_bytes());
                bytes(&mut out, path);
            }
            Self::Directory(path, attributes) => {
                out.push(1);
                bytes(&mut out, path);
                bytes(&mut out, &encode(attributes));
            }
            Self::Link(path, target) => {
                out.push(2);
                bytes(&mut out, path);
                bytes(&mut out, target);
            }
            Self::Whiteout(path, name) => {
                out.push(3);
                bytes(&mut out, path);
                bytes(&mut out, name);
            }
            Self::Opaque(path) => {
                out.push(4);
                bytes(&mut out, path);
            }
        }
        log.put(&out, directory)
    }

    /// The next one of a log; nothing at its end.
    pub(super) fn get(log: &mut impl Read) -> io::Result<Option<Self>> {
        let mut tag = [0];
        if log.read(&mut tag)? == 0 {
            return Ok(None);
        }
        Ok(Some(match tag {
            [0] => {
                let [code] = array(log)?;
                let nid = u64::from_le_bytes(array(log)?);
                Self::Node(vector(log)?, kind_of(code).ok_or_else(damaged)?, nid)
            }
            [1] => {
                let path = vector(log)?;
                Self::Directory(path, decode(&vector(log)?)?)
            }
            [2] => Self::Link(vector(log)?, vector(log)?),
            [3] => Self::Whiteout(vector(log)?, vector(log)?),
            [4] => Self::Opaque(vector(log)?),
            _ => return Err(damaged()),
        }))
    }
}

/// Attributes as bytes, for the log and the tree.
pub(super) fn encode(attributes: &Attributes) -> Vec<u8> {
    let mut out = Vec::new();
    for number in [attributes.mode, attributes.uid, attributes.gid] {
        out.extend(number.to_le_bytes());
    }
    out.extend(attributes.mtime.0.to_le_bytes());
    out.extend(attributes.mtime.1.to_le_bytes());
    for (name, value) in &attributes.xattrs {
        bytes(&mut out, name);
        bytes(&mut out, value);
    }
    out
}

pub(super) fn decode(mut from: &[u8]) -> io::Result<Attributes> {
    let from = &mut from;
    let mut attributes = Attributes {
        mode: u32::from_le_bytes(array(from)?),
        uid: u32::from_le_bytes(array(from)?),
        gid: u32::from_le_bytes(array(from)?),
        mtime: (
            i64::from_le_bytes(array(from)?),
            u32::from_le_bytes(array(from)?),
        ),
        xattrs: Vec::new(),
    };
    while !from.is_empty() {
        attributes.xattrs.push((vector(from)?, vector(from)?));
    }
    Ok(attributes)
}

fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn array<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut out = [0; N];
    from.read_exact(&mut out)?;
    Ok(out)
}

fn vector(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let length = u32::from_le_bytes(array(from)?);
    let mut out = vec![0; usize::try_from(length).unwrap_or(0)];
    from.read_exact(&mut out)?;
    Ok(out)
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the log of a layer is damaged")
}
