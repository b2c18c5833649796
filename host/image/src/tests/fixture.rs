//! Images for tests and a store to pull them into.

use super::server::Server;
use super::tarball::Tarball;
use crate::digest::Digest;
use crate::{ImageError, ImageStore, StoreConfig};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub(crate) const REPOSITORY: &str = "team/app";

#[derive(Clone, Copy)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

pub(crate) fn pack(bytes: &[u8], packing: Packing) -> Vec<u8> {
    match packing {
        Packing::Plain => bytes.to_vec(),
        Packing::Gzip => {
            let level = flate2::Compression::fast();
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Packing::Zstd => zstd::encode_all(bytes, 1).unwrap(),
    }
}

/// An image that is served: its manifest and the digests of its parts.
pub(crate) struct Served {
    pub(crate) manifest: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) config: Digest,
    pub(crate) configuration: Vec<u8>,
    pub(crate) layers: Vec<Digest>,
}

/// Puts an image with these layers into the registry.
pub(crate) fn serve(server: &Server, tag: &str, layers: &[(Vec<u8>, Packing)]) -> Served {
    serve_as(server, tag, layers, &serde_json::json!({}))
}

/// The same with fields that replace those of the configuration.
pub(crate) fn serve_as(
    server: &Server,
    tag: &str,
    layers: &[(Vec<u8>, Packing)],
    replace: &serde_json::Value,
) -> Served {
    let mut config = serde_json::json!({
        "os": "linux",
        "architecture": crate::manifest::architecture(),
        "config": {"Env": ["A=b"], "Cmd": ["/bin/app"], "Labels": {"tag": tag}},
        "rootfs": {
            "type": "layers",
            "diff_ids": layers.iter().map(|(b, _)| Digest::sha256(b).to_string()).collect::<Vec<_>>(),
        },
    });
    for (key, value) in replace.as_object().unwrap() {
        config[key] = value.clone();
    }
    let config = config.to_string().into_bytes();
    let blobs: Vec<Vec<u8>> = layers
        .iter()
        .map(|(bytes, packing)| pack(bytes, *packing))
        .collect();
    let digests: Vec<Digest> = blobs
        .iter()
        .map(|b| server.put_blob(REPOSITORY, b))
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": server.put_blob(REPOSITORY, &config),
            "size": config.len(),
        },
        "layers": std::iter::zip(&blobs, &digests).map(|(blob, digest)| serde_json::json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": digest,
            "size": blob.len(),
        })).collect::<Vec<_>>(),
    });
    let manifest = manifest.to_string().into_bytes();
    Served {
        digest: server.put_manifest(REPOSITORY, tag, &manifest),
        manifest,
        config: Digest::sha256(&config),
        configuration: config,
        layers: digests,
    }
}

/// A small image with two layers.
pub(crate) fn serve_small(server: &Server, tag: &str) -> Served {
    let lower = Tarball::default()
        .dir("bin")
        .file("bin/app", b"#!/bin/sh\n")
        .end();
    let upper = Tarball::default().file("etc/tag", tag.as_bytes()).end();
    serve(
        server,
        tag,
        &[(lower, Packing::Gzip), (upper, Packing::Zstd)],
    )
}

/// Bytes that do not compress.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

pub(crate) fn config() -> StoreConfig {
    StoreConfig {
        stall_timeout: Duration::from_secs(1),
        connect_timeout: Duration::from_secs(2),
        retry_delay: Duration::from_millis(5),
        // What is configured on the machine that runs the tests is none of theirs.
        registry_config_paths: Vec::new(),
        ..StoreConfig::default()
    }
}

pub(crate) fn open(root: &Path) -> ImageStore {
    ImageStore::open(root, config()).unwrap()
}

/// Pulls and expects an error that leaves nothing behind.
pub(crate) async fn fail(store: &ImageStore, root: &Path, name: &str) -> ImageError {
    let error = store.pull(name, None, |_| {}).await.unwrap_err();
    assert_clean(root, 0);
    error
}

/// Asserts that there is nothing but so many images.
pub(crate) fn assert_clean(root: &Path, images: usize) {
    let count = |name: &str| std::fs::read_dir(root.join(name)).unwrap().count();
    assert_eq!(count("staging"), 0, "staging directories");
    assert_eq!(count("disks"), images, "disks");
    if images > 0 {
        assert_eq!(count("configs"), images, "configurations");
    }
}

/// A reason to leave a test out, said aloud.
pub(crate) fn skip(reason: &str) {
    eprintln!("SKIPPED: {reason}");
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A mount that ends with its value.
pub(crate) struct Mount(tempfile::TempDir);

impl Mount {
    pub(crate) fn new(kind: &str, options: &str, source: &Path) -> Option<Self> {
        let target = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", kind, "-o", options])
            .args([source, target.path()])
            .output()
            .unwrap();
        if !mount.status.success() {
            let reason = String::from_utf8_lossy(&mount.stderr).into_owned();
            skip(&format!("mounting {kind} failed: {reason}"));
            return None;
        }
        Some(Self(target))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(self.0.path()).status().unwrap();
        assert!(status.success());
    }
}
