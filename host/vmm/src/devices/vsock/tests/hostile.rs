//! What a driver or the host gets wrong, and what a guest does to excess.

use super::{RX_BUFFERS, RX_LENGTH, Setup, data, packet, setup, shutdown, socketpair_end};
use crate::devices::vsock::muxer::MAX_CONNECTIONS;
use crate::devices::vsock::packet::{GUEST_CID, HEADER, HOST_CID, SHUTDOWN_SEND, op};
use crate::devices::vsock::pool::{LARGEST, SMALLEST};
use crate::virtio::Device;
use crate::virtio::testing::{FIRST_END, INDIRECT, NEXT, Ring, SECOND_END, WRITE, activate, put};
use std::io::Read;

#[test]
fn strangers_are_reset() {
    let mut s = setup();
    for kind in [
        op::RW,
        op::RESPONSE,
        op::SHUTDOWN,
        op::CREDIT_UPDATE,
        0,
        8,
        99,
    ] {
        s.send(packet(9, 9, kind), &[]);
        assert_eq!(s.ops(), [op::RST], "{kind}");
    }
    s.send(packet(9, 9, op::RST), &[]);
    assert!(s.ops().is_empty());
    // Another socket type is refused in its own terms; other addresses are not answered.
    let mut seqpacket = packet(9, 9, op::REQUEST);
    seqpacket.kind = 2;
    s.send(seqpacket, &[]);
    let (header, _) = s.receive().unwrap();
    assert_eq!((header.op, header.kind), (op::RST, 2));
    for (src_cid, dst_cid) in [(4, HOST_CID), (GUEST_CID, 1), (GUEST_CID, u64::MAX)] {
        let mut foreign = packet(9, 9, op::REQUEST);
        (foreign.src_cid, foreign.dst_cid) = (src_cid, dst_cid);
        s.send(foreign, &[]);
        assert!(s.ops().is_empty());
    }
    // A second request for a connection ends it.
    let mut host = s.dial(5, 77).unwrap();
    s.send(packet(5, 77, op::REQUEST), &[]);
    assert_eq!(s.ops(), [op::RST]);
    assert_eq!(host.read(&mut [0; 1]).unwrap(), 0);
    // Without a feed nobody is there.
    drop(std::mem::replace(&mut s.feed, socketpair_end()));
    s.vsock.serve();
    assert!(s.dial(6, 77).is_none());
}

#[test]
fn malformed_packets_ask_for_a_reset() {
    type Setting = fn(&mut Setup);
    /// A packet whose first descriptor is this one.
    fn first(s: &mut Setup, address: u64, length: u32, flags: u16, next: u16) {
        put(&s.ram, 0x8_0000, &packet(9, 9, op::RW).bytes());
        let head = s.tx.add(&[(address, length, false)]);
        s.tx.descriptor(head, address, length, flags, next);
    }
    const LENGTH: u32 = HEADER as u32;
    let cases: [(&str, Setting); 18] = [
        ("nothing", |s| first(s, 0x8_0000, 0, 0, 0)),
        ("short header", |s| first(s, 0x8_0000, LENGTH - 1, 0, 0)),
        ("header to be written", |s| {
            first(s, 0x8_0000, LENGTH, WRITE, 0)
        }),
        ("a loop", |s| first(s, 0x8_0000, LENGTH, NEXT, 1)),
        ("no such descriptor", |s| {
            first(s, 0x8_0000, LENGTH, NEXT, 64)
        }),
        ("beyond memory", |s| first(s, SECOND_END - 40, LENGTH, 0, 0)),
        ("into the hole", |s| first(s, FIRST_END - 8, 64, 0, 0)),
        ("nowhere", |s| first(s, u64::MAX - 8, LENGTH, 0, 0)),
        ("4 GiB", |s| first(s, 0x8_0000, u32::MAX, 0, 0)),
        ("an empty table", |s| first(s, 0x8_0000, 0, INDIRECT, 0)),
        ("an odd table", |s| first(s, 0x8_0000, 24, INDIRECT, 0)),
        ("a head that does not exist", |s| s.tx.publish(64)),
        ("an index that jumps", |s| s.tx.set_available(1000)),
        ("a head twice", |s| {
            // Buffers for the guest are at hand before they are used.
            let head = s.rx.add(&[(RX_BUFFERS, RX_LENGTH, true)]);
            s.rx.publish(head);
            for port in 0..40 {
                s.send(packet(port, 9, op::RW), &[]);
            }
        }),
        ("a room to be read", |s| {
            s.rx.add(&[(RX_BUFFERS, RX_LENGTH, false)]);
            for port in 0..40 {
                s.send(packet(port, 9, op::RW), &[]);
            }
        }),
        ("more data than there is", |s| {
            let mut header = packet(9, 9, op::RW);
            header.len = 1;
            put(&s.ram, 0x8_0000, &header.bytes());
            s.tx.add(&[(0x8_0000, LENGTH, false)]);
        }),
        ("enormous length", |s| {
            let mut header = packet(9, 9, op::RW);
            header.len = u32::MAX;
            put(&s.ram, 0x8_0000, &header.bytes());
            s.tx.add(&[(0x8_0000, LENGTH + 8, false)]);
        }),
        ("data to be written", |s| {
            put(&s.ram, 0x8_0000, &data(9, 9, b"data").bytes());
            s.tx.add(&[(0x8_0000, LENGTH, false), (0x9_0000, 4, true)]);
        }),
    ];
    for (name, setting) in cases {
        let mut s = setup();
        let mut host = s.dial(5, 77).unwrap();
        setting(&mut s);
        s.vsock.serve();
        assert!(s.notifier.needs_reset(), "{name}");
        assert_eq!(s.vsock.state.lock().unwrap().muxer.len(), 0, "{name}");
        assert_eq!(host.read(&mut [0; 1]).unwrap(), 0, "{name}");
        s.begin();
        let mut host = s.dial(5, 77).unwrap();
        s.send(data(5, 77, b"again"), b"again");
        let mut bytes = [0; 5];
        host.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"again", "{name}");
        assert!(!s.notifier.needs_reset(), "{name}");
    }
    // A receive buffer without room for a header and a byte of data.
    for length in [0, 43, 44] {
        let mut s = setup();
        while s.rx.used().is_some() {}
        s.rx.descriptor(0, RX_BUFFERS, length, 2, 0);
        s.send(packet(9, 9, op::RW), &[]);
        assert!(s.notifier.needs_reset(), "{length}");
    }
}

#[test]
fn connections_and_answers_are_bounded() {
    let mut s = setup();
    let mut streams = Vec::new();
    for port in 0..MAX_CONNECTIONS as u32 {
        streams.push(s.dial(port, 77).unwrap());
    }
    assert!(s.dial(5000, 77).is_none());
    streams.clear();
    for port in 0..MAX_CONNECTIONS as u32 {
        s.send(packet(port, 77, op::RST), &[]);
    }
    while s.receive().is_some() {}
    assert!(s.dial(5000, 77).is_some());

    // A guest that gives no room for answers is not listened to for ever.
    let mut s = setup();
    s.vsock.reset();
    put(&s.ram, 0x1_0000, &[0; 0x3_0000]);
    s.rx = Ring::new(&s.ram, 0x1_0000, 64);
    s.tx = Ring::new(&s.ram, 0x2_0000, 64);
    let event = Ring::new(&s.ram, 0x3_0000, 4);
    activate(s.vsock.as_ref(), &s.notifier, &[&s.rx, &s.tx, &event]);
    put(&s.ram, 0x8_0000, &packet(9, 9, op::RW).bytes());
    let mut taken = 0;
    for _ in 0..1000 {
        if s.tx.used().is_some() || taken == 0 || taken < 40 {
            s.tx.add(&[(0x8_0000, HEADER as u32, false)]);
            taken += 1;
        }
        s.vsock.serve();
    }
    assert!(!s.vsock.state.lock().unwrap().muxer.takes_packets());
    assert!(!s.notifier.needs_reset());
}

#[test]
fn a_host_that_never_reads_costs_no_more_than_the_cap() {
    let mut s = setup();
    let mut hosts = Vec::new();
    let bytes = vec![1; LARGEST as usize];
    for port in 0..MAX_CONNECTIONS as u32 {
        hosts.push(s.dial(port, 77).unwrap());
        // Until the guest may send no more.
        let mut sent = 0;
        while let Some(forwarded) = s.ops_and_forwarded(port, 77) {
            let credit = s.credit - (sent - forwarded);
            if credit == 0 {
                break;
            }
            let part = &bytes[..credit.min(64 * 1024) as usize];
            s.send(data(port, 77, part), part);
            sent += part.len() as u32;
        }
    }
    let (ports, outboxes, taken) = s.vsock.state.lock().unwrap().muxer.held();
    assert_eq!(ports, MAX_CONNECTIONS);
    assert!(
        outboxes > 0 && outboxes <= taken as usize,
        "{outboxes} of {taken}"
    );
    assert!(taken <= 9 << 20);
    // Everything that was taken arrives when the host reads at last.
    for (port, mut host) in (0..).zip(hosts).take(40) {
        s.send(shutdown(port, 77, SHUTDOWN_SEND), &[]);
        host.set_nonblocking(true).unwrap();
        let mut total = 0;
        let mut buffer = vec![0; 65536];
        loop {
            match host.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => total += count,
                Err(_) => s.vsock.serve(),
            }
        }
        assert!(total >= SMALLEST as usize);
    }
}

#[test]
fn lines_that_are_not_the_conventions_close_the_connection() {
    let mut s = setup();
    for line in [
        "CONNECT\n",
        "CONNECT x\n",
        "CONNECT 4294967296\n",
        "CONNECT -1\n",
        "CONNECT +1\n",
        "CONNECT 1 \n",
        "connect 1\n",
        "\n",
        "CONNECT 1                                 ",
    ] {
        let mut host = s.host_connects(line);
        assert_eq!(host.read(&mut [0; 8]).unwrap_or(0), 0, "{line:?}");
        assert!(s.receive().is_none());
    }
    assert_eq!(s.vsock.state.lock().unwrap().muxer.len(), 0);
}
