//! The file daemon as the VMM sees it: shared memory, an eventfd each way for each queue, and a socket that tells
//! by its end that the daemon has gone.

use super::ring::{Part, Ring};
use super::{Broken, Header, INIT, OUT_HEADER, READ, REQUESTS, WRITE};
use crate::machine::memory::GuestRam;
use crate::virtio::buffers::Buffers;
use bulkhead_vmm_api::bounce::{self, QUEUES};
use rustix::fs::SealFlags;
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestRegionMmap};

/// Replies begin at a multiple of this.
const ALIGNMENT: u64 = 64;
/// What is read and written begins at a multiple of this, as in the guest: files may be open with O_DIRECT, and the
/// host's disks take aligned memory only.
const PAGE: u64 = 4096;
/// What stands before the data in FUSE_WRITE: the header and `struct fuse_write_in`.
const WRITE_HEADERS: u64 = 80;
/// Room for the reply to FUSE_INIT: its header and `struct fuse_init_out`, which has 64 bytes.
const INIT_REPLY: u32 = 256;

/// A request that was passed on.
#[derive(Debug)]
pub(super) struct Passed {
    /// The guest's queue and chain; `None` when the guest has reset the device meanwhile.
    pub(super) chain: Option<(usize, u16)>,
    /// Where the guest wants the reply.
    pub(super) room: Buffers,
    /// FUSE's number of the request.
    pub(super) unique: u64,
    /// The whole request, if it is FUSE_INIT and, once it is served, was accepted.
    pub(super) init: Option<Vec<u8>>,
    /// It is the guest's FUSE_INIT to a daemon before this one.
    pub(super) is_replay: bool,
    queue: usize,
    reply: Part,
}

/// A place for a request and its reply.
#[derive(Debug)]
struct Slot {
    start: u64,
    length: u64,
    passed: Option<Passed>,
}

impl Slot {
    /// Where a request of this kind and its reply of these lengths are.
    fn parts(&self, opcode: u32, request: u32, reply: u32) -> (Part, Part) {
        let start = match opcode {
            WRITE => self.start + PAGE - WRITE_HEADERS,
            _ => self.start,
        };
        let end = start + u64::from(request);
        let header = u64::from(OUT_HEADER);
        let room = match opcode {
            READ => (end + header).next_multiple_of(PAGE) - header,
            _ => end.next_multiple_of(ALIGNMENT),
        };
        let part = |address, length| Part { address, length };
        (part(start, request), part(room, reply))
    }

    /// Whether it has room for both, whatever their kind.
    fn fits(&self, request: u32, reply: u32) -> bool {
        self.length >= u64::from(request) + u64::from(reply) + PAGE
    }
}

/// A file daemon that is there.
#[derive(Debug)]
pub(super) struct Daemon {
    memory: GuestRam,
    rings: Vec<Ring>,
    slots: Vec<Slot>,
    kicks: Vec<OwnedFd>,
    calls: Vec<OwnedFd>,
    socket: OwnedFd,
    /// It knows what the guest and the daemon before it agreed upon.
    is_ready: bool,
}

/// What is handed over for a file daemon, in the order of the descriptors of
/// [`Request::BindFileDaemon`](bulkhead_vmm_api::Request::BindFileDaemon).
const DESCRIPTORS: usize = 2 + 2 * QUEUES;

impl Daemon {
    /// Takes over what was handed over.
    ///
    /// # Errors
    /// [`io::Error`] when it is not what it must be.
    pub(super) fn new(fds: Vec<OwnedFd>) -> Result<Self, io::Error> {
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
        if fds.len() != DESCRIPTORS {
            let text = format!("{} descriptors came instead of {DESCRIPTORS}", fds.len());
            return Err(wrong(&text));
        }
        let mut fds = fds.into_iter();
        let (Some(memory), Some(socket)) = (fds.next(), fds.next()) else {
            return Err(wrong("no descriptors came"));
        };
        let memory = map(File::from(memory))?;
        let mut events: Vec<OwnedFd> = fds.collect();
        for event in &events {
            rustix::io::ioctl_fionbio(event, true)?;
        }
        let calls = events.split_off(QUEUES);
        let slots = bounce::slots().map(|(start, length)| Slot {
            start,
            length,
            passed: None,
        });
        Ok(Self {
            memory,
            rings: (0..QUEUES).map(Ring::new).collect(),
            slots: slots.collect(),
            kicks: events,
            calls,
            socket,
            is_ready: true,
        })
    }

    /// What is readable when requests have been served, or the daemon has gone.
    pub(super) fn watched(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.calls
            .iter()
            .map(AsFd::as_fd)
            .chain([self.socket.as_fd()])
    }

    /// Whether the daemon still holds its end of the socket and keeps to the rules: it has nothing to say there
    /// of its own accord, and what it said would hide its end.
    pub(super) fn is_there(&self) -> bool {
        let mut byte = [0];
        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
        let got = rustix::net::recv(&self.socket, &mut byte, flags);
        matches!(got, Err(Errno::AGAIN | Errno::INTR))
    }

    /// Forgets the signals that were given so far; what they told of is looked at afterwards.
    pub(super) fn take_calls(&self) {
        for call in &self.calls {
            // Empty, which is an error, as often as not.
            let _ = rustix::io::read(call, &mut [0; 8]);
        }
    }

    /// A free slot for so many bytes of request and reply, the smallest that does; `None` when all are
    /// taken.
    pub(super) fn free_slot(&self, request: u32, reply: u32) -> Option<usize> {
        let fits = |slot: &Slot| slot.passed.is_none() && slot.fits(request, reply);
        // Small ones come first.
        self.slots.iter().position(fits)
    }

    /// Whether there is any slot for so many bytes.
    pub(super) fn could_take(&self, request: u32, reply: u32) -> bool {
        self.slots.iter().any(|slot| slot.fits(request, reply))
    }

    /// Whether requests of the guest can be passed on: not before the daemon has answered a replay.
    pub(super) fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// Tells the daemon what the guest told the one before it, FUSE_INIT, and is not ready until it has answered.
    pub(super) fn replay(&mut self, unique: u64, init: Vec<u8>) -> Result<(), Broken> {
        // The guest's are bounded.
        let length = u32::try_from(init.len()).map_err(|_| Broken::Ring)?;
        let index = self.free_slot(length, INIT_REPLY).ok_or(Broken::Ring)?;
        let slot = self.slots.get_mut(index).ok_or(Broken::Ring)?;
        let (request, reply) = slot.parts(INIT, length, INIT_REPLY);
        let at = GuestAddress(request.address);
        self.memory.write_slice(&init, at)?;
        slot.passed = Some(Passed {
            queue: REQUESTS,
            chain: None,
            room: Buffers::default(),
            unique,
            init: Some(init),
            is_replay: true,
            reply,
        });
        self.is_ready = false;
        let ring = self.rings.get_mut(REQUESTS).ok_or(Broken::Ring)?;
        ring.add(&self.memory, index as u16, request, reply)?;
        self.kick(REQUESTS)
    }

    /// Passes a request on. The daemon gets the header that was checked: the guest may have changed its own
    /// copy since.
    pub(super) fn pass(
        &mut self,
        ram: &GuestRam,
        index: usize,
        chain: (usize, u16),
        header: &Header,
        mut body: Buffers,
        room: Buffers,
    ) -> Result<(), Broken> {
        let slot = self.slots.get_mut(index).ok_or(Broken::Ring)?;
        // Both fit into a slot.
        let header_length = header.bytes.len() as u32;
        let (request, reply) = slot.parts(header.opcode, header_length + body.len(), room.len());
        self.memory
            .write_slice(&header.bytes, GuestAddress(request.address))?;
        let rest = GuestAddress(request.address + u64::from(header_length));
        let mut init = None;
        if header.is_init() {
            // What is kept is what is passed on: the guest's copy is read once.
            let mut copy = vec![0; body.len() as usize];
            body.read(ram, &mut copy).map_err(|_| Broken::Ring)?;
            self.memory.write_slice(&copy, rest)?;
            init = Some([&header.bytes[..], &copy].concat());
        } else {
            body.copy_to(ram, &self.memory, rest)?;
        }
        let ring = self.rings.get_mut(chain.0).ok_or(Broken::Ring)?;
        slot.passed = Some(Passed {
            queue: chain.0,
            chain: Some(chain),
            room,
            unique: header.unique,
            init,
            is_replay: false,
            reply,
        });
        // There are as many slots as fit into the queue.
        ring.add(&self.memory, index as u16, request, reply)?;
        Ok(())
    }

    /// Tells the daemon of a queue's requests.
    pub(super) fn kick(&self, queue: usize) -> Result<(), Broken> {
        let (Some(ring), Some(kick)) = (self.rings.get(queue), self.kicks.get(queue)) else {
            return Ok(());
        };
        if ring.wants_kick(&self.memory)? {
            // A counter that is full is as good as another signal.
            let _ = rustix::io::write(kick, &1_u64.to_ne_bytes());
        }
        Ok(())
    }

    /// The next request of a queue that has been served: its reply is in the guest's room, so many bytes.
    pub(super) fn finish(
        &mut self,
        ram: &GuestRam,
        queue: usize,
    ) -> Result<Option<(Passed, u32)>, Broken> {
        let ring = self.rings.get_mut(queue).ok_or(Broken::Ring)?;
        let Some((index, length)) = ring.next_used(&self.memory)? else {
            return Ok(None);
        };
        let slot = self.slots.get_mut(usize::from(index)).ok_or(Broken::Ring)?;
        let mut passed = slot.passed.take().ok_or(Broken::Ring)?;
        if passed.queue != queue || length > passed.reply.length {
            slot.passed = Some(passed);
            return Err(Broken::Ring);
        }
        if passed.chain.is_some() {
            let mut part = passed.room.take_front(length);
            part.copy_from(ram, &self.memory, GuestAddress(passed.reply.address))?;
        }
        if passed.init.is_some() && !accepts(&self.memory, passed.reply.address, length)? {
            if passed.is_replay {
                return Err(Broken::Refused);
            }
            passed.init = None;
        }
        self.is_ready |= passed.is_replay;
        Ok(Some((passed, length)))
    }

    /// The guest has reset the device: replies to what it had asked go nowhere.
    pub(super) fn forget_guest(&mut self) {
        for slot in &mut self.slots {
            if let Some(passed) = &mut slot.passed {
                passed.chain = None;
                passed.room = Buffers::default();
                if !passed.is_replay {
                    passed.init = None;
                }
            }
        }
    }

    /// All requests that have not been served.
    pub(super) fn abandon(self) -> impl Iterator<Item = Passed> {
        self.slots.into_iter().filter_map(|slot| slot.passed)
    }
}

/// Whether a reply is one without an error (`struct fuse_out_header`: length, error, number).
fn accepts(memory: &GuestRam, reply: u64, length: u32) -> Result<bool, Broken> {
    if length < OUT_HEADER {
        return Ok(false);
    }
    let error: i32 = memory.read_obj(GuestAddress(reply + 4))?;
    Ok(error == 0)
}

/// Maps the shared memory, whose size must be right and for good: a file that could shrink would end the VMM.
fn map(file: File) -> Result<GuestRam, io::Error> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
    let size = bounce::size();
    if file.metadata()?.len() != size {
        return Err(wrong("the shared memory has another size"));
    }
    let seals = rustix::fs::fcntl_get_seals(&file)?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err(wrong("the shared memory is not sealed against shrinking"));
    }
    let size = usize::try_from(size).map_err(io::Error::other)?;
    let mapping = MmapRegionBuilder::<()>::new(size)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
        .with_file_offset(FileOffset::new(file, 0))
        .build()
        .map_err(io::Error::other)?;
    let region =
        GuestRegionMmap::new(mapping, GuestAddress(0)).ok_or_else(|| wrong("no address"))?;
    GuestRam::from_regions(vec![region]).map_err(io::Error::other)
}
