//! Writes the directories of a merged tree, and with them the end of the image.

use super::merge::Merger;
use super::tree::{NONE, ROOT, Tree};
use super::{LayerError, LayerResult, invalid};
use crate::erofs::{Attributes, DirectoryWriter, ErofsResult, FileKind, Measure, Slot, measure};

/// Entries of one directory: they are sorted in memory.
const MAX_ENTRIES: usize = 1 << 20;

/// Places and then writes all directories; returns how many there are.
pub(super) fn directories(
    merger: &mut Merger<'_>,
    writer: &mut DirectoryWriter<'_>,
) -> LayerResult<u64> {
    let tree = &mut merger.tree;
    let mut count = 0_u64;
    walk(tree, |tree, index| {
        sort(tree, index)?;
        let (measured, links) = measured(tree, index)?;
        let node = tree.get(index)?;
        let attributes = tree.attributes(node.value)?;
        let slot = writer.place(&attributes, links, &measured, index == ROOT)?;
        tree.set_place(node.value, (slot.at, slot.block))?;
        count = count.saturating_add(1);
        Ok(())
    })?;
    walk(tree, |tree, index| write(tree, writer, index))?;
    Ok(count)
}

/// Visits every directory before those in it, in the order of the child lists.
fn walk(
    tree: &mut Tree,
    mut visit: impl FnMut(&mut Tree, u32) -> LayerResult<()>,
) -> LayerResult<()> {
    let mut left = vec![ROOT];
    while let Some(index) = left.pop() {
        if index != ROOT {
            let node = tree.get(index)?;
            if node.next != NONE {
                left.push(node.next);
            }
            if node.kind != Some(FileKind::Directory) {
                continue;
            }
        }
        visit(tree, index)?;
        let child = tree.get(index)?.child;
        if child != NONE {
            left.push(child);
        }
    }
    Ok(())
}

/// Sorts the list of a directory's children and leaves the gone ones out.
fn sort(tree: &mut Tree, directory: u32) -> LayerResult<()> {
    let mut children: Vec<(u64, u32)> = Vec::new();
    let mut index = tree.get(directory)?.child;
    while index != NONE {
        let node = tree.get(index)?;
        if node.kind.is_some() {
            if children.len() >= MAX_ENTRIES {
                return invalid(format!("a directory has more than {MAX_ENTRIES} entries"));
            }
            let name = tree.name(&node)?;
            let start = name.iter().copied().chain(std::iter::repeat(0)).take(8);
            let start = start.fold(0_u64, |start, byte| (start << 8) | u64::from(byte));
            children.push((start, index));
        }
        index = node.next;
    }
    let mut failed: Option<LayerError> = None;
    let mut name_of = |index: u32| match tree.get(index).and_then(|node| tree.name(&node)) {
        Ok(name) => name,
        Err(error) => {
            failed = Some(error);
            Vec::new()
        }
    };
    children.sort_by(|(start, index), (other_start, other)| {
        start
            .cmp(other_start)
            .then_with(|| name_of(*index).cmp(&name_of(*other)))
    });
    if let Some(error) = failed {
        return Err(error);
    }
    let mut next = NONE;
    for (_, index) in children.iter().rev() {
        let mut node = tree.get(*index)?;
        node.next = next;
        tree.put(*index, &node)?;
        next = *index;
    }
    let mut node = tree.get(directory)?;
    node.child = next;
    tree.put(directory, &node)
}

/// The bytes of a directory's entries and its number of links.
fn measured(tree: &mut Tree, directory: u32) -> LayerResult<(Measure, u32)> {
    let mut measured = measure();
    let mut links = 2_u32;
    let mut entries = Entries::new(tree, directory)?;
    while let Some((name, _, kind)) = entries.next(tree, |_, _| Ok(0))? {
        measured.add(name.len());
        let is_child = kind == FileKind::Directory && name != b"." && name != b"..";
        links = links.saturating_add(u32::from(is_child));
    }
    Ok((measured, links))
}

fn write(tree: &mut Tree, writer: &mut DirectoryWriter<'_>, index: u32) -> LayerResult<()> {
    let (measured, links) = measured(tree, index)?;
    let node = tree.get(index)?;
    let attributes: Attributes = tree.attributes(node.value)?;
    let slot = slot(tree, index)?;
    let mut entries = Entries::new(tree, index)?;
    let start = writer.start();
    let mut failed = None;
    let next = || -> ErofsResult<Option<(Vec<u8>, u64, FileKind)>> {
        let nid = |tree: &mut Tree, index| {
            Ok(DirectoryWriter::nid(
                start,
                slot_of(tree, index)?,
                index == ROOT,
            ))
        };
        entries.next(tree, nid).or_else(|error| {
            failed = Some(error);
            Ok(None)
        })
    };
    writer.write(slot, &attributes, links, &measured, index == ROOT, next)?;
    match failed {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn slot(tree: &mut Tree, index: u32) -> LayerResult<Slot> {
    slot_of(tree, index)
}

fn slot_of(tree: &mut Tree, index: u32) -> LayerResult<Slot> {
    let node = tree.get(index)?;
    let (at, block) = tree.place(node.value)?;
    Ok(Slot { at, block })
}

/// The entries of a directory in the order of their names, `.` and `..` among them.
struct Entries {
    next: u32,
    dots: std::vec::IntoIter<(&'static [u8], u32)>,
    dot: Option<(&'static [u8], u32)>,
}

impl Entries {
    fn new(tree: &mut Tree, directory: u32) -> LayerResult<Self> {
        let node = tree.get(directory)?;
        let parent = if node.parent == NONE {
            ROOT
        } else {
            node.parent
        };
        let dots: Vec<(&'static [u8], u32)> = vec![(b".", directory), (b"..", parent)];
        let mut dots = dots.into_iter();
        Ok(Self {
            next: node.child,
            dot: dots.next(),
            dots,
        })
    }

    fn next(
        &mut self,
        tree: &mut Tree,
        nid: impl FnOnce(&mut Tree, u32) -> LayerResult<u64>,
    ) -> LayerResult<Option<(Vec<u8>, u64, FileKind)>> {
        let child = match self.next {
            NONE => None,
            index => {
                let node = tree.get(index)?;
                Some((index, node, tree.name(&node)?))
            }
        };
        if let Some((dot, index)) = self.dot
            && child
                .as_ref()
                .is_none_or(|(_, _, name)| dot < name.as_slice())
        {
            self.dot = self.dots.next();
            return Ok(Some((dot.to_vec(), nid(tree, index)?, FileKind::Directory)));
        }
        let Some((index, node, name)) = child else {
            return Ok(None);
        };
        self.next = node.next;
        let kind = node.kind.unwrap_or(FileKind::File);
        let number = match kind {
            FileKind::Directory => nid(tree, index)?,
            _ => node.value,
        };
        Ok(Some((name, number, kind)))
    }
}
