use super::TapError;
use super::{F_MRG_RXBUF, HEADER, MAX_PACKET, Net};
use crate::events::Events;
use crate::machine::memory::GuestRam;
use crate::virtio::Device;
use crate::virtio::notify::Notifier;
use crate::virtio::testing::{Ring, get, notifier, put, ram};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

/// A datagram socket is as good as a tap once it is bound: packets with a header in front.
struct Setup {
    ram: GuestRam,
    net: Arc<Net>,
    notifier: Arc<Notifier>,
    rx: Ring,
    tx: Ring,
    wire: UnixDatagram,
}

fn setup(features: u64) -> Setup {
    let ram = ram();
    let (notifier, _) = notifier();
    let net = Arc::new(Net::new(ram.clone(), Arc::clone(&notifier)).unwrap());
    let (rx, tx) = (Ring::new(&ram, 0x1_0000, 64), Ring::new(&ram, 0x2_0000, 64));
    notifier.activate();
    net.activate(vec![rx.queue(), tx.queue()], features);
    let (wire, tap) = UnixDatagram::pair().unwrap();
    wire.set_nonblocking(true).unwrap();
    tap.set_nonblocking(true).unwrap();
    net.state.lock().unwrap().tap = Some(OwnedFd::from(tap));
    Setup {
        ram,
        net,
        notifier,
        rx,
        tx,
        wire,
    }
}

impl Setup {
    fn arrive(&self, length: usize) {
        self.wire.send(&vec![7; length]).unwrap();
        self.net.tap_readable();
    }
}

#[test]
fn packets_leave_from_several_buffers() {
    let mut s = setup(0);
    put(&s.ram, 0x8_0000, &[1; 12]);
    put(&s.ram, 0x9_0000, &[2; 100]);
    s.tx.add(&[(0x8_0000, HEADER, false), (0x9_0000, 100, false)]);
    s.net.serve();
    assert_eq!(s.tx.used(), Some((0, 0)));
    let mut packet = [0; 200];
    assert_eq!(s.wire.recv(&mut packet).unwrap(), 112);
    assert_eq!((packet[11], packet[12]), (1, 2));
    // One that is too long is dropped.
    s.tx.add(&[(0x10_0000, MAX_PACKET + 1, false)]);
    s.net.serve();
    assert!(s.tx.used().is_some());
    assert!(s.wire.recv(&mut packet).is_err());
    // Without a tap everything is.
    s.net.state.lock().unwrap().tap = None;
    s.tx.add(&[(0x8_0000, HEADER, false)]);
    s.net.serve();
    assert!(s.tx.used().is_some());
    assert!(!s.notifier.needs_reset());
}

#[test]
fn packets_are_merged_into_as_many_buffers_as_they_take() {
    let mut s = setup(F_MRG_RXBUF);
    for index in 0..4 {
        s.rx.add(&[(0x10_0000 + index * 0x1000, 100, true)]);
    }
    s.arrive(250);
    assert_eq!(s.rx.used(), Some((0, 100)));
    assert_eq!(s.rx.used(), Some((1, 100)));
    assert_eq!(s.rx.used(), Some((2, 50)));
    assert_eq!(get(&s.ram, 0x10_0000 + 10, 3), [3, 0, 7]);
    // Too long for what is left: it waits, and takes nothing until it fits.
    s.arrive(150);
    assert_eq!(s.rx.used(), None);
    s.rx.add(&[(0x10_5000, 100, true)]);
    s.net.serve();
    assert_eq!(s.rx.used(), Some((3, 100)));
    assert_eq!(s.rx.used(), Some((4, 50)));
}

#[test]
fn without_merging_a_packet_fits_or_is_dropped() {
    let mut s = setup(0);
    s.rx.add(&[(0x10_0000, 100, true)]);
    s.rx.add(&[(0x10_1000, 100, true)]);
    s.arrive(150);
    assert_eq!(s.rx.used(), None);
    s.arrive(80);
    assert_eq!(s.rx.used(), Some((0, 80)));
    assert_eq!(get(&s.ram, 0x10_0000 + 10, 2), [1, 0]);
    // Shorter than a header: not a packet.
    s.arrive(5);
    assert_eq!(s.rx.used(), None);
}

#[test]
fn malformed_chains_ask_for_a_reset() {
    let mut s = setup(F_MRG_RXBUF);
    s.tx.add(&[(0x8_0000, HEADER - 1, false)]);
    s.net.serve();
    assert!(s.notifier.needs_reset());
    let mut s = setup(F_MRG_RXBUF);
    s.rx.add(&[(0x8_0000, 100, false)]);
    s.arrive(50);
    assert!(s.notifier.needs_reset());
    let mut s = setup(F_MRG_RXBUF);
    s.rx.add(&[(u64::MAX, 100, true)]);
    s.arrive(50);
    assert!(s.notifier.needs_reset());
}

#[test]
fn only_a_tap_is_bound() {
    let s = setup(0);
    s.net.state.lock().unwrap().tap = None;
    let events = Events::new().unwrap();
    let (socket, _) = UnixDatagram::pair().unwrap();
    let result = s.net.bind(socket.into(), &events);
    assert!(matches!(result, Err(TapError::Kind)));
    let mut status = [0; 2];
    s.net.read_config(6, &mut status);
    assert_eq!(status, [0, 0]);
}
