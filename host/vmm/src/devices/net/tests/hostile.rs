//! What a driver gets wrong, and what it may say on the control queue.

use super::super::features::{
    CSUM, CTRL_VQ, GUEST_TSO4, HOST_ECN, HOST_TSO4, HOST_TSO6, HOST_USO, MQ, MRG_RXBUF,
};
use super::{DATA, H, HEADER, Setup, setup, setup_with};
use crate::devices::net::Net;
use crate::virtio::Device;
use crate::virtio::testing::{
    FIRST_END, INDIRECT, NEXT, SECOND_END, WRITE, get, notifier, put, ram,
};

/// A header: flags, segmentation, its own length, segment size, where the sum starts and where it goes.
fn header(flags: u8, gso: u8, fields: [u16; 4]) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    (header[0], header[1]) = (flags, gso);
    for (to, field) in header[2..].chunks_exact_mut(2).zip(fields) {
        to.copy_from_slice(&field.to_le_bytes());
    }
    header
}

#[test]
fn headers_are_checked_on_their_way_to_the_host() {
    const ALL: u64 = CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_USO;
    let tso = [54, 1448, 34, 16];
    let max = u16::MAX;
    let cases = [
        ("plain", header(0, 0, [0; 4]), 0, true),
        ("partial checksum", header(1, 0, [0, 0, 34, 16]), CSUM, true),
        ("not negotiated", header(1, 0, [0, 0, 34, 16]), 0, false),
        (
            "sum ends at the end",
            header(1, 0, [0, 0, 96, 2]),
            CSUM,
            true,
        ),
        (
            "sum beyond the end",
            header(1, 0, [0, 0, 97, 2]),
            CSUM,
            false,
        ),
        ("sum far away", header(1, 0, [0, 0, max, max]), CSUM, false),
        ("TCP over IPv4", header(1, 1, tso), CSUM | HOST_TSO4, true),
        ("TCP over IPv6", header(1, 4, tso), CSUM | HOST_TSO6, true),
        ("UDP", header(1, 5, tso), CSUM | HOST_USO, true),
        ("with ECN", header(1, 0x81, tso), ALL, true),
        (
            "ECN not negotiated",
            header(1, 0x81, tso),
            ALL & !HOST_ECN,
            false,
        ),
        ("ECN of UDP", header(1, 0x85, tso), ALL, false),
        (
            "TSO4 not negotiated",
            header(1, 1, tso),
            ALL & !HOST_TSO4,
            false,
        ),
        (
            "TSO6 not negotiated",
            header(1, 4, tso),
            ALL & !HOST_TSO6,
            false,
        ),
        (
            "USO not negotiated",
            header(1, 5, tso),
            ALL & !HOST_USO,
            false,
        ),
        ("UDP fragments", header(1, 3, tso), ALL, false),
        ("unknown kind", header(1, 2, tso), ALL, false),
        ("unknown kind", header(1, 0x7f, tso), ALL, false),
        ("segments without sum", header(0, 1, tso), ALL, false),
        (
            "segments of nothing",
            header(1, 1, [54, 0, 34, 16]),
            ALL,
            false,
        ),
        (
            "header longer than all",
            header(1, 1, [101, 1448, 34, 16]),
            ALL,
            false,
        ),
        (
            "header of length 0",
            header(1, 1, [0, 1448, 34, 16]),
            ALL,
            true,
        ),
    ];
    for (name, header, features, sent) in cases {
        let mut s = setup(features);
        let got = s.send(&header, 100);
        assert_eq!(got.is_some(), sent, "{name}");
        if let Some(packet) = got {
            assert_eq!(packet[..HEADER], header, "{name}");
        }
        s.assert_works();
    }
    // What only a device may say is taken out, and what means nothing without an offload.
    let mut s = setup(ALL);
    let got = s.send(&header(0xfe, 0x80, [max; 4]), 100).unwrap();
    assert_eq!(got[..HEADER], [0; HEADER]);
    let got = s.send(&header(0xff, 0, [max, max, 34, 16]), 100).unwrap();
    assert_eq!(got[..HEADER], header(1, 0, [0, 0, 34, 16]));
    // A frame has an Ethernet header.
    assert!(s.send(&[0; HEADER], 13).is_none());
    assert!(s.send(&[0; HEADER], 14).is_some());
}

/// Gives a command to the control queue and answers what the device says.
fn command(s: &mut Setup, bytes: &[u8]) -> u8 {
    let number = s.rings.len() - 1;
    put(&s.ram, DATA, bytes);
    put(&s.ram, DATA + 0x1000, &[0xee]);
    let length = bytes.len() as u32;
    s.rings[number].add(&[(DATA, length, false), (DATA + 0x1000, 1, true)]);
    s.kick(number as u16);
    assert!(matches!(s.rings[number].used(), Some((_, 1))));
    get(&s.ram, DATA + 0x1000, 1)[0]
}

#[test]
fn the_control_queue_sets_the_number_of_pairs() {
    let features = MRG_RXBUF | MQ | CTRL_VQ;
    let mut s = setup_with(3, 1, features);
    assert_eq!(s.rings.len(), 7);
    let active = |s: &Setup| s.net.state.lock().unwrap().active;
    let cases: [(&str, &[u8], u8, usize); 12] = [
        ("all", &[4, 0, 3, 0], 0, 3),
        ("none", &[4, 0, 0, 0], 1, 3),
        ("one too many", &[4, 0, 4, 0], 1, 3),
        ("far too many", &[4, 0, 0xff, 0xff], 1, 3),
        ("one", &[4, 0, 1, 0], 0, 1),
        ("short", &[4, 0, 2], 1, 1),
        ("long", &[4, 0, 2, 0, 0], 1, 1),
        ("no number", &[4, 0], 1, 1),
        ("another command", &[4, 1, 2, 0], 1, 1),
        ("receive modes", &[0, 0, 1], 1, 1),
        ("an address", &[1, 1, 2, 0, 0, 0, 0, 1], 1, 1),
        ("no such class", &[0xff, 0, 2, 0], 1, 1),
    ];
    for (name, bytes, answer, now) in cases {
        assert_eq!(command(&mut s, bytes), answer, "{name}");
        assert_eq!(active(&s), now, "{name}");
    }
    assert!(!s.notifier.needs_reset());
    // A driver that has not accepted several pairs has its control queue where the second pair would be.
    s.begin(MRG_RXBUF | CTRL_VQ);
    assert_eq!(s.rings.len(), 3);
    assert_eq!(command(&mut s, &[4, 0, 2, 0]), 1);
    s.assert_works();
    // Commands that cannot be answered.
    let malformed: [&[(u64, u32, bool)]; 4] = [
        &[(DATA, 4, false)],
        &[(DATA, 1, false), (DATA, 1, true)],
        &[(DATA, 1, true)],
        &[(DATA, 4, false), (DATA, 0, true)],
    ];
    for parts in malformed {
        s.begin(features);
        s.rings[6].add(parts);
        s.kick(6);
        assert!(s.notifier.needs_reset(), "{parts:?}");
        s.begin(features);
        s.assert_works();
    }
    // A flood of commands lets packets through.
    s.begin(features);
    put(&s.ram, DATA, &[4, 0, 1, 0]);
    for _ in 0..8 {
        s.rings[6].add(&[(DATA, 4, false), (DATA + 8, 1, true)]);
    }
    s.kick(6);
    assert_eq!(std::iter::from_fn(|| s.rings[6].used()).count(), 8);
}

#[test]
fn a_driver_sets_up_the_queues_that_it_uses() {
    for (pairs, features, count) in [
        (1, 0, 2),
        (1, MRG_RXBUF, 2),
        (4, 0, 2),
        (4, CTRL_VQ, 3),
        (4, MQ | CTRL_VQ, 9),
        (8, MQ | CTRL_VQ, 17),
    ] {
        let mut s = setup_with(pairs, 1, features);
        assert_eq!(s.net.queues_in_use(features), count);
        s.assert_works();
    }
    // With one pair there is nothing to control.
    let (notifier, _) = notifier();
    let net = Net::new(ram(), notifier, 1, Vec::new()).unwrap();
    assert_eq!(net.features() & (MQ | CTRL_VQ), 0);
    assert_eq!(net.queue_sizes(), [256, 256]);
}

#[test]
fn malformed_chains_ask_for_a_reset() {
    type Setting = fn(&mut Setup);
    /// A packet to send whose first descriptor is this one.
    fn first(s: &mut Setup, address: u64, length: u32, flags: u16, next: u16) {
        s.tx().descriptor(0, address, length, flags, next);
        s.tx().publish(0);
    }
    let cases: [(&str, Setting); 17] = [
        ("nothing to send", |s| first(s, DATA, 0, 0, 0)),
        ("half a header", |s| first(s, DATA, H - 1, 0, 0)),
        ("a packet to be written", |s| first(s, DATA, 100, WRITE, 0)),
        ("a loop", |s| first(s, DATA, 100, NEXT, 0)),
        ("no such descriptor", |s| first(s, DATA, 100, NEXT, 64)),
        ("beyond memory", |s| first(s, SECOND_END - 50, 100, 0, 0)),
        ("into the hole", |s| first(s, FIRST_END - 50, 100, 0, 0)),
        ("nowhere", |s| first(s, u64::MAX - 50, 100, 0, 0)),
        ("4 GiB", |s| first(s, DATA, u32::MAX, 0, 0)),
        ("an odd table", |s| first(s, DATA, 17, INDIRECT, 0)),
        ("a head that does not exist", |s| s.tx().publish(64)),
        ("an index that jumps", |s| s.tx().set_available(100)),
        ("an index that goes back", |s| s.tx().set_available(0xffff)),
        ("written before read", |s| {
            s.tx().descriptor(1, DATA, 100, 0, 0);
            first(s, DATA, 100, NEXT | WRITE, 1);
        }),
        ("a buffer to be read", |s| {
            s.rx().add(&[(DATA, 2048, false)]);
        }),
        ("a buffer with a part to be read", |s| {
            s.rx().add(&[(DATA, 12, false), (DATA, 2048, true)]);
        }),
        ("a buffer twice", |s| {
            let head = s.rx().add(&[(DATA, 20, true)]);
            s.rx().publish(head);
        }),
    ];
    for features in [0, MRG_RXBUF, MRG_RXBUF | GUEST_TSO4] {
        for (name, setting) in &cases {
            if *name == "a buffer twice" && features & MRG_RXBUF == 0 {
                // Without merging one buffer is held at a time.
                continue;
            }
            let mut s = setup(features);
            s.assert_works();
            setting(&mut s);
            s.arrive(100);
            s.arrive(100);
            s.kick(1);
            assert!(s.notifier.needs_reset(), "{name}, {features:#x}");
            s.kick(0);
            // What still waits on the tap goes first.
            s.begin(features);
            s.rx().add(&[(0x18_0000, 2048, true)]);
            s.rx().add(&[(0x18_1000, 2048, true)]);
            s.kick(0);
            s.begin(features);
            s.assert_works();
        }
    }
}
