//! What both image targets check: whatever we write, a reader that is not ours takes.

use erofs_rs::EroFS;
use erofs_rs::backend::SliceImage;
use std::cell::RefCell;
use std::fs::File;

/// Files up to this size are read to the end.
const MAX_READ: u64 = 1 << 20;

thread_local! {
    static PLACE: RefCell<(tempfile::TempDir, File)> = RefCell::new((
        tempfile::tempdir().expect("a temporary directory"),
        tempfile::tempfile().expect("a temporary file"),
    ));
}

/// Builds an image of layers and reads all of it. Tells the number of its files, or nothing when
/// the layers are refused.
pub fn round_trip(layers: &[&[u8]]) -> Option<usize> {
    let image = PLACE.with_borrow_mut(|(directory, out)| {
        bulkhead_image::fuzzing::build(layers, directory.path(), out)
    })?;
    let fs = EroFS::new(SliceImage::new(&image)).expect("a superblock");
    let mut count = 0;
    for entry in fs.walk_dir("/").expect("a root directory") {
        let entry = entry.expect("a directory entry");
        count += 1;
        let inode = entry.inode;
        fs.xattrs_inode(inode).expect("extended attributes");
        if inode.is_symlink() {
            fs.read_link_inode(inode).expect("a target");
        } else if inode.is_file() && inode.data_size() <= MAX_READ {
            let file = fs.open_inode_file(inode).expect("a file");
            let mut bytes = vec![0; inode.data_size() as usize];
            let read = file.read_at(&mut bytes, 0).expect("data");
            assert!(read > 0 || bytes.is_empty());
        }
    }
    Some(count)
}
