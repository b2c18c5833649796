use super::{discard, map, resident};
use crate::machine::image::load_initrd;
use crate::machine::layout::{HOLE_END, HOLE_START};
use rustix::fs::{SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

const MIB: u64 = 1 << 20;

#[test]
fn memory_costs_what_was_touched_and_comes_back() {
    let ram = map(64).unwrap();
    assert_eq!(resident(&ram).unwrap(), 0);
    let content = vec![7; 8 << 20];
    ram.write_slice(&content, GuestAddress(16 * MIB)).unwrap();
    assert_eq!(resident(&ram).unwrap(), 8 * MIB);
    // Pages that are whole; the first and the last are not.
    discard(&ram, GuestAddress(16 * MIB + 1), (8 << 20) - 2).unwrap();
    assert_eq!(resident(&ram).unwrap(), 2 * 4096);
    let mut found = vec![1; 8 << 20];
    ram.read_slice(&mut found, GuestAddress(16 * MIB)).unwrap();
    assert_eq!(found[..4096], content[..4096]);
    assert!(found[4096..(8 << 20) - 4096].iter().all(|byte| *byte == 0));
    assert_eq!(found[(8 << 20) - 4096..], content[..4096]);
}

#[test]
fn memory_above_the_hole_is_the_files_second_part() {
    let ram = map(5 * 1024).unwrap();
    for (at, byte) in [(HOLE_START - 1, 1_u8), (HOLE_END, 2)] {
        ram.write_obj(byte, GuestAddress(at)).unwrap();
    }
    assert_eq!(resident(&ram).unwrap(), 2 * 4096);
    let last = GuestAddress(HOLE_END + 2 * 1024 * MIB - 1);
    ram.write_obj(3_u8, last).unwrap();
    assert_eq!(resident(&ram).unwrap(), 3 * 4096);
    // Nothing is where devices are, and nothing of a range that ends there is lost.
    assert!(discard(&ram, GuestAddress(HOLE_START), 4096).is_err());
    let region = ram.iter().nth(1).unwrap().file_offset().unwrap();
    assert_eq!(region.start(), HOLE_START);
    discard(&ram, GuestAddress(HOLE_END), 4096).unwrap();
    assert_eq!(ram.read_obj::<u8>(GuestAddress(HOLE_END)).unwrap(), 0);
    assert_eq!(ram.read_obj::<u8>(GuestAddress(HOLE_START - 1)).unwrap(), 1);
}

#[test]
fn the_files_size_is_for_good_and_more_seals_can_come() {
    let ram = map(64).unwrap();
    let file = ram.iter().next().unwrap().file_offset().unwrap().file();
    assert!(ftruncate(file, 0).is_err());
    assert!(ftruncate(file, 65 * MIB).is_err());
    let seals = fcntl_get_seals(file).unwrap();
    assert!(seals.contains(SealFlags::GROW | SealFlags::SHRINK));
    fcntl_add_seals(file, SealFlags::FUTURE_WRITE).unwrap();
}

#[test]
fn images_give_way_when_the_guest_frees_them() {
    use std::os::unix::fs::FileExt;
    let ram = map(64).unwrap();
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&vec![9; 2 << 20], 0).unwrap();
    let kernel = crate::machine::image::Kernel {
        entry: MIB,
        end: 2 * MIB,
    };
    let initrd = load_initrd(&ram, &file, 64 * MIB, kernel).unwrap();
    assert_eq!((initrd.start, initrd.length), (62 * MIB, 2 * MIB));
    assert_eq!(resident(&ram).unwrap(), 0);
    // The guest changes a page of it, and uses memory beside it.
    ram.write_slice(&[1; 4096], GuestAddress(62 * MIB)).unwrap();
    ram.write_slice(&[1; 8192], GuestAddress(62 * MIB - 8192))
        .unwrap();
    discard(&ram, GuestAddress(61 * MIB), 2 << 20).unwrap();
    assert_eq!(resident(&ram).unwrap(), 0);
    let byte = |at| ram.read_obj::<u8>(GuestAddress(at)).unwrap();
    assert_eq!(byte(62 * MIB - 1), 0);
    assert_eq!(byte(62 * MIB), 0);
    assert_eq!((byte(63 * MIB - 1), byte(63 * MIB)), (0, 9));
    ram.write_slice(&[7; 4096], GuestAddress(62 * MIB)).unwrap();
    let region = ram.iter().next().unwrap().file_offset().unwrap();
    let mut found = [0; 4096];
    region.file().read_exact_at(&mut found, 62 * MIB).unwrap();
    assert_eq!(found, [7; 4096]);
    // The image's file has not changed.
    file.read_exact_at(&mut found, 0).unwrap();
    assert_eq!(found, [9; 4096]);
    discard(&ram, GuestAddress(0), 64 << 20).unwrap();
    assert_eq!((byte(63 * MIB), byte(0)), (0, 0));
}
