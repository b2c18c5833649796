//! What layers become, seen by another reader.

pub(crate) mod image;
mod model;
mod reference;

use super::archive::{Archive, Kind};
use super::content::{Budget, Content};
use super::pager::Pager;
use super::{LayerError, LayerResult, Stop};
use crate::digest::Digest;
use crate::tests::fixture::{Packing, noise, pack};
use crate::tests::tarball::{Item, Tarball};
use image::{LIMITS, Tree, build, build_blobs, file, tree};
use std::sync::atomic::AtomicBool;

/// Every path of a tree, sorted.
fn paths(tree: &Tree) -> String {
    let paths = tree.keys().skip(1);
    let paths: Vec<_> = paths.map(|path| String::from_utf8_lossy(path)).collect();
    paths.join(" ")
}

/// The entries of an archive and its digest.
fn entries(blob: &[u8]) -> LayerResult<(Vec<super::archive::Entry>, Digest)> {
    let budget = Budget::new(LIMITS);
    let (cancelled, failed) = (AtomicBool::new(false), AtomicBool::new(false));
    let stop = Stop {
        cancelled: &cancelled,
        failed: &failed,
    };
    let algorithm = Digest::sha256(b"");
    std::thread::scope(|scope| {
        let blob = Box::new(file(blob));
        let content = Content::start(scope, blob, &algorithm, &budget, &stop, &|_| {});
        let mut archive = Archive::new(content);
        let mut entries = Vec::new();
        while let Some(entry) = archive.next()? {
            entries.push(entry);
        }
        Ok((entries, archive.into_content().finish()?))
    })
}

#[test]
fn hostile_layers_are_refused() {
    let new = Tarball::default;
    let deep = "d/".repeat(300);
    let refused: Vec<(&str, Vec<u8>)> = vec![
        ("upwards", new().file("../evil", b"x").end()),
        (
            "upwards inside",
            new().dir("a").file("a/../../evil", b"x").end(),
        ),
        ("absolute upwards", new().file("/../evil", b"x").end()),
        (
            "hard link upwards",
            new().link(b'1', "a", "../outside").end(),
        ),
        ("hard link to nothing", new().link(b'1', "a", "b").end()),
        (
            "hard link to itself",
            new().file("a", b"").link(b'1', "a", "a").end(),
        ),
        (
            "hard link to a directory",
            new().dir("d").link(b'1', "a", "d").end(),
        ),
        (
            "hard link out",
            new()
                .link(b'2', "l", "/proc/self")
                .link(b'1', "a", "l/mem")
                .end(),
        ),
        ("below a file", new().file("a", b"").file("a/b", b"").end()),
        (
            "below a dangling link",
            new().link(b'2', "l", "nowhere").file("l/b", b"").end(),
        ),
        (
            "below a loop",
            new().link(b'2', "l", "l").file("l/b", b"").end(),
        ),
        (
            "the root as a file",
            new().file("/", b"").link(b'2', ".", "x").end(),
        ),
        (
            "a whiteout of ..",
            new().file("a/b", b"").file("a/.wh...", b"").end(),
        ),
        (
            "a whiteout of .",
            new().file("a/b", b"").file("a/.wh..", b"").end(),
        ),
        ("a whiteout of nothing", new().file(".wh.", b"").end()),
        (
            "a long name",
            new().pax(&[("path", &[b'a'; 300])]).file("a", b"").end(),
        ),
        (
            "a deep path",
            new().pax(&[("path", deep.as_bytes())]).dir("a").end(),
        ),
        (
            "a zero byte",
            new().pax(&[("path", b"a\0b")]).file("a", b"").end(),
        ),
        ("an unknown type", new().link(b'Z', "a", "").end()),
        (
            "no owner",
            new().pax(&[("uid", b"4294967295")]).file("a", b"").end(),
        ),
        (
            "a large owner",
            new().pax(&[("gid", b"99999999999")]).file("a", b"").end(),
        ),
        (
            "a number that is none",
            new().pax(&[("size", b"-1")]).file("a", b"").end(),
        ),
        (
            "a size past the end",
            new().pax(&[("size", b"9999")]).file("a", b"").end(),
        ),
        (
            "a huge size",
            new()
                .pax(&[("size", b"99999999999999999")])
                .file("a", b"")
                .end(),
        ),
        ("a damaged header", {
            let mut t = new().file("a", b"").end();
            t[0] = b'b';
            t
        }),
        ("half a header", new().file("a", b"").0[..300].to_vec()),
        (
            "too many files",
            (0..2001)
                .fold(new(), |t, n| t.file(&n.to_string(), b""))
                .end(),
        ),
        (
            "a large extension",
            new().pax(&[("comment", &vec![b'x'; 2 << 20])]).end(),
        ),
        (
            "a bad record",
            new()
                .item(&Item {
                    kind: b'x',
                    data: b"5 a=b\n",
                    ..Item::default()
                })
                .end(),
        ),
        (
            "a long xattr",
            new()
                .pax(&[("SCHILY.xattr.user.x", &vec![0; 70_000])])
                .file("a", b"")
                .end(),
        ),
        (
            "half a sparse map",
            new()
                .pax(&[("GNU.sparse.major", b"1")])
                .file("a", b"")
                .end(),
        ),
        ("a sparse map that goes back", {
            let map = [
                ("GNU.sparse.size", b"9000".as_slice()),
                ("GNU.sparse.map", b"5000,1,4000,1"),
            ];
            new().pax(&map).file("a", b"xy").end()
        }),
        ("a sparse map behind the end", {
            let map = [
                ("GNU.sparse.size", b"9000".as_slice()),
                ("GNU.sparse.map", b"8999,2"),
            ];
            new().pax(&map).file("a", b"xy").end()
        }),
        ("a sparse map with other data", {
            let map = [
                ("GNU.sparse.size", b"9000".as_slice()),
                ("GNU.sparse.map", b"0,3"),
            ];
            new().pax(&map).file("a", b"xy").end()
        }),
        ("a sparse file of exabytes", {
            let map = [
                ("GNU.sparse.size", b"9000000000000000000".as_slice()),
                ("GNU.sparse.map", b"0,2"),
            ];
            new().pax(&map).file("a", b"xy").end()
        }),
        ("a link without a target", new().link(b'2', "a", "").end()),
        (
            "a link with a zero byte",
            new()
                .pax(&[("linkpath", b"a\0b")])
                .link(b'2', "a", "")
                .end(),
        ),
        (
            "a link with a long target",
            new()
                .pax(&[("linkpath", &[b'a'; 4096])])
                .link(b'2', "a", "")
                .end(),
        ),
        (
            "a hard link to a later file",
            new().link(b'1', "a", "b").file("b", b"").end(),
        ),
        (
            "a hard link to a whiteout",
            new().file(".wh.x", b"").link(b'1', "a", ".wh.x").end(),
        ),
        ("a hard link to the root", new().link(b'1', "a", "/").end()),
        (
            "a hard link in place of its target's directory",
            new().file("d/f", b"").link(b'1', "d", "d/f").end(),
        ),
        (
            "a device that no kernel has",
            new()
                .item(&Item {
                    path: "a",
                    kind: b'3',
                    device: (0x10_0000, 0),
                    ..Item::default()
                })
                .end(),
        ),
        (
            "an access list that is none",
            new()
                .pax(&[("SCHILY.xattr.system.posix_acl_access", b"rubbish")])
                .file("a", b"")
                .end(),
        ),
        (
            "more attributes than an inode may have",
            new()
                .pax(&[
                    ("SCHILY.xattr.user.a", &vec![1; 60_000]),
                    ("SCHILY.xattr.user.b", &vec![2; 60_000]),
                    ("SCHILY.xattr.user.c", &vec![3; 60_000]),
                ])
                .file("a", b"")
                .end(),
        ),
        (
            "an attribute of 64 KiB",
            new()
                .pax(&[("SCHILY.xattr.user.a", &vec![1; 65_536])])
                .file("a", b"")
                .end(),
        ),
        (
            "too many directories",
            (0..9)
                .fold(new(), |t, n| {
                    t.pax(&[("path", format!("{n}/{}", "d/".repeat(250)).as_bytes())])
                        .dir("x")
                })
                .end(),
        ),
    ];
    for (what, layer) in refused {
        match build(&[layer]) {
            Err(LayerError::Invalid(_)) => {}
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn links_that_lead_out_lead_to_the_image() {
    let layer = Tarball::default()
        .link(b'2', "abs", "/in/side")
        .link(b'2', "up", "../../../../../in/side")
        .dir("in/side")
        .file("abs/victim", b"inside")
        .file("up/other", b"inside")
        .file("/absolute", b"inside")
        .link(b'1', "abs/hard", "/up/other")
        .end();
    let upper = Tarball::default()
        .file("abs/.wh.victim", b"")
        .file("up/new", b"")
        .end();
    let tree = tree(&[layer, upper]);
    assert_eq!(
        paths(&tree),
        "abs absolute in in/side in/side/hard in/side/new in/side/other up"
    );
    assert_eq!(tree[b"in/side/hard".as_slice()].links, 2);
}

#[test]
fn a_directory_that_becomes_a_link_takes_its_files_along() {
    let lower = Tarball::default().file("a/d/f", b"old").dir("b").end();
    let upper = Tarball::default()
        .link(b'2', "a", "b")
        .file("a/g", b"through the link")
        .end();
    assert_eq!(paths(&tree(&[lower, upper])), "a b b/g");
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    let new = Tarball::default;
    let lower = new()
        .file("a/x", b"")
        .file("a/y", b"")
        .file("b/x", b"")
        .file("c/d/x", b"")
        .file("c/y", b"")
        .file("e", b"")
        .file("f/g", b"")
        .link(b'2', "l", "a")
        .end();
    for (what, upper, want) in [
        (
            "one file",
            new().file("a/.wh.x", b"").end(),
            "a a/y b b/x c c/d c/d/x c/y e f f/g l",
        ),
        (
            "a directory",
            new().file(".wh.c", b"").end(),
            "a a/x a/y b b/x e f f/g l",
        ),
        (
            "a link, not its target",
            new().file(".wh.l", b"").end(),
            "a a/x a/y b b/x c c/d c/d/x c/y e f f/g",
        ),
        (
            "through a link",
            new().file("l/.wh.x", b"").end(),
            "a a/y b b/x c c/d c/d/x c/y e f f/g l",
        ),
        (
            "nothing",
            new().file("none/.wh.x", b"").file(".wh.none", b"").end(),
            "a a/x a/y b b/x c c/d c/d/x c/y e f f/g l",
        ),
        (
            "opaque after the files",
            new().file("c/d/new", b"").file("c/.wh..wh..opq", b"").end(),
            "a a/x a/y b b/x c c/d c/d/new e f f/g l",
        ),
        (
            "opaque before the files",
            new()
                .dir("c")
                .file("c/.wh..wh..opq", b"")
                .file("c/z", b"")
                .end(),
            "a a/x a/y b b/x c c/z e f f/g l",
        ),
        (
            "an opaque root",
            new().file("c/d/new", b"").file(".wh..wh..opq", b"").end(),
            "c c/d c/d/new",
        ),
        (
            "new deep directories",
            new().file("c/n/m/o", b"").file(".wh..wh..opq", b"").end(),
            "c c/n c/n/m c/n/m/o",
        ),
        (
            "a file and its whiteout",
            new().file("e", b"").file(".wh.e", b"").end(),
            "a a/x a/y b b/x c c/d c/d/x c/y e f f/g l",
        ),
        (
            "a directory and its whiteout",
            new().file("c/new", b"").file(".wh.c", b"").end(),
            "a a/x a/y b b/x c c/new e f f/g l",
        ),
        (
            "bookkeeping of AUFS",
            new()
                .file(".wh..wh.plnk", b"")
                .file(".wh..wh.aufs", b"")
                .end(),
            "a a/x a/y b b/x c c/d c/d/x c/y e f f/g l",
        ),
        (
            "a directory for a file",
            new().dir("e").file("e/x", b"").end(),
            "a a/x a/y b b/x c c/d c/d/x c/y e e/x f f/g l",
        ),
        (
            "a file for a directory",
            new().file("c", b"").end(),
            "a a/x a/y b b/x c e f f/g l",
        ),
        (
            "a directory for a link",
            new().dir("l").end(),
            "a a/x a/y b b/x c c/d c/d/x c/y e f f/g l",
        ),
    ] {
        let tree = tree(&[lower.clone(), upper]);
        assert_eq!(paths(&tree), want, "{what}");
    }
}

#[test]
fn an_upper_layer_changes_a_file_without_its_other_names() {
    let lower = Tarball::default()
        .file("a", b"old")
        .link(b'1', "b", "/a")
        .end();
    let upper = Tarball::default()
        .file("a", b"new")
        .link(b'1', "c", "./b")
        .end();
    let tree = tree(&[lower, upper]);
    let at = |path: &str| &tree[path.as_bytes()];
    assert_eq!(
        (&at("a").content, &at("b").content, &at("c").content),
        (&b"new".to_vec(), &b"old".to_vec(), &b"old".to_vec())
    );
    assert_eq!((at("a").links, at("b").links, at("c").links), (1, 2, 2));
    assert_eq!(at("b").nid, at("c").nid);
}

#[test]
fn a_directory_listed_again_has_new_attributes() {
    let lower = Tarball::default()
        .pax(&[("SCHILY.xattr.user.x", b"1")])
        .dir("d")
        .file("d/f", b"")
        .end();
    let again = Item {
        path: "d/",
        kind: b'5',
        mode: 0o2750,
        owner: (5, 6),
        mtime: 77,
        ..Item::default()
    };
    let root = Item {
        path: "./",
        mode: 0o700,
        owner: (70_000, 2),
        ..again.clone()
    };
    let upper = Tarball::default()
        .item(&again)
        .pax(&[("SCHILY.xattr.user.root", &[9; 2000]), ("mtime", b"-1.5")])
        .item(&root)
        .end();
    let tree = tree(&[lower, upper]);
    let seen = &tree[b"d".as_slice()];
    assert_eq!(
        (seen.mode, seen.owner, seen.mtime, seen.links),
        (0o2750, (5, 6), (77, 0), 2)
    );
    assert!(seen.xattrs.is_empty());
    let root = &tree[b"".as_slice()];
    assert_eq!(
        (root.mode, root.owner, root.mtime, root.links),
        (0o700, (70_000, 2), (-2, 500_000_000), 3)
    );
    assert_eq!(root.xattrs[b"user.root".as_slice()], [9; 2000]);
    let large = Tarball::default()
        .pax(&[("SCHILY.xattr.user.root", &[9; 3000])])
        .dir("./")
        .end();
    assert!(matches!(build(&[large]), Err(LayerError::Invalid(_))));
}

#[test]
fn directories_that_no_layer_lists_are_plain() {
    let shared = Item {
        path: "s",
        kind: b'5',
        mode: 0o2775,
        owner: (5, 6),
        ..Item::default()
    };
    let layer = Tarball::default().item(&shared).file("s/a/b/f", b"");
    let tree = tree(&[layer.end()]);
    for path in ["", "s/a", "s/a/b"] {
        let seen = &tree[path.as_bytes()];
        let got = (seen.mode, seen.owner, seen.mtime);
        assert_eq!(got, (0o755, (0, 0), (0, 0)), "{path}");
    }
}

#[test]
fn an_image_without_layers_is_an_empty_directory() {
    assert_eq!(tree(&[]).len(), 1);
    assert_eq!(tree(&[Tarball::default().end()]).len(), 1);
}

/// Sizes around every boundary of blocks, short ends and buffers.
#[test]
fn data_of_every_size_comes_back() {
    let sizes = [
        0, 1, 1983, 1984, 1985, 2048, 4095, 4096, 4097, 6000, 8191, 8192, 12_288, 262_143, 262_144,
        1_048_576, 1_048_577, 3_000_000,
    ];
    let random = noise(3_000_000);
    let mut tar = Tarball::default();
    for size in sizes {
        tar = tar.file(&format!("f{size}"), &random[..size]);
        let zero = Item {
            path: &format!("z{size}"),
            data: &random[..size],
            mtime: 0,
            ..Item::default()
        };
        tar = tar.item(&zero);
    }
    let tree = tree(&[tar.end()]);
    for size in sizes {
        for name in [format!("f{size}"), format!("z{size}")] {
            assert!(tree[name.as_bytes()].content == random[..size], "{name}");
        }
    }
}

#[test]
fn links_of_every_length_come_back() {
    let lengths = [1, 100, 1900, 2048, 3990, 4032, 4033, 4064, 4065, 4095];
    let mut tar = Tarball::default();
    for length in lengths {
        let target = vec![b't'; length];
        tar = tar
            .pax(&[("linkpath", &target)])
            .link(b'2', &format!("l{length}"), "");
    }
    let tree = tree(&[tar.end()]);
    for length in lengths {
        let content = &tree[format!("l{length}").as_bytes()].content;
        assert_eq!(*content, vec![b't'; length]);
    }
}

#[test]
fn names_of_every_kind_come_back() {
    let long = vec![b'n'; 255];
    let names: Vec<Vec<u8>> = vec![
        b"-before-the-dots".to_vec(),
        b"...".to_vec(),
        b"\xff\xfe not text".to_vec(),
        b"\x01".to_vec(),
        b"line\nbreak".to_vec(),
        long.clone(),
        [b"d/".as_slice(), &long].concat(),
        [b"d/".as_slice(), &long, b"/", &long].concat(),
    ];
    let mut tar = Tarball::default();
    for name in &names {
        tar = match name.iter().filter(|byte| **byte == b'/').count() == 1 {
            true => tar.pax(&[("path", name)]).dir("x"),
            false => tar.pax(&[("path", name)]).file("x", name),
        };
    }
    // Enough for many blocks of entries.
    for n in 0..1500 {
        tar = tar.file(&format!("many/{n:090}"), b"");
    }
    let tree = tree(&[tar.end()]);
    assert!(names.iter().all(|name| tree.contains_key(name)));
    assert_eq!(tree.len(), 1 + names.len() + 1 + 1 + 1500);
}

#[test]
fn attributes_come_back_shared_or_not() {
    let acl = [
        2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 4, 0, 5, 0, 255, 255, 255, 255,
    ];
    let large = noise(50_000);
    let records: Vec<(&str, &[u8])> = vec![
        ("SCHILY.xattr.user.twice", b"first"),
        ("SCHILY.xattr.user.twice", b"the same for many files"),
        ("SCHILY.xattr.system.posix_acl_access", &acl),
        ("SCHILY.xattr.security.capability", &[1; 20]),
        ("SCHILY.xattr.security.selinux", b"void"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.t", b""),
    ];
    let mut tar = Tarball::default();
    for n in 0..200 {
        tar = tar
            .pax(&records)
            .file(&format!("f{n}"), &[1; 3000][..n * 15]);
    }
    let tar = tar
        .pax(&records)
        .dir("d")
        .pax(&records)
        .link(b'2', "l", "f")
        .pax(&[("SCHILY.xattr.user.large", &large)])
        .file("large", b"data behind many blocks");
    let tree = tree(&[tar.end()]);
    for n in 0..200 {
        let xattrs = &tree[format!("f{n}").as_bytes()].xattrs;
        let names: Vec<_> = xattrs
            .keys()
            .map(|name| String::from_utf8_lossy(name))
            .collect();
        assert_eq!(
            names.join(" "),
            "security.capability system.posix_acl_access trusted.t user.twice"
        );
        assert_eq!(xattrs[b"user.twice".as_slice()], b"the same for many files");
        assert_eq!(xattrs[b"system.posix_acl_access".as_slice()], acl);
    }
    assert_eq!(tree[b"d".as_slice()].xattrs.len(), 4);
    assert_eq!(tree[b"l".as_slice()].xattrs.len(), 2);
    assert_eq!(
        tree[b"large".as_slice()].xattrs[b"user.large".as_slice()],
        large
    );
    assert_eq!(
        tree[b"large".as_slice()].content,
        b"data behind many blocks"
    );
}

#[test]
fn layers_are_limited() {
    let layer = |bytes: usize| Tarball::default().file("a", &vec![0; bytes]).end();
    let limited = |packing, bytes, limits| {
        let layer = layer(bytes);
        let blob = (pack(&layer, packing), Digest::sha256(&layer));
        build_blobs(&[blob.clone(), blob], 2, limits)
    };
    for packing in [Packing::Gzip, Packing::Zstd] {
        let tight = super::Limits {
            ratio: 20,
            ..LIMITS
        };
        let bomb = limited(packing, 16 << 20, tight);
        assert!(matches!(bomb, Err(LayerError::Invalid(why)) if why.contains("20 times")));
    }
    assert!(limited(Packing::Plain, 16 << 20, LIMITS).is_ok());
    let few = super::Limits {
        bytes: 100_000,
        ..LIMITS
    };
    let both = limited(Packing::Gzip, 60_000, few);
    assert!(matches!(both, Err(LayerError::Invalid(why)) if why.contains("more bytes")));
}

#[test]
fn a_wrong_content_is_noticed() {
    let layer = Tarball::default().file("a", b"x").end();
    let good = (layer.clone(), Digest::sha256(&layer));
    let wrong = (layer.clone(), Digest::sha256(b"other"));
    for blobs in [vec![wrong.clone()], vec![good.clone(), wrong], vec![good]] {
        let good = blobs
            .iter()
            .all(|(_, digest)| *digest == Digest::sha256(&layer));
        match build_blobs(&blobs, 2, LIMITS) {
            Ok(_) if good => {}
            Err(LayerError::WrongDiffId(got)) if got == Digest::sha256(&layer) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Blobs of many members or frames say little about their size before they are read.
#[test]
fn layers_that_are_larger_than_expected_take_turns() {
    let random = noise(1 << 20);
    let layers: Vec<Vec<u8>> = (0..6)
        .map(|n| {
            let tar = (0..40).fold(Tarball::default(), |tar, f| {
                tar.file(&format!("{n}/{f}"), &random[f * 5000..][..f * 999])
            });
            tar.file(&format!("large{n}"), &vec![n; 300_000]).end()
        })
        .collect();
    for packing in [Packing::Gzip, Packing::Zstd] {
        let blobs: Vec<(Vec<u8>, Digest)> = layers
            .iter()
            .map(|layer| {
                let members = layer.chunks(2000).flat_map(|part| pack(part, packing));
                (members.collect(), Digest::sha256(layer))
            })
            .collect();
        let (_, one) = build_blobs(&blobs, 1, LIMITS).unwrap();
        let (_, many) = build_blobs(&blobs, 4, LIMITS).unwrap();
        assert!(one == many);
        image::fsck(&one);
        let tree = image::read(&one);
        assert_eq!(tree.len(), 1 + 6 * 42);
        assert_eq!(tree[b"large3".as_slice()].content, vec![3; 300_000]);
    }
}

#[test]
fn sparse_files_of_every_format_keep_their_holes() {
    let mut want = vec![0; 3_000_000];
    want[8192..12_000].fill(1);
    want[1_000_000..1_000_010].fill(2);
    want[2_999_999] = 3;
    let data: Vec<u8> = [vec![1; 3808], vec![2; 10], vec![3]].concat();
    let map = "8192,3808,1000000,10,2999999,1";
    let mut lines = format!("3\n{}\n", map.replace(',', "\n")).into_bytes();
    lines.resize(512, 0);
    let with_map = [lines, data.clone()].concat();
    let mut tar = Tarball::default()
        .pax(&[
            ("GNU.sparse.size", b"3000000"),
            ("GNU.sparse.map", map.as_bytes()),
        ])
        .file("0.1", &data);
    let zero: Vec<(&str, &[u8])> = vec![
        ("GNU.sparse.size", b"3000000"),
        ("GNU.sparse.offset", b"8192"),
        ("GNU.sparse.numbytes", b"3808"),
        ("GNU.sparse.offset", b"1000000"),
        ("GNU.sparse.numbytes", b"10"),
        ("GNU.sparse.offset", b"2999999"),
        ("GNU.sparse.numbytes", b"1"),
    ];
    tar = tar.pax(&zero).file("0.0", &data);
    let one: Vec<(&str, &[u8])> = vec![
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"1.0"),
        ("GNU.sparse.realsize", b"3000000"),
    ];
    tar = tar.pax(&one).file("GNUSparseFile/1.0", &with_map);
    let empty = [
        ("GNU.sparse.size", b"70000".as_slice()),
        ("GNU.sparse.map", b"70000,0"),
    ];
    tar = tar.pax(&empty).file("empty", b"");
    let dense = [
        ("GNU.sparse.size", b"3".as_slice()),
        ("GNU.sparse.map", b"0,3"),
    ];
    tar = tar.pax(&dense).file("dense", b"abc");
    let image = build(&[tar.end()]).unwrap();
    image::fsck(&image);
    let tree = image::read(&image);
    for name in ["0.0", "0.1", "1.0"] {
        assert!(tree[name.as_bytes()].content == want, "{name}");
    }
    assert_eq!(tree[b"empty".as_slice()].content, vec![0; 70_000]);
    assert_eq!(tree[b"dense".as_slice()].content, b"abc");
    assert!(image.len() < 200_000, "{} bytes", image.len());
}

#[test]
fn gnu_tar_writes_what_we_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sparse");
    let disk = std::fs::File::create(&path).unwrap();
    disk.set_len(50 << 20).unwrap();
    // More segments than a header and one block after it hold.
    for n in 0..60 {
        let at = n * 700_000;
        std::os::unix::fs::FileExt::write_all_at(&disk, &[n as u8 + 1; 5000], at).unwrap();
    }
    let want = std::fs::read(&path).unwrap();
    for format in [
        "gnu",
        "posix",
        "posix --sparse-version=0.0",
        "posix --sparse-version=0.1",
    ] {
        let output = std::process::Command::new("tar")
            .args(["--create", "--sparse", "--file=-", "--directory"])
            .arg(directory.path())
            .args(format!("--format={format}").split(' '))
            .arg("sparse")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let limits = super::Limits {
            bytes: 1 << 30,
            ..LIMITS
        };
        let digest = Digest::sha256(&output.stdout);
        let (_, image) = build_blobs(&[(output.stdout, digest)], 1, limits).unwrap();
        assert!(
            image::read(&image)[b"sparse".as_slice()].content == want,
            "{format}"
        );
        assert!(image.len() < 2 << 20, "{format}: {} bytes", image.len());
    }
}

#[test]
fn what_is_replaced_becomes_a_hole() {
    use std::os::unix::fs::MetadataExt as _;
    let lower = (0..100).fold(Tarball::default(), |tar, n| {
        tar.file(&format!("small/{n}"), &[1; 1900])
            .file(&format!("large/{n}"), &[2; 9000])
    });
    let lower = lower.file("kept", &[3; 9000]).end();
    let upper = Tarball::default()
        .file(".wh.small", b"")
        .file(".wh.large", b"")
        .end();
    let image = build(&[lower, upper]).unwrap();
    let tree = image::read(&image);
    assert_eq!(paths(&tree), "kept");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    std::fs::write(&path, &image).unwrap();
    let zeros = image
        .chunks(4096)
        .filter(|block| block.iter().all(|byte| *byte == 0));
    let used = image.len() / 4096 - zeros.count();
    // Superblock, the inode, the data.
    assert!(used <= 6, "{used} blocks");
    assert!(std::fs::metadata(&path).unwrap().size() > 0);
}

#[test]
fn every_compression_and_every_cut() {
    let plain = Tarball::default()
        .file("a", &[1; 5000])
        .link(b'2', "l", "a")
        .end();
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let packed = pack(&plain, packing);
        let read = |bytes: &[u8]| -> Option<Vec<Kind>> {
            let (entries, digest) = entries(bytes).ok()?;
            let kinds = entries.into_iter().map(|entry| entry.kind).collect();
            (digest == Digest::sha256(&plain)).then_some(kinds)
        };
        let want = vec![Kind::File { size: 5000 }, Kind::Symlink(b"a".to_vec())];
        assert_eq!(read(&packed), Some(want));
        for length in (0..packed.len()).step_by(packed.len() / 40 + 1) {
            assert_eq!(
                read(&packed[..length]),
                None,
                "{length} of {}",
                packed.len()
            );
        }
    }
}

#[test]
fn long_names_of_gnu_tar() {
    let name = "n".repeat(150);
    let long = |kind, text: &str| {
        let data = format!("{text}\0");
        let item = Item {
            path: "././@LongLink",
            kind,
            data: data.as_bytes(),
            ..Item::default()
        };
        Tarball::default().item(&item).0
    };
    let mut tar = Tarball(long(b'K', &name));
    tar.0.extend(long(b'L', &name));
    let (entries, _) = entries(&tar.link(b'2', "cut", "cut").end()).unwrap();
    assert_eq!(entries[0].path, name.as_bytes());
    assert_eq!(entries[0].kind, Kind::Symlink(name.into_bytes()));
}

#[test]
fn paths_are_normal() {
    let normal = |path: &[u8]| super::read::normal(path);
    assert_eq!(normal(b"/a//b/./c/").unwrap(), b"a/b/c");
    assert!(normal(b"./").unwrap().is_empty());
    assert!(normal(b"a/..").is_err());
    assert_eq!(normal(b"a/...").unwrap(), b"a/...");
}

#[test]
fn pages_survive_in_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut pager = Pager::new(64 << 10, directory.path().to_owned());
    // Every other number, across pages, then again from the start.
    for round in 0..3_u64 {
        for n in 0..20_000_u64 {
            let at = n.wrapping_mul(7919) % 20_000 * 40 + 13;
            let mut old = [0; 8];
            pager.read(at, &mut old).unwrap();
            let old = u64::from_le_bytes(old);
            assert_eq!(old, if round == 0 { 0 } else { round - 1 + at });
            pager.write(at, &(round + at).to_le_bytes()).unwrap();
        }
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// The peak memory of a process with an image of many entries: run alone, with `--ignored`.
#[test]
#[ignore = "takes a minute and measures the whole process"]
fn many_files_need_little_memory() {
    use std::io::Write as _;
    let path = tempfile::NamedTempFile::new().unwrap();
    let mut encoder = flate2::write::GzEncoder::new(&path, flate2::Compression::fast());
    let mut hasher = Digest::sha256(b"").hasher();
    for n in 0..1_500_000 {
        let name = format!("directory-{}/a-file-with-a-usual-name-{n}", n % 1000);
        let bytes = Tarball::default().file(&name, b"").0;
        hasher.update(&bytes);
        encoder.write_all(&bytes).unwrap();
    }
    encoder.finish().unwrap();
    let digest = hasher.finish();
    let directory = tempfile::tempdir().unwrap();
    let cancelled = AtomicBool::new(false);
    let options = super::Options {
        limits: super::Limits::new(1 << 40, 4 << 20),
        uuid: [7; 16],
        parallel: 2,
        directory: directory.path().to_owned(),
        cancelled: &cancelled,
        progress: &|_, _| {},
    };
    let peak = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM"))
            .unwrap();
        let kib = line.split_whitespace().nth(1).unwrap();
        kib.parse::<u64>().unwrap() << 10
    };
    let before = peak();
    let layer = super::Layer::from_file(path.reopen().unwrap(), digest).unwrap();
    let out = tempfile::tempfile().unwrap();
    let start = std::time::Instant::now();
    let built = super::build(vec![layer], &out, &options).map_err(|(_, error)| error);
    let built = built.unwrap();
    let used = peak() - before;
    eprintln!("{built:?} in {:?} with {} MiB", start.elapsed(), used >> 20);
    assert!(used < 64 << 20, "{used} bytes");
}
