//! The numbers, over a file system that knows a fixed set of names and counts lookups.

use super::{Epoch, Epochs, volume};
use crate::gauge::Gauge;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io;
use std::sync::Mutex;
use std::time::Duration;
use virtiofsd::filesystem::{Context, DirEntry, DirectoryIterator, Entry, FileSystem, ROOT_ID};

const VOLUME: &str = "0123456789ab-7";

fn c(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}

/// Each (parent, name) is an inode that is counted while it is known.
#[derive(Default)]
struct Counting {
    names: Mutex<HashMap<(u64, CString), u64>>,
    counts: Mutex<HashMap<u64, u64>>,
}

struct Nothing;

impl DirectoryIterator for Nothing {
    fn next(&mut self) -> Option<DirEntry<'_>> {
        None
    }
}

impl Counting {
    fn with(names: &[(u64, &str, u64)]) -> Self {
        let this = Self::default();
        for (parent, name, inode) in names {
            this.set(*parent, name, *inode);
        }
        this
    }

    fn set(&self, parent: u64, name: &str, inode: u64) {
        if let Ok(mut names) = self.names.lock() {
            names.insert((parent, c(name)), inode);
        }
    }

    fn count(&self, inode: u64) -> u64 {
        let counts = self.counts.lock().map(|counts| counts.get(&inode).copied());
        counts.ok().flatten().unwrap_or(0)
    }
}

impl FileSystem for Counting {
    type Inode = u64;
    type Handle = u64;
    type DirIter = Nothing;

    fn lookup(&self, _: Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        let names = self.names.lock().map_err(|_| io::ErrorKind::Other)?;
        let inode = names.get(&(parent, name.to_owned())).copied();
        let inode = inode.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        let mut counts = self.counts.lock().map_err(|_| io::ErrorKind::Other)?;
        *counts.entry(inode).or_default() += 1;
        Ok(Entry {
            inode,
            generation: 0,
            attr: Default::default(),
            attr_timeout: Duration::ZERO,
            entry_timeout: Duration::ZERO,
        })
    }

    fn forget(&self, _: Context, inode: u64, count: u64) {
        if let Ok(mut counts) = self.counts.lock() {
            let left = counts.entry(inode).or_default();
            *left = left.saturating_sub(count);
        }
    }

    fn access(&self, _: Context, inode: u64, _: u32) -> io::Result<()> {
        // Answers which inode was asked for.
        Err(io::Error::other(inode.to_string()))
    }

    fn flush(&self, _: Context, inode: u64, handle: u64, _: u64) -> io::Result<()> {
        Err(io::Error::other(format!("{inode} {handle}")))
    }
}

fn epochs(number: u16, names: &[(u64, &str, u64)]) -> Option<Epochs<Counting>> {
    let gauge = Gauge::new().ok()?;
    Epoch::new(number).map(|epoch| Epochs::new(Counting::with(names), epoch, gauge))
}

fn look_up(files: &Epochs<Counting>, parent: u64, name: &str) -> Result<u64, String> {
    let entry = files.lookup(super::nobody(), parent, &c(name));
    entry.map(|entry| entry.inode).map_err(text)
}

/// Which of the library's inodes this number is.
fn is(files: &Epochs<Counting>, number: u64) -> String {
    let answer = files.access(super::nobody(), number, 0);
    answer.err().map(text).unwrap_or_default()
}

fn text(error: io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ESTALE) => "stale".to_owned(),
        Some(libc::EBADF) => "bad".to_owned(),
        Some(libc::ENOENT) => "none".to_owned(),
        Some(libc::EOVERFLOW) => "overflow".to_owned(),
        _ => error.to_string(),
    }
}

#[test]
fn a_volumes_number_is_its_name() {
    for (name, expected) in [
        ("000000000000-0", Some(1 << 63)),
        ("000000000001-2", Some(1 << 63 | 1 << 15 | 2)),
        ("ffffffffffff-32767", Some(u64::MAX)),
        ("ffffffffffff-32768", None),
        ("fffffffffff-1", None),
        ("0123456789AB-7", None),
        ("+123456789ab-7", None),
        ("0123456789ab-07", None),
        ("0123456789ab-+7", None),
        ("0123456789ab-", None),
        ("0123456789ab", None),
        ("..", None),
        ("", None),
    ] {
        assert_eq!(volume::number(&c(name)), expected, "{name}");
        if let Some(number) = expected {
            assert_eq!(volume::name(number), Some(c(name)));
        }
    }
    assert_eq!(volume::name(5), None);
}

#[test]
fn only_numbers_of_its_own_epoch_mean_anything() {
    assert!(Epoch::new(0).is_none() && Epoch::new(0x8000).is_none());
    let names = [(ROOT_ID, "name", 2), (2, "deep", 3)];
    let (Some(old), Some(new)) = (epochs(1, &names), epochs(0x7fff, &names)) else {
        return assert!(Epoch::new(1).is_some());
    };
    let node = look_up(&old, ROOT_ID, "name").unwrap_or(0);
    assert_eq!(is(&old, node), "2");
    assert_eq!(is(&new, node), "stale");
    assert_eq!(look_up(&new, node, "deep"), Err("stale".to_owned()));
    for given in [0, 2, 3, node + (1 << 48), 0x7fff << 48] {
        assert_eq!(is(&old, given), "stale", "{given:#x}");
    }
    assert_eq!(is(&old, ROOT_ID), "1");
    // Handles as well.
    let handle = old.give_handle(Some(0)).ok().flatten().unwrap_or(0);
    let flush = |files: &Epochs<Counting>, handle| {
        let answer = files.flush(super::nobody(), ROOT_ID, handle, 0);
        answer.err().map(text)
    };
    assert_eq!(flush(&old, handle).as_deref(), Some("1 0"));
    assert_eq!(flush(&new, handle).as_deref(), Some("bad"));
    assert_eq!(flush(&old, 0).as_deref(), Some("bad"));
    // What another process gave is not this one's to forget.
    assert!(look_up(&new, ROOT_ID, "name").is_ok());
    new.forget(super::nobody(), node, 1);
    assert_eq!(new.inner.count(2), 1);
    old.batch_forget(super::nobody(), vec![(node, 1)]);
    assert_eq!(old.inner.count(2), 0);
}

#[test]
fn a_volume_is_found_by_a_process_that_was_never_asked_for_it_by_name() {
    let names = [(ROOT_ID, VOLUME, 2), (2, VOLUME, 9)];
    let (Some(old), Some(new)) = (epochs(1, &names), epochs(2, &names)) else {
        return assert!(Epoch::new(1).is_some());
    };
    new.inner.set(ROOT_ID, VOLUME, 5);
    let number = look_up(&old, ROOT_ID, VOLUME).unwrap_or(0);
    assert_eq!(Some(number), volume::number(&c(VOLUME)));
    assert_eq!(
        (is(&old, number), is(&new, number)),
        ("2".into(), "5".into())
    );
    // Below the root only: the same name elsewhere is any file.
    assert_eq!(look_up(&old, number, VOLUME), Ok(1 << 48 | 9));
    // A volume that is gone, or never was.
    assert_eq!(is(&old, number + 1), "stale");
}

#[test]
fn lookups_of_a_volume_are_counted() {
    let Some(files) = epochs(2, &[(ROOT_ID, VOLUME, 2)]) else {
        return assert!(Epoch::new(2).is_some());
    };
    let number = volume::number(&c(VOLUME)).unwrap_or(0);
    let forget = |count| files.forget(super::nobody(), number, count);
    // The guest uses what an earlier process gave it, and the library's inode is held once, however often.
    assert_eq!(is(&files, number), "2");
    for _ in 0..3 {
        assert_eq!(look_up(&files, ROOT_ID, VOLUME), Ok(number));
        assert_eq!(files.inner.count(2), 1);
    }
    forget(3);
    assert_eq!(files.inner.count(2), 1);
    // More than this process gave, for the earlier one gave some.
    forget(7);
    assert_eq!(files.inner.count(2), 0);
    forget(1);
    // Found again, also when the name has another inode then.
    assert_eq!(look_up(&files, ROOT_ID, VOLUME), Ok(number));
    files.inner.set(ROOT_ID, VOLUME, 6);
    assert_eq!(look_up(&files, ROOT_ID, VOLUME), Ok(number));
    assert_eq!((files.inner.count(2), files.inner.count(6)), (0, 1));
    assert_eq!(is(&files, number), "6");
    files.destroy();
    assert!(files.read().is_empty());
}

#[test]
fn a_number_that_does_not_fit_is_none() {
    let Some(files) = epochs(1, &[(ROOT_ID, "name", 1 << 48)]) else {
        return assert!(Epoch::new(1).is_some());
    };
    let answer = look_up(&files, ROOT_ID, "name");
    assert_eq!(answer, Err("overflow".to_owned()));
    assert_eq!(files.inner.count(1 << 48), 0);
}
