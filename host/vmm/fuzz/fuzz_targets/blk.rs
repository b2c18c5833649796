//! A driver's whole conversation with a disk: read-write, read-only or an empty slot. A file behind a
//! read-only slot is the same afterwards.
#![no_main]

use bulkhead_vmm::devices::blk::Disk;
use bulkhead_vmm_api::DiskSlot;
use bulkhead_vmm_fuzz::Driver;
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::os::unix::fs::FileExt;

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
    let file: File = memfd_create("disk", MemfdFlags::CLOEXEC)
        .expect("a file")
        .into();
    file.write_all_at(&CONTENT, 0).expect("a file");
    let mut driver = Driver::new(|ram, notifier| Disk::new(slot, ram, notifier).expect("a disk"));
    if kind % 3 == 0 {
        driver.run(input, |disk| disk.serve_empty());
    } else {
        driver.device().set_sectors(SECTORS);
        driver.run(input, |disk| disk.serve_file(&file));
    }
    if slot == DiskSlot::ReadOnly(0) {
        let mut now = [0; CONTENT.len()];
        file.read_exact_at(&mut now, 0).expect("a file");
        assert_eq!(now, CONTENT);
    }
    assert_eq!(file.metadata().expect("a file").len(), 512 * SECTORS);
});
