//! What a kernel shows of our file against what `umoci` unpacks of the same layers.

use super::image::{build, fsck};
use crate::digest::Digest;
use crate::tests::fixture::{Mount, Packing, noise, pack, skip};
use crate::tests::tarball::{Item, Tarball};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

/// Mode, owner, size, time, device, links, data or target, attributes.
type Seen = (u32, u32, u32, u64, (i64, i64), u64, u64, Vec<u8>, String);

fn look(root: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let mut seen = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let stat = std::fs::symlink_metadata(&path).unwrap();
        let content = if stat.is_dir() {
            let entries = std::fs::read_dir(&path).unwrap();
            left.extend(entries.map(|entry| entry.unwrap().path()));
            Vec::new()
        } else if stat.is_symlink() {
            let target = std::fs::read_link(&path).unwrap();
            target.as_os_str().as_bytes().to_vec()
        } else if stat.is_file() {
            std::fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        let mut names = vec![0; 4096];
        let length = rustix::fs::llistxattr(&path, names.as_mut_slice()).unwrap_or(0);
        let names = names[..length].split(|byte| *byte == 0);
        let mut xattrs: Vec<String> = names
            .filter(|name| !name.is_empty() && !name.starts_with(b"security.selinux"))
            .map(|name| {
                let mut value = vec![0; 4096];
                let length = rustix::fs::lgetxattr(&path, name, value.as_mut_slice()).unwrap();
                let name = name.escape_ascii();
                format!("{name}={}", value[..length].escape_ascii())
            })
            .collect();
        xattrs.sort();
        // A directory's size and device number of a file are the file system's own matter.
        let is_directory = stat.is_dir();
        let short = path.strip_prefix(root).unwrap().as_os_str().as_bytes();
        seen.insert(
            short.to_vec(),
            (
                stat.mode(),
                stat.uid(),
                stat.gid(),
                if is_directory { 0 } else { stat.size() },
                (stat.mtime(), stat.mtime_nsec()),
                stat.rdev(),
                if is_directory { 0 } else { stat.nlink() },
                content,
                xattrs.join(" "),
            ),
        );
    }
    seen
}

/// An OCI layout with one image of these layers.
fn layout(directory: &Path, layers: &[Vec<u8>]) {
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8], kind: &str| {
        let digest = Digest::sha256(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        let media = format!("application/vnd.oci.image.{kind}");
        serde_json::json!({"mediaType": media, "digest": digest, "size": bytes.len()})
    };
    let packed: Vec<_> = layers
        .iter()
        .map(|layer| put(&pack(layer, Packing::Gzip), "layer.v1.tar+gzip"))
        .collect();
    let config = serde_json::json!({
        "os": "linux", "architecture": crate::manifest::architecture(), "config": {},
        "rootfs": {
            "type": "layers",
            "diff_ids": layers.iter().map(|l| Digest::sha256(l)).collect::<Vec<_>>(),
        },
    });
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(config.to_string().as_bytes(), "config.v1+json"),
        "layers": packed,
    });
    let mut entry = put(manifest.to_string().as_bytes(), "manifest.v1+json");
    entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "test"});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]});
    std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
    let version = r#"{"imageLayoutVersion": "1.0.0"}"#;
    std::fs::write(directory.join("oci-layout"), version).unwrap();
}

fn layers() -> Vec<Vec<u8>> {
    let random = noise(400_000);
    let item = |path: &'static str, kind: u8, mode: u32| Item {
        path,
        kind,
        mode,
        owner: (70_000, 12),
        mtime: 1_400_000_000,
        ..Item::default()
    };
    let mut lower = Tarball::default()
        .dir("./")
        .dir("d")
        .dir("gone")
        .dir("opaque")
        .item(&item("d/setuid", b'0', 0o4711))
        .link(b'1', "d/again", "d/setuid")
        .link(b'2', "d/link", "../opaque")
        .item(&Item {
            device: (1, 5),
            ..item("d/zero", b'3', 0o666)
        })
        .item(&Item {
            device: (259, 70_000),
            ..item("d/disk", b'4', 0o660)
        })
        .item(&item("d/pipe", b'6', 0o600))
        .pax(&[
            ("SCHILY.xattr.user.note", b"a note of some length"),
            ("SCHILY.xattr.trusted.t", b"\0\x01"),
            ("mtime", b"1500000000.123456789"),
        ])
        .file("d/noted", b"noted")
        .file("gone/f", b"gone")
        .file("opaque/f", b"hidden");
    for size in [0, 1, 1984, 1985, 4096, 5000, 70_000, 400_000] {
        lower = lower.file(&format!("d/{size}"), &random[..size]);
    }
    for n in 0..300 {
        lower = lower.file(&format!("d/some-name-that-fills-a-block-{n}"), b"x");
    }
    let upper = Tarball::default()
        .file(".wh.gone", b"")
        .dir("opaque")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"new")
        .file("d/.wh.5000", b"")
        .file("d/4096", b"replaced")
        .link(b'1', "d/third", "d/again")
        .item(&item("d", b'5', 0o1777));
    vec![lower.end(), upper.end()]
}

#[test]
fn a_kernel_shows_what_umoci_unpacks() {
    if !crate::tests::fixture::is_root() {
        return skip("mounting needs root");
    }
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let layers = layers();
    let image = build(&layers).unwrap();
    fsck(&image);
    std::fs::write(at("image"), &image).unwrap();
    let mount = Mount::new("erofs", "ro", &at("image"));
    let Some(mount) = mount.or_else(|| Mount::new("erofs", "ro,loop", &at("image"))) else {
        let in_lab = std::env::var_os("BULKHEAD_LAB").is_some();
        assert!(!in_lab, "the lab's kernel mounts EROFS");
        return;
    };
    layout(&at("layout"), &layers);
    let output = Command::new("umoci")
        .args(["unpack", "--image"])
        .arg(format!("{}:test", at("layout").display()))
        .arg(at("bundle"))
        .output()
        .unwrap_or_else(|error| panic!("umoci: {error}"));
    assert!(output.status.success(), "{output:?}");
    let (ours, theirs) = (look(mount.path()), look(&at("bundle/rootfs")));
    for (path, seen) in &theirs {
        let name = String::from_utf8_lossy(path);
        assert_eq!(ours.get(path), Some(seen), "{name}");
    }
    assert_eq!(ours.len(), theirs.len());
}
