//! virtio-blk (virtio 1.2, 5.2): the disk slots of the fixed machine.
//!
//! A slot boots with capacity 0. [`Disk::bind`] puts a raw file behind it, sets the capacity and
//! tells the driver; [`Disk::unbind`] takes it away again. One thread serves all slots
//! ([`service`]): it takes requests ([`request`]), gives their file operations ([`job`]) to an
//! [`engine`], several at a time, and answers them in the order in which they end.
//!
//! ```text
//!  Empty --bind--> Bound --unbind--> Draining --last operation ended--> Empty
//! ```
//!
//! A slot that was never bound says that there is no device in it (device ID 0, 4.2.2): Linux finds
//! nothing to do there and spends no memory on it. Once it is bound, the guest's agent has the driver
//! look again; from then on it stays a device, whose capacity comes and goes.
//!
//! A read-only slot offers VIRTIO_BLK_F_RO and refuses to write whatever the driver has negotiated;
//! besides, its file is open for reading only.

mod engine;
mod job;
mod request;
mod service;

use crate::devices::counters::Counters;
use crate::error::Error;
use crate::rate::Limiter;
use crate::sync::lock;
use crate::virtio::notify::Notifier;
use crate::virtio::queue::Queue;
use crate::virtio::{Device, copy_config};
use bulkhead_vmm_api::{DiskSlot, RateLimits};
pub use engine::{EngineKind, MAX_THREADS};
pub use service::Service;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

const ID: u32 = 2;
/// Number of descriptors. Linux allocates a request for each when it finds the disk, so this decides
/// what a disk costs the guest.
const QUEUE_SIZE: u16 = 128;
const QUEUE_SIZES: &[u16] = &[QUEUE_SIZE];
/// Bytes in a sector, the unit of capacity and positions (5.2.4).
pub const SECTOR: u64 = 512;

// Features (5.2.3).
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// The most sectors of one discard: 1 GiB.
const MAX_DISCARD: u32 = 1 << 21;
/// The most sectors of one write-zeroes: 16 MiB, for it may have to be written.
const MAX_ZEROES: u32 = 1 << 15;

/// Why a slot cannot be bound or emptied.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// There is a disk in the slot.
    #[error("The slot is not empty")]
    NotEmpty,
    /// The slot is being emptied.
    #[error("The slot is still being emptied")]
    Draining,
    /// The descriptor is not a regular file or a block device.
    #[error("The descriptor is neither a regular file nor a block device")]
    Kind,
    /// A file for a read-only slot can be written through, or one for a read-write slot cannot.
    #[error("The file is not open as the slot needs it: read-only or read-write")]
    Access,
    /// A limit of 0.
    #[error("A rate limit of 0 would stop the disk for ever")]
    Limits,
    /// There is no disk in the slot.
    #[error("The slot is empty")]
    Empty,
    /// What the guest may have written would be cut off.
    #[error("The file has {now} bytes and had {before}; a disk does not become smaller")]
    Shrunk {
        /// What the guest knows.
        before: u64,
        /// What there is.
        now: u64,
    },
    /// The size is 0 or not a multiple of a sector.
    #[error("The file's size of {0} bytes is not a positive multiple of {SECTOR}")]
    Size(u64),
    /// The host refused.
    #[error("The host refused")]
    Host(#[from] Error),
}

/// A disk slot.
#[derive(Debug)]
pub struct Disk {
    slot: DiskSlot,
    name: String,
    notifier: Arc<Notifier>,
    kick: EventFd,
    /// Capacity in sectors; 0 while nothing is bound.
    capacity: AtomicU64,
    /// The slot was bound at some time.
    present: AtomicBool,
    state: Mutex<State>,
    /// Signalled when nothing is running any more.
    idle: Condvar,
    counters: Counters,
}

/// What the disk thread shares with those who bind and reset.
#[derive(Debug, Default)]
struct State {
    queue: Option<Queue>,
    /// Which queue this is: requests of an earlier one are not answered.
    generation: u64,
    /// Whether the driver knows of the host's cache and flushes it (VIRTIO_BLK_F_FLUSH).
    cached: bool,
    bound: Option<Bound>,
    /// Requests in the engine, whatever queue and file they came with.
    running: usize,
    /// To be told when nothing is running any more.
    ended: Option<Ended>,
    limiter: Limiter,
    /// Requests wait for the limiter.
    limited: bool,
}

/// A file in a slot.
#[derive(Debug)]
struct Bound {
    file: Arc<File>,
    sectors: u64,
}

impl State {
    fn sectors(&self) -> u64 {
        self.bound.as_ref().map_or(0, |bound| bound.sectors)
    }

    fn file(&self) -> Option<Arc<File>> {
        self.bound.as_ref().map(|bound| Arc::clone(&bound.file))
    }

    /// The driver's requests make no sense: its queue is not looked at any more.
    fn fail(&mut self) {
        self.queue = None;
        self.generation = self.generation.wrapping_add(1);
    }
}

/// Whom to tell when a slot is empty.
pub type Ended = Arc<EventFd>;

impl Disk {
    /// An empty slot.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn new(slot: DiskSlot, notifier: Arc<Notifier>) -> Result<Self, Error> {
        Ok(Self {
            slot,
            name: slot.serial(),
            notifier,
            kick: eventfd()?,
            capacity: AtomicU64::new(0),
            present: AtomicBool::new(false),
            state: Mutex::default(),
            idle: Condvar::new(),
            counters: Counters::default(),
        })
    }

    /// Which slot this is.
    #[must_use]
    pub fn slot(&self) -> DiskSlot {
        self.slot
    }

    /// What the disk has done.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn read_only(&self) -> bool {
        matches!(self.slot, DiskSlot::ReadOnly(_))
    }

    /// Puts a file behind the slot.
    ///
    /// # Errors
    /// [`BindError`]; nothing has changed then.
    pub fn bind(&self, file: File, limits: &RateLimits) -> Result<(), BindError> {
        let sectors = check_file(&file, self.read_only())?;
        let mut rates = [limits.ops, limits.bytes].into_iter().flatten();
        if !rates.all(|rate| rate.is_valid()) {
            return Err(BindError::Limits);
        }
        let mut state = lock(&self.state);
        if state.bound.is_some() {
            return Err(BindError::NotEmpty);
        }
        if state.running > 0 {
            return Err(BindError::Draining);
        }
        let file = Arc::new(file);
        state.bound = Some(Bound { file, sectors });
        state.limiter = Limiter::new(limits, Instant::now());
        drop(state);
        self.present.store(true, Ordering::SeqCst);
        self.notifier
            .change_config(|| self.capacity.store(sectors, Ordering::SeqCst));
        Ok(())
    }

    /// Takes over the size of the slot's file, which has grown or not. Answers it in bytes.
    ///
    /// # Errors
    /// [`BindError`]; nothing has changed then.
    pub fn measure(&self) -> Result<u64, BindError> {
        let mut state = lock(&self.state);
        let bound = state.bound.as_mut().ok_or(BindError::Empty)?;
        let sectors = check_file(&bound.file, self.read_only())?;
        let (before, now) = (bound.sectors * SECTOR, sectors * SECTOR);
        if now < before {
            return Err(BindError::Shrunk { before, now });
        }
        bound.sectors = sectors;
        drop(state);
        if now > before {
            self.notifier
                .change_config(|| self.capacity.store(sectors, Ordering::SeqCst));
        }
        Ok(now)
    }

    /// Empties the slot. Answers whether nothing is running on the file any more; otherwise `ended`
    /// will be signalled when that is so.
    pub fn unbind(&self, ended: &Ended) -> bool {
        let mut state = lock(&self.state);
        let was_bound = state.bound.take().is_some();
        state.limiter = Limiter::default();
        state.limited = false;
        let empty = state.running == 0;
        if !empty {
            state.ended = Some(Arc::clone(ended));
        }
        drop(state);
        if was_bound {
            self.notifier
                .change_config(|| self.capacity.store(0, Ordering::SeqCst));
            // What waits for its limits is refused now.
            let _ = self.kick.write(1);
        }
        empty
    }

    /// Whether no file is bound and none is in use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let state = lock(&self.state);
        state.bound.is_none() && state.running == 0
    }

    fn kick_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the eventfd, from which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.kick.as_raw_fd()) }
    }
}

impl Device for Disk {
    fn id(&self) -> u32 {
        if self.present.load(Ordering::SeqCst) {
            ID
        } else {
            0
        }
    }

    fn features(&self) -> u64 {
        let common = F_SEG_MAX | F_BLK_SIZE | F_FLUSH;
        if self.read_only() {
            common | F_RO
        } else {
            common | F_DISCARD | F_WRITE_ZEROES
        }
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    /// `struct virtio_blk_config` (5.2.4).
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let mut space = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| {
            for (to, from) in space.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        };
        put(0, &self.capacity.load(Ordering::SeqCst).to_le_bytes());
        // Header and status take a descriptor each.
        put(12, &u32::from(QUEUE_SIZE - 2).to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(36, &MAX_DISCARD.to_le_bytes());
        put(40, &1_u32.to_le_bytes()); // max_discard_seg
        put(44, &8_u32.to_le_bytes()); // discard_sector_alignment: a page
        put(48, &MAX_ZEROES.to_le_bytes());
        put(52, &1_u32.to_le_bytes()); // max_write_zeroes_seg
        put(56, &[1]); // write_zeroes_may_unmap
        copy_config(&space, offset, data);
    }

    fn activate(&self, queues: Vec<Queue>, features: u64) {
        let mut state = lock(&self.state);
        state.queue = queues.into_iter().next();
        state.generation = state.generation.wrapping_add(1);
        state.cached = features & F_FLUSH != 0;
    }

    /// Waits for the requests that are in the engine: they use guest memory.
    fn reset(&self) {
        let mut state = lock(&self.state);
        state.fail();
        state.limited = false;
        while state.running > 0 {
            state = self
                .idle
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn kick(&self) -> &EventFd {
        &self.kick
    }
}

/// Checks a file for a slot and answers its size in sectors.
fn check_file(file: &File, read_only: bool) -> Result<u64, BindError> {
    use std::io::{Seek, SeekFrom};
    use std::os::unix::fs::FileTypeExt;
    let metadata = file
        .metadata()
        .map_err(Error::host("look at a disk's file"))?;
    let mode = rustix::fs::fcntl_getfl(file).map_err(Error::host("look at a disk's file"))?;
    let writable = mode & rustix::fs::OFlags::ACCMODE == rustix::fs::OFlags::RDWR;
    let readable = mode & rustix::fs::OFlags::ACCMODE == rustix::fs::OFlags::RDONLY;
    if (read_only && !readable) || (!read_only && !writable) {
        return Err(BindError::Access);
    }
    let bytes = if metadata.is_file() {
        metadata.len()
    } else if metadata.file_type().is_block_device() {
        // A block device's size is where it ends.
        let mut handle = file;
        handle
            .seek(SeekFrom::End(0))
            .map_err(Error::host("measure a disk"))?
    } else {
        return Err(BindError::Kind);
    };
    if bytes == 0 || bytes % SECTOR != 0 {
        return Err(BindError::Size(bytes));
    }
    Ok(bytes / SECTOR)
}

fn eventfd() -> Result<EventFd, Error> {
    EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(Error::host("create an eventfd"))
}

impl AsFd for Disk {
    /// The kick.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.kick_fd()
    }
}

#[cfg(test)]
mod tests;
