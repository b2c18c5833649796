//! A kernel image from an administrator's disk: loaded inside of memory, or refused.
#![no_main]

use bulkhead_vmm::machine::image::{load_initrd, load_kernel};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::os::unix::fs::FileExt;

fuzz_target!(|input: &[u8]| {
    let file: File = memfd_create("kernel", MemfdFlags::CLOEXEC)
        .expect("a file")
        .into();
    file.write_all_at(input, 0).expect("a file");
    let ram = bulkhead_vmm_fuzz::ram();
    if let Ok(kernel) = load_kernel(&ram, &file) {
        assert!(
            kernel.end <= 0x60_0000 && kernel.entry < kernel.end,
            "{kernel:?}"
        );
        let _ = load_initrd(&ram, &file, 0x20_0000, kernel);
    }
});
