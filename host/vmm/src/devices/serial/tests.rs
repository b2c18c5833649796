use super::{RING, Serial};

#[test]
fn the_ring_keeps_the_newest_and_never_grows() {
    let serial = Serial::new(Box::new(|| {}));
    for index in 0..(3 * RING) {
        serial.write(0, (index % 251) as u8);
    }
    let all = serial.newest(usize::MAX);
    assert_eq!(all.len(), RING);
    assert_eq!(all.last(), Some(&(((3 * RING - 1) % 251) as u8)));
    assert_eq!(serial.newest(5), all[RING - 5..]);
    assert_eq!(serial.newest(0), b"");
    assert_eq!(serial.counters().named("console").bytes, 3 * RING as u64);
}

#[test]
fn what_a_driver_loops_back_is_bounded() {
    let serial = Serial::new(Box::new(|| {}));
    serial.write(4, 0x10);
    for _ in 0..10_000 {
        serial.write(0, b'x');
    }
    assert!(serial.newest(usize::MAX).is_empty());
    assert_eq!(serial.read(0), b'x');
}
