//! What the disk of the node does to images that were complete.

use super::fixture::{
    Mount, Packing, assert_clean, is_root, noise, open, serve, serve_small, skip,
};
use super::server::{Manner, Server};
use super::tarball::Tarball;
use crate::{Image, ImageError, ImageStore, PullProgress};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

fn file(root: &Path, directory: &str, image: &Image) -> PathBuf {
    root.join(directory).join(image.id.replace(':', "-"))
}

/// Turns one bit over, and forgets what the page cache knows of the file.
fn flip(path: &Path, at: u64) {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

async fn pulled(store: &ImageStore, name: &str) -> Image {
    store.pull(name, None, |_| {}).await.unwrap()
}

#[tokio::test]
async fn one_bit_is_an_error_and_a_pull_repairs_it() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let (server, root) = (Server::start(), tempfile::tempdir().unwrap());
    serve_small(&server, "v1");
    let name = server.name("team/app:v1");
    let store = open(root.path());
    let image = pulled(&store, &name).await;
    let path = file(root.path(), "disks", &image);
    let length = std::fs::metadata(&path).unwrap().len();
    for at in [0, 1030, length / 2, length - 1] {
        let before = store.open_disk(&image.id).await.unwrap();
        flip(&path, at);
        let error = store.open_disk(&image.id).await.unwrap_err();
        assert!(matches!(error, ImageError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("pull it again"), "{error}");
        assert!(store.get(&name).await.unwrap().is_none());
        assert_eq!(pulled(&store, &name).await.id, image.id);
        store.open_disk(&image.id).await.unwrap();
        drop(before);
    }
}

#[tokio::test]
async fn a_configuration_is_what_its_digest_says() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let (server, root) = (Server::start(), tempfile::tempdir().unwrap());
    let served = serve_small(&server, "v1");
    let store = open(root.path());
    let image = pulled(&store, &server.name("team/app:v1")).await;
    let specification = store.specification(&image.id).await.unwrap();
    let id = served.config.of_same_kind(&specification.configuration);
    assert_eq!(id, served.config);
    let diff_ids = crate::manifest::Configuration::diff_ids_of(&specification.configuration);
    let both = format!("{} {}", diff_ids[0], diff_ids[1]);
    let chain = served.config.of_same_kind(both.as_bytes());
    assert_eq!(specification.chain_id, chain.as_str());
    flip(&file(root.path(), "configs", &image), 3);
    let error = store.specification(&image.id).await.unwrap_err();
    assert!(matches!(error, ImageError::Damaged { .. }), "{error}");
    assert!(store.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn an_image_that_lost_a_file_while_nobody_looked() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let (server, root) = (Server::start(), tempfile::tempdir().unwrap());
    serve_small(&server, "v1");
    let name = server.name("team/app:v1");
    for directory in ["disks", "configs"] {
        let image = {
            let store = open(root.path());
            pulled(&store, &name).await
        };
        std::fs::remove_file(file(root.path(), directory, &image)).unwrap();
        let store = open(root.path());
        assert!(store.list().await.unwrap().is_empty());
        assert_clean(root.path(), 0);
    }
}

#[tokio::test]
async fn images_go_from_a_full_disk() {
    if !is_root() {
        return skip("mounting needs root");
    }
    let server = Server::start();
    let Some(mount) = Mount::new("tmpfs", "size=4m", Path::new("tmpfs")) else {
        return;
    };
    let root = mount.path().join("store");
    let store = open(&root);
    serve_small(&server, "v1");
    serve_small(&server, "v2");
    let (one, two) = (server.name("team/app:v1"), server.name("team/app:v2"));
    let image = pulled(&store, &one).await;
    let filler = mount.path().join("filler");
    let full = std::fs::write(&filler, vec![1; 8 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let error = store.pull(&two, None, |_| {}).await.unwrap_err();
    assert!(matches!(error, ImageError::NoSpace { .. }), "{error}");
    // A new name needs a new index; without it the image has its old names.
    let moved = serve_small(&server, "v1");
    server.put_manifest("team/app", "other", &moved.manifest);
    let other = server.name("team/app:other");
    let error = store.pull(&other, None, |_| {}).await.unwrap_err();
    assert!(matches!(error, ImageError::NoSpace { .. }), "{error}");
    assert_eq!(store.list().await.unwrap(), std::slice::from_ref(&image));
    store.open_disk(&image.id).await.unwrap();
    store.remove(&one).await.unwrap();
    drop(store);
    let store = open(&root);
    assert!(store.list().await.unwrap().is_empty());
    assert_clean(&root, 0);
    std::fs::remove_file(filler).unwrap();
    pulled(&store, &two).await;
}

#[tokio::test]
async fn what_a_pull_occupies_is_counted() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let (server, root) = (Server::start(), tempfile::tempdir().unwrap());
    let layer = Tarball::default().file("large", &noise(8 << 20)).end();
    let served = serve(&server, "v1", &[(layer, Packing::Gzip)]);
    server.alter(served.layers[0].as_str(), |answer| {
        answer.manner = Manner::Gate;
    });
    let store = open(root.path());
    let before = store.fs_info().await.unwrap().used_bytes;
    let (halfway, wait) = tokio::sync::oneshot::channel();
    let pull = tokio::spawn({
        let (store, name) = (store.clone(), server.name("team/app:v1"));
        async move {
            let mut halfway = Some(halfway);
            let tell = |progress: &PullProgress| {
                if progress.layers.iter().any(|layer| layer.done > 7 << 19)
                    && let Some(halfway) = halfway.take()
                {
                    halfway.send(()).unwrap();
                }
            };
            store.pull(&name, None, tell).await
        }
    });
    wait.await.unwrap();
    let during = store.fs_info().await.unwrap().used_bytes - before;
    assert!(during >= 1 << 20, "{during} bytes of half a layer");
    server.open_gate();
    let image = pull.await.unwrap().unwrap();
    let after = store.fs_info().await.unwrap().used_bytes - before;
    let blocks = |directory| {
        let metadata = std::fs::metadata(file(root.path(), directory, &image)).unwrap();
        metadata.blocks() * 512
    };
    let index = std::fs::metadata(root.path().join("index.json")).unwrap();
    let image = blocks("disks") + blocks("configs") + index.blocks() * 512;
    assert_eq!(after, image, "the bytes of the image and nothing else");
}
