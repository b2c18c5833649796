//! Chains as a hostile driver makes them. After each: an error status or DEVICE_NEEDS_RESET, nothing
//! written where it must not be, and a device that works after a reset.

use super::{DATA, FLUSH, GET_ID, HEADERS, IN, OUT, STATUS, Setup, file, header, setups, wait};
use crate::virtio::testing::{FIRST_END, INDIRECT, NEXT, SECOND, SECOND_END, WRITE, get, put};
use bulkhead_vmm_api::DiskSlot;

/// The request works after a reset, and before it the device was silent if it had asked for one.
fn works_after_reset(s: &mut Setup, name: &str) {
    s.reset();
    assert!(!s.notifier.needs_reset(), "{name}");
    assert_eq!(s.ask(IN, 0, 512, true), (0, 513), "{name}");
}

type Buffers = &'static [(u64, u32, bool)];

#[test]
fn requests_that_cannot_be_answered_ask_for_a_reset() {
    let cases: [(&str, Buffers); 12] = [
        ("no status", &[(HEADERS, 16, false)]),
        ("no header", &[(STATUS, 1, true)]),
        ("short header", &[(HEADERS, 15, false), (STATUS, 1, true)]),
        ("empty status", &[(HEADERS, 16, false), (STATUS, 0, true)]),
        ("nothing", &[(HEADERS, 0, false)]),
        (
            "readable after writable",
            &[(HEADERS, 16, false), (STATUS, 1, true), (DATA, 512, false)],
        ),
        (
            "data in the hole",
            &[
                (HEADERS, 16, false),
                (FIRST_END, 512, true),
                (STATUS, 1, true),
            ],
        ),
        (
            "data across the end of a region",
            &[
                (HEADERS, 16, false),
                (FIRST_END - 256, 512, true),
                (STATUS, 1, true),
            ],
        ),
        (
            "data beyond memory",
            &[
                (HEADERS, 16, false),
                (SECOND_END - 1, 2, true),
                (STATUS, 1, true),
            ],
        ),
        (
            "an address that overflows",
            &[
                (HEADERS, 16, false),
                (u64::MAX - 1, 512, true),
                (STATUS, 1, true),
            ],
        ),
        (
            "more than 4 GiB",
            &[
                (HEADERS, 16, false),
                (DATA, u32::MAX, true),
                (STATUS, 1, true),
            ],
        ),
        (
            "header in the hole",
            &[(FIRST_END, 16, false), (STATUS, 1, true)],
        ),
    ];
    for mut s in setups(DiskSlot::ReadWrite(0)) {
        s.bind(&file(64)).unwrap();
        for (name, buffers) in cases {
            s.header(IN, 0);
            s.ring.add(buffers);
            s.kick();
            wait(|| s.notifier.needs_reset().then_some(()));
            assert_eq!(s.ring.used(), None, "{name}");
            // It stays silent until it is reset.
            s.ring.add(&[(HEADERS, 16, false), (STATUS, 1, true)]);
            s.kick();
            assert_eq!(s.ring.used(), None, "{name}");
            works_after_reset(&mut s, name);
        }
    }
}

/// Does to the queue what makes no sense.
type Break = fn(&mut Setup);

#[test]
fn queues_that_make_no_sense_ask_for_a_reset() {
    let cases: [(&str, Break); 9] = [
        ("a loop", |s| {
            s.ring.descriptor(0, HEADERS, 16, NEXT, 1);
            s.ring.descriptor(1, DATA, 512, NEXT | WRITE, 1);
            s.ring.publish(0);
        }),
        ("a descriptor that does not exist", |s| {
            s.ring.descriptor(0, HEADERS, 16, NEXT, 64);
            s.ring.publish(0);
        }),
        ("a head that does not exist", |s| s.ring.publish(64)),
        ("a jump of the available index", |s| {
            s.ring.set_available(65)
        }),
        ("an indirect table that is empty", |s| {
            s.ring.descriptor(0, DATA, 0, INDIRECT, 0);
            s.ring.publish(0);
        }),
        ("an indirect table of an odd size", |s| {
            s.ring.descriptor(0, DATA, 24, INDIRECT, 0);
            s.ring.publish(0);
        }),
        ("an indirect table that goes on", |s| {
            s.ring.descriptor(0, DATA, 32, INDIRECT | NEXT, 1);
            s.ring.descriptor(1, STATUS, 1, WRITE, 0);
            s.ring.publish(0);
        }),
        ("an indirect table in an indirect table", |s| {
            s.ring.descriptor_at(DATA, 0, DATA, 32, INDIRECT, 0);
            s.ring.descriptor(0, DATA, 32, INDIRECT, 0);
            s.ring.publish(0);
        }),
        ("an indirect table beyond memory", |s| {
            s.ring.descriptor(0, SECOND_END, 32, INDIRECT, 0);
            s.ring.publish(0);
        }),
    ];
    for mut s in setups(DiskSlot::ReadWrite(0)) {
        s.bind(&file(64)).unwrap();
        for (name, make) in cases {
            s.header(IN, 0);
            make(&mut s);
            s.kick();
            wait(|| s.notifier.needs_reset().then_some(()));
            assert_eq!(s.ring.used(), None, "{name}");
            works_after_reset(&mut s, name);
        }
    }
}

#[test]
fn what_is_odd_but_allowed_is_served() {
    for mut s in setups(DiskSlot::ReadWrite(0)) {
        s.bind(&file(64)).unwrap();
        // Header, data and status in pieces, some of them empty; the data across two regions that touch.
        put(&s.ram, 0x10_0000 - 256, &[5; 512]);
        s.header(OUT, 3);
        s.ring.add(&[
            (HEADERS, 3, false),
            (HEADERS + 3, 5, false),
            (HEADERS + 8, 8, false),
            (DATA, 0, false),
            (0x10_0000 - 256, 512, false),
            (STATUS, 0, true),
            (STATUS, 1, true),
        ]);
        s.kick();
        assert_eq!(wait(|| s.ring.used()).1, 1);
        assert_eq!(get(&s.ram, STATUS, 1), [0]);
        // An indirect table, and data in the second region.
        s.header(IN, 3);
        let table = 0x8_0000;
        s.ring.descriptor_at(table, 0, HEADERS, 16, NEXT, 1);
        s.ring.descriptor_at(table, 1, SECOND, 512, NEXT | WRITE, 2);
        s.ring.descriptor_at(table, 2, STATUS, 1, WRITE, 0);
        s.ring.descriptor(20, table, 48, INDIRECT, 0);
        s.ring.publish(20);
        s.kick();
        assert_eq!(wait(|| s.ring.used()), (20, 513));
        assert_eq!(get(&s.ram, SECOND, 512), [5; 512]);
        // The status at the end of a buffer of data, which it ends.
        s.header(GET_ID, 0);
        s.ring.add(&[(HEADERS, 16, false), (DATA, 21, true)]);
        s.kick();
        assert_eq!(wait(|| s.ring.used()).1, 21);
        assert_eq!(get(&s.ram, DATA, 4), b"rw0\0");
        assert_eq!(get(&s.ram, DATA + 20, 1), [0]);
        // Data for a request that has none.
        assert_eq!(s.ask(FLUSH, 0, 512, true), (0, 1));
        assert!(!s.notifier.needs_reset());
    }
}

/// The header was copied when the request was taken: what the driver writes there later does not count.
#[test]
fn a_header_that_changes_after_the_check_changes_nothing() {
    for mut s in setups(DiskSlot::ReadWrite(0)) {
        let file = file(64);
        let target = file.try_clone().unwrap();
        s.bind(&file).unwrap();
        put(&s.ram, DATA, &[1; 512]);
        let stop = std::sync::atomic::AtomicBool::new(false);
        let ram = s.ram.clone();
        std::thread::scope(|scope| {
            let (ram, stop) = (&ram, &stop);
            // Between a write within the disk and one far beyond it, as fast as it goes.
            scope.spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    put(ram, HEADERS + 8, &u64::MAX.to_le_bytes());
                    put(ram, HEADERS + 8, &0_u64.to_le_bytes());
                }
            });
            for _ in 0..200 {
                put(&s.ram, HEADERS, &header(OUT, 0)[..8]);
                s.ring
                    .add(&[(HEADERS, 16, false), (DATA, 512, false), (STATUS, 1, true)]);
                s.kick();
                wait(|| s.ring.used());
                assert!(get(&s.ram, STATUS, 1)[0] <= 1);
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert!(!s.notifier.needs_reset());
        assert_eq!(target.metadata().unwrap().len(), 64 * 512);
        works_after_reset(&mut s, "raced header");
    }
}
