//! Applies what layers change to one tree, lowest first.
//!
//! Paths are resolved as the kernel would with the image as the root: symbolic links on the way
//! are followed and never lead out of it.

use super::change::{self, Change};
use super::spool::Spool;
use super::tree::{NONE, Node, ROOT, Tree, failed};
use super::{LayerError, LayerResult, invalid};
use crate::erofs::{
    Attributes, BLOCK, FileKind, Inode, Layout, MAX_LINKS, Payload, Usage, nid_offset,
};
use rustix::fs::FallocateFlags;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Deeper directories are refused: whoever walks the tree later keeps a descriptor a level.
pub(super) const MAX_DEPTH: usize = 256;
/// As the kernel.
const MAX_LINKS_FOLLOWED: usize = 40;
/// Freed ranges that are collected before they are given back.
const MAX_FREED: usize = 64 << 10;

/// The tree of an image under construction.
pub(super) struct Merger<'a> {
    pub(super) tree: Tree,
    out: &'a File,
    cancelled: &'a AtomicBool,
    layer: u16,
    usage: Vec<Usage>,
    /// The directory of the last entry, as following entries mostly are there too.
    last: Option<(Vec<u8>, u32)>,
    freed: Vec<(u64, u64)>,
    removed: u64,
    can_punch: bool,
}

impl<'a> Merger<'a> {
    pub(super) fn new(
        out: &'a File,
        most: u64,
        directory: &Path,
        cancelled: &'a AtomicBool,
    ) -> LayerResult<Self> {
        Ok(Self {
            tree: Tree::new(most, directory)?,
            out,
            cancelled,
            layer: 0,
            usage: Vec::new(),
            last: None,
            freed: Vec::new(),
            removed: 0,
            can_punch: true,
        })
    }

    /// Applies the next layer, whose inodes are all written.
    pub(super) fn apply(&mut self, log: Spool, usage: Usage) -> LayerResult<()> {
        self.usage.push(usage);
        self.layer = u16::try_from(self.usage.len()).unwrap_or(u16::MAX);
        self.last = None;
        let mut log = log.read().map_err(failed)?;
        while let Some(change) = Change::get(&mut log).map_err(failed)? {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(LayerError::Cancelled);
            }
            match change {
                Change::Node(path, kind, nid) => self.node(&path, kind, nid)?,
                Change::Directory(path, attributes) => self.directory(&path, &attributes)?,
                Change::Link(path, target) => self.link(&path, &target)?,
                Change::Whiteout(directory, name) => {
                    if let Some(directory) = self.resolve(&directory, false)? {
                        self.hide(directory, &name)?;
                    }
                }
                Change::Opaque(directory) => {
                    if let Some(directory) = self.resolve(&directory, false)? {
                        self.hide_lower(directory)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Inodes of files that are there, and whether one of them may have holes.
    pub(super) fn finish(&mut self) -> LayerResult<(u64, bool)> {
        self.give_back()?;
        let written: u64 = self.usage.iter().map(|usage| usage.inodes).sum();
        let chunked = self.usage.iter().any(|usage| usage.chunked);
        Ok((written.saturating_sub(self.removed), chunked))
    }

    fn node(&mut self, path: &[u8], kind: FileKind, nid: u64) -> LayerResult<()> {
        let (directory, name) = self.place(path)?;
        let index = self.tree.find_or_add(directory, name, self.layer)?;
        self.remove(index)?;
        let mut node = self.tree.get(index)?;
        (node.kind, node.value, node.layer) = (Some(kind), nid, self.layer);
        self.tree.put(index, &node)
    }

    fn directory(&mut self, path: &[u8], attributes: &Attributes) -> LayerResult<()> {
        let index = match path {
            b"" => ROOT,
            _ => {
                let (directory, name) = self.place(path)?;
                self.tree.find_or_add(directory, name, self.layer)?
            }
        };
        if self.tree.get(index)?.kind != Some(FileKind::Directory) {
            self.check_depth(index)?;
            self.remove(index)?;
        }
        let value = self.tree.store(&change::encode(attributes))?;
        let mut node = self.tree.get(index)?;
        (node.kind, node.value, node.layer) = (Some(FileKind::Directory), value, self.layer);
        self.tree.put(index, &node)
    }

    /// Gives another name to a file that this or a lower layer has. The names share the file's
    /// owner, mode and times, whatever the entry says.
    fn link(&mut self, path: &[u8], target: &[u8]) -> LayerResult<()> {
        let (directory, name) = self.place(path)?;
        let (target_parent, target_name) = split(target);
        let found = match self.resolve(target_parent, false)? {
            Some(parent) => self.tree.find(parent, target_name)?,
            None => None,
        };
        let missing = || {
            let target = target.escape_ascii();
            invalid(format!("a hard link's target \"{target}\" does not exist"))
        };
        let Some(found) = found else {
            return missing();
        };
        match self.tree.get(found)?.kind {
            None => return missing(),
            Some(FileKind::Directory) => return invalid("a hard link leads to a directory"),
            Some(_) => {}
        }
        let index = self.tree.find_or_add(directory, name, self.layer)?;
        if index == found {
            return invalid("a hard link leads to itself");
        }
        self.remove(index)?;
        let source = self.tree.get(found)?;
        if source.kind.is_none() {
            return missing();
        }
        let inode = self.inode(source.value)?;
        if inode.links >= MAX_LINKS {
            return invalid(format!("a file has more than {MAX_LINKS} names"));
        }
        self.set_links(source.value, inode, inode.links.saturating_add(1))?;
        let mut node = self.tree.get(index)?;
        (node.kind, node.value, node.layer) = (source.kind, source.value, self.layer);
        self.tree.put(index, &node)
    }

    /// The directory of a path, made if need be, and the last component.
    fn place<'p>(&mut self, path: &'p [u8]) -> LayerResult<(u32, &'p [u8])> {
        let (parent, name) = split(path);
        if let Some((last, directory)) = &self.last
            && last == parent
        {
            return Ok((*directory, name));
        }
        let Some(directory) = self.resolve(parent, true)? else {
            return invalid(format!("\"{}\" can not be made", path.escape_ascii()));
        };
        self.see(directory)?;
        self.last = Some((parent.to_vec(), directory));
        Ok((directory, name))
    }

    /// The directory with a path; nothing when it does not exist and is not to be made.
    fn resolve(&mut self, path: &[u8], make: bool) -> LayerResult<Option<u32>> {
        let refused = |why: &str| {
            invalid(format!(
                "\"{}\" can not be made ({why})",
                path.escape_ascii()
            ))
        };
        // Components that are still to come, the next one last; whether they are of the path.
        let mut left: Vec<(Vec<u8>, bool)> = Vec::new();
        left.extend(components(path).rev().map(|part| (part.to_vec(), true)));
        let mut directory = ROOT;
        let mut followed = 0_usize;
        while let Some((name, of_path)) = left.pop() {
            if name == b".." {
                let parent = self.tree.get(directory)?.parent;
                directory = if parent == NONE { ROOT } else { parent };
                continue;
            }
            let found = self.tree.find(directory, &name)?;
            let node = match found {
                Some(index) => Some((index, self.tree.get(index)?)),
                None => None,
            };
            match node.map(|(index, node)| (index, node.kind, node)) {
                Some((index, Some(FileKind::Directory), _)) => directory = index,
                Some((_, Some(FileKind::Symlink), node)) => {
                    followed = followed.saturating_add(1);
                    if followed > MAX_LINKS_FOLLOWED {
                        return refused("too many symbolic links");
                    }
                    let target = self.target(node.value)?;
                    if target.starts_with(b"/") {
                        directory = ROOT;
                    }
                    left.extend(components(&target).rev().map(|part| (part.to_vec(), false)));
                    if left.len() > MAX_DEPTH.saturating_mul(16) {
                        return refused("it is too long");
                    }
                }
                Some((_, Some(_), _)) => return refused("a file is in the way"),
                _ if make && of_path => {
                    let index = self.tree.find_or_add(directory, &name, self.layer)?;
                    self.check_depth(index)?;
                    let value = self.tree.plain()?;
                    let mut node = self.tree.get(index)?;
                    // The caller notes that the layer has it, with all above it.
                    (node.kind, node.value, node.layer) = (Some(FileKind::Directory), value, 0);
                    self.tree.put(index, &node)?;
                    directory = index;
                }
                _ if make => return refused("a symbolic link leads to nothing"),
                _ => return Ok(None),
            }
        }
        Ok(Some(directory))
    }

    /// Notes that the current layer has this directory.
    fn see(&mut self, mut index: u32) -> LayerResult<()> {
        while index != NONE {
            let mut node = self.tree.get(index)?;
            if node.layer == self.layer {
                break;
            }
            node.layer = self.layer;
            self.tree.put(index, &node)?;
            index = node.parent;
        }
        Ok(())
    }

    fn check_depth(&mut self, mut index: u32) -> LayerResult<()> {
        let mut depth = 0_usize;
        loop {
            index = self.tree.get(index)?.parent;
            if index == NONE {
                return Ok(());
            }
            depth = depth.saturating_add(1);
            if depth > MAX_DEPTH {
                return invalid(format!("a directory is more than {MAX_DEPTH} levels deep"));
            }
        }
    }

    /// Removes what lower layers have made in a directory.
    fn hide_lower(&mut self, directory: u32) -> LayerResult<()> {
        let mut left = vec![self.tree.get(directory)?.child];
        while let Some(index) = left.pop() {
            if index == NONE {
                continue;
            }
            let node = self.tree.get(index)?;
            left.push(node.next);
            left.extend(self.hide_node(index, &node)?);
        }
        Ok(())
    }

    /// Removes what lower layers have made under a name.
    fn hide(&mut self, directory: u32, name: &[u8]) -> LayerResult<()> {
        let Some(index) = self.tree.find(directory, name)? else {
            return Ok(());
        };
        let node = self.tree.get(index)?;
        match self.hide_node(index, &node)? {
            Some(_) => self.hide_lower(index),
            None => Ok(()),
        }
    }

    /// Removes a node of a lower layer. Of a directory that the current layer has too, returns the
    /// first child instead.
    fn hide_node(&mut self, index: u32, node: &Node) -> LayerResult<Option<u32>> {
        if node.layer != self.layer {
            self.remove(index)?;
            return Ok(None);
        }
        Ok((node.kind == Some(FileKind::Directory)).then_some(node.child))
    }

    /// Takes a name away, with everything below it.
    fn remove(&mut self, index: u32) -> LayerResult<()> {
        let mut left = vec![index];
        let mut first = true;
        while let Some(index) = left.pop() {
            let mut node = self.tree.get(index)?;
            if !std::mem::take(&mut first) && node.next != NONE {
                left.push(node.next);
            }
            match node.kind.take() {
                None => continue,
                Some(FileKind::Directory) => {
                    self.last = None;
                    if node.child != NONE {
                        left.push(node.child);
                    }
                }
                Some(kind) => {
                    if kind == FileKind::Symlink {
                        self.last = None;
                    }
                    self.unlink(node.value)?;
                }
            }
            self.tree.put(index, &node)?;
        }
        Ok(())
    }

    /// Takes one of a file's names away, and the file with the last one.
    fn unlink(&mut self, nid: u64) -> LayerResult<()> {
        let inode = self.inode(nid)?;
        if inode.links > 1 {
            return self.set_links(nid, inode, inode.links.saturating_sub(1));
        }
        self.removed = self.removed.saturating_add(1);
        let at = nid_offset(nid);
        let head = inode.header_bytes().saturating_add(inode.xattr_bytes) as u64;
        let mut behind = 0;
        match (inode.kind, inode.layout, inode.payload) {
            (FileKind::File | FileKind::Symlink, Layout::Plain, Payload::Block(block)) => {
                self.free(u64::from(block).saturating_mul(BLOCK), inode.size);
            }
            (_, Layout::Inline, Payload::Block(block)) => {
                behind = inode.size % BLOCK;
                let whole = inode.size.saturating_sub(behind);
                self.free(u64::from(block).saturating_mul(BLOCK), whole);
            }
            (_, Layout::Chunked, Payload::ChunkBits(bits)) => {
                behind = self.free_chunks(at.saturating_add(head), inode.size, BLOCK << bits)?;
            }
            _ => {}
        }
        let freed = &mut self.freed;
        for usage in &mut self.usage {
            usage.release(at, head.saturating_add(behind), |block| {
                freed.push((block.saturating_mul(BLOCK), BLOCK));
            });
        }
        if self.freed.len() >= MAX_FREED {
            self.give_back()?;
        }
        Ok(())
    }

    /// Frees what a chunk map names; returns the bytes of the map.
    fn free_chunks(&mut self, at: u64, size: u64, chunk: u64) -> LayerResult<u64> {
        let bytes = size.div_ceil(chunk).saturating_mul(4);
        let mut map = vec![0; usize::try_from(bytes).unwrap_or(0)];
        self.out.read_exact_at(&mut map, at).map_err(failed)?;
        let (entries, _) = map.as_chunks::<4>();
        for (index, entry) in entries.iter().enumerate() {
            let block = u32::from_le_bytes(*entry);
            let left = size.saturating_sub((index as u64).saturating_mul(chunk));
            if block != u32::MAX {
                self.free(u64::from(block).saturating_mul(BLOCK), chunk.min(left));
            }
        }
        Ok(bytes)
    }

    fn free(&mut self, at: u64, bytes: u64) {
        if bytes > 0 {
            self.freed.push((at, bytes.next_multiple_of(BLOCK)));
        }
    }

    /// Makes holes of what nothing uses any more.
    fn give_back(&mut self) -> LayerResult<()> {
        self.freed.sort_unstable();
        let mut ranges = std::mem::take(&mut self.freed).into_iter();
        let Some(mut range) = ranges.next() else {
            return Ok(());
        };
        for (at, bytes) in ranges {
            if range.0.saturating_add(range.1) == at {
                range.1 = range.1.saturating_add(bytes);
            } else {
                self.punch(range)?;
                range = (at, bytes);
            }
        }
        self.punch(range)
    }

    fn punch(&mut self, (at, bytes): (u64, u64)) -> LayerResult<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if !self.can_punch {
            return Ok(());
        }
        match rustix::fs::fallocate(self.out, flags, at, bytes) {
            // The file system knows no holes: the bytes stay, and nothing refers to them.
            Err(rustix::io::Errno::OPNOTSUPP) => {
                self.can_punch = false;
                Ok(())
            }
            result => result.map_err(|error| failed(error.into())),
        }
    }

    fn inode(&self, nid: u64) -> LayerResult<Inode> {
        let mut bytes = [0; 64];
        let at = nid_offset(nid);
        // The last inode of the file may be a short one.
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.out.read_at(rest, at.saturating_add(filled as u64)) {
                Ok(0) => break,
                Ok(count) => filled = filled.saturating_add(count),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        match Inode::decode(&bytes) {
            Some(inode) => Ok(inode),
            None => Err(failed(std::io::Error::other("an inode is damaged"))),
        }
    }

    fn set_links(&self, nid: u64, inode: Inode, links: u32) -> LayerResult<()> {
        let at = nid_offset(nid);
        let written = match inode.header_bytes() {
            32 => {
                let links = u16::try_from(links).unwrap_or(u16::MAX).to_le_bytes();
                self.out.write_all_at(&links, at.saturating_add(6))
            }
            _ => self
                .out
                .write_all_at(&links.to_le_bytes(), at.saturating_add(44)),
        };
        written.map_err(failed)
    }

    /// Where a symbolic link leads.
    fn target(&self, nid: u64) -> LayerResult<Vec<u8>> {
        let inode = self.inode(nid)?;
        let head = inode.header_bytes().saturating_add(inode.xattr_bytes) as u64;
        let at = match (inode.layout, inode.payload) {
            (Layout::Plain, Payload::Block(block)) => u64::from(block).saturating_mul(BLOCK),
            _ => nid_offset(nid).saturating_add(head),
        };
        let mut target = vec![0; usize::try_from(inode.size.min(BLOCK)).unwrap_or(0)];
        self.out.read_exact_at(&mut target, at).map_err(failed)?;
        Ok(target)
    }
}

/// Parent and last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => {
            let (parent, name) = path.split_at(at);
            (parent, name.strip_prefix(b"/").unwrap_or(name))
        }
        None => (b"", path),
    }
}

/// Components that mean something.
fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
}
