use super::archive::{Archive, Kind};
use super::content::Content;
use super::tree::components;
use super::{LayerError, Limits, Unpacker};
use crate::digest::Digest;
use crate::tests::fixture::{Packing, is_root, pack, skip};
use crate::tests::tarball::{Item, Tarball};
use std::io::{Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;

fn file(bytes: &[u8]) -> std::fs::File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

fn apply(root: &Path, layers: &[Vec<u8>]) -> Result<(), LayerError> {
    let cancelled = AtomicBool::new(false);
    let limits = Limits {
        bytes: 4 << 20,
        entries: 100,
    };
    let mut unpacker = Unpacker::new(root, limits, &cancelled)?;
    for layer in layers {
        unpacker.apply(file(layer), &Digest::sha256(layer))?;
    }
    unpacker.finish()
}

fn tree(layers: &[Vec<u8>]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    apply(root.path(), layers).unwrap();
    root
}

/// Every path of a tree, sorted.
fn paths(root: &Path) -> Vec<String> {
    let mut paths = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            paths.push(
                path.strip_prefix(root)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned(),
            );
            if entry.file_type().unwrap().is_dir() {
                left.push(path);
            }
        }
    }
    paths.sort();
    paths
}

#[test]
fn hostile_layers_are_refused_or_stay_inside() {
    if !is_root() {
        return skip("unpacking needs root");
    }
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
        (
            "sparse",
            new()
                .pax(&[("GNU.sparse.major", b"1")])
                .file("a", b"")
                .end(),
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
            (0..101)
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
    ];
    for (what, layer) in refused {
        let outside = tempfile::tempdir().unwrap();
        let root = outside.path().join("root");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(outside.path().join("outside"), "untouched").unwrap();
        match apply(&root, &[layer]) {
            Err(LayerError::Invalid(_)) => {}
            other => panic!("{what}: {other:?}"),
        }
        assert!(!outside.path().join("evil").exists(), "{what}");
        assert!(root.exists(), "{what}");
    }
}

#[test]
fn links_that_lead_out_lead_to_the_tree() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    std::fs::write(outside.path().join("victim"), "untouched").unwrap();
    let up = "../../../../../../../../..".to_owned() + target;
    let layer = Tarball::default()
        .link(b'2', "abs", target)
        .link(b'2', "up", &up)
        .dir(&target[1..])
        .file("abs/victim", b"inside")
        .file("up/other", b"inside")
        .file("/absolute", b"inside")
        .end();
    let upper = Tarball::default()
        .file("abs/.wh.victim", b"")
        .file("up/.wh..wh..opq", b"")
        .end();
    let root = tree(&[layer, upper]);
    assert_eq!(
        std::fs::read(root.path().join("absolute")).unwrap(),
        b"inside"
    );
    assert_eq!(paths(outside.path()), ["victim"]);
    let inside = root.path().join(&target[1..]);
    assert!(paths(&inside).is_empty(), "hidden by the upper layer");
}

#[test]
fn a_time_is_not_set_behind_a_link_that_came_later() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let outside = tempfile::tempdir().unwrap();
    std::fs::create_dir(outside.path().join("d")).unwrap();
    let before = std::fs::metadata(outside.path().join("d")).unwrap().mtime();
    let lower = Tarball::default().dir("a").dir("a/d").end();
    let upper = Tarball::default()
        .link(b'2', "a", outside.path().to_str().unwrap())
        .end();
    let _root = tree(&[lower, upper]);
    let after = std::fs::metadata(outside.path().join("d")).unwrap().mtime();
    assert_eq!(before, after);
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    if !is_root() {
        return skip("unpacking needs root");
    }
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
        let root = tree(&[lower.clone(), upper]);
        assert_eq!(paths(root.path()).join(" "), want, "{what}");
    }
}

#[test]
fn an_upper_layer_changes_a_file_without_its_other_names() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let lower = Tarball::default()
        .file("a", b"old")
        .link(b'1', "b", "/a")
        .end();
    let upper = Tarball::default()
        .file("a", b"new")
        .link(b'1', "c", "./b")
        .end();
    let root = tree(&[lower, upper]);
    let read = |name| std::fs::read(root.path().join(name)).unwrap();
    assert_eq!(
        (read("a"), read("b"), read("c")),
        (b"new".into(), b"old".into(), b"old".into())
    );
    assert_eq!(std::fs::metadata(root.path().join("c")).unwrap().nlink(), 2);
}

#[test]
fn a_directory_listed_again_has_new_attributes() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let lower = Tarball::default()
        .pax(&[("SCHILY.xattr.user.x", b"1")])
        .dir("d")
        .file("d/f", b"")
        .end();
    let upper = Tarball::default()
        .item(&Item {
            path: "d/",
            kind: b'5',
            mode: 0o2750,
            owner: (5, 6),
            mtime: 77,
            ..Item::default()
        })
        .end();
    let root = tree(&[lower, upper]);
    let stat = std::fs::metadata(root.path().join("d")).unwrap();
    assert_eq!(
        (stat.mode() & 0o7777, stat.uid(), stat.gid(), stat.mtime()),
        (0o2750, 5, 6, 77)
    );
    let names = rustix::fs::llistxattr_query(root.path().join("d")).unwrap();
    assert_eq!(names, 0);
}

#[test]
fn directories_that_no_layer_lists_are_plain() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let shared = Item {
        path: "s",
        kind: b'5',
        mode: 0o2775,
        owner: (5, 6),
        ..Item::default()
    };
    let layer = Tarball::default().item(&shared).file("s/a/b/f", b"");
    let root = tree(&[layer.end()]);
    for path in ["s/a", "s/a/b"] {
        let stat = std::fs::metadata(root.path().join(path)).unwrap();
        let got = (stat.mode() & 0o7777, stat.uid(), stat.gid(), stat.mtime());
        assert_eq!(got, (0o755, 0, 0, 0), "{path}");
    }
}

#[test]
fn a_wrong_content_is_noticed_and_a_cancelled_one_stops() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let layer = Tarball::default().file("a", b"x").end();
    let root = tempfile::tempdir().unwrap();
    let limits = Limits {
        bytes: 1 << 20,
        entries: 100,
    };
    let cancelled = AtomicBool::new(true);
    let mut unpacker = Unpacker::new(root.path(), limits, &cancelled).unwrap();
    let result = unpacker.apply(file(&layer), &Digest::sha256(&layer));
    assert!(matches!(result, Err(LayerError::Cancelled)));
    let cancelled = AtomicBool::new(false);
    let mut unpacker = Unpacker::new(root.path(), limits, &cancelled).unwrap();
    let result = unpacker.apply(file(&layer), &Digest::sha256(b"other"));
    assert!(matches!(result, Err(LayerError::WrongDiffId(got)) if got == Digest::sha256(&layer)));
}

#[test]
fn every_compression_and_every_cut() {
    let plain = Tarball::default()
        .file("a", &[1; 5000])
        .link(b'2', "l", "a")
        .end();
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let packed = pack(&plain, packing);
        let read = |bytes: &[u8]| -> Result<Vec<Kind>, LayerError> {
            let content = Content::open(file(bytes), &Digest::sha256(&plain), 1 << 20)
                .map_err(super::archive::unreadable)?;
            let mut archive = Archive::new(content);
            let mut kinds = Vec::new();
            while let Some(entry) = archive.next()? {
                kinds.push(entry.kind);
            }
            let (digest, _) = archive
                .into_content()
                .finish()
                .map_err(super::archive::unreadable)?;
            match digest {
                Some(digest) if digest == Digest::sha256(&plain) => Ok(kinds),
                other => Err(LayerError::Invalid(format!("{other:?}"))),
            }
        };
        let want = [Kind::File { size: 5000 }, Kind::Symlink(b"a".to_vec())];
        assert_eq!(read(&packed).unwrap(), want);
        for length in (0..packed.len()).step_by(packed.len() / 40 + 1) {
            assert!(
                read(&packed[..length]).is_err(),
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
    let bytes = tar.link(b'2', "cut", "cut").end();
    let content = Content::open(file(&bytes), &Digest::sha256(&bytes), 1 << 20).unwrap();
    let entry = Archive::new(content).next().unwrap().unwrap();
    assert_eq!(entry.path, name.as_bytes());
    assert_eq!(entry.kind, Kind::Symlink(name.into_bytes()));
}

#[test]
fn paths_are_split() {
    assert_eq!(components(b"/a//b/./c/").unwrap(), ["a", "b", "c"]);
    assert!(components(b"./").unwrap().is_empty());
    assert!(components(b"a/..").is_err());
    assert_eq!(components(b"a/...").unwrap(), ["a", "..."]);
}
