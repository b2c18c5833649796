//! A driver's whole conversation with a disk, whose thread serves it as in the VMM: read-write, read-only or
//! an empty slot, by io_uring where this host has one or by threads, with limits or without. Several requests
//! are in flight at a time. A file behind a read-only slot is the same afterwards, and no file grows.
#![no_main]

use bulkhead_vmm::devices::blk::{Disk, EngineKind, Service};
use bulkhead_vmm::virtio::Device;
use bulkhead_vmm_api::{DiskSlot, Rate, RateLimits};
use bulkhead_vmm_fuzz::Driver;
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const SECTORS: u64 = 16;
const CONTENT: [u8; 512 * SECTORS as usize] = [0x5a; 512 * SECTORS as usize];

fuzz_target!(|input: &[u8]| {
    let Some((kind, input)) = input.split_first() else {
        return;
    };
    let slot = match kind % 2 {
        0 => DiskSlot::ReadWrite(0),
        _ => DiskSlot::ReadOnly(0),
    };
    let engine = if kind & 0x40 == 0 {
        None
    } else {
        Some(EngineKind::Pool)
    };
    let ops = (kind & 0x80 != 0).then_some(Rate {
        per_second: 100_000,
        burst: 2,
    });
    let file: File = memfd_create("disk", MemfdFlags::CLOEXEC)
        .expect("a file")
        .into();
    file.write_all_at(&CONTENT, 0).expect("a file");
    let mut ram = None;
    let mut driver = Driver::new(|memory, notifier| {
        ram = Some(memory);
        Disk::new(slot, notifier).expect("a disk")
    });
    let disk = Arc::clone(driver.device());
    let ram = ram.expect("memory");
    let mut service = Service::new(ram, vec![Arc::clone(&disk)], engine).expect("a service");
    let stop = Arc::<AtomicBool>::default();
    let stopped = Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        while !stopped.load(Ordering::SeqCst) {
            service.turn().expect("the host goes on");
        }
    });
    if kind % 3 != 0 {
        let limits = RateLimits { ops, bytes: None };
        disk.bind(of_slot(&file, slot), &limits)
            .expect("a bound disk");
    }
    // The doorbell is the machine's to turn into a kick; here each step rings.
    driver.run(input, |disk| {
        let _ = disk.kick().write(1);
    });
    let ended = Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
    if !disk.unbind(&ended) {
        // What is running ends by itself.
        disk.reset();
    }
    assert!(disk.is_empty());
    stop.store(true, Ordering::SeqCst);
    let _ = disk.kick().write(1);
    thread.join().expect("no panic");
    if slot == DiskSlot::ReadOnly(0) {
        let mut now = [0; CONTENT.len()];
        file.read_exact_at(&mut now, 0).expect("a file");
        assert_eq!(now, CONTENT);
    }
    assert_eq!(file.metadata().expect("a file").len(), 512 * SECTORS);
});

/// The file as a slot of this kind takes it.
fn of_slot(file: &File, slot: DiskSlot) -> File {
    match slot {
        DiskSlot::ReadWrite(_) => file.try_clone().expect("a file"),
        DiskSlot::ReadOnly(_) => {
            File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("a file")
        }
    }
}
