//! Descriptions of direct volumes, and paths that may mean one.
#![no_main]

// By its file: the crate it belongs to takes minutes to build for this.
#[path = "../../src/volumes/direct/file.rs"]
mod file;

use file::{MAX_SIZE, OPTIONS, Part, parse, place};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

const CSI: &str = "kubernetes.io~csi";

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    description(input);
    path(Path::new(OsStr::from_bytes(input)));
});

fn description(content: &[u8]) {
    if content.len() as u64 > MAX_SIZE {
        return;
    }
    let Ok(description) = parse(content) else {
        return;
    };
    assert!(description.device.is_absolute());
    assert!(is_plain(&description.device));
    assert_eq!(description.file_system, "ext4");
    let is_known = |option: &String| OPTIONS.contains(&option.as_str());
    assert!(description.options.iter().all(is_known));
    assert_ne!(description.fs_group, Some(u32::MAX));
    let writable = description.options.last().is_some_and(|last| last == "rw");
    assert!(!(writable && description.is_read_only()));
}

fn path(path: &Path) {
    // As paths are that get so far.
    if path.is_absolute() || !is_plain(path) {
        return;
    }
    let Some(found) = place(path) else {
        return;
    };
    assert!(is_plain(&found.volume) && found.volume.components().count() == 5);
    match found.part {
        Part::Whole => assert_eq!(path, found.volume.join("mount")),
        Part::Below(below) => {
            assert!(!below.is_empty() && is_plain(Path::new(&below)));
            assert_eq!(path, found.volume.join("mount").join(below));
        }
        Part::Bound => {
            assert_eq!(path.components().count(), 6);
            assert_eq!(found.volume.file_name(), path.iter().nth(3));
        }
    }
}

fn is_plain(path: &Path) -> bool {
    let is_plain = |part| matches!(part, Component::Normal(_) | Component::RootDir);
    path.components().all(is_plain)
}
