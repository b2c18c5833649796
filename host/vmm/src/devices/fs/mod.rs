//! virtio-fs (virtio 1.2, 5.11): FUSE messages between the guest and the pod's file daemon.
//!
//! The daemon speaks vhost-user, but the memory that it shares with the VMM is not the guest's: each request is
//! copied into a slot of [`bulkhead_vmm_api::bounce`] and its reply back ([`daemon`]), over virtqueues in that
//! memory of which the VMM is the driver ([`ring`]). The daemon comes late, with the pod's first shared volume,
//! and may go: the guest's requests are answered with EIO while there is none. The guest introduces itself once,
//! with FUSE_INIT; to a daemon that comes after another one the device repeats it before anything else.

mod daemon;
mod ring;

use crate::devices::counters::Counters;
use crate::error::Error;
use crate::events::{Events, Handler};
use crate::machine::memory::GuestRam;
use crate::sync::lock;
use crate::virtio::buffers::{Buffers, Chain};
use crate::virtio::notify::Notifier;
use crate::virtio::queue::{Queue, QueueError};
use crate::virtio::{Device, copy_config};
use bulkhead_vmm_api::{VOLUMES_TAG, bounce::QUEUES};
use daemon::{Daemon, Passed};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use vm_memory::GuestMemoryError;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

const ID: u32 = 26;
const QUEUE_SIZES: &[u16; QUEUES] = &[16, 128];
/// Requests of each queue that are looked at before other devices get their turn.
const TURN: usize = 32;
/// `struct fuse_in_header` and `struct fuse_out_header`.
const IN_HEADER: usize = 40;
const OUT_HEADER: u32 = 16;
const EIO: i32 = 5;
/// The queue of requests, after the one for what has priority.
const REQUESTS: usize = 1;
/// FUSE_READ and FUSE_WRITE, whose data the file daemon passes on to files.
const READ: u32 = 15;
const WRITE: u32 = 16;
/// FUSE_INIT, and the longest one that is taken: Linux's has 104 bytes with its header.
const INIT: u32 = 26;
const MAX_INIT: u32 = 256;

/// The file daemon does not keep to the rules.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// A virtqueue, or a guest buffer, makes no sense.
    #[error("A virtqueue makes no sense")]
    Ring,
    /// Memory could not be reached.
    #[error("Memory could not be reached")]
    Memory(#[from] GuestMemoryError),
    /// It does not accept what the daemon before it had agreed upon with the guest.
    #[error("The guest's FUSE_INIT was refused")]
    Refused,
}

/// Why a file daemon was refused.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// There is one already.
    #[error("The machine has a file daemon")]
    Bound,
    /// What came with the request is not what it must be.
    #[error("The file daemon's descriptors cannot be used")]
    Descriptors(#[source] io::Error),
    /// The descriptors cannot be waited for.
    #[error("The file daemon cannot be watched")]
    Watch(#[source] Error),
}

/// The file system device.
#[derive(Debug)]
pub struct Fs {
    ram: GuestRam,
    notifier: Arc<Notifier>,
    kick: EventFd,
    state: Mutex<State>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct State {
    queues: Option<Vec<GuestQueue>>,
    daemon: Option<Daemon>,
    /// The guest's FUSE_INIT, once a daemon has accepted it, and its number.
    init: Option<(u64, Vec<u8>)>,
}

#[derive(Debug)]
struct GuestQueue {
    queue: Queue,
    /// Waits for a slot.
    waiting: Option<Chain>,
}

/// What became of a look at a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// A request was dealt with.
    Served,
    /// There is none.
    Empty,
    /// It waits for another one to be served.
    Full,
}

impl Fs {
    /// The device, without a file daemon.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn new(ram: GuestRam, notifier: Arc<Notifier>) -> Result<Self, Error> {
        Ok(Self {
            ram,
            notifier,
            kick: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
                .map_err(Error::host("create an eventfd"))?,
            state: Mutex::default(),
            counters: Counters::default(),
        })
    }

    /// What the device has done.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Takes a file daemon, which `handler` serves from now on. One that has gone makes room for the next.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(
        &self,
        fds: Vec<OwnedFd>,
        events: &Events,
        handler: &Arc<dyn Handler>,
    ) -> Result<(), BindError> {
        let mut state = lock(&self.state);
        if state.daemon.as_ref().is_some_and(Daemon::is_there) {
            return Err(BindError::Bound);
        }
        self.lose_daemon(&mut state);
        let mut daemon = Daemon::new(fds).map_err(BindError::Descriptors)?;
        for fd in daemon.watched() {
            // Closed, and so no longer watched, with the daemon.
            events
                .add(fd, Arc::clone(handler))
                .map_err(BindError::Watch)?;
        }
        if let Some((unique, init)) = &state.init {
            let told = daemon.replay(*unique, init.clone());
            told.map_err(|error| BindError::Descriptors(io::Error::other(error)))?;
        }
        state.daemon = Some(daemon);
        Ok(())
    }

    /// Moves requests and replies as long as there are any, within a turn.
    pub fn serve(&self) {
        let _ = self.kick.read();
        let mut state = lock(&self.state);
        match self.turn(&mut state) {
            Ok(true) => {}
            Ok(false) => {
                let _ = self.kick.write(1);
            }
            Err(_) => {
                self.forget_guest(&mut state);
                drop(state);
                self.counters.failed();
                self.notifier.ask_for_reset();
            }
        }
    }

    /// Answers whether nothing is left to do.
    fn turn(&self, state: &mut State) -> Result<bool, QueueError> {
        if let Some(daemon) = &state.daemon {
            daemon.take_calls();
            if !daemon.is_there() {
                self.lose_daemon(state);
            }
        }
        let mut finished = true;
        for number in 0..QUEUES {
            if self.collect(state, number)?.is_err() {
                self.lose_daemon(state);
            }
            finished &= self.pass_on(state, number)?;
        }
        let State { queues, .. } = state;
        for (number, queue) in (0..).zip(queues.iter_mut().flatten()) {
            if queue.queue.wants_interrupt(&self.ram)? {
                self.notifier.used(number);
            }
        }
        Ok(finished)
    }

    /// Gives the guest the replies that are there. The inner error is the daemon's.
    fn collect(&self, state: &mut State, number: usize) -> Result<Result<(), Broken>, QueueError> {
        let State {
            queues,
            daemon,
            init,
        } = state;
        let Some(daemon) = daemon else {
            return Ok(Ok(()));
        };
        loop {
            let (passed, length) = match daemon.finish(&self.ram, number) {
                Ok(Some(finished)) => finished,
                Ok(None) => return Ok(Ok(())),
                Err(error) => return Ok(Err(error)),
            };
            if passed.is_replay {
                // What the guest has asked meanwhile waits in both queues.
                let _ = self.kick.write(1);
                continue;
            }
            if let Some(accepted) = passed.init {
                *init = Some((passed.unique, accepted));
            }
            if let (Some((queue, head)), Some(queues)) = (passed.chain, queues.as_mut())
                && let Some(queue) = queues.get_mut(queue)
            {
                queue.queue.push_used(&self.ram, head, length)?;
                self.counters.served(u64::from(length));
            }
        }
    }

    /// Passes the guest's requests on; answers whether nothing is left that could be passed on now.
    fn pass_on(&self, state: &mut State, number: usize) -> Result<bool, QueueError> {
        let State { queues, daemon, .. } = state;
        if daemon.as_ref().is_some_and(|daemon| !daemon.is_ready()) {
            return Ok(true);
        }
        let Some(guest) = queues.as_mut().and_then(|queues| queues.get_mut(number)) else {
            return Ok(true);
        };
        let mut passed = false;
        let mut finished = false;
        for _ in 0..TURN {
            match self.pass_one(guest, daemon, number)? {
                Ok(Progress::Served) => passed = true,
                Ok(Progress::Empty | Progress::Full) => {
                    finished = true;
                    break;
                }
                Err(_) => {
                    self.lose_daemon(state);
                    return Ok(false);
                }
            }
        }
        if passed
            && let Some(one) = daemon
            && one.kick(number).is_err()
        {
            self.lose_daemon(state);
        }
        Ok(finished)
    }

    fn pass_one(
        &self,
        guest: &mut GuestQueue,
        daemon: &mut Option<Daemon>,
        number: usize,
    ) -> Result<Result<Progress, Broken>, QueueError> {
        let mut chain = match guest.waiting.take() {
            Some(chain) => chain,
            None => match guest.queue.pop(&self.ram)? {
                Some(chain) => chain,
                None if guest.queue.set_notifications(&self.ram, true)? => {
                    return Ok(Ok(Progress::Served));
                }
                None => return Ok(Ok(Progress::Empty)),
            },
        };
        let (request, reply) = (chain.readable.len(), chain.writable.len());
        let daemon = daemon.as_mut().filter(|one| one.could_take(request, reply));
        let slot = daemon.as_ref().map(|one| one.free_slot(request, reply));
        if slot == Some(None) {
            guest.waiting = Some(chain);
            return Ok(Ok(Progress::Full));
        }
        let head = chain.head;
        let header = Header::read(&mut chain.readable, &self.ram);
        if let (Some(daemon), Some(Some(slot)), Some(header)) = (daemon, slot, &header)
            && header.length == request
            && (!header.is_init() || (number == REQUESTS && request <= MAX_INIT))
        {
            let (body, room) = (chain.readable, chain.writable);
            let passed = daemon.pass(&self.ram, slot, (number, head), header, body, room);
            return Ok(passed.map(|()| Progress::Served));
        }
        self.counters.failed();
        let unique = header.map_or(0, |header| header.unique);
        self.refuse(&mut guest.queue, head, chain.writable, unique)?;
        Ok(Ok(Progress::Served))
    }

    /// Answers a request with EIO.
    fn refuse(
        &self,
        queue: &mut Queue,
        head: u16,
        mut room: Buffers,
        unique: u64,
    ) -> Result<(), QueueError> {
        let mut reply = OUT_HEADER.to_le_bytes().to_vec();
        reply.extend((-EIO).to_le_bytes());
        reply.extend(unique.to_le_bytes());
        // Some requests have no reply.
        let length = match room.write(&self.ram, &reply) {
            Ok(()) => OUT_HEADER,
            Err(_) => 0,
        };
        queue.push_used(&self.ram, head, length)
    }

    /// The daemon has gone, or is not to be believed: nothing that it had is served any more.
    fn lose_daemon(&self, state: &mut State) {
        let Some(daemon) = state.daemon.take() else {
            return;
        };
        let Some(queues) = &mut state.queues else {
            return;
        };
        for Passed {
            chain,
            room,
            unique,
            ..
        } in daemon.abandon()
        {
            let Some((queue, head)) = chain else { continue };
            self.counters.failed();
            if let Some(queue) = queues.get_mut(queue) {
                // The rings were checked; an error would show again with the next request.
                let _ = self.refuse(&mut queue.queue, head, room, unique);
            }
        }
        // What has waited for a slot is looked at again.
        let _ = self.kick.write(1);
    }

    fn forget_guest(&self, state: &mut State) {
        state.queues = None;
        state.init = None;
        if let Some(daemon) = &mut state.daemon {
            daemon.forget_guest();
        }
    }
}

/// The header of a request, and the one copy of it that is ever looked at.
#[derive(Debug)]
struct Header {
    bytes: [u8; IN_HEADER],
    /// With the body.
    length: u32,
    opcode: u32,
    /// The request's number.
    unique: u64,
}

impl Header {
    /// Takes it off a request's front; `None` if the request is shorter.
    fn read(request: &mut Buffers, ram: &GuestRam) -> Option<Self> {
        let mut bytes = [0; IN_HEADER];
        request.read(ram, &mut bytes).ok()?;
        let (length, rest) = bytes.split_first_chunk()?;
        let (opcode, rest) = rest.split_first_chunk()?;
        let (unique, _) = rest.split_first_chunk()?;
        Some(Self {
            length: u32::from_le_bytes(*length),
            opcode: u32::from_le_bytes(*opcode),
            unique: u64::from_le_bytes(*unique),
            bytes,
        })
    }

    /// Whether the guest introduces itself.
    fn is_init(&self) -> bool {
        self.opcode == INIT
    }
}

impl Device for Fs {
    fn id(&self) -> u32 {
        ID
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    /// `struct virtio_fs_config` (5.11.4): the tag, and one queue of requests.
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let mut space = [0; 40];
        let fields = VOLUMES_TAG.bytes();
        for (to, from) in space.iter_mut().zip(fields) {
            *to = from;
        }
        if let Some(count) = space.get_mut(36) {
            *count = 1;
        }
        copy_config(&space, offset, data);
    }

    fn activate(&self, queues: Vec<Queue>, _features: u64) {
        let queues = queues.into_iter().map(|queue| GuestQueue {
            queue,
            waiting: None,
        });
        lock(&self.state).queues = Some(queues.collect());
    }

    fn reset(&self) {
        self.forget_guest(&mut lock(&self.state));
    }

    fn kick(&self) -> &EventFd {
        &self.kick
    }
}

#[cfg(test)]
mod tests;
