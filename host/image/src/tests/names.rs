//! Names, removal and the store's own files.

use super::fixture::{assert_clean, config, is_root, open, serve_small, skip};
use super::server::Server;
use crate::{ImageError, ImageStore, StoreConfig};
use std::io::Read as _;

#[tokio::test]
async fn an_open_disk_outlives_its_image() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let (server, root) = (Server::start(), tempfile::tempdir().unwrap());
    let store = open(root.path());
    serve_small(&server, "v1");
    let name = server.name("team/app:v1");
    let image = store.pull(&name, None, |_| {}).await.unwrap();
    let info = store.fs_info().await.unwrap();
    // Three directories, the lock, the index, the disk and its configuration.
    assert_eq!(info.used_inodes, 7);
    assert!(info.used_bytes >= image.size);
    let mut disk = std::fs::File::from(store.open_disk(&image.id).await.unwrap());
    store.remove(&name).await.unwrap();
    store.remove(&name).await.unwrap();
    assert_clean(root.path(), 0);
    let mut bytes = Vec::new();
    disk.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() % 4096, 0);
    assert_eq!(
        bytes[1024..1028],
        0xE0F5_E1E2_u32.to_le_bytes(),
        "the EROFS magic"
    );
    let error = store.open_disk(&image.id).await.unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
    drop(store);
    let store = open(root.path());
    let info = store.fs_info().await.unwrap();
    assert_eq!(
        info.used_inodes, 5,
        "the directories, the lock and the index"
    );
    // Once more: removal has left nothing in the way.
    store.pull(&name, None, |_| {}).await.unwrap();
}

#[tokio::test]
async fn a_tag_that_moves_leaves_the_old_image_without_it() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let (server, root) = (Server::start(), tempfile::tempdir().unwrap());
    let name = server.name("team/app:v1");
    let pinned = StoreConfig {
        pinned: vec![name.clone()],
        ..config()
    };
    let store = ImageStore::open(root.path(), pinned).unwrap();
    serve_small(&server, "v1");
    let old = store.pull(&name, None, |_| {}).await.unwrap();
    assert!(old.pinned);
    let new = serve_small(&server, "v2");
    server.put_manifest("team/app", "v1", &new.manifest);
    let new = store.pull(&name, None, |_| {}).await.unwrap();
    assert_ne!(old.id, new.id);
    assert_eq!(store.get(&name).await.unwrap().unwrap().id, new.id);
    let old = store.get(&old.id).await.unwrap().unwrap();
    assert!(old.repo_tags.is_empty() && !old.pinned);
    assert_eq!(old.repo_digests.len(), 1);
    store.remove(&old.id).await.unwrap();
    assert_clean(root.path(), 1);
}

#[tokio::test]
async fn one_process_at_a_time() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let error = ImageStore::open(root.path(), config()).err().unwrap();
    assert!(matches!(error, ImageError::InUse { .. }), "{error}");
    drop(store);
    open(root.path());
}
