use super::private_bytes;
use crate::record::{FileDaemonRecord, VmmIdentity};
use crate::vm::start_ticks;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io::Write;

fn record(start_ticks: u64) -> FileDaemonRecord {
    FileDaemonRecord {
        identity: VmmIdentity {
            pid: std::process::id().try_into().unwrap(),
            start_ticks,
            user: 0,
        },
        epoch: 2,
    }
}

#[test]
fn a_process_is_asked_for_what_it_holds() {
    let record = record(start_ticks(std::process::id().try_into().unwrap()).unwrap());
    let before = record.gauges().unwrap();
    assert_eq!((before.epoch, before.inodes), (2, None));
    assert!(before.private_bytes > 4096, "{before:?}");
    let mut file = File::from(memfd_create("bulkhead-inodes", MemfdFlags::CLOEXEC).unwrap());
    // Nothing has been told yet.
    assert!(record.gauges().is_err());
    file.write_all(&300_000_u64.to_ne_bytes()).unwrap();
    assert_eq!(record.gauges().unwrap().inodes, Some(300_000));
}

#[test]
fn another_process_by_the_same_number_is_not_asked() {
    let error = record(1).gauges().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn memory_of_its_own_is_what_is_private() {
    let smaps = "Rss: 900 kB\nShared_Clean: 100 kB\nPrivate_Clean:  8 kB\nPrivate_Dirty: 300 kB\n";
    assert_eq!(private_bytes(smaps), 308 * 1024);
    assert_eq!(private_bytes("Private_Dirty: no kB\n"), 0);
}
