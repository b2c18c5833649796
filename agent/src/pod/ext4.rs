//! Growing a mounted ext4, and as much of its super block as that needs
//! (Documentation/filesystems/ext4/super.rst).

use crate::error::Context;
use crate::{Error, Result, sys};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Where the super block begins on the disk.
const OFFSET: u64 = 1024;
/// Its length in bytes.
pub(super) const LENGTH: usize = 1024;

/// Grows the file system of the disk with this serial, mounted at `path`, to the size of its disk. Blocks.
pub(super) fn grow(serial: &str, node: &Path, path: &Path) -> Result<()> {
    let what = || format!("Cannot grow the file system on disk {serial}");
    let device = File::open(node).context(what)?;
    let mut block = [0; LENGTH];
    device.read_exact_at(&mut block, OFFSET).context(what)?;
    let Some(now) = Geometry::parse(&block) else {
        return Err(Error::Invalid(format!("Disk {serial} has no ext4")));
    };
    let blocks = sys::ioctl::block_size(&device).context(what)? / now.block_size;
    if blocks <= now.blocks {
        return Ok(());
    }
    let directory = File::open(path).context(what)?;
    sys::ioctl::grow_ext4(&directory, blocks).context(what)
}

/// Size of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a block.
    pub block_size: u64,
    /// Blocks of the file system.
    pub blocks: u64,
}

impl Geometry {
    /// Reads a super block; `None` if it is not one.
    pub fn parse(block: &[u8]) -> Option<Self> {
        let half = |at: usize| Some(u16::from_le_bytes(block.get(at..at + 2)?.try_into().ok()?));
        let word = |at: usize| Some(u32::from_le_bytes(block.get(at..at + 4)?.try_into().ok()?));
        const MAGIC: u16 = 0xef53;
        const INCOMPAT_64BIT: u32 = 0x80;
        if half(0x38)? != MAGIC {
            return None;
        }
        // 1 KiB to 64 KiB.
        let shift = word(0x18)?;
        if shift > 6 {
            return None;
        }
        let high = if word(0x60)? & INCOMPAT_64BIT != 0 {
            word(0x150)?
        } else {
            0
        };
        Some(Self {
            block_size: 1024 << shift,
            blocks: u64::from(high) << 32 | u64::from(word(0x4)?),
        })
    }
}
