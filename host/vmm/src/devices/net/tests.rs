mod hostile;

use super::features::{CTRL_VQ, GUEST_LARGE, GUEST_TSO4, MQ, MRG_RXBUF};
use super::header::{HEADER, MAX_PACKET};
use super::{Net, TapError};
use crate::machine::memory::GuestRam;
use crate::virtio::Device;
use crate::virtio::notify::Notifier;
use crate::virtio::testing::{Raised, Ring, get, notifier, put, ram};
use bulkhead_vmm_api::{NetworkLimits, Rate, RateLimits};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

const H: u32 = HEADER as u32;
/// Where buffers are that the tests fill.
const DATA: u64 = 0x10_0000;

/// Datagram sockets are as good as the queues of a tap: packets with a header in front.
struct Setup {
    ram: GuestRam,
    net: Net,
    notifier: Arc<Notifier>,
    raised: Arc<Raised>,
    /// Receive and transmit queues in turn, then the control queue.
    rings: Vec<Ring>,
    wires: Vec<UnixDatagram>,
}

fn setup(features: u64) -> Setup {
    setup_with(1, 1, features)
}

fn setup_with(pairs: usize, taps: usize, features: u64) -> Setup {
    setup_limited(pairs, taps, features, &NetworkLimits::default())
}

fn setup_limited(pairs: usize, taps: usize, features: u64, limits: &NetworkLimits) -> Setup {
    let ram = ram();
    let (notifier, raised) = notifier();
    let net = Net::new(ram.clone(), Arc::clone(&notifier), pairs, Vec::new()).unwrap();
    let (wires, taps): (Vec<_>, Vec<_>) = (0..taps)
        .map(|_| {
            let (wire, tap) = UnixDatagram::pair().unwrap();
            wire.set_nonblocking(true).unwrap();
            tap.set_nonblocking(true).unwrap();
            (wire, OwnedFd::from(tap))
        })
        .unzip();
    net.bind_sockets(taps, limits).unwrap();
    let mut setup = Setup {
        ram,
        net,
        notifier,
        raised,
        rings: Vec::new(),
        wires,
    };
    setup.begin(features);
    setup
}

impl Setup {
    /// Resets the device, and begins with queues of 64 in the first megabyte.
    fn begin(&mut self, features: u64) {
        self.net.reset();
        self.notifier.reset();
        let count = self.net.queues_in_use(features) as u64;
        self.rings = (0..count)
            .map(|index| {
                let base = 0x1_0000 * (index + 1);
                put(&self.ram, base, &[0; 0x1_0000]);
                Ring::new(&self.ram, base, 64)
            })
            .collect();
        self.notifier.activate();
        let queues = self.rings.iter().map(Ring::queue).collect();
        self.net.activate(queues, features);
        self.serve();
    }

    fn serve(&self) {
        for index in 0..self.net.pairs() {
            while self.net.turn(index, false).unwrap() {}
        }
    }

    fn kick(&self, queue: u16) {
        self.net.kick_of(queue).write(1).unwrap();
        self.serve();
    }

    fn rx(&mut self) -> &mut Ring {
        &mut self.rings[0]
    }

    fn tx(&mut self) -> &mut Ring {
        &mut self.rings[1]
    }

    fn arrive(&self, length: usize) {
        self.wires[0].send(&vec![7; length]).unwrap();
        self.serve();
    }

    /// Sends a frame of zeroes and answers what reached the wire.
    fn send(&mut self, header: &[u8; HEADER], frame: u32) -> Option<Vec<u8>> {
        put(&self.ram, DATA, header);
        put(&self.ram, DATA + u64::from(H), &vec![0; frame as usize]);
        self.tx().add(&[(DATA, H + frame, false)]);
        self.kick(1);
        assert!(self.tx().used().is_some());
        self.received(0)
    }

    fn received(&self, wire: usize) -> Option<Vec<u8>> {
        let mut packet = vec![0; MAX_PACKET];
        let length = self.wires[wire].recv(&mut packet).ok()?;
        packet.truncate(length);
        Some(packet)
    }

    /// Both directions work.
    fn assert_works(&mut self) {
        assert!(self.send(&[0; HEADER], 60).is_some());
        self.rx().add(&[(0x18_0000, 2048, true)]);
        self.arrive(100);
        assert_eq!(self.rx().used().map(|(_, length)| length), Some(100));
        assert!(!self.notifier.needs_reset());
    }
}

#[test]
fn packets_leave_from_several_buffers() {
    let mut s = setup(0);
    put(&s.ram, 0x8_0000, &[0; 12]);
    put(&s.ram, 0x9_0000, &[2; 100]);
    s.tx().add(&[
        (0x8_0000, 5, false),
        (0x8_0005, 7, false),
        (0x9_0000, 100, false),
    ]);
    s.kick(1);
    assert_eq!(s.tx().used(), Some((0, 0)));
    let packet = s.received(0).unwrap();
    assert_eq!((packet.len(), packet[11], packet[12]), (112, 0, 2));
    // From two mappings that touch.
    put(&s.ram, 0xf_fff0, &[0; 16]);
    put(&s.ram, 0x10_0000, &[3; 100]);
    s.tx().add(&[(0xf_fff0, 116, false)]);
    s.kick(1);
    assert_eq!(s.received(0).unwrap()[16..], [3; 100]);
    // The longest one, and one that is too long.
    put(&s.ram, DATA, &[0; MAX_PACKET + 1]);
    for (length, sent) in [(MAX_PACKET, true), (MAX_PACKET + 1, false)] {
        s.tx().add(&[(DATA, length as u32, false)]);
        s.kick(1);
        assert!(s.tx().used().is_some());
        assert_eq!(s.received(0).is_some(), sent);
    }
    let counters = s.net.counters("net");
    assert_eq!((counters.requests, counters.errors), (3, 1));
}

#[test]
fn without_a_tap_packets_are_dropped() {
    let mut s = setup_with(1, 0, 0);
    s.tx().add(&[(0x8_0000, H + 60, false)]);
    s.kick(1);
    assert!(s.tx().used().is_some());
    assert!(!s.notifier.needs_reset());
}

#[test]
fn packets_are_merged_into_as_many_buffers_as_they_take() {
    for features in [MRG_RXBUF, MRG_RXBUF | GUEST_LARGE] {
        let mut s = setup(features);
        for index in 0..4 {
            s.rx().add(&[(DATA + index * 0x1000, 100, true)]);
        }
        s.arrive(250);
        assert_eq!(s.rx().used(), Some((0, 100)));
        assert_eq!(s.rx().used(), Some((1, 100)));
        assert_eq!(s.rx().used(), Some((2, 50)));
        assert_eq!(get(&s.ram, DATA + 10, 3), [3, 0, 7]);
        // Too long for what is left: it waits until it fits, and is shown all at once.
        s.arrive(350);
        assert_eq!(s.rx().used(), None);
        for index in [5, 6] {
            s.rx().add(&[(DATA + index * 0x1000, 100, true)]);
            s.kick(0);
            assert_eq!(s.rx().used(), None);
        }
        s.rx()
            .add(&[(DATA + 0x7000, 60, true), (DATA + 0x8000, 60, true)]);
        s.kick(0);
        for used in [(3, 100), (4, 100), (5, 100), (6, 50)] {
            assert_eq!(s.rx().used(), Some(used));
        }
        assert_eq!(get(&s.ram, DATA + 0x3000 + 10, 3), [4, 0, 7]);
        assert_eq!(
            get(&s.ram, DATA + 0x7000, 51),
            [vec![7; 50], vec![0]].concat()
        );
        // The next one finds nothing left over.
        s.rx().add(&[(DATA, 100, true)]);
        s.arrive(100);
        assert_eq!(s.rx().used(), Some((8, 100)));
    }
}

#[test]
fn the_longest_packet_arrives_in_small_buffers() {
    let mut s = setup(MRG_RXBUF | GUEST_TSO4);
    for index in 0..64 {
        s.rx().add(&[(DATA + index * 0x800, 1536, true)]);
    }
    let packet: Vec<u8> = (0..MAX_PACKET).map(|index| (index / 7) as u8).collect();
    s.wires[0].send(&packet).unwrap();
    s.serve();
    let mut got = Vec::new();
    while let Some((head, length)) = s.rx().used() {
        got.extend(get(&s.ram, DATA + u64::from(head) * 0x800, length as usize));
    }
    let count = MAX_PACKET.div_ceil(1536) as u8;
    assert_eq!(got[10..12], [count, 0]);
    assert_eq!(got[12..], packet[12..]);
}

#[test]
fn a_packet_for_which_the_whole_queue_is_too_small_is_dropped() {
    let mut s = setup(MRG_RXBUF | GUEST_TSO4);
    for index in 0..64 {
        s.rx().add(&[(DATA + index * 0x100, 20, true)]);
    }
    s.arrive(64 * 20 + 1);
    let lengths: Vec<_> = std::iter::from_fn(|| s.rx().used()).collect();
    assert_eq!(lengths.len(), 64);
    assert!(lengths.iter().all(|(_, length)| *length == 0));
    assert_eq!(s.net.counters("net").errors, 1);
    s.assert_works();
}

#[test]
fn without_merging_a_packet_fits_or_is_dropped() {
    let mut s = setup(GUEST_TSO4);
    s.rx().add(&[(DATA, 100, true)]);
    s.rx().add(&[(DATA + 0x1000, 100, true)]);
    s.arrive(150);
    assert_eq!(s.rx().used(), None);
    s.arrive(80);
    assert_eq!(s.rx().used(), Some((0, 80)));
    assert_eq!(get(&s.ram, DATA + 10, 2), [1, 0]);
    // Shorter than a header: not a packet.
    s.arrive(5);
    assert_eq!(s.rx().used(), None);
    s.arrive(100);
    assert_eq!(s.rx().used(), Some((1, 100)));
}

#[test]
fn packets_wait_on_the_tap_for_buffers() {
    let mut s = setup(MRG_RXBUF);
    for _ in 0..3 {
        s.arrive(100);
    }
    assert_eq!(s.rx().used(), None);
    for index in 0..3 {
        s.rx().add(&[(DATA, 2048, true)]);
        s.kick(0);
        assert_eq!(s.rx().used(), Some((index, 100)));
    }
    assert_eq!(s.raised.counts().0, 3);
}

#[test]
fn neither_direction_keeps_the_other_waiting() {
    let mut s = setup(MRG_RXBUF);
    let frame = H + 60;
    put(&s.ram, DATA, &[0; 128]);
    for index in 0..60 {
        s.rx().add(&[(0x18_0000 + index * 0x800, 2048, true)]);
    }
    for _ in 0..5 {
        s.wires[0].send(&[7; 100]).unwrap();
    }
    for _ in 0..64 {
        s.tx().add(&[(DATA, frame, false)]);
    }
    s.net.kick_of(1).write(1).unwrap();
    // One turn: as much as it may send, and it asks for another; what came in was not left for later.
    assert!(s.net.turn(0, false).unwrap());
    let received = std::iter::from_fn(|| s.rx().used()).count();
    assert_eq!(received, 5);
    assert!(!s.net.turn(0, false).unwrap());
}

#[test]
fn pairs_have_queues_of_the_tap_of_their_own_or_share_them() {
    let mut s = setup_with(2, 2, MRG_RXBUF | MQ | CTRL_VQ);
    for (pair, wire) in [(0, 0), (1, 1)] {
        let data = DATA + 0x1000 * pair as u64;
        put(&s.ram, data, &[0; 72]);
        s.rings[2 * pair + 1].add(&[(data, 72, false)]);
        s.kick(2 * pair as u16 + 1);
        assert_eq!(s.received(wire).unwrap().len(), 72);
        s.rings[2 * pair].add(&[(data, 2048, true)]);
        s.wires[wire].send(&[7; 90]).unwrap();
        s.serve();
        assert_eq!(s.rings[2 * pair].used(), Some((0, 90)));
    }
    // With one queue of the tap the second pair only sends.
    let mut s = setup_with(2, 1, MRG_RXBUF | MQ | CTRL_VQ);
    put(&s.ram, DATA, &[0; 72]);
    s.rings[3].add(&[(DATA, 72, false)]);
    s.kick(3);
    assert_eq!(s.received(0).unwrap().len(), 72);
    s.rings[2].add(&[(DATA, 2048, true)]);
    s.kick(2);
    s.arrive(90);
    assert_eq!(s.rings[2].used(), None);
    s.rings[0].add(&[(DATA, 2048, true)]);
    s.kick(0);
    assert_eq!(s.rings[0].used(), Some((0, 90)));
}

/// Moves packets both ways for a moment and answers how many went out and came in.
fn limited(limits: NetworkLimits) -> (usize, usize) {
    let mut s = setup_limited(1, 1, MRG_RXBUF, &limits);
    put(&s.ram, DATA, &[0; 1012]);
    for _ in 0..50 {
        s.tx().add(&[(DATA, 1012, false)]);
        s.rx().add(&[(0x18_0000, 2048, true)]);
    }
    for _ in 0..5 {
        s.wires[0].send(&[7; 1012]).unwrap();
    }
    s.kick(1);
    let sent = std::iter::from_fn(|| s.received(0)).count();
    let got = std::iter::from_fn(|| s.rx().used()).count();
    // What had to wait goes on by itself, without a kick.
    while s.net.counters("net").requests < 55 {
        s.net.turn(0, true).unwrap();
    }
    (sent, got)
}

#[test]
fn packets_wait_for_their_limits() {
    let rate = |per_second, burst| Some(Rate { per_second, burst });
    let ops = |rate| RateLimits {
        ops: rate,
        bytes: None,
    };
    let bytes = |rate| RateLimits {
        ops: None,
        bytes: rate,
    };
    let none = RateLimits::default();
    let cases = [
        (none, none, (50, 5)),
        (ops(rate(300, 10)), none, (50, 5)),
        (ops(rate(10, 3)), none, (50, 3)),
        (none, ops(rate(300, 10)), (10, 5)),
        // A packet that is let through may leave a debt.
        (none, bytes(rate(300_000, 3500)), (4, 5)),
        (
            bytes(rate(30_000, 3500)),
            bytes(rate(300_000, 3500)),
            (4, 4),
        ),
    ];
    for (ingress, egress, expected) in cases {
        let start = std::time::Instant::now();
        let (sent, got) = limited(NetworkLimits { ingress, egress });
        // A slow machine lets a few more go.
        let (least, most) = (expected, start.elapsed().as_millis() as usize);
        assert!(
            sent >= least.0 && got >= least.1,
            "{sent} {got} {expected:?}"
        );
        assert!(
            sent <= least.0 + most && got <= least.1 + most,
            "{sent} {got} {expected:?}"
        );
        let slow = expected.0 < 50 || expected.1 < 5;
        assert_eq!(start.elapsed().as_millis() >= 30, slow, "{expected:?}");
    }
}

#[test]
fn a_reset_takes_everything_back() {
    let mut s = setup(MRG_RXBUF | GUEST_TSO4);
    for index in 0..4 {
        s.rx().add(&[(DATA + index * 0x1000, 100, true)]);
    }
    // Half of a packet is in the guest's memory, the rest waits.
    s.arrive(500);
    s.net.reset();
    put(&s.ram, DATA, &[0; 0x4000]);
    s.rx().add(&[(DATA + 0x5000, 2048, true)]);
    s.kick(0);
    s.arrive(100);
    s.tx().add(&[(DATA, 100, false)]);
    s.kick(1);
    assert_eq!(get(&s.ram, DATA, 0x6000), vec![0; 0x6000]);
    assert!(s.rx().used().is_none() && s.tx().used().is_none());
}

#[test]
fn only_a_tap_is_bound() {
    let s = setup_with(2, 0, 0);
    let sockets = |count| -> Vec<OwnedFd> {
        (0..count)
            .map(|_| UnixDatagram::unbound().unwrap().into())
            .collect()
    };
    for (count, expected) in [
        (0, "1 to 2"),
        (3, "1 to 2"),
        (1, "not a tap"),
        (2, "not a tap"),
    ] {
        let error = s
            .net
            .bind(sockets(count), &NetworkLimits::default())
            .unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        let kind = matches!(error, TapError::Kind);
        assert_eq!(kind, count == 1 || count == 2);
    }
    let mut config = [0xff; 10];
    s.net.read_config(0, &mut config);
    assert_eq!(config, [0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
}
