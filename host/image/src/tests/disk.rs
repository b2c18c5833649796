//! The EROFS file: what a guest will see, and a disk that is full.

use super::fixture::{Mount, Packing, assert_clean, is_root, noise, open, serve, skip};
use super::server::Server;
use super::tarball::{Item, Tarball};
use crate::{ImageError, ImageStore};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;

const CAPABILITY: &[u8] = &[
    1, 0, 0, 2, 0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 100];
    let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).ok()?;
    value.truncate(length);
    Some(value)
}

fn rich_layers() -> Vec<(Vec<u8>, Packing)> {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let lower = Tarball::default()
        .item(&Item {
            path: "./",
            kind: b'5',
            mode: 0o755,
            ..Item::default()
        })
        .item(&Item {
            path: "bin/su",
            data: b"program",
            mode: 0o4755,
            owner: (70_000, 80_000),
            mtime: 1_500_000_000,
            ..Item::default()
        })
        .link(b'1', "bin/sudo", "bin/su")
        .link(b'2', "bin/link", "/bin/su")
        .pax(&[
            ("SCHILY.xattr.security.capability", CAPABILITY),
            ("SCHILY.xattr.user.note", b"line\nline"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.x", b"t"),
            ("mtime", b"1600000000.25"),
        ])
        .file("bin/ping", b"ping")
        .item(&Item {
            path: "dev/null",
            kind: b'3',
            mode: 0o666,
            device: (1, 3),
            ..Item::default()
        })
        .item(&Item {
            path: "dev/blk",
            kind: b'4',
            device: (259, 300),
            ..Item::default()
        })
        .item(&Item {
            path: "dev/pipe",
            kind: b'6',
            ..Item::default()
        })
        .pax(&[("path", long.as_bytes())])
        .file("short", b"long name")
        .file("big", &vec![7; 1 << 20])
        .dir("gone")
        .file("gone/a", b"")
        .item(&Item {
            path: "tmp",
            kind: b'5',
            mode: 0o1777,
            mtime: 1_234_567_890,
            ..Item::default()
        })
        .end();
    let upper = Tarball::default()
        .file(".wh.gone", b"")
        .file("tmp/x", b"x")
        .end();
    vec![(lower, Packing::Gzip), (upper, Packing::Plain)]
}

#[tokio::test]
async fn a_guest_sees_what_the_layers_say() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let (server, root) = (Server::start(), tempfile::tempdir().unwrap());
    serve(&server, "v1", &rich_layers());
    let store = open(root.path());
    let image = store
        .pull(&server.name("team/app:v1"), None, |_| {})
        .await
        .unwrap();
    let disk = root.path().join("disks").join(image.id.replace(':', "-"));
    let fsck = Command::new("fsck.erofs").arg(&disk).output().unwrap();
    assert!(fsck.status.success(), "{fsck:?}");

    let again = tempfile::tempdir().unwrap();
    let twin = open(again.path());
    twin.pull(&server.name("team/app:v1"), None, |_| {})
        .await
        .unwrap();
    let other = again.path().join("disks").join(image.id.replace(':', "-"));
    assert!(
        std::fs::read(&disk).unwrap() == std::fs::read(other).unwrap(),
        "reproducible"
    );

    let Some(mount) =
        Mount::new("erofs", "ro", &disk).or_else(|| Mount::new("erofs", "ro,loop", &disk))
    else {
        return;
    };
    let at = |path: &str| mount.path().join(path);
    let stat = |path: &str| std::fs::symlink_metadata(at(path)).unwrap();
    let su = stat("bin/su");
    assert_eq!(
        (su.mode() & 0o7777, su.uid(), su.gid()),
        (0o4755, 70_000, 80_000)
    );
    assert_eq!((su.mtime(), su.nlink()), (1_500_000_000, 2));
    assert_eq!(stat("bin/sudo").ino(), su.ino());
    assert_eq!(
        std::fs::read_link(at("bin/link")).unwrap(),
        Path::new("/bin/su")
    );
    let ping = at("bin/ping");
    assert_eq!(xattr(&ping, "security.capability").unwrap(), CAPABILITY);
    assert_eq!(xattr(&ping, "user.note").unwrap(), b"line\nline");
    assert_eq!(xattr(&ping, "trusted.x").unwrap(), b"t");
    assert_eq!(xattr(&ping, "trusted.overlay.opaque"), None);
    assert_eq!(
        (stat("bin/ping").mtime(), stat("bin/ping").mtime_nsec()),
        (1_600_000_000, 250_000_000)
    );
    assert!(stat("dev/null").file_type().is_char_device());
    assert_eq!(stat("dev/null").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(stat("dev/blk").rdev(), rustix::fs::makedev(259, 300));
    assert!(stat("dev/pipe").file_type().is_fifo());
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    assert_eq!(std::fs::read(at(&long)).unwrap(), b"long name");
    assert_eq!(std::fs::read(at("big")).unwrap(), vec![7; 1 << 20]);
    assert!(!at("gone").exists());
    assert_eq!(
        (stat("tmp").mode() & 0o7777, stat("tmp").mtime()),
        (0o1777, 1_234_567_890)
    );
    assert_eq!(stat("").mode() & 0o7777, 0o755);
}

#[tokio::test]
async fn a_full_disk_leaves_nothing_half_there() {
    if !is_root() {
        return skip("mounting needs root");
    }
    let server = Server::start();
    let zeros = Tarball::default().file("zeros", &vec![0; 3 << 20]).end();
    serve(&server, "zeros", &[(zeros, Packing::Gzip)]);
    let random = noise(3 << 20);
    serve(
        &server,
        "random",
        &[(
            Tarball::default().file("random", &random).end(),
            Packing::Gzip,
        )],
    );
    // Too small for the download, for the EROFS file.
    for (tag, size, part) in [
        ("random", "1m", "writing the layer"),
        ("zeros", "2m", "making the EROFS file"),
    ] {
        let Some(mount) = Mount::new("tmpfs", &format!("size={size}"), Path::new("tmpfs")) else {
            return;
        };
        let root = mount.path().join("store");
        let store: ImageStore = open(&root);
        let name = server.name(&format!("team/app:{tag}"));
        let error = store.pull(&name, None, |_| {}).await.unwrap_err();
        assert!(
            matches!(error, ImageError::NoSpace { .. }),
            "{tag} {size}: {error}"
        );
        assert!(error.to_string().contains(part), "{error}");
        assert_clean(&root, 0);
        super::fixture::serve_small(&server, "small");
        store
            .pull(&server.name("team/app:small"), None, |_| {})
            .await
            .unwrap();
        assert_clean(&root, 1);
    }
}
