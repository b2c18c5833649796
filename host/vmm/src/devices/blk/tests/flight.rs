//! Several requests in flight: their order, limits, unbinding and resetting meanwhile.

use super::super::engine::held::{Gate, Held};
use super::*;
use crate::virtio::testing::Ring;

/// A slot whose operations begin when the test says so.
fn held() -> (Setup, Gate) {
    let (engine, gate) = Held::new();
    (
        setup_with(DiskSlot::ReadWrite(0), Engine::Held(engine)),
        gate,
    )
}

/// Makes request number `index` available, with memory of its own; answers its head.
fn send(s: &mut Setup, index: u64, kind: u32, sector: u64, length: u32) -> u16 {
    let (head, status) = (HEADERS + 16 * index, STATUS + index);
    put(&s.ram, head, &header(kind, sector));
    put(&s.ram, status, &[0xee]);
    let data = DATA + 0x1000 * index;
    let head = s.ring.add(&[
        (head, 16, false),
        (data, length, kind == IN),
        (status, 1, true),
    ]);
    s.kick();
    head
}

fn status(s: &Setup, index: u64) -> u8 {
    get(&s.ram, STATUS + index, 1)[0]
}

#[test]
fn requests_end_in_the_order_of_their_operations() {
    let (mut s, gate) = held();
    let file = file(64);
    for sector in 0..4_u8 {
        file.write_all_at(&[sector + 1; 512], u64::from(sector) * 512)
            .unwrap();
    }
    s.bind(&file).unwrap();
    let heads: Vec<u16> = (0..4)
        .map(|index| send(&mut s, index, IN, index, 512))
        .collect();
    wait(|| (gate.count() == 4).then_some(()));
    assert_eq!(s.ring.used(), None);
    // By place among those that still wait: 2, 0, 3, 1.
    for (place, request) in [(2, 2), (0, 0), (1, 3), (0, 1)] {
        gate.release(place);
        let (head, length) = wait(|| s.ring.used());
        assert_eq!((head, length), (heads[request].into(), 513));
        assert_eq!(status(&s, request as u64), 0);
        let data = get(&s.ram, DATA + 0x1000 * request as u64, 512);
        assert_eq!(data, [request as u8 + 1; 512]);
    }
    assert!(!s.notifier.needs_reset());
}

#[test]
fn a_head_in_flight_is_refused() {
    let (mut s, gate) = held();
    s.bind(&file(64)).unwrap();
    let head = send(&mut s, 0, IN, 0, 512);
    wait(|| (gate.count() == 1).then_some(()));
    s.ring.publish(head);
    s.kick();
    wait(|| s.notifier.needs_reset().then_some(()));
    // The operation still ends, and nobody is told of it.
    gate.release(0);
    s.reset();
    assert_eq!(s.ring.used(), None);
    send(&mut s, 1, IN, 0, 512);
    wait(|| (gate.count() == 1).then_some(()));
    gate.release(0);
    assert_eq!(wait(|| s.ring.used()).1, 513);
}

#[test]
fn a_reset_waits_for_what_uses_guest_memory() {
    let (mut s, gate) = held();
    let file = file(64);
    file.write_all_at(&[4; 512], 0).unwrap();
    s.bind(&file).unwrap();
    send(&mut s, 0, IN, 0, 512);
    wait(|| (gate.count() == 1).then_some(()));
    let disk = Arc::clone(&s.disk);
    let resetting = std::thread::spawn(move || disk.reset());
    std::thread::sleep(Duration::from_millis(30));
    assert!(!resetting.is_finished());
    gate.release(0);
    resetting.join().unwrap();
    // It was not answered: the queue is gone.
    assert_eq!((s.ring.used(), status(&s, 0)), (None, 0xee));
    s.notifier.reset();
    s.activate();
    send(&mut s, 1, IN, 0, 512);
    wait(|| (gate.count() == 1).then_some(()));
    gate.release(0);
    assert_eq!(wait(|| s.ring.used()).1, 513);
}

#[test]
fn a_slot_is_empty_when_its_last_operation_has_ended() {
    let (mut s, gate) = held();
    let one = file(64);
    s.bind(&one).unwrap();
    for index in 0..2 {
        send(&mut s, index, OUT, index, 512);
    }
    wait(|| (gate.count() == 2).then_some(()));
    assert!(!s.disk.unbind(&s.ended));
    assert!(!s.disk.unbind(&s.ended));
    assert!(matches!(s.bind(&file(8)), Err(BindError::Draining)));
    // What comes now is refused without touching the file.
    send(&mut s, 2, OUT, 0, 512);
    wait(|| s.ring.used());
    assert_eq!((status(&s, 2), gate.count()), (1, 2));
    gate.release(0);
    wait(|| s.ring.used());
    assert!(s.ended.read().is_err() && !s.disk.is_empty());
    gate.release(0);
    wait(|| s.ended.read().ok());
    assert!(s.disk.is_empty());
    // The disk has let go of the file: a lease needs that nobody else holds it.
    assert_eq!(holders(&one), 1);
    wait(|| s.ring.used());
    s.bind(&file(8)).unwrap();
}

/// How many descriptors of this process are of this open file or duplicates of it.
fn holders(file: &File) -> usize {
    let of = |fd: &std::path::Path| std::fs::read_link(fd).ok();
    use std::os::fd::AsRawFd;
    let own = of(format!("/proc/self/fd/{}", file.as_raw_fd()).as_ref());
    let all = std::fs::read_dir("/proc/self/fd").unwrap();
    all.filter(|entry| of(&entry.as_ref().unwrap().path()) == own)
        .count()
}

#[test]
fn a_driver_without_flush_has_its_writes_flushed() {
    let (mut s, gate) = held();
    s.bind(&file(64)).unwrap();
    s.disk.reset();
    s.notifier.reset();
    s.ring = Ring::new(&s.ram, 0x1_0000, 64);
    put(&s.ram, 0x1_0000, &[0; 0xc000]);
    s.notifier.activate();
    s.disk.activate(vec![s.ring.queue()], 0);
    send(&mut s, 0, OUT, 0, 512);
    for _ in ["the write", "the flush"] {
        wait(|| (gate.count() == 1).then_some(()));
        assert_eq!(s.ring.used(), None);
        gate.release(0);
    }
    assert_eq!(wait(|| s.ring.used()).1, 1);
    assert_eq!(status(&s, 0), 0);
}

#[test]
fn many_requests_of_all_kinds_are_all_answered() {
    for mut s in setups(DiskSlot::ReadWrite(0)) {
        let file = file(256);
        s.bind(&file).unwrap();
        for round in 0..50_u64 {
            let mut waiting = std::collections::BTreeSet::new();
            for index in 0..16 {
                let kind = match (round + index) % 4 {
                    0 => IN,
                    1 | 2 => OUT,
                    _ => FLUSH,
                };
                let data = DATA + 0x1000 * index;
                if kind == OUT {
                    put(&s.ram, data, &[index as u8 + 1; 512]);
                }
                waiting.insert(u32::from(send(&mut s, index, kind, index, 512)));
            }
            while !waiting.is_empty() {
                let (head, _) = wait(|| s.ring.used());
                assert!(waiting.remove(&head));
            }
            assert!((0..16).all(|index| status(&s, index) == 0));
        }
        let bytes = content(&file);
        assert!((0..16).all(|index| bytes[512 * index] == index as u8 + 1));
        assert!(!s.notifier.needs_reset());
    }
}

#[test]
fn limits_hold_back_what_is_over_them_and_no_more() {
    for mut s in setups(DiskSlot::ReadWrite(0)) {
        let rate = |per_second, burst| Some(Rate { per_second, burst });
        for limits in [
            RateLimits {
                ops: rate(100, 4),
                bytes: None,
            },
            RateLimits {
                ops: None,
                bytes: rate(51_200, 2048),
            },
        ] {
            s.bind_limited(&file(64), limits).unwrap();
            let start = Instant::now();
            for index in 0..14 {
                send(&mut s, index, IN, 0, 512);
            }
            for _ in 0..14 {
                wait(|| s.ring.used());
            }
            // Four at once, and ten at a hundred a second.
            assert!(start.elapsed() >= Duration::from_millis(99), "{limits:?}");
            s.unbind();
        }
    }
}

#[test]
fn what_waits_for_its_limits_does_not_hold_up_the_end() {
    for mut s in setups(DiskSlot::ReadWrite(0)) {
        let hardly = Some(Rate {
            per_second: 1,
            burst: 1,
        });
        let limits = RateLimits {
            ops: hardly,
            bytes: None,
        };
        let start = Instant::now();
        s.bind_limited(&file(64), limits).unwrap();
        for index in 0..30 {
            send(&mut s, index % 8, IN, 0, 512);
            if index % 8 == 7 {
                s.reset();
            }
        }
        s.unbind();
        assert!(start.elapsed() < Duration::from_secs(5));
        s.reset();
        assert_eq!(s.ask(IN, 0, 512, true).0, 1);
    }
}
