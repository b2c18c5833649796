//! A driver's whole conversation with the file system device, while the file daemon does what the input says:
//! it answers, lies about what it has served, writes anywhere into the memory that both share, goes, and is
//! followed by another one. Whatever happened, the device works after a reset, and takes a daemon once the last
//! one has gone.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use bulkhead_vmm::devices::fs::Fs;
use bulkhead_vmm::events::{Events, Handler};
use bulkhead_vmm_api::bounce;
use bulkhead_vmm_fuzz::Driver;
use libfuzzer_sys::fuzz_target;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// What the daemon does between two steps of the driver.
#[derive(Debug, Arbitrary)]
enum Step {
    Nothing,
    /// Serves the next request: begins the reply with these bytes and says that it has so many.
    Answer { queue: u8, bytes: [u8; 16], length: u16 },
    /// Says that it has served what it likes.
    Used { queue: u8, head: u32, length: u32 },
    /// Jumps with the used index.
    Jump { queue: u8, index: u16 },
    /// Asks not to be told of requests, or anything else.
    Flags { queue: u8, flags: u16 },
    /// Writes anywhere in the shared memory.
    Memory { address: u32, bytes: Vec<u8> },
    /// Says something on the socket, which only its end should.
    Talk,
    Go,
    Come,
}

/// The daemon's side.
struct Daemon {
    memory: File,
    socket: OwnedFd,
    /// Per queue: requests taken, requests served.
    rings: [(u16, u16); bounce::QUEUES],
}

impl Daemon {
    /// A daemon, and what the VMM gets of it.
    fn new() -> (Self, Vec<OwnedFd>) {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = File::from(memfd_create("bounce", flags).expect("a file"));
        memory.set_len(bounce::size()).expect("a file");
        fcntl_add_seals(&memory, SealFlags::SHRINK).expect("a seal");
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).expect("sockets");
        let file = memory.try_clone().expect("a file");
        let mut fds = vec![OwnedFd::from(file), theirs];
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        fds.extend((0..2 * bounce::QUEUES).map(|_| eventfd(0, flags).expect("an eventfd")));
        let rings = [(0, 0); bounce::QUEUES];
        (
            Self {
                memory,
                socket,
                rings,
            },
            fds,
        )
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read_exact_at(&mut bytes, at).expect("memory");
        bytes
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, at).expect("memory");
    }

    fn used(&mut self, queue: usize, head: u32, length: u32) {
        let [_, _, used] = bounce::rings(queue);
        let served = &mut self.rings[queue].1;
        let element = used + 4 + 8 * u64::from(*served % bounce::QUEUE_SIZE);
        *served = served.wrapping_add(1);
        let index = served.to_le_bytes();
        self.write(element, &[head.to_le_bytes(), length.to_le_bytes()].concat());
        self.write(used + 2, &index);
    }

    fn answer(&mut self, queue: usize, bytes: [u8; 16], length: u16) {
        let [descriptors, available, _] = bounce::rings(queue);
        let taken = self.rings[queue].0;
        if taken == u16::from_le_bytes(self.read(available + 2)) {
            return;
        }
        self.rings[queue].0 = taken.wrapping_add(1);
        let place = u64::from(taken % bounce::QUEUE_SIZE);
        let head = u16::from_le_bytes(self.read(available + 4 + 2 * place));
        // Where the daemon has not written, the reply is the descriptor after the head.
        let reply = descriptors + 16 * u64::from((head % bounce::QUEUE_SIZE) | 1);
        let at = u64::from_le_bytes(self.read(reply)) % (bounce::size() - 16);
        self.write(at, &bytes);
        self.used(queue, head.into(), length.into());
    }
}

fuzz_target!(|input: &[u8]| {
    // The first byte says how much of the input is the driver's.
    let Some((share, input)) = input.split_first() else {
        return;
    };
    let (guest, host) = input.split_at(input.len() * usize::from(*share) / 256);
    let mut host = Unstructured::new(host);
    let events = Events::new().expect("events");
    // Nobody waits for events here: each step serves.
    let handler: Arc<dyn Handler> = Arc::new(|| {});
    let come = |fs: &Fs| {
        let (daemon, fds) = Daemon::new();
        fs.bind(fds, &events, &handler).map(|()| daemon)
    };
    let mut driver = Driver::new(|ram, notifier| Fs::new(ram, notifier).expect("a device"));
    // FUSE_GETATTR of the root, which the input distorts.
    driver.template = [
        [40_u32, 3].map(u32::to_le_bytes).concat(),
        [1_u64, 1, 0, 0].map(u64::to_le_bytes).concat(),
    ]
    .concat();
    let mut daemon = come(driver.device()).ok();
    driver.run(guest, |fs| {
        fs.serve();
        let Ok(step) = Step::arbitrary(&mut host) else {
            return;
        };
        match (step, &mut daemon) {
            (Step::Come, daemon) => {
                if let Ok(next) = come(fs) {
                    *daemon = Some(next);
                }
            }
            (Step::Go, daemon) => *daemon = None,
            (Step::Nothing, _) | (_, None) => {}
            (step, Some(daemon)) => act(daemon, step),
        }
        fs.serve();
    });
    drop(daemon);
    let fs = driver.device();
    fs.serve();
    let last = come(fs).map(drop);
    assert!(last.is_ok(), "the device takes no daemon: {last:?}");
});

fn act(daemon: &mut Daemon, step: Step) {
    let queue = |queue: u8| usize::from(queue) % bounce::QUEUES;
    match step {
        Step::Answer {
            queue: number,
            bytes,
            length,
        } => daemon.answer(queue(number), bytes, length),
        Step::Used {
            queue: number,
            head,
            length,
        } => daemon.used(queue(number), head, length),
        Step::Jump {
            queue: number,
            index,
        } => daemon.write(bounce::rings(queue(number))[2] + 2, &index.to_le_bytes()),
        Step::Flags {
            queue: number,
            flags,
        } => daemon.write(bounce::rings(queue(number))[2], &flags.to_le_bytes()),
        Step::Memory { address, bytes } => {
            let room = bounce::size().saturating_sub(bytes.len() as u64);
            daemon.write(u64::from(address) % room.max(1), &bytes);
        }
        Step::Talk => {
            // A full socket is as good, and so is one whose other end is closed.
            let _ = send(&daemon.socket, b"x", SendFlags::NOSIGNAL);
        }
        Step::Nothing | Step::Go | Step::Come => {}
    }
}
