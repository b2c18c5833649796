//! Writes EROFS: uncompressed, blocks of 4 KiB, in one pass.
//!
//! ```text
//! block 0        superblock, root directory
//! region         one for each layer: extents of inodes (with attributes, symbolic links and the
//!  ...           short ends of files) and extents of file data, as its archive streams by
//! overflow       what did not fit into a layer's region, in the order of the layers
//! directories    inodes, then the blocks of large directories
//! ```
//!
//! Inode numbers count slots of 32 bytes from the start of the file, so an inode can be written
//! wherever its layer is. Only directories wait for the end, when it is known what each holds.
//! `docs/decisions/erofs-writer.md` says why.
//!
//! Source: the kernel's `Documentation/filesystems/erofs.rst` and `fs/erofs/erofs_fs.h`.

mod directory;
mod format;
mod space;
mod stream;
mod superblock;
mod xattr;

#[cfg(test)]
mod tests;

pub(crate) use directory::{DirectoryWriter, Measure, Slot, measure};
pub(crate) use format::{
    Attributes, BLOCK, FileKind, Inode, Layout, MAX_LINKS, MAX_NAME, Payload, nid_offset,
};
pub(crate) use space::{Plan, Region};
pub(crate) use stream::{Stream, Usage};
pub(crate) use superblock::{ROOT_OFFSET, ROOT_ROOM, Superblock};
pub(crate) use xattr::is_kept;

use std::io;

/// Why something could not be written.
#[derive(Debug)]
pub(crate) enum ErofsError {
    /// The format, or this writer, has no room for it.
    Limit(String),
    /// The operating system refused something.
    Io(io::Error),
    /// Another layer has failed.
    Stopped,
}

impl From<io::Error> for ErofsError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

pub(crate) type ErofsResult<T> = Result<T, ErofsError>;

fn limit<T>(reason: impl Into<String>) -> ErofsResult<T> {
    Err(ErofsError::Limit(reason.into()))
}
