//! A guest whose kernel is hostile.

use super::{EBADF, ENOENT, ESTALE, FORGET, LOOKUP, RDONLY, ROOT, Served, named};
use std::fs;
use std::path::Path;

const GETATTR: u32 = 3;
const SYMLINK: u32 = 6;
const MKDIR: u32 = 9;
const UNLINK: u32 = 10;
const RENAME: u32 = 12;
const LINK: u32 = 13;
const OPENDIR: u32 = 27;
const VOLUME: &str = "0123456789ab-0";

/// A volume with a file, beside something that is not the guest's.
fn served() -> (Served, u64) {
    let mut served = Served::start();
    let directory = served.directory.path().to_owned();
    fs::create_dir(directory.join("volume")).unwrap();
    fs::write(directory.join("volume/file"), "mine").unwrap();
    fs::write(directory.join("secret"), "secret").unwrap();
    served.mount(&directory.join("volume"), VOLUME, false);
    let volume = served.look_up(ROOT, VOLUME).unwrap();
    (served, volume)
}

fn names(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn no_name_leads_out_of_the_volumes() {
    let (mut served, volume) = served();
    let directory = served.directory.path().to_owned();
    let outside = directory.join("secret");
    let before = names(&directory);
    let file = served.look_up(volume, "file").unwrap();
    // Links that the host would follow to the secret, as a name in between too.
    for (name, target) in [("absolute", &*directory), ("relative", Path::new(".."))] {
        let body = [named(&[], name), named(&[], target.to_str().unwrap())].concat();
        served.driver.ask(SYMLINK, volume, &body).unwrap();
        let link = served.look_up(volume, name).unwrap();
        assert!(served.open(link, RDONLY).is_err(), "{name}");
    }
    for name in [
        "../secret",
        "../../secret",
        "./../secret",
        "absolute/secret",
        "relative/secret",
        "../../../../../../etc/passwd",
        "../proc/self/root",
        "/proc/self/root",
        "/etc/passwd",
        outside.to_str().unwrap(),
    ] {
        assert_eq!(served.look_up(volume, name), Err(ENOENT), "{name}");
        assert_eq!(served.look_up(ROOT, name), Err(ENOENT), "{name}");
    }
    for name in [
        "../new",
        "/new",
        "relative/new",
        "../../new",
        outside.to_str().unwrap(),
    ] {
        let refused = |what: Result<Vec<u8>, i32>| assert!(what.is_err(), "{name}");
        refused(served.driver.ask(MKDIR, volume, &named(&[0o755, 0], name)));
        refused(served.driver.ask(UNLINK, volume, &named(&[], name)));
        let body = [named(&[], name), named(&[], "target")].concat();
        refused(served.driver.ask(SYMLINK, volume, &body));
        let to = [volume as u32, (volume >> 32) as u32];
        let body = [named(&to, "file"), named(&[], name)].concat();
        refused(served.driver.ask(RENAME, volume, &body));
        let from = [file as u32, (file >> 32) as u32];
        refused(served.driver.ask(LINK, volume, &named(&from, name)));
        refused(
            served
                .make_node(volume, name, libc::S_IFREG | 0o600, 0)
                .map(|()| Vec::new()),
        );
    }
    assert_eq!(names(&directory), before);
    assert_eq!(fs::read(&outside).unwrap(), b"secret");
}

#[test]
fn numbers_that_were_never_given_are_no_files() {
    let (mut served, volume) = served();
    let file = served.look_up(volume, "file").unwrap();
    let handle = served.open(file, RDONLY).unwrap();
    for number in [
        0,
        2,
        3,
        file + 1,
        file + (1 << 48),
        1 << 63,
        volume + 1,
        u64::MAX,
    ] {
        assert!(
            matches!(served.look_up(number, "file"), Err(ESTALE | EBADF)),
            "{number:#x}"
        );
        for opcode in [GETATTR, OPENDIR] {
            let answer = served.driver.ask(opcode, number, &[0; 16]);
            assert!(matches!(answer, Err(ESTALE | EBADF)), "{number:#x}");
        }
        assert!(matches!(served.read(number, handle), Err(ESTALE | EBADF)));
        assert_eq!(served.read(file, number), Err(EBADF), "{number:#x}");
    }
    // A handle belongs to its file.
    assert_eq!(served.read(volume, handle), Err(EBADF));
    assert_eq!(served.read(file, handle).unwrap(), b"mine");
    // More is forgotten than was given; what is a volume is found again.
    for number in [file, file, volume, volume, volume + 1, u64::MAX] {
        let request = message(FORGET, number, &u64::MAX.to_le_bytes());
        assert_eq!(served.driver.exchange(&request).unwrap(), b"");
    }
    assert_eq!(served.read(file, handle).unwrap(), b"mine");
    assert_eq!(served.open(file, RDONLY), Err(EBADF));
    assert!(served.look_up(volume, "file").is_ok());
}

pub(super) fn message(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut message = (40 + body.len() as u32).to_le_bytes().to_vec();
    message.extend(opcode.to_le_bytes());
    message.extend(7_u64.to_le_bytes());
    message.extend(node.to_le_bytes());
    message.extend([0; 16]);
    message.extend(body);
    message
}

/// The library ends the program at what it cannot decode: with status 1, by its own decision. Nothing else may
/// end it, and it must not hang.
#[test]
fn what_makes_no_sense_is_answered_or_ends_it_in_order() {
    let (mut served, mut volume) = self::served();
    let mut ends = 0;
    for opcode in (0..=56).chain([4096, u32::MAX]) {
        for body in [
            &[][..],
            &[0; 1],
            &[0xff; 7],
            &[0xff; 40],
            &[0; 200],
            &[b'/'; 4096],
        ] {
            let request = message(opcode, volume, body);
            match served.driver.exchange(&request) {
                Some(reply) => assert!(reply.is_empty() || reply.len() >= 16, "{opcode}"),
                None => {
                    let status = served.child.wait().unwrap();
                    assert_eq!(status.code(), Some(1), "{opcode} {}: {status}", body.len());
                    ends += 1;
                    (served, volume) = self::served();
                }
            }
        }
    }
    println!("It ended {ends} times");
    // Shorter than a header.
    let short = message(LOOKUP, volume, b"file\0");
    if served.driver.exchange(&short[..39]).is_none() {
        assert_eq!(served.child.wait().unwrap().code(), Some(1));
        (served, volume) = self::served();
    }
    // Other lengths than there are bytes.
    for length in [0_u32, 39, 44, 4096, u32::MAX] {
        let mut request = short.clone();
        request[..4].copy_from_slice(&length.to_le_bytes());
        if served.driver.exchange(&request).is_none() {
            assert_eq!(served.child.wait().unwrap().code(), Some(1), "{length}");
            (served, volume) = self::served();
        }
    }
    let _ = volume;
}
