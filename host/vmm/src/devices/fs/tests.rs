//! The device between a guest's driver and a file daemon's side of the shared memory, both in this process.

use super::{BindError, Fs, INIT, REQUESTS};
use crate::events::{Events, Handler};
use crate::machine::memory::GuestRam;
use crate::virtio::Device;
use crate::virtio::buffers::Chain;
use crate::virtio::notify::Notifier;
use crate::virtio::queue::{Queue, QueueLayout};
use crate::virtio::testing::{Raised, Ring, activate, get, notifier, put, ram};
use bulkhead_vmm_api::bounce::{self, QUEUE_SIZE};
use rustix::fs::{MemfdFlags, SealFlags};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Where requests and replies of the tests lie in guest memory.
const REQUEST: u64 = 0x4_0000;
const REPLY: u64 = 0x40_0000;

/// The far side: what `bulkhead-fs` would be.
struct Daemon {
    memory: GuestRam,
    queues: Vec<Queue>,
    kicks: Vec<EventFd>,
    calls: Vec<EventFd>,
    socket: OwnedFd,
}

fn file(size: u64, seals: SealFlags) -> File {
    let file = rustix::fs::memfd_create("bounce", MemfdFlags::ALLOW_SEALING).unwrap();
    let file = File::from(file);
    file.set_len(size).unwrap();
    rustix::fs::fcntl_add_seals(&file, seals).unwrap();
    file
}

fn duplicate(event: &EventFd) -> OwnedFd {
    let event = event.try_clone().unwrap();
    let fd = event.as_raw_fd();
    std::mem::forget(event);
    // SAFETY: the descriptor belonged to the eventfd, which has been forgotten.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

impl Daemon {
    /// A daemon, and what the VMM gets of it.
    fn new() -> (Self, Vec<OwnedFd>) {
        let file = file(bounce::size(), SealFlags::SHRINK | SealFlags::GROW);
        let size = usize::try_from(bounce::size()).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let ranges = [(GuestAddress(0), size, Some(offset))];
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges).unwrap();
        let queues = (0..bounce::QUEUES).map(|queue| {
            let [descriptors, available, used] = bounce::rings(queue);
            let layout = QueueLayout {
                max: QUEUE_SIZE,
                size: QUEUE_SIZE,
                ready: true,
                descriptors,
                available,
                used,
            };
            Queue::new(&layout, &memory, false).unwrap()
        });
        let queues = queues.collect();
        let events = || -> Vec<EventFd> {
            let events = (0..bounce::QUEUES).map(|_| EventFd::new(EFD_NONBLOCK).unwrap());
            events.collect()
        };
        let (kicks, calls) = (events(), events());
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut fds = vec![OwnedFd::from(file), theirs.into()];
        fds.extend(kicks.iter().chain(&calls).map(duplicate));
        let daemon = Self {
            memory,
            queues,
            kicks,
            calls,
            socket: ours.into(),
        };
        (daemon, fds)
    }

    fn take(&mut self, queue: usize) -> Option<Chain> {
        self.queues[queue].pop(&self.memory).unwrap()
    }

    fn answer(&mut self, queue: usize, mut chain: Chain, reply: &[u8]) {
        chain.writable.write(&self.memory, reply).unwrap();
        let length = reply.len() as u32;
        self.used(queue, chain.head, length);
    }

    /// Takes FUSE_INIT, which must be this one and the next, and answers it.
    fn answer_init(&mut self, unique: u64, body: &[u8], error: i32) {
        assert!(self.kicks[REQUESTS].read().is_ok());
        let mut chain = self.take(REQUESTS).unwrap();
        let mut got = vec![0; chain.readable.len() as usize];
        chain.readable.read(&self.memory, &mut got).unwrap();
        let length = 40 + body.len() as u32;
        assert_eq!(got, request(length, INIT, unique, body));
        assert!(chain.writable.len() >= 80);
        self.answer(REQUESTS, chain, &reply(unique, error));
    }

    fn used(&mut self, queue: usize, head: u16, length: u32) {
        self.queues[queue]
            .push_used(&self.memory, head, length)
            .unwrap();
        self.calls[queue].write(1).unwrap();
    }
}

struct Setup {
    ram: GuestRam,
    rings: [Ring; 2],
    fs: Arc<Fs>,
    notifier: Arc<Notifier>,
    raised: Arc<Raised>,
    events: Events,
    handler: Arc<dyn Handler>,
}

impl Setup {
    fn new() -> Self {
        let ram = ram();
        let (notifier, raised) = notifier();
        let fs = Arc::new(Fs::new(ram.clone(), Arc::clone(&notifier)).unwrap());
        let served = Arc::clone(&fs);
        let mut setup = Self {
            rings: [
                Ring::new(&ram, 0x1_0000, 16),
                Ring::new(&ram, 0x2_0000, 128),
            ],
            ram,
            fs,
            notifier,
            raised,
            events: Events::new().unwrap(),
            handler: Arc::new(move || served.serve()),
        };
        setup.activate();
        setup
    }

    fn activate(&mut self) {
        let [first, second] = &self.rings;
        activate(self.fs.as_ref(), &self.notifier, &[first, second]);
    }

    fn with_daemon() -> (Self, Daemon) {
        let setup = Self::new();
        let daemon = setup.bind().unwrap();
        (setup, daemon)
    }

    fn bind(&self) -> Result<Daemon, BindError> {
        let (daemon, fds) = Daemon::new();
        self.fs.bind(fds, &self.events, &self.handler)?;
        Ok(daemon)
    }

    /// Makes a request with this number, body and room available and has the device look.
    fn ask(&mut self, unique: u64, body: &[u8], room: u32) -> u16 {
        let length = 40 + body.len() as u32;
        self.ask_with_length(unique, body, room, length)
    }

    fn ask_with_length(&mut self, unique: u64, body: &[u8], room: u32, told: u32) -> u16 {
        // FUSE_GETATTR.
        self.send(&request(told, 3, unique, body), room)
    }

    /// FUSE_INIT, and what the daemon makes of it.
    fn init(&mut self, daemon: &mut Daemon, unique: u64, body: &[u8], error: i32) {
        let length = 40 + body.len() as u32;
        let head = self.send(&request(length, INIT, unique, body), 100);
        daemon.answer_init(unique, body, error);
        self.events.turn().unwrap();
        assert_eq!(self.used(), Some((head.into(), 16)));
    }

    fn send(&mut self, request: &[u8], room: u32) -> u16 {
        put(&self.ram, REQUEST, request);
        let mut buffers = vec![(REQUEST, request.len() as u32, false)];
        if room > 0 {
            buffers.push((REPLY, room, true));
        }
        let head = self.rings[REQUESTS].add(&buffers);
        self.fs.serve();
        head
    }

    fn used(&mut self) -> Option<(u32, u32)> {
        self.rings[REQUESTS].used()
    }

    fn assert_refused(&mut self, head: u16, unique: u64) {
        assert_eq!(self.used(), Some((u32::from(head), 16)));
        assert_eq!(get(&self.ram, REPLY, 16), refusal(unique));
        assert!(!self.notifier.needs_reset());
    }
}

fn request(length: u32, opcode: u32, unique: u64, body: &[u8]) -> Vec<u8> {
    let mut request = length.to_le_bytes().to_vec();
    request.extend(opcode.to_le_bytes());
    request.extend(unique.to_le_bytes());
    request.resize(40, 0);
    request.extend(body);
    request
}

fn refusal(unique: u64) -> Vec<u8> {
    reply(unique, -5)
}

fn reply(unique: u64, error: i32) -> Vec<u8> {
    let mut reply = 16_u32.to_le_bytes().to_vec();
    reply.extend(error.to_le_bytes());
    reply.extend(unique.to_le_bytes());
    reply
}

#[test]
fn requests_and_replies_cross() {
    let (mut setup, mut daemon) = Setup::with_daemon();
    for (round, length) in [0_usize, 1, 4096, 60_000].into_iter().enumerate() {
        let body: Vec<u8> = (0..length).map(|at| at as u8 ^ round as u8).collect();
        let head = setup.ask(round as u64, &body, 70_000);
        assert!(daemon.kicks[REQUESTS].read().is_ok());
        let mut chain = daemon.take(REQUESTS).unwrap();
        assert_eq!(chain.writable.len(), 70_000);
        let mut got = vec![0; chain.readable.len() as usize];
        chain.readable.read(&daemon.memory, &mut got).unwrap();
        assert_eq!(got[8..16], (round as u64).to_le_bytes());
        assert_eq!(got[40..], body);
        assert_eq!(setup.used(), None);
        let reply: Vec<u8> = got.iter().rev().copied().collect();
        daemon.answer(REQUESTS, chain, &reply);
        setup.events.turn().unwrap();
        assert_eq!(setup.used(), Some((head.into(), reply.len() as u32)));
        assert_eq!(get(&setup.ram, REPLY, reply.len()), reply);
    }
    assert_eq!(setup.raised.counts(), (4, 0));
    assert_eq!(setup.fs.counters().named("").requests, 4);
}

#[test]
fn without_a_daemon_the_guest_gets_eio() {
    let mut setup = Setup::new();
    let head = setup.ask(7, b"x", 100);
    setup.assert_refused(head, 7);
    // FORGET has no reply.
    let head = setup.ask(8, b"x", 0);
    assert_eq!(setup.used(), Some((head.into(), 0)));
}

#[test]
fn what_a_daemon_had_when_it_went_is_eio_and_the_next_one_goes_on() {
    let (mut setup, mut daemon) = Setup::with_daemon();
    let head = setup.ask(9, b"x", 100);
    assert!(matches!(setup.bind(), Err(BindError::Bound)));
    drop(daemon);
    setup.events.turn().unwrap();
    setup.assert_refused(head, 9);
    let head = setup.ask(10, b"x", 100);
    setup.assert_refused(head, 10);

    daemon = setup.bind().unwrap();
    let head = setup.ask(11, b"x", 100);
    let chain = daemon.take(REQUESTS).unwrap();
    daemon.answer(REQUESTS, chain, b"reply");
    setup.events.turn().unwrap();
    assert_eq!(setup.used(), Some((head.into(), 5)));
}

#[test]
fn requests_wait_for_slots_and_lose_none() {
    let (mut setup, mut daemon) = Setup::with_daemon();
    // Only the largest slots take these.
    let (_, largest) = bounce::slots().last().unwrap();
    let slots = bounce::slots().filter(|slot| slot.1 == largest).count();
    let heads: Vec<u16> = (0..20)
        .map(|unique| setup.ask(unique, b"x", 0x10_0000))
        .collect();
    let mut held = Vec::new();
    for head in heads {
        while let Some(chain) = daemon.take(REQUESTS) {
            held.push(chain.head);
        }
        assert!(held.len() <= slots);
        // One at a time, in order: each makes room for the next.
        daemon.used(REQUESTS, held.remove(0), 20);
        setup.events.turn().unwrap();
        assert_eq!(setup.used(), Some((head.into(), 20)));
    }
    assert_eq!(setup.used(), None);
}

#[test]
fn a_daemon_that_lies_is_let_go() {
    type Lie = fn(&mut Daemon);
    let lies: [(&str, Lie); 5] = [
        ("a descriptor that is no head", |daemon| {
            daemon.used(REQUESTS, 1, 0)
        }),
        ("a slot that has nothing", |daemon| {
            daemon.used(REQUESTS, 2, 0)
        }),
        ("more than there was room for", |daemon| {
            daemon.used(REQUESTS, 0, 101)
        }),
        ("another queue's request", |daemon| daemon.used(0, 0, 0)),
        ("an index that jumps", |daemon| {
            let [_, _, used] = bounce::rings(REQUESTS);
            let index = GuestAddress(used + 2);
            daemon.memory.write_obj(200_u16, index).unwrap();
            daemon.calls[REQUESTS].write(1).unwrap();
        }),
    ];
    for (name, lie) in lies {
        let (mut setup, mut daemon) = Setup::with_daemon();
        let head = setup.ask(5, b"x", 100);
        assert!(daemon.take(REQUESTS).is_some());
        lie(&mut daemon);
        setup.events.turn().unwrap();
        println!("{name}");
        setup.assert_refused(head, 5);
        // Its connection is closed: it ends by that.
        let mut byte = [0];
        assert_eq!(rustix::io::read(&daemon.socket, &mut byte).unwrap(), 0);
        assert!(setup.bind().is_ok());
    }
}

#[test]
fn a_daemon_that_talks_is_let_go_and_what_it_said_does_not_hide_its_end() {
    for goes in [false, true] {
        let (mut setup, daemon) = Setup::with_daemon();
        let head = setup.ask(5, b"x", 100);
        rustix::io::write(&daemon.socket, b"x").unwrap();
        let kept = (!goes).then_some(daemon);
        setup.events.turn().unwrap();
        setup.assert_refused(head, 5);
        assert!(setup.bind().is_ok());
        drop(kept);
    }
}

#[test]
fn a_reply_to_a_guest_that_has_reset_the_device_goes_nowhere() {
    let (mut setup, mut daemon) = Setup::with_daemon();
    setup.ask(1, b"x", 100);
    let chain = daemon.take(REQUESTS).unwrap();
    setup.fs.reset();
    put(&setup.ram, REPLY, &[7; 100]);
    setup.rings = [
        Ring::new(&setup.ram, 0x1_0000, 16),
        Ring::new(&setup.ram, 0x2_0000, 128),
    ];
    for ring in &setup.rings {
        put(&setup.ram, ring.layout.used, &[0; 4]);
        ring.set_available(0);
    }
    setup.activate();
    daemon.answer(REQUESTS, chain, b"late");
    setup.events.turn().unwrap();
    assert_eq!(setup.used(), None);
    assert_eq!(get(&setup.ram, REPLY, 100), [7; 100]);
    let head = setup.ask(2, b"x", 100);
    let chain = daemon.take(REQUESTS).unwrap();
    daemon.answer(REQUESTS, chain, b"reply");
    setup.events.turn().unwrap();
    assert_eq!(setup.used(), Some((head.into(), 5)));
}

#[test]
fn requests_that_make_no_sense_do_not_reach_the_daemon() {
    let (mut setup, mut daemon) = Setup::with_daemon();
    for told in [0, 39, 40, 42, u32::MAX] {
        let head = setup.ask_with_length(3, b"x", 100, told);
        setup.assert_refused(head, 3);
    }
    // Shorter than a header, and longer than any slot.
    for (length, room) in [(39, 100), (40, 0x1f_0000)] {
        put(&setup.ram, REQUEST, &40_u32.to_le_bytes());
        let buffers = [(REQUEST, length, false), (REPLY, room, true)];
        let head = setup.rings[REQUESTS].add(&buffers);
        setup.fs.serve();
        assert_eq!(setup.used(), Some((head.into(), 16)));
    }
    assert!(daemon.take(REQUESTS).is_none());
}

#[test]
fn a_malformed_queue_asks_for_a_reset_and_works_after_it() {
    let (mut setup, mut daemon) = Setup::with_daemon();
    setup.rings[REQUESTS].set_available(300);
    setup.fs.serve();
    assert!(setup.notifier.needs_reset());
    setup.fs.reset();
    setup.notifier.reset();
    setup.rings[REQUESTS] = Ring::new(&setup.ram, 0x2_0000, 128);
    setup.rings[REQUESTS].set_available(0);
    setup.activate();
    setup.ask(2, b"x", 100);
    assert!(daemon.take(REQUESTS).is_some());
}

#[test]
fn descriptors_that_are_not_what_they_must_be_are_refused() {
    let setup = Setup::new();
    let bind = |fds| setup.fs.bind(fds, &setup.events, &setup.handler);
    let (_daemon, mut fds) = Daemon::new();
    fds.pop();
    assert!(matches!(bind(fds), Err(BindError::Descriptors(_))));
    for (size, seals) in [
        (bounce::size() - 1, SealFlags::SHRINK),
        (bounce::size(), SealFlags::GROW),
    ] {
        let (_daemon, mut fds) = Daemon::new();
        fds[0] = file(size, seals).into();
        assert!(matches!(bind(fds), Err(BindError::Descriptors(_))));
    }
    assert!(bind(Daemon::new().1).is_ok());
}

#[test]
fn the_next_daemon_is_told_first_what_the_guest_told_the_last() {
    let (mut setup, mut daemon) = Setup::with_daemon();
    setup.init(&mut daemon, 1, b"first", 0);
    // One that is refused changes nothing.
    setup.init(&mut daemon, 2, b"refused", -22);
    for _ in 0..2 {
        drop(daemon);
        setup.events.turn().unwrap();
        daemon = setup.bind().unwrap();
        let head = setup.ask(3, b"x", 100);
        let forgets = setup.rings[0].add(&[(REQUEST, 41, false)]);
        setup.fs.serve();
        daemon.answer_init(1, b"first", 0);
        // Nothing is passed on before the reply is there, and the guest does not see it.
        assert!(daemon.take(REQUESTS).is_none() && daemon.take(0).is_none());
        setup.events.turn().unwrap();
        setup.fs.serve();
        assert_eq!(setup.used(), None);
        let chain = daemon.take(REQUESTS).unwrap();
        daemon.answer(REQUESTS, chain, b"reply");
        let chain = daemon.take(0).unwrap();
        daemon.answer(0, chain, b"");
        setup.events.turn().unwrap();
        assert_eq!(setup.used(), Some((head.into(), 5)));
        assert_eq!(setup.rings[0].used(), Some((forgets.into(), 0)));
    }
}

#[test]
fn a_daemon_that_refuses_what_was_agreed_upon_is_let_go() {
    for dies in [false, true] {
        let (mut setup, mut first) = Setup::with_daemon();
        setup.init(&mut first, 1, b"init", 0);
        drop(first);
        setup.events.turn().unwrap();
        let mut second = setup.bind().unwrap();
        let head = setup.ask(2, b"x", 100);
        assert_eq!(setup.used(), None);
        if dies {
            drop(second);
        } else {
            second.answer_init(1, b"init", -5);
        }
        setup.events.turn().unwrap();
        setup.fs.serve();
        setup.assert_refused(head, 2);
        // The one after it is told again.
        let mut third = setup.bind().unwrap();
        third.answer_init(1, b"init", 0);
    }
}

#[test]
fn a_guest_that_has_reset_the_device_has_told_nothing() {
    let (mut setup, mut daemon) = Setup::with_daemon();
    setup.init(&mut daemon, 1, b"init", 0);
    // Another one is still being looked at.
    setup.send(&request(44, INIT, 2, b"late"), 100);
    setup.fs.reset();
    daemon.answer_init(2, b"late", 0);
    setup.events.turn().unwrap();
    drop(daemon);
    setup.rings = [
        Ring::new(&setup.ram, 0x1_0000, 16),
        Ring::new(&setup.ram, 0x2_0000, 128),
    ];
    for ring in &setup.rings {
        put(&setup.ram, ring.layout.used, &[0; 4]);
        ring.set_available(0);
    }
    setup.activate();
    let mut daemon = setup.bind().unwrap();
    assert!(daemon.take(REQUESTS).is_none());
    setup.ask(3, b"x", 100);
    assert!(daemon.take(REQUESTS).is_some());
}

#[test]
fn an_init_that_is_too_long_or_has_priority_does_not_reach_the_daemon() {
    let (mut setup, mut daemon) = Setup::with_daemon();
    let head = setup.send(&request(257, INIT, 4, &[0; 217]), 100);
    setup.assert_refused(head, 4);
    put(&setup.ram, REQUEST, &request(41, INIT, 5, b"x"));
    setup.rings[0].add(&[(REQUEST, 41, false), (REPLY, 100, true)]);
    setup.fs.serve();
    assert!(setup.rings[0].used().is_some());
    assert!(daemon.take(REQUESTS).is_none() && daemon.take(0).is_none());
}

#[test]
fn data_of_reads_and_writes_begins_with_a_page() {
    let (mut setup, mut daemon) = Setup::with_daemon();
    // Read with a size, and written behind `struct fuse_write_in`.
    for (opcode, body, room) in [
        (super::READ, 40_u32, 16 + 4096),
        (super::WRITE, 40 + 4096, 24),
    ] {
        let told = request(40 + body, opcode, 7, &vec![1; body as usize]);
        setup.send(&told, room);
        let chain = daemon.take(REQUESTS).unwrap();
        let (data, before) = match opcode {
            super::READ => (&chain.writable, 16),
            _ => (&chain.readable, 80),
        };
        let address = data.start().unwrap();
        assert_eq!((address + before) % 4096, 0, "{opcode}");
        daemon.answer(REQUESTS, chain, &reply(7, 0));
        setup.events.turn().unwrap();
    }
}
