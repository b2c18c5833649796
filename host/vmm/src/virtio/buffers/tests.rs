use super::super::queue::{Queue, QueueError};
use super::super::testing::{
    FIRST_END, INDIRECT, NEXT, Ring, SECOND, SECOND_END, WRITE, get, put, ram,
};
use super::{Call, ChainError};
use std::os::fd::AsFd;

#[test]
fn malformed_chains_are_refused() {
    type Case = (&'static str, fn(&mut Ring), fn(&ChainError) -> bool);
    let cases: [Case; 14] = [
        (
            "loop of one",
            |r| r.descriptor(0, 0x1000, 8, NEXT, 0),
            |e| matches!(e, ChainError::TooLong),
        ),
        (
            "loop of two",
            |r| {
                r.descriptor(0, 0x1000, 8, NEXT, 1);
                r.descriptor(1, 0x1000, 8, NEXT, 0);
            },
            |e| matches!(e, ChainError::TooLong),
        ),
        (
            "next beyond the table",
            |r| r.descriptor(0, 0x1000, 8, NEXT, 8),
            |e| matches!(e, ChainError::Index(8)),
        ),
        (
            "in the hole",
            |r| r.descriptor(0, FIRST_END, 8, 0, 0),
            |e| matches!(e, ChainError::Range(..)),
        ),
        (
            "into the hole",
            |r| r.descriptor(0, FIRST_END - 4, 8, 0, 0),
            |e| matches!(e, ChainError::Range(..)),
        ),
        (
            "across the hole",
            |r| r.descriptor(0, FIRST_END - 4, 0x20_0008, 0, 0),
            |e| matches!(e, ChainError::Range(..)),
        ),
        (
            "behind the end",
            |r| r.descriptor(0, SECOND_END, 1, 0, 0),
            |e| matches!(e, ChainError::Range(..)),
        ),
        (
            "around the end",
            |r| r.descriptor(0, u64::MAX - 3, 8, WRITE, 0),
            |e| matches!(e, ChainError::Range(..)),
        ),
        (
            "huge",
            |r| r.descriptor(0, 0x1000, u32::MAX, 0, 0),
            |e| matches!(e, ChainError::Range(..)),
        ),
        (
            "readable after writable",
            |r| {
                r.descriptor(0, 0x1000, 8, WRITE | NEXT, 1);
                r.descriptor(1, 0x1000, 8, 0, 0);
            },
            |e| matches!(e, ChainError::Order),
        ),
        (
            "indirect of odd size",
            |r| r.descriptor(0, 0x1000, 17, INDIRECT, 0),
            |e| matches!(e, ChainError::Indirect),
        ),
        (
            "empty indirect",
            |r| r.descriptor(0, 0x1000, 0, INDIRECT, 0),
            |e| matches!(e, ChainError::Indirect),
        ),
        (
            "indirect and next",
            |r| r.descriptor(0, 0x1000, 16, INDIRECT | NEXT, 1),
            |e| matches!(e, ChainError::Indirect),
        ),
        (
            "nested indirect",
            |r| {
                r.descriptor(0, 0x1000, 32, INDIRECT, 0);
                r.descriptor_at(0x1000, 0, 0x2000, 16, INDIRECT, 0);
            },
            |e| matches!(e, ChainError::Indirect),
        ),
    ];
    for (name, setup, expected) in cases {
        let ram = ram();
        let mut ring = Ring::new(&ram, 0x1_0000, 8);
        setup(&mut ring);
        ring.publish(0);
        match ring.queue().pop(&ram) {
            Err(QueueError::Chain(error)) => assert!(expected(&error), "{name}: {error:?}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn indirect_tables_are_followed_within_bounds() {
    let ram = ram();
    let mut ring = Ring::new(&ram, 0x1_0000, 4);
    ring.descriptor(0, 0x2000, 3 * 16, INDIRECT, 0);
    ring.descriptor_at(0x2000, 0, 0x3000, 10, NEXT, 2);
    ring.descriptor_at(0x2000, 2, 0x4000, 20, WRITE, 0);
    ring.publish(0);
    let chain = ring.queue().pop(&ram).unwrap().unwrap();
    assert_eq!((chain.readable.len(), chain.writable.len()), (10, 20));

    // A next beyond the indirect table, though within the queue's.
    ring.descriptor_at(0x2000, 0, 0x3000, 10, NEXT, 3);
    ring.descriptor(3, 0x4000, 1, 0, 0);
    assert!(ring.queue().pop(&ram).is_err());

    // A table that does not lie in memory, and one with more buffers than the queue has.
    ring.descriptor(0, FIRST_END, 16, INDIRECT, 0);
    assert!(ring.queue().pop(&ram).is_err());
    ring.descriptor(0, 0x2000, 5 * 16, INDIRECT, 0);
    for index in 0..5 {
        let flags = if index < 4 { NEXT } else { 0 };
        ring.descriptor_at(0x2000, index, 0x3000, 1, flags, index + 1);
    }
    assert!(ring.queue().pop(&ram).is_err());
}

#[test]
fn parts_come_off_at_both_ends() {
    let ram = ram();
    let mut ring = Ring::new(&ram, 0x1_0000, 8);
    ring.add(&[(0x2000, 3, false), (0x3000, 0, false), (0x4000, 5, false)]);
    put(&ram, 0x2000, b"abc");
    put(&ram, 0x4000, b"defgh");
    let mut buffers = ring.queue().pop(&ram).unwrap().unwrap().readable;
    assert!(buffers.take_back(9).is_none());
    let mut back = buffers.take_back(2).unwrap();
    let mut bytes = [0; 2];
    back.read(&ram, &mut bytes).unwrap();
    assert_eq!(&bytes, b"gh");
    let mut bytes = [0; 4];
    buffers.read(&ram, &mut bytes).unwrap();
    assert_eq!(&bytes, b"abcd");
    assert_eq!(buffers.len(), 2);
    assert!(buffers.read(&ram, &mut [0; 3]).is_err());
    assert_eq!(buffers.len(), 2);
    assert_eq!(buffers.take_front(100).len(), 2);
    assert!(buffers.is_empty());
}

#[test]
fn a_buffer_across_adjacent_regions_is_split_for_the_kernel() {
    let ram = ram();
    let mut ring = Ring::new(&ram, 0x1_0000, 8);
    // The first two regions meet at 1 MiB.
    ring.add(&[(0x10_0000 - 6, 12, false)]);
    put(&ram, 0x10_0000 - 6, b"hello, world");
    let buffers = ring.queue().pop(&ram).unwrap().unwrap().readable;
    let file = tempfile::tempfile().unwrap();
    let done = buffers
        .vectored(&ram, file.as_fd(), Call::WriteAt(5))
        .unwrap();
    assert_eq!(done, 12);
    ring.add(&[(SECOND, 12, true)]);
    let mut queue: Queue = ring.queue();
    queue.pop(&ram).unwrap();
    let buffers = queue.pop(&ram).unwrap().unwrap().writable;
    buffers
        .vectored(&ram, file.as_fd(), Call::ReadAt(5))
        .unwrap();
    assert_eq!(get(&ram, SECOND, 12), b"hello, world");
}
