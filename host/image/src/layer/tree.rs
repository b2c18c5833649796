//! The names of an image while its layers are merged.
//!
//! A node is a name in a directory; its inode is in the EROFS file already, unless it is a
//! directory. Nodes are never taken away, only marked as gone, so that a name that comes again
//! costs nothing. They live in pages that can go to a file: an image may have millions.

use super::change::{kind_code, kind_of};
use super::pager::Pager;
use super::{LayerError, LayerResult, invalid};
use crate::erofs::{Attributes, FileKind};
use std::hash::{BuildHasher as _, RandomState};
use std::path::Path;

/// Memory for nodes, and for names and attributes.
const MEMORY: usize = 12 << 20;
const NODE: usize = 40;
const GONE: u8 = 0xff;
/// No node.
pub(super) const NONE: u32 = u32::MAX;
pub(super) const ROOT: u32 = 0;
/// Directories that a layer uses but does not list: root's, and always with the same time, so that
/// the same layers make the same file.
const PLAIN_MODE: u32 = 0o755;

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    pub(super) parent: u32,
    /// Another node of the same directory.
    pub(super) next: u32,
    /// A node of this directory.
    pub(super) child: u32,
    /// The number of the inode, or where a directory's attributes are.
    pub(super) value: u64,
    /// The last layer that had something here or below.
    pub(super) layer: u16,
    /// Nothing when the name is gone.
    pub(super) kind: Option<FileKind>,
    chain: u32,
    hash: u32,
    name: u32,
    name_bytes: u8,
}

/// All names.
pub(super) struct Tree {
    nodes: Pager,
    count: u32,
    most: u32,
    bytes: Pager,
    used: u64,
    /// Heads of chains of nodes with the same hash.
    buckets: Vec<u32>,
    /// Random, so that nobody can make names that all fall into one chain.
    state: RandomState,
}

pub(super) fn failed(source: std::io::Error) -> LayerError {
    LayerError::Io {
        doing: "merging layers".to_owned(),
        source,
    }
}

impl Tree {
    /// An empty root directory; `most` names and directories may come.
    pub(super) fn new(most: u64, directory: &Path) -> LayerResult<Self> {
        let pager = || Pager::new(MEMORY, directory.to_owned());
        let mut tree = Self {
            nodes: pager(),
            count: 0,
            most: u32::try_from(most.saturating_add(1)).unwrap_or(NONE - 1),
            bytes: pager(),
            used: 0,
            buckets: vec![NONE; 1024],
            state: RandomState::new(),
        };
        tree.add(NONE, b"", 0)?;
        let attributes = tree.plain()?;
        let mut root = tree.get(ROOT)?;
        (root.kind, root.value) = (Some(FileKind::Directory), attributes);
        tree.put(ROOT, &root)?;
        Ok(tree)
    }

    pub(super) fn get(&mut self, index: u32) -> LayerResult<Node> {
        let mut bytes = [0; NODE];
        let at = u64::from(index).saturating_mul(NODE as u64);
        self.nodes.read(at, &mut bytes).map_err(failed)?;
        Ok(Node::decode(&bytes))
    }

    pub(super) fn put(&mut self, index: u32, node: &Node) -> LayerResult<()> {
        let at = u64::from(index).saturating_mul(NODE as u64);
        self.nodes.write(at, &node.encode()).map_err(failed)
    }

    pub(super) fn name(&mut self, node: &Node) -> LayerResult<Vec<u8>> {
        let mut name = vec![0; usize::from(node.name_bytes)];
        self.bytes
            .read(node.name.into(), &mut name)
            .map_err(failed)?;
        Ok(name)
    }

    /// The node of a name, gone or not.
    pub(super) fn find(&mut self, parent: u32, name: &[u8]) -> LayerResult<Option<u32>> {
        let hash = self.hash(parent, name);
        let mut index = self.bucket(hash);
        while index != NONE {
            let node = self.get(index)?;
            if node.hash == hash
                && node.parent == parent
                && usize::from(node.name_bytes) == name.len()
                && self.name(&node)? == name
            {
                return Ok(Some(index));
            }
            index = node.chain;
        }
        Ok(None)
    }

    /// The node of a name, made as gone if there is none.
    pub(super) fn find_or_add(&mut self, parent: u32, name: &[u8], layer: u16) -> LayerResult<u32> {
        match self.find(parent, name)? {
            Some(index) => Ok(index),
            None => self.add(parent, name, layer),
        }
    }

    /// Keeps a directory's attributes, with room for its place, and returns where.
    pub(super) fn store(&mut self, attributes: &[u8]) -> LayerResult<u64> {
        let length = u32::try_from(attributes.len()).unwrap_or(0).to_le_bytes();
        let at = self.keep(&[0; 16])?;
        self.keep(&length)?;
        self.keep(attributes)?;
        Ok(at)
    }

    /// Attributes of a directory that no layer lists.
    pub(super) fn plain(&mut self) -> LayerResult<u64> {
        let attributes = Attributes {
            mode: PLAIN_MODE,
            ..Attributes::default()
        };
        self.store(&super::change::encode(&attributes))
    }

    pub(super) fn attributes(&mut self, at: u64) -> LayerResult<Attributes> {
        let mut length = [0; 4];
        let length_at = at.saturating_add(16);
        self.bytes.read(length_at, &mut length).map_err(failed)?;
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(0);
        let mut bytes = vec![0; length];
        let bytes_at = length_at.saturating_add(4);
        self.bytes.read(bytes_at, &mut bytes).map_err(failed)?;
        super::change::decode(&bytes).map_err(failed)
    }

    /// Keeps two numbers with a directory's attributes.
    pub(super) fn set_place(&mut self, at: u64, place: (u64, u64)) -> LayerResult<()> {
        self.bytes
            .write(at, &place.0.to_le_bytes())
            .and_then(|()| self.bytes.write(at + 8, &place.1.to_le_bytes()))
            .map_err(failed)
    }

    pub(super) fn place(&mut self, at: u64) -> LayerResult<(u64, u64)> {
        let (mut first, mut second) = ([0; 8], [0; 8]);
        self.bytes
            .read(at, &mut first)
            .and_then(|()| self.bytes.read(at + 8, &mut second))
            .map_err(failed)?;
        Ok((u64::from_le_bytes(first), u64::from_le_bytes(second)))
    }

    fn keep(&mut self, bytes: &[u8]) -> LayerResult<u64> {
        let at = self.used;
        self.bytes.write(at, bytes).map_err(failed)?;
        self.used = at.saturating_add(bytes.len() as u64);
        Ok(at)
    }

    fn hash(&self, parent: u32, name: &[u8]) -> u32 {
        let hash = self.state.hash_one((parent, name));
        u32::try_from(hash & u64::from(u32::MAX)).unwrap_or(0)
    }

    fn bucket(&self, hash: u32) -> u32 {
        self.buckets
            .get(hash as usize & (self.buckets.len().saturating_sub(1)))
            .copied()
            .unwrap_or(NONE)
    }

    fn set_bucket(&mut self, hash: u32, index: u32) {
        let mask = self.buckets.len().saturating_sub(1);
        if let Some(bucket) = self.buckets.get_mut(hash as usize & mask) {
            *bucket = index;
        }
    }

    fn add(&mut self, parent: u32, name: &[u8], layer: u16) -> LayerResult<u32> {
        if self.count >= self.most {
            return invalid("it has more files than an image may have");
        }
        if self.count as usize >= self.buckets.len() {
            self.grow()?;
        }
        let index = self.count;
        let hash = self.hash(parent, name);
        let Ok(name_at) = u32::try_from(self.keep(name)?) else {
            return invalid("it has more names than an image may have");
        };
        let mut node = Node {
            parent,
            next: NONE,
            child: NONE,
            value: 0,
            layer,
            kind: None,
            chain: self.bucket(hash),
            hash,
            name: name_at,
            name_bytes: u8::try_from(name.len()).unwrap_or(u8::MAX),
        };
        if parent != NONE {
            let mut directory = self.get(parent)?;
            node.next = std::mem::replace(&mut directory.child, index);
            self.put(parent, &directory)?;
        }
        self.put(index, &node)?;
        self.set_bucket(hash, index);
        self.count = index.saturating_add(1);
        Ok(index)
    }

    fn grow(&mut self) -> LayerResult<()> {
        self.buckets = vec![NONE; self.buckets.len().saturating_mul(2)];
        for index in 0..self.count {
            let mut node = self.get(index)?;
            node.chain = self.bucket(node.hash);
            self.put(index, &node)?;
            self.set_bucket(node.hash, index);
        }
        Ok(())
    }
}

impl Node {
    fn encode(&self) -> [u8; NODE] {
        let mut out = [0; NODE];
        let kind = self.kind.map_or(GONE, kind_code);
        let [layer0, layer1] = self.layer.to_le_bytes();
        let fields = self
            .parent
            .to_le_bytes()
            .into_iter()
            .chain(self.next.to_le_bytes())
            .chain(self.child.to_le_bytes())
            .chain(self.chain.to_le_bytes())
            .chain(self.hash.to_le_bytes())
            .chain(self.name.to_le_bytes())
            .chain(self.value.to_le_bytes())
            .chain([layer0, layer1, kind, self.name_bytes]);
        out.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        out
    }

    fn decode(bytes: &[u8; NODE]) -> Self {
        let [
            p0,
            p1,
            p2,
            p3,
            n0,
            n1,
            n2,
            n3,
            c0,
            c1,
            c2,
            c3,
            h0,
            h1,
            h2,
            h3,
            s0,
            s1,
            s2,
            s3,
            a0,
            a1,
            a2,
            a3,
            v0,
            v1,
            v2,
            v3,
            v4,
            v5,
            v6,
            v7,
            l0,
            l1,
            kind,
            name_bytes,
            ..,
        ] = *bytes;
        Self {
            parent: u32::from_le_bytes([p0, p1, p2, p3]),
            next: u32::from_le_bytes([n0, n1, n2, n3]),
            child: u32::from_le_bytes([c0, c1, c2, c3]),
            chain: u32::from_le_bytes([h0, h1, h2, h3]),
            hash: u32::from_le_bytes([s0, s1, s2, s3]),
            name: u32::from_le_bytes([a0, a1, a2, a3]),
            value: u64::from_le_bytes([v0, v1, v2, v3, v4, v5, v6, v7]),
            layer: u16::from_le_bytes([l0, l1]),
            kind: kind_of(kind),
            name_bytes,
        }
    }
}
