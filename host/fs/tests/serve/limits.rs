//! What a guest that opens and looks up without end costs the node.

use super::hostile::message;
use super::{FORGET, RDONLY, ROOT, Served};
use std::fs;
use std::path::PathBuf;

const RELEASE: u32 = 18;
/// ENFILE: the guest's own error, whose limit is its file daemon's.
const ENFILE: i32 = 23;
/// The least that is taken.
const DESCRIPTORS: u64 = 256;
const FILES: usize = 600;

fn descriptors(served: &Served) -> usize {
    let path = format!("/proc/{}/fd", served.child.id());
    fs::read_dir(path).unwrap().count()
}

#[test]
fn a_guest_that_opens_without_end_is_refused_and_goes_on() {
    let mut served = Served::start_with(1, DESCRIPTORS);
    let source = served.directory.path().join("volume");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    served.mount(&source, "0", false);
    let volume = served.look_up(ROOT, "0").unwrap();
    let file = served.look_up(volume, "file").unwrap();
    let mut handles = Vec::new();
    let refused = loop {
        match served.open(file, RDONLY) {
            Ok(handle) => handles.push(handle),
            Err(error) => break error,
        }
    };
    assert_eq!(refused, ENFILE);
    assert!(handles.len() > 100, "{}", handles.len());
    assert!(descriptors(&served) < DESCRIPTORS as usize);
    // What is open works, and what is closed makes room.
    assert_eq!(served.read(file, handles[0]).unwrap(), b"content");
    for handle in handles.drain(..10) {
        let mut body = handle.to_le_bytes().to_vec();
        body.extend([0; 16]);
        served.driver.ask(RELEASE, file, &body).unwrap();
    }
    assert!(served.open(file, RDONLY).is_ok());
}

#[test]
fn descriptors_do_not_grow_with_what_the_guest_knows() {
    let mut served = Served::start_with(1, DESCRIPTORS);
    // A file system with file handles, as those of nodes' disks are.
    let source = tempfile::tempdir_in("/dev/shm").unwrap();
    let source = source.path();
    for number in 0..FILES {
        fs::write(source.join(number.to_string()), "").unwrap();
    }
    served.mount(source, "0", false);
    let volume = served.look_up(ROOT, "0").unwrap();
    served.look_up(volume, "0").unwrap();
    let before = descriptors(&served);
    let known: Vec<u64> = (1..FILES)
        .map(|number| served.look_up(volume, &number.to_string()).unwrap())
        .collect();
    assert_eq!(descriptors(&served), before);
    // The volume and its files.
    assert_eq!(inodes(&served), FILES as u64 + 1);
    for node in known {
        let request = message(FORGET, node, &1_u64.to_le_bytes());
        assert_eq!(served.driver.exchange(&request).unwrap(), b"");
    }
    assert_eq!(inodes(&served), 2);
}

/// As the daemon asks for it.
fn inodes(served: &Served) -> u64 {
    let directory = format!("/proc/{}/fd", served.child.id());
    let mut all = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let is_it = |path: &PathBuf| {
        fs::read_link(path)
            .is_ok_and(|target| target.to_str() == Some("/memfd:bulkhead-inodes (deleted)"))
    };
    let bytes = fs::read(all.find(is_it).unwrap()).unwrap();
    u64::from_ne_bytes(bytes.try_into().unwrap())
}
