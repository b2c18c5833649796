//! Writes the files of one layer as they come: data into extents, inodes into others.

use super::format::{
    Attributes, BLOCK, FileKind, Inode, Layout, NO_BLOCK, Payload, SLOT, block_number,
};
use super::xattr::Sharing;
use super::{ErofsResult, Region, limit};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

/// The largest file, holes included: what ext4, the largest file system of a container, takes.
pub(crate) const MAX_FILE: u64 = 16 << 40;

/// Data is written in pieces of this size.
const DATA_BUFFER: usize = 1 << 20;
/// Extents of inodes grow from the first to the second of these sizes.
const INODES: (u64, u64) = (16 << 10, 256 << 10);
/// A short end of a file stands behind its inode only when both fit into half a block: a walk over
/// all inodes would otherwise have to read most of the image.
const INLINE_ROOM: usize = 2048;
/// The most chunks of a sparse file.
const MAX_CHUNKS: u64 = 16 << 10;

const BLOCK_SIZE: usize = BLOCK as usize;

/// The writer of one layer.
pub(crate) struct Stream<'a> {
    out: &'a File,
    region: Region<'a>,
    sharing: Sharing,
    current: Option<Current>,
    data: Vec<u8>,
    /// Where the start of `data` belongs.
    data_at: u64,
    inodes: Vec<u8>,
    inodes_at: u64,
    inodes_end: u64,
    next_extent: u64,
    usage: Usage,
}

/// A file whose data is on its way.
struct Current {
    inode: Inode,
    xattrs: Vec<u8>,
    /// Where the data goes, in the order in which it comes: offset in the file system and bytes.
    places: std::vec::IntoIter<(u64, u64)>,
    place: (u64, u64),
    /// What goes behind the inode after the attributes: the end of the data, or a chunk map.
    behind: Vec<u8>,
    /// Bytes of data that go there.
    behind_left: u64,
}

impl<'a> Stream<'a> {
    pub(crate) fn new(out: &'a File, region: Region<'a>) -> Self {
        Self {
            out,
            region,
            sharing: Sharing::default(),
            current: None,
            data: Vec::new(),
            data_at: 0,
            inodes: Vec::new(),
            inodes_at: 0,
            inodes_end: 0,
            next_extent: INODES.0,
            usage: Usage::default(),
        }
    }

    /// Begins a file of so many bytes.
    pub(crate) fn begin(&mut self, attributes: &Attributes, size: u64) -> ErofsResult<()> {
        if size > MAX_FILE {
            return limit("a file is larger than 16 TiB");
        }
        let (mut inode, xattrs) = self.inode(FileKind::File, attributes, size)?;
        let rest = usize::try_from(size % BLOCK).unwrap_or(0);
        let behind_left = match rest > 0 && fits_behind(inode.head_bytes(), rest, INLINE_ROOM) {
            true => rest as u64,
            false => 0,
        };
        let in_blocks = size.saturating_sub(behind_left);
        let mut place = (0, 0);
        if in_blocks > 0 {
            place = (self.region.take(in_blocks)?, in_blocks);
            inode.payload = Payload::Block(block_number(place.0)?);
        }
        if behind_left > 0 {
            inode.layout = Layout::Inline;
        }
        self.current = Some(Current {
            inode,
            xattrs,
            places: Vec::new().into_iter(),
            place,
            behind: Vec::new(),
            behind_left,
        });
        Ok(())
    }

    /// Begins a file of which only some segments (offset and bytes, in order) have data.
    pub(crate) fn begin_sparse(
        &mut self,
        attributes: &Attributes,
        size: u64,
        segments: &[(u64, u64)],
    ) -> ErofsResult<()> {
        if size > MAX_FILE {
            return limit("a file is larger than 16 TiB");
        }
        let (mut inode, xattrs) = self.inode(FileKind::File, attributes, size)?;
        let mut bits = 0;
        while size.div_ceil(BLOCK << bits) > MAX_CHUNKS {
            bits += 1;
        }
        let chunk = BLOCK << bits;
        let mut map = vec![false; usize::try_from(size.div_ceil(chunk)).unwrap_or(0)];
        for (offset, bytes) in segments.iter().filter(|(_, bytes)| *bytes > 0) {
            let first = usize::try_from(offset / chunk).unwrap_or(usize::MAX);
            let last = offset.saturating_add(*bytes).saturating_sub(1) / chunk;
            let last = usize::try_from(last).unwrap_or(usize::MAX);
            match map.get_mut(first..=last) {
                Some(used) => used.fill(true),
                None => return limit("a sparse file has data behind its end"),
            }
        }
        let used = map.iter().filter(|used| **used).count() as u64;
        let cut = match map.last() {
            Some(true) => size.next_multiple_of(chunk) - size.next_multiple_of(BLOCK),
            _ => 0,
        };
        let start = match used {
            0 => 0,
            _ => self
                .region
                .take(used.saturating_mul(chunk).saturating_sub(cut))?,
        };
        // Chunks that follow each other in the file do so in the file system.
        let mut places = Vec::with_capacity(segments.len());
        let (mut rank, mut ranked) = (0_u64, 0_usize);
        for (offset, bytes) in segments.iter().filter(|(_, bytes)| *bytes > 0) {
            let index = usize::try_from(offset / chunk).unwrap_or(usize::MAX);
            let passed = map.get(ranked..index).unwrap_or_default();
            rank += passed.iter().filter(|used| **used).count() as u64;
            ranked = index;
            let at = start.saturating_add(rank.saturating_mul(chunk));
            places.push((at.saturating_add(offset % chunk), *bytes));
        }
        let mut behind = Vec::with_capacity(map.len().saturating_mul(4));
        let mut next = start;
        for used in &map {
            let block = match used {
                true => {
                    let block = block_number(next)?;
                    next = next.saturating_add(chunk);
                    block
                }
                false => NO_BLOCK,
            };
            behind.extend(block.to_le_bytes());
        }
        inode.layout = Layout::Chunked;
        inode.payload = Payload::ChunkBits(bits);
        self.usage.chunked = true;
        self.current = Some(Current {
            inode,
            xattrs,
            places: places.into_iter(),
            place: (0, 0),
            behind,
            behind_left: 0,
        });
        Ok(())
    }

    /// The next data of the file that was begun.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> ErofsResult<()> {
        while !bytes.is_empty() {
            let Some(current) = &mut self.current else {
                return limit("there is data without a file");
            };
            if current.place.1 == 0
                && let Some(next) = current.places.next()
            {
                current.place = next;
                continue;
            }
            let (at, room) = current.place;
            if room == 0 {
                if (bytes.len() as u64) > current.behind_left {
                    return limit("a file has more data than it said");
                }
                current.behind_left -= bytes.len() as u64;
                current.behind.extend_from_slice(bytes);
                return Ok(());
            }
            let count = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
            let (now, later) = bytes.split_at(count);
            current.place = (at.saturating_add(count as u64), room - count as u64);
            self.put(at, now)?;
            bytes = later;
        }
        Ok(())
    }

    /// Ends the file that was begun and returns its number.
    pub(crate) fn end(&mut self) -> ErofsResult<u64> {
        match self.current.take() {
            Some(Current {
                inode,
                xattrs,
                places,
                place: (_, 0),
                behind,
                behind_left: 0,
            }) if places.as_slice().is_empty() => self.put_inode(&inode, &xattrs, &behind),
            _ => limit("a file has less data than it said"),
        }
    }

    /// Writes a symbolic link.
    pub(crate) fn symlink(&mut self, attributes: &Attributes, target: &[u8]) -> ErofsResult<u64> {
        let size = target.len() as u64;
        let (mut inode, xattrs) = self.inode(FileKind::Symlink, attributes, size)?;
        if fits_behind(inode.head_bytes(), target.len(), BLOCK_SIZE) {
            inode.layout = Layout::Inline;
            return self.put_inode(&inode, &xattrs, target);
        }
        let at = self.region.take(size)?;
        inode.payload = Payload::Block(block_number(at)?);
        self.put(at, target)?;
        self.put_inode(&inode, &xattrs, &[])
    }

    /// Writes a device (major and minor number) or a named pipe.
    pub(crate) fn special(
        &mut self,
        kind: FileKind,
        attributes: &Attributes,
        (major, minor): (u32, u32),
    ) -> ErofsResult<u64> {
        let (mut inode, xattrs) = self.inode(kind, attributes, 0)?;
        inode.payload = match kind {
            FileKind::CharDevice | FileKind::BlockDevice => Payload::Device(major, minor),
            _ => Payload::None,
        };
        self.put_inode(&inode, &xattrs, &[])
    }

    /// Writes what is left and lets the next layer use the space behind all regions.
    pub(crate) fn finish(mut self) -> ErofsResult<Usage> {
        self.flush_data()?;
        self.flush_inodes()?;
        self.region.finish();
        Ok(self.usage)
    }

    fn inode(
        &mut self,
        kind: FileKind,
        attributes: &Attributes,
        size: u64,
    ) -> ErofsResult<(Inode, Vec<u8>)> {
        let mut sharing = std::mem::take(&mut self.sharing);
        let xattrs = sharing.encode(&attributes.xattrs, |entry| {
            let at = self.place(entry.len())?;
            self.inodes.extend_from_slice(entry);
            Ok(at)
        });
        self.sharing = sharing;
        let xattrs = xattrs?;
        let inode = Inode {
            kind,
            layout: Layout::Plain,
            mode: attributes.mode,
            uid: attributes.uid,
            gid: attributes.gid,
            mtime: attributes.mtime,
            size,
            links: 1,
            payload: Payload::Block(NO_BLOCK),
            xattr_bytes: xattrs.len(),
        };
        Ok((inode, xattrs))
    }

    fn put_inode(&mut self, inode: &Inode, xattrs: &[u8], behind: &[u8]) -> ErofsResult<u64> {
        let at = self.place(inode.head_bytes().saturating_add(behind.len()))?;
        let nid = at / SLOT;
        self.inodes.extend(inode.encode(nid));
        self.inodes.extend_from_slice(xattrs);
        self.inodes.extend_from_slice(behind);
        self.usage.inodes = self.usage.inodes.saturating_add(1);
        Ok(nid)
    }

    /// Finds the place of the next so many bytes among the inodes: in one block, or from the
    /// start of one.
    fn place(&mut self, bytes: usize) -> ErofsResult<u64> {
        let mut start = self.inodes.len().next_multiple_of(SLOT as usize);
        let in_block = start % BLOCK_SIZE;
        if in_block.saturating_add(bytes) > BLOCK_SIZE {
            start = start.next_multiple_of(BLOCK_SIZE);
        }
        let end = self
            .inodes_at
            .saturating_add(start.saturating_add(bytes) as u64);
        if end > self.inodes_end {
            self.flush_inodes()?;
            let extent = self.next_extent.max(bytes as u64).next_multiple_of(BLOCK);
            self.next_extent = self.next_extent.saturating_mul(2).min(INODES.1);
            self.inodes_at = self.region.take(extent)?;
            self.inodes_end = self.inodes_at.saturating_add(extent);
            self.usage.extent(self.inodes_at, extent);
            start = 0;
        }
        self.inodes.resize(start, 0);
        let at = self.inodes_at.saturating_add(start as u64);
        self.usage.take(at, bytes as u64);
        Ok(at)
    }

    fn put(&mut self, at: u64, bytes: &[u8]) -> ErofsResult<()> {
        let end = self.data_at.saturating_add(self.data.len() as u64);
        // Files that follow each other leave less than a block between them.
        match at.checked_sub(end) {
            Some(gap) if gap < BLOCK && !self.data.is_empty() => {
                let gap = usize::try_from(gap).unwrap_or(0);
                self.data.resize(self.data.len().saturating_add(gap), 0);
            }
            _ => {
                self.flush_data()?;
                self.data_at = at;
            }
        }
        let full = self.data.len().saturating_add(bytes.len()) > DATA_BUFFER;
        if full {
            self.flush_data()?;
            self.data_at = at;
        }
        if bytes.len() >= DATA_BUFFER / 4 {
            self.flush_data()?;
            self.out.write_all_at(bytes, at)?;
            self.data_at = at.saturating_add(bytes.len() as u64);
        } else {
            self.data.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn flush_data(&mut self) -> ErofsResult<()> {
        self.out.write_all_at(&self.data, self.data_at)?;
        self.data_at = self.data_at.saturating_add(self.data.len() as u64);
        self.data.clear();
        Ok(())
    }

    fn flush_inodes(&mut self) -> ErofsResult<()> {
        self.out.write_all_at(&self.inodes, self.inodes_at)?;
        self.inodes.clear();
        (self.inodes_at, self.inodes_end) = (0, 0);
        Ok(())
    }
}

/// Whether data can stand in one block behind inode and attributes, which start a block when they
/// do not fit into one with the data.
pub(super) fn fits_behind(head: usize, bytes: usize, room: usize) -> bool {
    let total = head.saturating_add(bytes);
    total <= room || (head > BLOCK_SIZE && (head % BLOCK_SIZE).saturating_add(bytes) <= room)
}

/// How many inodes each block of a layer's inode extents holds, to know when one is free.
#[derive(Default)]
pub(crate) struct Usage {
    extents: BTreeMap<u64, Vec<u16>>,
    /// Inodes that were written.
    pub(crate) inodes: u64,
    /// Some file has holes.
    pub(crate) chunked: bool,
}

impl Usage {
    fn extent(&mut self, at: u64, bytes: u64) {
        let blocks = usize::try_from(bytes / BLOCK).unwrap_or(0);
        self.extents.insert(at / BLOCK, vec![0; blocks]);
    }

    fn take(&mut self, at: u64, bytes: u64) {
        self.change(at, bytes, |_, count| *count = count.saturating_add(1));
    }

    /// Gives up what an inode occupies; `free` gets the blocks that nothing occupies any more.
    pub(crate) fn release(&mut self, at: u64, bytes: u64, mut free: impl FnMut(u64)) {
        self.change(at, bytes, |block, count| {
            *count = count.saturating_sub(1);
            if *count == 0 {
                free(block);
            }
        });
    }

    fn change(&mut self, at: u64, bytes: u64, mut with: impl FnMut(u64, &mut u16)) {
        let first = at / BLOCK;
        let last = at.saturating_add(bytes.max(1)).saturating_sub(1) / BLOCK;
        let Some((start, counts)) = self.extents.range_mut(..=first).next_back() else {
            return;
        };
        for block in first..=last {
            let index = usize::try_from(block - start).unwrap_or(usize::MAX);
            if let Some(count) = counts.get_mut(index) {
                with(block, count);
            }
        }
    }
}
