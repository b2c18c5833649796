//! Directories: entries sorted by name, in blocks that can each be searched.

use super::format::{Attributes, BLOCK, FileKind, Inode, Layout, NO_BLOCK, Payload, block_number};
use super::stream::fits_behind;
use super::xattr::Sharing;
use super::{ErofsResult, ROOT_OFFSET, ROOT_ROOM};
use std::fs::File;
use std::os::unix::fs::FileExt as _;

const ENTRY: usize = 12;
const BLOCK_SIZE: usize = BLOCK as usize;
const BUFFER: usize = 256 << 10;

/// Where a directory is: decided for all of them before the first is written, as they name each
/// other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Offset of the inode in the area of directory inodes, or of the root in the file.
    pub(crate) at: u64,
    /// Blocks of entries before it.
    pub(crate) block: u64,
}

/// Counts the bytes of entries with names of these lengths (`.` and `..` among them), in order.
pub(crate) struct Measure {
    /// Whole blocks, and the bytes in the last one.
    full: u64,
    used: usize,
}

pub(crate) fn measure() -> Measure {
    Measure { full: 0, used: 0 }
}

impl Measure {
    /// Adds an entry; tells whether it begins a block.
    pub(crate) fn add(&mut self, name: usize) -> bool {
        let bytes = name.saturating_add(ENTRY);
        match self.used.checked_add(bytes) {
            Some(used) if self.used > 0 && used <= BLOCK_SIZE => {
                self.used = used;
                false
            }
            _ => {
                if self.used > 0 {
                    self.full = self.full.saturating_add(1);
                }
                self.used = bytes;
                true
            }
        }
    }

    fn size(&self) -> u64 {
        self.full
            .saturating_mul(BLOCK)
            .saturating_add(self.used as u64)
    }
}

/// Places directories, then writes them in the same order.
pub(crate) struct DirectoryWriter<'a> {
    out: &'a File,
    /// Where the area of directory inodes starts.
    start: u64,
    /// Bytes of inodes and blocks of entries that have been placed.
    inodes: u64,
    blocks: u64,
    inode_buffer: Buffer,
    block_buffer: Buffer,
    root: Vec<u8>,
}

impl<'a> DirectoryWriter<'a> {
    pub(crate) fn new(out: &'a File, start: u64) -> Self {
        Self {
            out,
            start: start.next_multiple_of(BLOCK),
            inodes: 0,
            blocks: 0,
            inode_buffer: Buffer::default(),
            block_buffer: Buffer::default(),
            root: Vec::new(),
        }
    }

    /// Finds the place of a directory.
    pub(crate) fn place(
        &mut self,
        attributes: &Attributes,
        links: u32,
        measure: &Measure,
        is_root: bool,
    ) -> ErofsResult<Slot> {
        let (inode, inline) = layout(attributes, links, measure, is_root)?;
        let block = self.blocks;
        self.blocks = self
            .blocks
            .saturating_add(measure.full)
            .saturating_add(u64::from(!inline));
        if is_root {
            let at = ROOT_OFFSET;
            return Ok(Slot { at, block });
        }
        let bytes = inode.head_bytes() + if inline { measure.used } else { 0 };
        let mut at = self.inodes.next_multiple_of(super::format::SLOT);
        if at % BLOCK + bytes as u64 > BLOCK {
            at = at.next_multiple_of(BLOCK);
        }
        self.inodes = at.saturating_add(bytes as u64);
        Ok(Slot { at, block })
    }

    /// Where the area of directory inodes starts.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// The number of a directory in an area that starts there.
    pub(crate) fn nid(start: u64, slot: Slot, is_root: bool) -> u64 {
        let start = if is_root { 0 } else { start };
        start.saturating_add(slot.at) / super::format::SLOT
    }

    /// Writes a directory with entries that are sorted by name.
    pub(crate) fn write(
        &mut self,
        slot: Slot,
        attributes: &Attributes,
        links: u32,
        measure: &Measure,
        is_root: bool,
        entries: impl FnMut() -> ErofsResult<Option<(Vec<u8>, u64, FileKind)>>,
    ) -> ErofsResult<()> {
        let (mut inode, inline) = layout(attributes, links, measure, is_root)?;
        let blocks = self
            .start
            .saturating_add(self.inodes)
            .next_multiple_of(BLOCK);
        let data_at = blocks.saturating_add(slot.block.saturating_mul(BLOCK));
        if measure.full > 0 || !inline {
            inode.payload = Payload::Block(block_number(data_at)?);
        }
        let last = self.entries(data_at, entries)?;
        let nid = Self::nid(self.start, slot, is_root);
        let mut bytes = inode.encode(nid);
        bytes.extend(xattrs(attributes)?);
        if inline {
            bytes.extend(last);
        } else {
            let at = data_at.saturating_add(measure.full.saturating_mul(BLOCK));
            self.block_buffer.put(self.out, at, &last)?;
        }
        if is_root {
            self.root = bytes;
            return Ok(());
        }
        let at = self.start.saturating_add(slot.at);
        self.inode_buffer.put(self.out, at, &bytes)
    }

    /// Writes whole blocks of entries and returns the last one.
    fn entries(
        &mut self,
        mut at: u64,
        mut next: impl FnMut() -> ErofsResult<Option<(Vec<u8>, u64, FileKind)>>,
    ) -> ErofsResult<Vec<u8>> {
        let mut measure = measure();
        let mut block: Vec<(Vec<u8>, u64, FileKind)> = Vec::new();
        while let Some(entry) = next()? {
            if measure.add(entry.0.len()) && !block.is_empty() {
                let mut bytes = encode(&block);
                bytes.resize(BLOCK_SIZE, 0);
                self.block_buffer.put(self.out, at, &bytes)?;
                at = at.saturating_add(BLOCK);
                block.clear();
            }
            block.push(entry);
        }
        Ok(encode(&block))
    }

    /// Writes what is left. Returns the root directory's inode with what stands behind it and the
    /// end of the file.
    pub(crate) fn finish(mut self) -> ErofsResult<(Vec<u8>, u64)> {
        self.inode_buffer.flush(self.out)?;
        self.block_buffer.flush(self.out)?;
        let end = self
            .start
            .saturating_add(self.inodes)
            .next_multiple_of(BLOCK);
        let end = end.saturating_add(self.blocks.saturating_mul(BLOCK));
        Ok((self.root, end))
    }
}

fn xattrs(attributes: &Attributes) -> ErofsResult<Vec<u8>> {
    Sharing::default().encode(&attributes.xattrs, |_| {
        super::limit("nothing is shared here")
    })
}

fn layout(
    attributes: &Attributes,
    links: u32,
    measure: &Measure,
    is_root: bool,
) -> ErofsResult<(Inode, bool)> {
    let mut inode = Inode {
        kind: FileKind::Directory,
        layout: Layout::Plain,
        mode: attributes.mode,
        uid: attributes.uid,
        gid: attributes.gid,
        mtime: attributes.mtime,
        size: measure.size(),
        links,
        payload: Payload::Block(NO_BLOCK),
        xattr_bytes: xattrs(attributes)?.len(),
    };
    let room = if is_root { ROOT_ROOM } else { BLOCK_SIZE };
    let inline = match is_root {
        true => inode.head_bytes().saturating_add(measure.used) <= room,
        false => fits_behind(inode.head_bytes(), measure.used, room),
    };
    if inline {
        inode.layout = Layout::Inline;
    }
    Ok((inode, inline))
}

fn encode(block: &[(Vec<u8>, u64, FileKind)]) -> Vec<u8> {
    let mut name_at = block.len().saturating_mul(ENTRY);
    let mut out = Vec::with_capacity(BLOCK_SIZE);
    for (name, nid, kind) in block {
        out.extend(nid.to_le_bytes());
        out.extend(u16::try_from(name_at).unwrap_or(0).to_le_bytes());
        out.extend([kind.entry_type(), 0]);
        name_at = name_at.saturating_add(name.len());
    }
    block
        .iter()
        .for_each(|(name, ..)| out.extend_from_slice(name));
    out
}

/// Collects bytes for one place that grows.
#[derive(Default)]
struct Buffer {
    at: u64,
    bytes: Vec<u8>,
}

impl Buffer {
    fn put(&mut self, out: &File, at: u64, bytes: &[u8]) -> ErofsResult<()> {
        let end = self.at.saturating_add(self.bytes.len() as u64);
        match at.checked_sub(end).map(usize::try_from) {
            Some(Ok(gap)) if gap < BLOCK_SIZE && self.bytes.len() < BUFFER => {
                self.bytes.resize(self.bytes.len().saturating_add(gap), 0);
            }
            _ => {
                self.flush(out)?;
                self.at = at;
            }
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self, out: &File) -> ErofsResult<()> {
        out.write_all_at(&self.bytes, self.at)?;
        self.bytes.clear();
        Ok(())
    }
}
