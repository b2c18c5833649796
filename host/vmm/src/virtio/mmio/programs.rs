//! Register programs that no driver should write. After each, what is said must have come of it, the pin must be
//! low unless a cause is pending, and the device must work once it has been reset.

use super::{Setup, setup};
use crate::sync::lock;

/// What the device must be like after a program.
#[derive(Debug, Clone, Copy)]
enum Then {
    /// The status register reads so.
    Status(u32),
    /// It asks for a reset.
    NeedsReset,
}

use Then::{NeedsReset, Status};

/// From reset to FEATURES_OK.
const NEGOTIATE: &[(u64, u32)] = &[(0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)];
/// A queue of the one device, as it should be.
const QUEUE: &[(u64, u32)] = &[
    (0x30, 0),
    (0x38, 8),
    (0x80, 0x1_0000),
    (0x90, 0x1_1000),
    (0xa0, 0x1_2000),
];
const GO: &[(u64, u32)] = &[(0x44, 1), (0x70, 15)];

type Program = &'static [&'static [(u64, u32)]];

const PROGRAMS: &[(&str, Program, Then)] = &[
    ("as it should be", &[NEGOTIATE, QUEUE, GO], Status(15)),
    // The status.
    ("DRIVER_OK at once", &[&[(0x70, 15)]], Status(3)),
    ("DRIVER before ACKNOWLEDGE", &[&[(0x70, 2)]], Status(0)),
    (
        "FEATURES_OK before DRIVER",
        &[&[(0x70, 1), (0x70, 9)]],
        Status(1),
    ),
    (
        "bits that do not exist",
        &[&[(0x70, 0xffff_ff30 | 1)]],
        Status(1),
    ),
    (
        "NEEDS_RESET by the driver",
        &[&[(0x70, 1), (0x70, 65)]],
        Status(1),
    ),
    ("a bit taken back", &[NEGOTIATE, &[(0x70, 3)]], Status(11)),
    (
        "FAILED and on",
        &[NEGOTIATE, QUEUE, &[(0x70, 139)], GO],
        Status(139),
    ),
    (
        "FAILED by all bits",
        &[NEGOTIATE, QUEUE, &[(0x70, !0)], GO],
        Status(139),
    ),
    // Features.
    (
        "no VERSION_1",
        &[&[(0x70, 1), (0x70, 3), (0x70, 11)]],
        Status(3),
    ),
    (
        "all features",
        &[&[
            (0x70, 1),
            (0x70, 3),
            (0x24, 0),
            (0x20, !0),
            (0x24, 1),
            (0x20, !0),
            (0x70, 11),
        ]],
        Status(3),
    ),
    (
        "features of a page that is none",
        &[&[
            (0x70, 1),
            (0x70, 3),
            (0x24, 1),
            (0x20, 1),
            (0x24, !0),
            (0x20, 1),
            (0x70, 11),
        ]],
        Status(3),
    ),
    (
        "features after FEATURES_OK",
        &[NEGOTIATE, &[(0x24, 0), (0x20, !0)], QUEUE, GO],
        Status(15),
    ),
    (
        "a page of features that is none",
        &[&[(0x14, !0), (0x24, !0)], NEGOTIATE, QUEUE, GO],
        Status(15),
    ),
    // Queues.
    ("no queue", &[NEGOTIATE, &[(0x70, 15)]], NeedsReset),
    (
        "a queue that is not ready",
        &[NEGOTIATE, QUEUE, &[(0x70, 15)]],
        NeedsReset,
    ),
    ("size 0", &[NEGOTIATE, QUEUE, &[(0x38, 0)], GO], NeedsReset),
    ("size 3", &[NEGOTIATE, QUEUE, &[(0x38, 3)], GO], NeedsReset),
    (
        "size 16 of 8",
        &[NEGOTIATE, QUEUE, &[(0x38, 16)], GO],
        NeedsReset,
    ),
    (
        "size 65536",
        &[NEGOTIATE, QUEUE, &[(0x38, 0x1_0000)], GO],
        NeedsReset,
    ),
    (
        "size 65544",
        &[NEGOTIATE, QUEUE, &[(0x38, 0x1_0008)], GO],
        NeedsReset,
    ),
    (
        "size -1",
        &[NEGOTIATE, QUEUE, &[(0x38, !0)], GO],
        NeedsReset,
    ),
    (
        "table at 8",
        &[NEGOTIATE, QUEUE, &[(0x80, 0x1_0008)], GO],
        NeedsReset,
    ),
    (
        "available at 1",
        &[NEGOTIATE, QUEUE, &[(0x90, 0x1_1001)], GO],
        NeedsReset,
    ),
    (
        "used at 2",
        &[NEGOTIATE, QUEUE, &[(0xa0, 0x1_2002)], GO],
        NeedsReset,
    ),
    (
        "table in the hole",
        &[NEGOTIATE, QUEUE, &[(0x80, 0x20_0000)], GO],
        NeedsReset,
    ),
    (
        "available into the hole",
        &[NEGOTIATE, QUEUE, &[(0x90, 0x1f_fff0)], GO],
        NeedsReset,
    ),
    (
        "used beyond the end",
        &[NEGOTIATE, QUEUE, &[(0xa0, 0x5f_fffc)], GO],
        NeedsReset,
    ),
    (
        "table above 4 GiB",
        &[NEGOTIATE, QUEUE, &[(0x84, 1)], GO],
        NeedsReset,
    ),
    (
        "table around the end",
        &[NEGOTIATE, QUEUE, &[(0x80, 0xffff_fff0), (0x84, !0)], GO],
        NeedsReset,
    ),
    (
        "used around the end",
        &[NEGOTIATE, QUEUE, &[(0xa0, 0xffff_fffc), (0xa4, !0)], GO],
        NeedsReset,
    ),
    // The driver's own harm: the rings lie in plain memory, wherever they overlap.
    (
        "rings on top of one another",
        &[NEGOTIATE, QUEUE, &[(0x90, 0x1_0000), (0xa0, 0x1_0000)], GO],
        Status(15),
    ),
    (
        "a queue before FEATURES_OK",
        &[&[(0x70, 1), (0x70, 3)], QUEUE, GO],
        Status(3),
    ),
    (
        "a selector out of range",
        &[
            NEGOTIATE,
            QUEUE,
            &[
                (0x30, 1),
                (0x38, 0),
                (0x44, 1),
                (0x30, !0),
                (0x38, 0),
                (0x44, 1),
                (0x30, 0),
            ],
            GO,
        ],
        Status(15),
    ),
    (
        "another layout while ready",
        &[
            NEGOTIATE,
            QUEUE,
            &[
                (0x44, 1),
                (0x38, 3),
                (0x80, 8),
                (0x84, !0),
                (0x90, 1),
                (0xa0, 1),
            ],
            GO,
        ],
        Status(15),
    ),
    (
        "another layout after DRIVER_OK",
        &[
            NEGOTIATE,
            QUEUE,
            GO,
            &[(0x44, 0), (0x38, 3), (0x80, 8), (0x84, !0), (0x44, 1)],
        ],
        Status(15),
    ),
    (
        "ready, and then not",
        &[NEGOTIATE, QUEUE, &[(0x44, 1), (0x44, 0), (0x70, 15)]],
        NeedsReset,
    ),
    // Notifications, acknowledgements, registers that are not there.
    (
        "notifications before DRIVER_OK",
        &[&[(0x50, 0)], NEGOTIATE, &[(0x50, 0)], QUEUE, GO],
        Status(15),
    ),
    (
        "notifications of queues that are none",
        &[NEGOTIATE, QUEUE, GO, &[(0x50, 1), (0x50, !0)]],
        Status(15),
    ),
    (
        "acknowledging what is not pending",
        &[&[(0x64, !0)], NEGOTIATE, QUEUE, GO, &[(0x64, !0)]],
        Status(15),
    ),
    (
        "registers to read only, or none at all",
        &[
            NEGOTIATE,
            QUEUE,
            GO,
            &[
                (0, 0),
                (4, 1),
                (8, 9),
                (0xc, 0),
                (0x10, !0),
                (0x34, !0),
                (0x60, !0),
                (0x68, 1),
                (0xfc, 7),
                (0xc0, 1),
            ],
        ],
        Status(15),
    ),
    (
        "shared memory",
        &[NEGOTIATE, QUEUE, GO, &[(0xac, 0), (0xb0, 1), (0xbc, 1)]],
        Status(15),
    ),
];

/// How often the pin must have been raised and lowered: in turn, and be low at last.
fn assert_low(s: &Setup, name: &str) {
    let levels = lock(&s.levels);
    for (index, level) in levels.iter().enumerate() {
        assert_eq!(*level, index % 2 == 0, "{name}: {levels:?}");
    }
    assert_ne!(levels.last(), Some(&true), "{name}");
}

fn works(s: &mut Setup, name: &str) {
    use crate::virtio::testing::{Ring, put};
    s.write(0x70, 0);
    assert_eq!((s.read(0x70), s.read(0x60)), (0, 0), "{name}");
    assert_eq!((s.read(0x44), s.read(0x34)), (0, 8), "{name}");
    assert_low(s, name);
    put(&s.ram, 0x1_0000, &[0; 0x3000]);
    s.start();
    let mut ring = Ring::new(&s.ram, 0x1_0000, 8);
    (ring.layout.available, ring.layout.used) = (0x1_1000, 0x1_2000);
    ring.add(&[(0x2_0000, 16, true)]);
    s.rng.serve();
    assert_eq!(ring.used(), Some((0, 16)), "{name}");
    assert_eq!(s.read(0x60), 1, "{name}");
    s.write(0x64, 1);
    assert_low(s, name);
}

#[test]
fn no_program_of_register_writes_does_harm() {
    for (name, program, then) in PROGRAMS {
        let mut s = setup();
        for (offset, value) in program.iter().copied().flatten() {
            s.write(*offset, *value);
            s.rng.serve();
        }
        match then {
            Status(status) => assert_eq!(s.read(0x70), *status, "{name}"),
            NeedsReset => {
                assert_eq!(s.read(0x70), 15 | 64, "{name}");
                assert_eq!(s.read(0x60), 2, "{name}");
            }
        }
        works(&mut s, name);
    }
}

#[test]
fn no_width_or_offset_reads_or_writes_beyond_a_register() {
    let mut s = setup();
    s.start();
    for offset in (0..0x220).chain([0xff8, 0xfff, 0x1000, u64::MAX - 8, u64::MAX]) {
        for width in 0..=8 {
            let mut data = vec![0xee; width];
            s.window.read(offset, &mut data);
            let whole = width == 4 && offset % 4 == 0 && offset < 0x100;
            // The device has no configuration space, so all that is no register is zero.
            assert!(
                whole || data.iter().all(|byte| *byte == 0),
                "{offset:#x} {width}"
            );
            if width != 4 || offset >= 0x100 || offset % 4 != 0 {
                s.window.write(offset, &vec![0xff; width]);
            }
        }
    }
    assert_eq!((s.read(0x70), s.read(0x44)), (15, 1));
    works(&mut s, "odd accesses");
}
