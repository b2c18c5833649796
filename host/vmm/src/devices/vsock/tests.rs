mod hostile;

use super::Vsock;
use super::packet::{GUEST_CID, HEADER, HOST_CID, Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};
use super::pool::{LARGEST, SMALLEST};
use crate::machine::memory::GuestRam;
use crate::virtio::Device;
use crate::virtio::notify::Notifier;
use crate::virtio::testing::{Ring, activate, get, notifier, put, ram};
use bulkhead_vmm_api::{GuestConnection, wire};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

struct Setup {
    ram: GuestRam,
    vsock: Arc<Vsock>,
    notifier: Arc<Notifier>,
    rx: Ring,
    tx: Ring,
    feed: OwnedFd,
    folder: tempfile::TempDir,
    tx_at: u64,
    /// The buffer that the guest was told of last.
    credit: u32,
}

const RX_BUFFERS: u64 = 0x10_0000;
const RX_LENGTH: u32 = 4096;
const GUEST_ROOM: u32 = 64 * 1024;

fn setup() -> Setup {
    let ram = ram();
    let (notifier, _) = notifier();
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("vsock")).unwrap();
    let vsock = Vsock::new(ram.clone(), Arc::clone(&notifier), listener.into()).unwrap();
    let (feed, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    vsock.set_feed(theirs).unwrap();
    let (rx, tx) = (Ring::new(&ram, 0x1_0000, 64), Ring::new(&ram, 0x2_0000, 64));
    let mut setup = Setup {
        ram,
        vsock: Arc::new(vsock),
        notifier,
        rx,
        tx,
        feed,
        folder,
        tx_at: 0x8_0000,
        credit: 0,
    };
    setup.begin();
    setup
}

impl Setup {
    /// Resets the device, and begins with empty queues and buffers for the guest.
    fn begin(&mut self) {
        self.vsock.reset();
        self.notifier.reset();
        put(&self.ram, 0x1_0000, &[0; 0x3_0000]);
        self.rx = Ring::new(&self.ram, 0x1_0000, 64);
        self.tx = Ring::new(&self.ram, 0x2_0000, 64);
        let event = Ring::new(&self.ram, 0x3_0000, 4);
        let rings = [&self.rx, &self.tx, &event];
        activate(self.vsock.as_ref(), &self.notifier, &rings);
        self.give_buffers(60);
    }
}

impl Setup {
    fn give_buffers(&mut self, count: u64) {
        for _ in 0..count {
            let head = self.rx.add(&[(0, 0, true)]);
            let at = RX_BUFFERS + u64::from(head) * u64::from(RX_LENGTH);
            self.rx.descriptor(head, at, RX_LENGTH, 2, 0);
        }
    }

    /// The guest sends a packet.
    fn send(&mut self, header: Header, data: &[u8]) {
        self.tx_at = 0x8_0000 + (self.tx_at + 0x2_0000 - 0x8_0000) % 0x8_0000;
        put(&self.ram, self.tx_at, &header.bytes());
        put(&self.ram, self.tx_at + 64, data);
        let mut buffers = vec![(self.tx_at, HEADER as u32, false)];
        if !data.is_empty() {
            buffers.push((self.tx_at + 64, data.len() as u32, false));
        }
        self.tx.add(&buffers);
        self.vsock.serve();
        while self.tx.used().is_some() {}
    }

    /// The next packet that the guest gets.
    fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        self.vsock.serve();
        let (head, length) = self.rx.used()?;
        let at = RX_BUFFERS + u64::from(head) * u64::from(RX_LENGTH);
        let header = Header::parse(&get(&self.ram, at, HEADER).try_into().unwrap());
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, GUEST_CID));
        assert_eq!(length, HEADER as u32 + header.len);
        let data = get(&self.ram, at + HEADER as u64, header.len as usize);
        self.give_buffers(1);
        Some((header, data))
    }

    fn ops(&mut self) -> Vec<u16> {
        std::iter::from_fn(|| self.receive().map(|(header, _)| header.op)).collect()
    }

    fn dial(&mut self, guest_port: u32, host_port: u32) -> Option<UnixStream> {
        self.send(packet(guest_port, host_port, op::REQUEST), &[]);
        let (header, _) = self.receive().unwrap();
        assert_eq!((header.src_port, header.dst_port), (host_port, guest_port));
        if header.op == op::RST {
            return None;
        }
        assert_eq!(header.op, op::RESPONSE);
        assert!((SMALLEST..=LARGEST).contains(&header.buf_alloc));
        let (connection, mut fds) = wire::receive::<GuestConnection>(&self.feed)
            .unwrap()
            .unwrap();
        assert_eq!(connection.port, host_port);
        let stream = UnixStream::from(fds.remove(0));
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        Some(stream)
    }

    fn host_connects(&mut self, line: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.folder.path().join("vsock")).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        self.vsock.serve();
        stream
    }
}

fn packet(guest_port: u32, host_port: u32, op: u16) -> Header {
    Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port: guest_port,
        dst_port: host_port,
        kind: 1,
        op,
        buf_alloc: GUEST_ROOM,
        ..Header::default()
    }
}

fn data(guest_port: u32, host_port: u32, bytes: &[u8]) -> Header {
    Header {
        len: bytes.len() as u32,
        ..packet(guest_port, host_port, op::RW)
    }
}

fn shutdown(guest_port: u32, host_port: u32, flags: u32) -> Header {
    Header {
        flags,
        ..packet(guest_port, host_port, op::SHUTDOWN)
    }
}

#[test]
fn headers_survive_the_wire() {
    let header = Header {
        src_cid: 0x0102_0304_0506_0708,
        dst_cid: u64::MAX - 1,
        src_port: 1,
        dst_port: 2,
        len: 3,
        kind: 4,
        op: 5,
        flags: 6,
        buf_alloc: 7,
        fwd_cnt: 8,
    };
    let bytes = header.bytes();
    assert_eq!(bytes[0], 8);
    assert_eq!(&bytes[28..32], [4, 0, 5, 0]);
    assert_eq!(Header::parse(&bytes), header);
}

#[test]
fn the_guest_dials_and_both_half_close() {
    let mut s = setup();
    let mut host = s.dial(5, 77).unwrap();
    s.send(data(5, 77, b"question"), b"question");
    s.send(shutdown(5, 77, SHUTDOWN_SEND), &[]);
    let mut text = String::new();
    host.read_to_string(&mut text).unwrap();
    assert_eq!(text, "question");
    host.write_all(b"answer").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    let (header, bytes) = s.receive().unwrap();
    assert_eq!((header.op, bytes.as_slice()), (op::RW, &b"answer"[..]));
    let (header, _) = s.receive().unwrap();
    assert_eq!(header.op, op::SHUTDOWN);
    assert_eq!(header.flags & SHUTDOWN_SEND, SHUTDOWN_SEND);
    s.send(shutdown(5, 77, SHUTDOWN_SEND | SHUTDOWN_RECEIVE), &[]);
    assert_eq!(s.ops().last(), Some(&op::RST));
    assert_eq!(s.vsock.state.lock().unwrap().muxer.len(), 0);
}

#[test]
fn the_host_dials_and_data_behind_the_line_is_the_guests() {
    let mut s = setup();
    let mut host = s.host_connects("CONNECT 1025\nearly");
    let (request, _) = s.receive().unwrap();
    assert_eq!((request.op, request.dst_port), (op::REQUEST, 1025));
    assert!(s.receive().is_none());
    s.send(packet(1025, request.src_port, op::RESPONSE), &[]);
    let (header, bytes) = s.receive().unwrap();
    assert_eq!((header.op, bytes.as_slice()), (op::RW, &b"early"[..]));
    let mut line = [0; 3];
    host.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"OK ");

    // Refused.
    let mut host = s.host_connects("CONNECT 1\n");
    let (request, _) = s.receive().unwrap();
    s.send(packet(1, request.src_port, op::RST), &[]);
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0);

    // The line comes in pieces; the host gives up before the guest answers.
    let mut host = s.host_connects("CONN");
    host.write_all(b"ECT 2").unwrap();
    assert!(s.receive().is_none());
    host.write_all(b"\n").unwrap();
    assert_eq!(s.receive().unwrap().0.op, op::REQUEST);
    host.shutdown(Shutdown::Both).unwrap();
    assert_eq!(s.ops(), [op::RST]);
}

/// A connection that had nothing to read kept the room that was made for it, and the next one, which
/// had no room, was asked for ever.
#[test]
fn connections_that_run_dry_leave_the_room_to_others() {
    let mut s = setup();
    let mut streams = [s.dial(5, 77).unwrap(), s.dial(6, 77).unwrap()];
    for stream in &mut streams {
        stream.write_all(b"x").unwrap();
    }
    s.vsock.serve();
    assert_eq!(s.ops(), [op::RW, op::RW]);
}

#[test]
fn the_host_sends_no_more_than_the_guest_has_room_for() {
    let mut s = setup();
    let mut host = s.dial(5, 77).unwrap();
    host.set_nonblocking(true).unwrap();
    let mut written = 0;
    let mut got = 0;
    for _ in 0..200 {
        written += host.write(&[1; 65536]).unwrap_or(0);
        while let Some((header, _)) = s.receive() {
            assert_eq!(header.op, op::RW);
            got += header.len;
        }
    }
    assert_eq!(got, GUEST_ROOM);
    assert!(written > got as usize);
    // Room for a few more.
    let mut update = packet(5, 77, op::CREDIT_UPDATE);
    update.fwd_cnt = 10;
    s.send(update, &[]);
    assert_eq!(s.receive().unwrap().0.len, 10);
    assert!(s.receive().is_none());
    // Nonsense about what was forwarded gives nothing away.
    update.fwd_cnt = 0x8000_0000;
    s.send(update, &[]);
    assert!(s.receive().is_none());
}

#[test]
fn the_guest_sends_no_more_than_it_was_given() {
    let mut s = setup();
    let mut host = s.dial(5, 77).unwrap();
    let bytes = [7; 32 * 1024];
    // The host does not read: first its socket fills, then the outbox, within the guest's credit.
    let mut sent = 0_u32;
    loop {
        let forwarded = match s.ops_and_forwarded(5, 77) {
            Some(forwarded) => forwarded,
            None => panic!("reset while within the credit"),
        };
        if LARGEST - (sent - forwarded) < bytes.len() as u32 {
            break;
        }
        s.send(data(5, 77, &bytes), &bytes);
        sent += bytes.len() as u32;
    }
    // One byte too many ends the connection; what was within the credit still arrives.
    let room = LARGEST as usize;
    for _ in 0..=room / bytes.len() {
        s.send(data(5, 77, &bytes), &bytes);
    }
    assert!(s.ops().contains(&op::RST));
    host.set_nonblocking(true).unwrap();
    let mut total = 0;
    let mut buffer = vec![0; 65536];
    loop {
        s.vsock.serve();
        match host.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => total += count as u32,
            Err(_) => {}
        }
    }
    assert!(total >= sent, "{total} of {sent}");
}

impl Setup {
    /// Asks for the credit; answers what has been forwarded.
    fn ops_and_forwarded(&mut self, guest_port: u32, host_port: u32) -> Option<u32> {
        while self.receive().is_some() {}
        self.send(packet(guest_port, host_port, op::CREDIT_REQUEST), &[]);
        let (header, _) = self.receive()?;
        self.credit = header.buf_alloc;
        (header.op == op::CREDIT_UPDATE).then_some(header.fwd_cnt)
    }
}

fn socketpair_end() -> OwnedFd {
    UnixStream::pair().unwrap().0.into()
}

#[test]
fn a_host_that_goes_is_told_to_the_guest() {
    let mut s = setup();
    let mut host = s.dial(5, 77).unwrap();
    host.write_all(b"last words").unwrap();
    host.shutdown(Shutdown::Both).unwrap();
    let (header, bytes) = s.receive().unwrap();
    assert_eq!((header.op, bytes.as_slice()), (op::RW, &b"last words"[..]));
    let (header, _) = s.receive().unwrap();
    assert_eq!(header.op, op::SHUTDOWN);
    assert_eq!(header.flags, SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
    // What the guest had under way is dropped without a word.
    s.send(data(5, 77, b"late"), b"late");
    assert!(s.ops().is_empty());
    s.send(packet(5, 77, op::RST), &[]);
    assert_eq!(s.vsock.state.lock().unwrap().muxer.len(), 0);
}

#[test]
fn the_host_half_closes_and_the_guest_goes_on() {
    let mut s = setup();
    let mut host = s.dial(5, 77).unwrap();
    host.write_all(b"all").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(s.receive().unwrap().1, b"all");
    let (header, _) = s.receive().unwrap();
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, SHUTDOWN_SEND));
    // Told once.
    assert!(s.receive().is_none());
    for _ in 0..3 {
        s.send(data(5, 77, b"more"), b"more");
    }
    let mut bytes = [0; 12];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"moremoremore");
    s.send(shutdown(5, 77, SHUTDOWN_SEND), &[]);
    assert_eq!(host.read(&mut [0; 1]).unwrap(), 0);

    // Nothing more goes either way, which the guest may be told.
    assert!(s.ops().iter().all(|op| *op == op::SHUTDOWN));

    // The guest receives no more: the host is told when it writes, and may still read.
    let mut host = s.dial(6, 77).unwrap();
    s.send(shutdown(6, 77, SHUTDOWN_RECEIVE), &[]);
    assert!(host.write_all(b"nobody").is_err());
    s.send(data(6, 77, b"still"), b"still");
    let mut bytes = [0; 5];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"still");
}

#[test]
fn what_the_host_sends_fills_many_packets_in_order() {
    let mut s = setup();
    let mut host = s.dial(5, 77).unwrap();
    let bytes: Vec<u8> = (0..GUEST_ROOM).map(|index| (index / 11) as u8).collect();
    host.write_all(&bytes).unwrap();
    let mut got = Vec::new();
    let mut packets = 0;
    while let Some((header, part)) = s.receive() {
        assert_eq!(header.op, op::RW);
        packets += 1;
        got.extend(part);
    }
    assert!(got == bytes);
    assert_eq!(packets, GUEST_ROOM.div_ceil(RX_LENGTH - HEADER as u32));
}

#[test]
fn thousands_of_short_connections_leave_nothing() {
    let mut s = setup();
    for port in 0..3000 {
        let mut host = match port % 2 {
            0 => s.dial(port, 77).unwrap(),
            _ => {
                let host = s.host_connects("CONNECT 1025\n");
                let (request, _) = s.receive().unwrap();
                s.send(packet(1025, request.src_port, op::RESPONSE), &[]);
                let ports = (request.dst_port, request.src_port);
                s.send(data(ports.0, ports.1, b"bye"), b"bye");
                s.send(packet(ports.0, ports.1, op::RST), &[]);
                host
            }
        };
        match port % 4 {
            // The guest ends it.
            0 => s.send(packet(port, 77, op::RST), &[]),
            // The host does, and the guest agrees.
            2 => {
                // Closing would not do: children of other tests may hold the descriptor for a moment.
                host.shutdown(Shutdown::Both).unwrap();
                assert_eq!(s.ops(), [op::SHUTDOWN]);
                s.send(packet(port, 77, op::RST), &[]);
                continue;
            }
            _ => {}
        }
        let mut text = String::new();
        host.read_to_string(&mut text).unwrap();
        assert!(text.is_empty() || text.ends_with("\nbye"), "{text}");
    }
    let state = s.vsock.state.lock().unwrap();
    assert!(state.muxer.is_empty());
    assert_eq!(state.muxer.held(), (0, 0, 0));
}
