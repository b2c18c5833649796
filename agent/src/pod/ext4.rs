//! As much of an ext4 super block as growing needs (Documentation/filesystems/ext4/super.rst).

/// Where the super block begins on the disk.
pub(super) const OFFSET: u64 = 1024;
/// Its length in bytes.
pub(super) const LENGTH: usize = 1024;

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
