//! Block 0: the superblock and the root directory.

use super::format::{BLOCK, block_number};
use super::{ErofsResult, limit};
use std::fs::File;
use std::os::unix::fs::FileExt as _;

const OFFSET: usize = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;
/// There is a checksum, and times of inodes are those of the last modification.
const COMPATIBLE: u32 = 1 | 2;
const CHUNKED_FILES: u32 = 4;
/// Where the root directory is: its number has only 16 bits.
pub(crate) const ROOT_OFFSET: u64 = 1152;
/// Bytes for the root directory in block 0.
pub(crate) const ROOT_ROOM: usize = BLOCK as usize - ROOT_OFFSET as usize;

/// What the superblock says.
pub(crate) struct Superblock {
    /// Bytes of the file, a multiple of a block.
    pub(crate) size: u64,
    pub(crate) inodes: u64,
    pub(crate) uuid: [u8; 16],
    pub(crate) chunked: bool,
}

impl Superblock {
    /// Writes block 0. `root` is the root directory's inode and what stands behind it.
    pub(crate) fn write(&self, out: &File, root: &[u8]) -> ErofsResult<()> {
        if root.len() > ROOT_ROOM {
            return limit("the root directory has too many extended attributes");
        }
        let blocks = block_number(self.size)?;
        let mut fields = Vec::with_capacity(128);
        fields.extend(MAGIC.to_le_bytes());
        fields.extend([0; 4]);
        fields.extend(COMPATIBLE.to_le_bytes());
        fields.extend([12, 0]);
        fields.extend(u16::try_from(ROOT_OFFSET / 32).unwrap_or(0).to_le_bytes());
        fields.extend(self.inodes.to_le_bytes());
        // The time of small inodes, seconds and nanoseconds.
        fields.extend([0; 12]);
        fields.extend(blocks.to_le_bytes());
        // Inodes and shared attributes are counted from the start of the file.
        fields.extend([0; 8]);
        fields.extend(self.uuid);
        fields.extend([0; 16]);
        let incompatible = if self.chunked { CHUNKED_FILES } else { 0 };
        fields.extend(incompatible.to_le_bytes());
        fields.resize(128, 0);

        let mut block = vec![0; OFFSET];
        block.extend(fields);
        block.extend_from_slice(root);
        block.resize(BLOCK as usize, 0);
        let sum = checksum(block.get(OFFSET..).unwrap_or_default()).to_le_bytes();
        if let Some(place) = block.get_mut(OFFSET + 4..OFFSET + 8) {
            place.copy_from_slice(&sum);
        }
        out.write_all_at(&block, 0)?;
        Ok(())
    }
}

/// CRC-32C as the kernel uses it here: without the inversion at the end.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0x82f6_3b78 * (sum & 1))
        })
    })
}
