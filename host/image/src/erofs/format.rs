//! Structures on the disk, all little-endian.

use super::ErofsError;
use super::xattr::Xattrs;

/// Bytes of a block. The file's size is a multiple of this, which every block device size divides.
pub(crate) const BLOCK: u64 = 4096;
/// Inode numbers count slots of so many bytes.
pub(super) const SLOT: u64 = 32;
pub(crate) const MAX_NAME: usize = 255;
/// Names of one inode, as many as the small form of an inode can count.
pub(crate) const MAX_LINKS: u32 = 0xffff;
/// The block address of a hole in a chunk map and of what has no data.
pub(super) const NO_BLOCK: u32 = u32::MAX;

const COMPACT: usize = 32;
const EXTENDED: usize = 64;
const TYPE_MASK: u16 = 0o170_000;

/// Where an inode with this number is, in bytes from the start of the file.
pub(crate) fn nid_offset(nid: u64) -> u64 {
    nid.saturating_mul(SLOT)
}

/// The number of a block as the format keeps it.
pub(super) fn block_number(offset: u64) -> Result<u32, ErofsError> {
    match u32::try_from(offset / BLOCK) {
        Ok(block) if block != NO_BLOCK => Ok(block),
        _ => super::limit("it needs more than the 16 TiB that an EROFS file can have"),
    }
}

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    File,
    Directory,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
}

impl FileKind {
    /// The type bits of `st_mode`.
    pub(super) fn mode(self) -> u16 {
        match self {
            Self::File => 0o100_000,
            Self::Directory => 0o040_000,
            Self::Symlink => 0o120_000,
            Self::CharDevice => 0o020_000,
            Self::BlockDevice => 0o060_000,
            Self::Fifo => 0o010_000,
        }
    }

    pub(super) fn from_mode(mode: u16) -> Option<Self> {
        [
            Self::File,
            Self::Directory,
            Self::Symlink,
            Self::CharDevice,
            Self::BlockDevice,
            Self::Fifo,
        ]
        .into_iter()
        .find(|kind| kind.mode() == mode & TYPE_MASK)
    }

    /// The type in a directory entry (`FT_*` of the kernel's `fs_types.h`).
    pub(super) fn entry_type(self) -> u8 {
        match self {
            Self::File => 1,
            Self::Directory => 2,
            Self::CharDevice => 3,
            Self::BlockDevice => 4,
            Self::Fifo => 5,
            Self::Symlink => 7,
        }
    }
}

/// What `stat(2)` and `listxattr(2)` tell about a file, whatever its kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// Permission bits, set-user-ID, set-group-ID and sticky bit.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970, rounded down, and nanoseconds.
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Xattrs,
}

/// How an inode's data is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// In blocks of its own.
    Plain,
    /// Whole blocks of its own, and the rest behind the inode.
    Inline,
    /// In chunks that a map behind the inode names.
    Chunked,
}

/// The 32 bits of an inode whose meaning depends on what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Payload {
    /// First block of the data.
    Block(u32),
    /// Number of the device as `stat(2)` encodes it for 32 bits.
    Device(u32, u32),
    /// Chunks of `BLOCK << bits` bytes.
    ChunkBits(u32),
    None,
}

impl Payload {
    fn encode(self) -> u32 {
        match self {
            Self::Block(block) => block,
            Self::Device(major, minor) => (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12),
            Self::ChunkBits(bits) => bits & 0x1f,
            Self::None => 0,
        }
    }
}

/// An inode without what stands behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) kind: FileKind,
    pub(crate) layout: Layout,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) size: u64,
    pub(crate) links: u32,
    pub(crate) payload: Payload,
    /// Bytes of extended attributes behind the inode.
    pub(crate) xattr_bytes: usize,
}

impl Inode {
    /// The small form has no time of its own but that of the file system, which is 1970.
    fn is_compact(&self) -> bool {
        self.mtime == (0, 0)
            && self.uid <= 0xffff
            && self.gid <= 0xffff
            && self.links <= MAX_LINKS
            && u32::try_from(self.size).is_ok()
    }

    /// Bytes of the inode alone.
    pub(crate) fn header_bytes(&self) -> usize {
        if self.is_compact() { COMPACT } else { EXTENDED }
    }

    /// Bytes of inode and attributes.
    pub(super) fn head_bytes(&self) -> usize {
        self.header_bytes().saturating_add(self.xattr_bytes)
    }

    pub(super) fn encode(&self, nid: u64) -> Vec<u8> {
        let layout: u16 = match self.layout {
            Layout::Plain => 0,
            Layout::Inline => 2,
            Layout::Chunked => 4,
        };
        let attributes = match self.xattr_bytes.checked_sub(12) {
            Some(more) => u16::try_from(more / 4 + 1).unwrap_or(u16::MAX),
            None => 0,
        };
        let mode = self.kind.mode() | (u16::try_from(self.mode & 0o7777).unwrap_or(0));
        let payload = self.payload.encode();
        // Only 32-bit programs see this number; the others see the inode's place.
        let number = u32::try_from(nid & u64::from(u32::MAX)).unwrap_or(0);
        let mut out = Vec::with_capacity(EXTENDED);
        let compact = self.is_compact();
        out.extend(((layout << 1) | u16::from(!compact)).to_le_bytes());
        out.extend(attributes.to_le_bytes());
        out.extend(mode.to_le_bytes());
        if compact {
            let low = |value: u32| u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes();
            out.extend(low(self.links));
            out.extend(u32::try_from(self.size).unwrap_or(u32::MAX).to_le_bytes());
            out.extend([0; 4]);
            out.extend(payload.to_le_bytes());
            out.extend(number.to_le_bytes());
            out.extend(low(self.uid));
            out.extend(low(self.gid));
            out.extend([0; 4]);
        } else {
            out.extend([0; 2]);
            out.extend(self.size.to_le_bytes());
            out.extend(payload.to_le_bytes());
            out.extend(number.to_le_bytes());
            out.extend(self.uid.to_le_bytes());
            out.extend(self.gid.to_le_bytes());
            out.extend(self.mtime.0.to_le_bytes());
            out.extend(self.mtime.1.to_le_bytes());
            out.extend(self.links.to_le_bytes());
            out.extend([0; 16]);
        }
        out
    }

    /// Reads back what [`Inode::encode`] wrote.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let format = u16_at(bytes, 0)?;
        let layout = match format >> 1 {
            0 => Layout::Plain,
            2 => Layout::Inline,
            4 => Layout::Chunked,
            _ => return None,
        };
        let xattr_bytes = match usize::from(u16_at(bytes, 2)?) {
            0 => 0,
            count => count.checked_mul(4)?.checked_add(8)?,
        };
        let mode = u16_at(bytes, 4)?;
        let kind = FileKind::from_mode(mode)?;
        let payload = u32_at(bytes, 16)?;
        let payload = match (kind, layout) {
            (FileKind::CharDevice | FileKind::BlockDevice, _) => Payload::Device(
                (payload >> 8) & 0xfff,
                (payload & 0xff) | ((payload >> 12) & 0xfff_ff00),
            ),
            (_, Layout::Chunked) => Payload::ChunkBits(payload & 0x1f),
            (FileKind::Fifo, _) => Payload::None,
            _ => Payload::Block(payload),
        };
        let common = Self {
            kind,
            layout,
            mode: u32::from(mode & 0o7777),
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size: 0,
            links: 0,
            payload,
            xattr_bytes,
        };
        Some(if format & 1 == 0 {
            Self {
                uid: u16_at(bytes, 24)?.into(),
                gid: u16_at(bytes, 26)?.into(),
                size: u32_at(bytes, 8)?.into(),
                links: u16_at(bytes, 6)?.into(),
                ..common
            }
        } else {
            let seconds = bytes.get(32..40)?.try_into().ok()?;
            Self {
                uid: u32_at(bytes, 24)?,
                gid: u32_at(bytes, 28)?,
                size: u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?),
                links: u32_at(bytes, 44)?,
                mtime: (i64::from_le_bytes(seconds), u32_at(bytes, 40)?),
                ..common
            }
        })
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_le_bytes(bytes.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}
