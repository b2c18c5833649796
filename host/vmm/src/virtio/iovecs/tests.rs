use super::Iovecs;
use crate::machine::memory::GuestRam;
use crate::virtio::testing::{FIRST_END, SECOND, get, put, ram};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use vm_memory::GuestAddress;

fn list(ram: &GuestRam, parts: &[(u64, u32)]) -> Iovecs {
    let mut list = Iovecs::new(ram);
    for (address, length) in parts {
        list.push(ram, GuestAddress(*address), *length).unwrap();
    }
    list
}

fn pair() -> (UnixDatagram, OwnedFd) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    (ours, theirs.into())
}

#[test]
fn ranges_are_split_where_mappings_meet_and_refused_outside() {
    let ram = ram();
    assert_eq!(list(&ram, &[(0x1000, 10), (0xf_fff0, 0x20)]).len(), 3);
    assert!(list(&ram, &[(0x1000, 0)]).is_empty());
    let mut wrong = Iovecs::new(&ram);
    for (address, length) in [(FIRST_END - 1, 2), (SECOND - 1, 1), (u64::MAX, 1)] {
        assert!(wrong.push(&ram, GuestAddress(address), length).is_err());
    }
}

#[test]
fn bytes_are_copied_across_ranges() {
    let ram = ram();
    let ranges = list(&ram, &[(0x1000, 3), (0x2000, 1), (0x3000, 10)]);
    assert_eq!(ranges.copy_in(2, &[1, 2, 3, 4]), 4);
    assert_eq!(get(&ram, 0x1002, 2), [1, 0]);
    assert_eq!(get(&ram, 0x2000, 2), [2, 0]);
    assert_eq!(get(&ram, 0x3000, 3), [3, 4, 0]);
    let mut bytes = [9; 20];
    assert_eq!(ranges.copy_out(1, &mut bytes), 13);
    assert_eq!(bytes[..6], [0, 1, 2, 3, 4, 0]);
    assert_eq!(bytes[13..], [9; 7]);
    assert_eq!(ranges.copy_in(14, &[1]), 0);
}

#[test]
fn ranges_are_taken_from_both_ends() {
    let ram = ram();
    put(&ram, 0x1000, &[1, 2, 3, 4, 5, 6, 7, 8]);
    let rest = |ranges: &Iovecs| {
        let mut bytes = [0; 16];
        let count = ranges.copy_out(0, &mut bytes);
        bytes[..count].to_vec()
    };
    let mut ranges = list(&ram, &[(0x1000, 3), (0x1003, 3), (0x1006, 2)]);
    ranges.drop_bytes(2);
    assert_eq!(rest(&ranges), [3, 4, 5, 6, 7, 8]);
    ranges.drop_bytes(1);
    assert_eq!((rest(&ranges), ranges.len()), (vec![4, 5, 6, 7, 8], 2));
    ranges.keep_bytes(4);
    assert_eq!(rest(&ranges), [4, 5, 6, 7]);
    ranges.keep_bytes(3);
    assert_eq!((rest(&ranges), ranges.len()), (vec![4, 5, 6], 1));
    ranges.drop_bytes(9);
    assert!(ranges.is_empty());
    let mut ranges = list(&ram, &[(0x1000, 1); 3000]);
    for left in (0..3000).rev() {
        ranges.drop_front(1);
        assert_eq!(ranges.len(), left);
    }
}

#[test]
fn a_read_takes_no_more_than_it_may() {
    let ram = ram();
    let (ours, theirs) = pair();
    for most in [0, 1, 2, 3, 5, 7, 8, 100] {
        ours.send(&[9; 20]).unwrap();
        put(&ram, 0x1000, &[0; 0x20]);
        let mut ranges = list(&ram, &[(0x1000, 2), (0x1002, 1), (0x1003, 5)]);
        let expected = most.min(8);
        assert_eq!(ranges.read(theirs.as_fd(), most).unwrap(), expected);
        let bytes = get(&ram, 0x1000, 0x20);
        assert!(bytes.iter().take(expected).all(|byte| *byte == 9));
        assert!(bytes.iter().skip(expected).all(|byte| *byte == 0));
        assert_eq!(ranges.copy_in(0, &[1; 20]), 8);
        if most == 0 {
            let _ = ranges.read(theirs.as_fd(), 8);
        }
    }
}

#[test]
fn bytes_move_from_list_to_list() {
    let ram = ram();
    put(&ram, 0x1000, &[1, 2, 3, 4, 5, 6]);
    let mut ranges = list(&ram, &[(0x1000, 2), (0x1002, 4)]);
    let mut front = Iovecs::new(&ram);
    assert_eq!(ranges.move_front(3, &mut front), 3);
    let mut bytes = [0; 8];
    assert_eq!((front.copy_out(0, &mut bytes), front.len()), (3, 2));
    assert_eq!(bytes[..3], [1, 2, 3]);
    assert_eq!(ranges.copy_out(0, &mut bytes), 3);
    assert_eq!(bytes[..3], [4, 5, 6]);
    assert_eq!(ranges.move_front(9, &mut front), 3);
    assert!(ranges.is_empty());
    assert_eq!(front.copy_out(0, &mut bytes), 6);
}

#[test]
fn calls_reach_memory_of_both_kinds() {
    let ram = ram();
    let (ours, theirs) = pair();
    ours.send(&[1, 2, 3, 4, 5, 6]).unwrap();
    let mut ranges = list(&ram, &[(0x1000, 2), (0x2000, 1), (0x3000, 8)]);
    let mut tail = [0; 8];
    // The third range is not offered and comes back unharmed.
    let count = ranges.read_with_tail(theirs.as_fd(), 2, &mut tail).unwrap();
    assert_eq!((count, tail), (6, [4, 5, 6, 0, 0, 0, 0, 0]));
    assert_eq!(get(&ram, 0x1000, 3), [1, 2, 0]);
    assert_eq!(get(&ram, 0x2000, 2), [3, 0]);
    assert_eq!(get(&ram, 0x3000, 1), [0]);
    assert_eq!(ranges.len(), 3);
    ours.send(&[7; 20]).unwrap();
    assert_eq!(
        ranges.read_with_tail(theirs.as_fd(), 3, &mut tail).unwrap(),
        19
    );
    assert_eq!(get(&ram, 0x3000, 9), [7, 7, 7, 7, 7, 7, 7, 7, 0]);
    assert_eq!(ranges.len(), 3);
    ours.send(&[8; 5]).unwrap();
    assert_eq!(ranges.read(theirs.as_fd(), 100).unwrap(), 5);

    let mut front = [0xaa, 0xbb];
    ranges
        .write_replacing(theirs.as_fd(), &mut front, 4)
        .unwrap();
    let mut packet = [0; 32];
    let length = ours.recv(&mut packet).unwrap();
    assert_eq!(packet[..length], [0xaa, 0xbb, 8, 7, 7, 7, 7, 7, 7]);
    assert!(ranges.is_empty());
}
