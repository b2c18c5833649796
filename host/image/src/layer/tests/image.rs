//! Builds images in tests and reads them back with a reader that is not ours.

use crate::digest::Digest;
use crate::layer::{self, Built, Layer, LayerError, Limits, Options};
use erofs_rs::EroFS;
use erofs_rs::backend::SliceImage;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

pub(crate) const LIMITS: Limits = Limits {
    bytes: 64 << 20,
    entries: 2000,
    ratio: 200,
    ratio_free: 1 << 20,
};

/// What a reader sees of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) nid: u64,
    /// `f`, `d`, `l`, `c`, `b` or `p`.
    pub(crate) kind: char,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, u32),
    pub(crate) links: u32,
    /// Data of a file, target of a link, device number.
    pub(crate) content: Vec<u8>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

pub(crate) type Tree = BTreeMap<Vec<u8>, Seen>;

pub(crate) fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

/// Builds an image of blobs with these uncompressed contents.
pub(crate) fn build_blobs(
    blobs: &[(Vec<u8>, Digest)],
    parallel: usize,
    limits: Limits,
) -> Result<(Built, Vec<u8>), LayerError> {
    let out = tempfile::tempfile().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let cancelled = AtomicBool::new(false);
    let options = Options {
        limits,
        uuid: [7; 16],
        parallel,
        directory: directory.path().to_owned(),
        cancelled: &cancelled,
        progress: &|_, _| {},
    };
    let layers = blobs
        .iter()
        .map(|(blob, diff_id)| Layer::from_file(file(blob), diff_id.clone()).unwrap())
        .collect();
    let built = layer::build(layers, &out, &options).map_err(|(_, error)| error)?;
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    let mut bytes = Vec::new();
    (&out).rewind().unwrap();
    (&out).read_to_end(&mut bytes).unwrap();
    Ok((built, bytes))
}

/// Builds an image of archives.
pub(crate) fn build(layers: &[Vec<u8>]) -> Result<Vec<u8>, LayerError> {
    let blobs: Vec<_> = layers
        .iter()
        .map(|layer| (layer.clone(), Digest::sha256(layer)))
        .collect();
    let (built, bytes) = build_blobs(&blobs, 3, LIMITS)?;
    assert_eq!(built.size, bytes.len() as u64);
    let (_, again) = build_blobs(&blobs, 1, LIMITS)?;
    assert!(bytes == again, "the same layers make the same file");
    Ok(bytes)
}

/// Builds an image of archives that must be good, and reads it.
pub(crate) fn tree(layers: &[Vec<u8>]) -> Tree {
    let image = build(layers).unwrap();
    fsck(&image);
    read(&image)
}

/// Every path of an image; the root is empty.
pub(crate) fn read(image: &[u8]) -> Tree {
    let fs = EroFS::new(SliceImage::new(image)).unwrap();
    let root = fs.get_inode(fs.super_block().root_inode_id()).unwrap();
    let mut tree = Tree::from([(Vec::new(), seen(&fs, root))]);
    for entry in fs.walk_dir("/").unwrap() {
        let entry = entry.unwrap();
        let path = entry.dir_entry.path().as_bytes().to_vec();
        let path = path.strip_prefix(b"/").unwrap().to_vec();
        // A look-up by name finds what the listing shows.
        let found = fs.xattrs(entry.dir_entry.path().as_path()).unwrap();
        let seen = seen(&fs, entry.inode);
        assert_eq!(found, seen.xattrs);
        assert!(tree.insert(path, seen).is_none());
    }
    let inodes: std::collections::BTreeSet<u64> = tree.values().map(|seen| seen.nid).collect();
    assert_eq!(fs.super_block().inos, inodes.len() as u64);
    tree
}

fn seen(fs: &EroFS<SliceImage<'_>>, inode: erofs_rs::types::Inode) -> Seen {
    use std::os::unix::fs::PermissionsExt as _;
    let kind = inode.file_type();
    let (kind, content) = if kind.is_dir() {
        ('d', Vec::new())
    } else if kind.is_symlink() {
        let target = fs.read_link_inode(inode).unwrap();
        ('l', target.as_bytes().to_vec())
    } else if kind.is_file() {
        let mut content = Vec::new();
        let mut file = fs.open_inode_file(inode).unwrap();
        file.read_to_end(&mut content).unwrap();
        ('f', content)
    } else if kind.is_fifo() {
        ('p', Vec::new())
    } else {
        let number = format!("{:?}", inode.device().unwrap());
        let kind = if kind.is_char_device() { 'c' } else { 'b' };
        (kind, number.into_bytes())
    };
    Seen {
        nid: inode.id(),
        kind,
        mode: inode.permissions().mode() & 0o7777,
        owner: (inode.uid(), inode.gid()),
        mtime: inode.modified_unix(),
        links: inode.nlink(),
        content,
        xattrs: fs.xattrs_inode(inode).unwrap(),
    }
}

/// Debian's checker reads every byte.
pub(crate) fn fsck(image: &[u8]) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    std::fs::write(&path, image).unwrap();
    let run = |program: &str, arguments: &[&str], path: &Path| {
        let output = Command::new(program).args(arguments).arg(path).output();
        let output = output.unwrap_or_else(|error| panic!("{program} (erofs-utils): {error}"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program}: {text}");
        text
    };
    run("fsck.erofs", &["--extract"], &path);
    let superblock = run("dump.erofs", &["-s"], &path);
    assert!(superblock.contains("07070707-0707-0707"), "{superblock}");
}
