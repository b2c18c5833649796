use super::super::testing::{FIRST_END, Ring, SECOND_END, ram};
use super::{Queue, QueueError, QueueLayout};
use crate::virtio::iovecs::Iovecs;
use vm_memory::{Bytes, GuestAddress};

#[test]
fn impossible_layouts_are_refused() {
    let ram = ram();
    let good = Ring::new(&ram, 0x1_0000, 16).layout;
    assert!(Queue::new(&good, &ram, true).is_ok());
    type Case = (&'static str, fn(&mut QueueLayout));
    let cases: [Case; 11] = [
        ("not ready", |l| l.ready = false),
        ("size 0", |l| l.size = 0),
        ("size 3", |l| l.size = 3),
        ("too large", |l| l.size = 32),
        ("table misaligned", |l| l.descriptors += 8),
        ("available misaligned", |l| l.available += 1),
        ("used misaligned", |l| l.used += 2),
        ("table in the hole", |l| l.descriptors = FIRST_END),
        ("available into the hole", |l| l.available = FIRST_END - 16),
        ("used behind the end", |l| l.used = SECOND_END - 4),
        ("table around the end", |l| l.descriptors = u64::MAX - 15),
    ];
    for (name, change) in cases {
        let mut layout = good;
        change(&mut layout);
        let result = Queue::new(&layout, &ram, true);
        assert!(matches!(result, Err(QueueError::Layout)), "{name}");
    }
}

#[test]
fn a_head_in_flight_is_refused() {
    let ram = ram();
    let mut ring = Ring::new(&ram, 0x1_0000, 8);
    let head = ring.add(&[(0x2000, 4, false)]);
    let mut queue = ring.queue();
    let chain = queue.pop(&ram).unwrap().unwrap();
    ring.publish(head);
    assert!(matches!(queue.pop(&ram), Err(QueueError::InFlight(0))));
    // Given back, it may come again.
    let mut queue = ring.queue();
    queue.pop(&ram).unwrap().unwrap();
    queue.push_used(&ram, chain.head, 0).unwrap();
    assert!(queue.pop(&ram).unwrap().is_some());
}

#[test]
fn an_index_too_far_ahead_is_refused() {
    let ram = ram();
    let ring = Ring::new(&ram, 0x1_0000, 8);
    let mut queue = ring.queue();
    assert!(queue.pop(&ram).unwrap().is_none());
    ring.set_available(9);
    assert!(matches!(queue.pop(&ram), Err(QueueError::AvailableIndex)));
    ring.set_available(u16::MAX);
    assert!(matches!(queue.pop(&ram), Err(QueueError::AvailableIndex)));
}

#[test]
fn a_head_beyond_the_table_is_refused() {
    let ram = ram();
    for head in [8, u16::MAX] {
        let mut ring = Ring::new(&ram, 0x1_0000, 8);
        ring.publish(head);
        assert!(ring.queue().pop(&ram).is_err());
    }
}

#[test]
fn indices_wrap() {
    let ram = ram();
    let mut ring = Ring::new(&ram, 0x1_0000, 4);
    let mut queue = ring.queue();
    for round in 0..70_000_u32 {
        let head = ring.add(&[(0x2000, 4, true)]);
        let chain = queue.pop(&ram).unwrap().unwrap();
        assert_eq!(chain.head, head);
        queue.push_used(&ram, head, round).unwrap();
        assert_eq!(ring.used(), Some((u32::from(head), round)));
    }
    assert!(queue.pop(&ram).unwrap().is_none());
}

#[test]
fn what_was_popped_last_can_be_put_back() {
    let ram = ram();
    let mut ring = Ring::new(&ram, 0x1_0000, 4);
    ring.add(&[(0x2000, 4, true)]);
    let mut queue = ring.queue();
    let chain = queue.pop(&ram).unwrap().unwrap();
    queue.undo_pop(&chain);
    assert_eq!(queue.pop(&ram).unwrap().unwrap().head, chain.head);
}

#[test]
fn interrupts_are_wanted_as_the_driver_says() {
    let ram = ram();
    let mut ring = Ring::new(&ram, 0x1_0000, 8);
    let mut queue = ring.queue();
    let flags = GuestAddress(ring.layout.available);
    assert!(!queue.wants_interrupt(&ram).unwrap());
    queue.push_used(&ram, 0, 0).unwrap();
    assert!(queue.wants_interrupt(&ram).unwrap());
    assert!(!queue.wants_interrupt(&ram).unwrap());
    ram.write_obj(1_u16, flags).unwrap();
    queue.push_used(&ram, 0, 0).unwrap();
    assert!(!queue.wants_interrupt(&ram).unwrap());

    // With the event index: only when the index that the driver named is passed.
    let mut queue = Queue::new(&ring.layout, &ram, true).unwrap();
    let event = GuestAddress(ring.layout.available + 4 + 2 * 8);
    ram.write_obj(2_u16, event).unwrap();
    for expected in [false, false, true, false] {
        queue.push_used(&ram, 0, 0).unwrap();
        assert_eq!(queue.wants_interrupt(&ram).unwrap(), expected);
    }
    // Several at once across the named one.
    ram.write_obj(5_u16, event).unwrap();
    for _ in 0..3 {
        queue.push_used(&ram, 0, 0).unwrap();
    }
    assert!(queue.wants_interrupt(&ram).unwrap());

    // What comes before notifications are asked for is not overlooked.
    assert!(!queue.set_notifications(&ram, true).unwrap());
    ring.add(&[(0x2000, 4, true)]);
    assert!(queue.set_notifications(&ram, true).unwrap());
    let told: u16 = ram
        .read_obj(GuestAddress(ring.layout.used + 4 + 8 * 8))
        .unwrap();
    assert_eq!(told, 0);
}

#[test]
fn what_belongs_together_is_shown_together() {
    let ram = ram();
    let mut ring = Ring::new(&ram, 0x1_0000, 8);
    let mut queue = ring.queue();
    for index in 0..3 {
        ring.add(&[(0x8_0000 + 0x100 * index, 16, true)]);
    }
    let (mut readable, mut writable) = (Iovecs::new(&ram), Iovecs::new(&ram));
    for head in 0..3 {
        let taken = queue.pop_into(&ram, &mut readable, &mut writable);
        let taken = taken.unwrap().unwrap();
        assert_eq!(
            (taken.head, taken.writable, taken.writable_parts),
            (head, 16, 1)
        );
        assert_eq!((taken.readable, taken.readable_parts), (0, 0));
        queue.put_used(&ram, head, 16).unwrap();
        assert_eq!(ring.used(), None);
    }
    assert_eq!((readable.len(), writable.len()), (0, 3));
    queue.publish_used(&ram).unwrap();
    for head in 0..3 {
        assert_eq!(ring.used(), Some((head, 16)));
    }
}
