//! virtio-blk (virtio 1.2, 5.2): a disk slot of the fixed machine.
//!
//! A slot boots with capacity 0. [`Disk::bind`] puts a raw file behind it, sets the capacity and
//! tells the driver; [`Disk::unbind`] takes it away again. While a file is bound a worker thread
//! serves the queue, since reading and writing block; otherwise the device thread does, and there is
//! nothing to it but refusing requests and telling the serial number.
//!
//! ```text
//!  Empty --bind--> Bound --unbind--> Draining --worker ended, collect()--> Empty
//! ```
//!
//! A read-only slot offers VIRTIO_BLK_F_RO and refuses to write whatever the driver has negotiated;
//! besides, its file is open for reading only.

mod request;

use crate::devices::counters::Counters;
use crate::error::Error;
use crate::events::{Events, Source};
use crate::machine::memory::GuestRam;
use crate::seccomp;
use crate::sync::lock;
use crate::virtio::notify::Notifier;
use crate::virtio::queue::{Queue, QueueError};
use crate::virtio::{Device, copy_config};
use bulkhead_vmm_api::DiskSlot;
use request::Served;
use rustix::event::{PollFd, PollFlags};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

const ID: u32 = 2;
/// Number of descriptors. Linux allocates a request for each when it finds the disk, so this decides
/// what an unused slot costs the guest.
const QUEUE_SIZE: u16 = 64;
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
/// The worker's stack: it has no deep calls.
const WORKER_STACK: usize = 128 * 1024;

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
    ram: GuestRam,
    notifier: Arc<Notifier>,
    kick: EventFd,
    /// Capacity in sectors; 0 while nothing is bound.
    capacity: AtomicU64,
    queue: Mutex<Option<Queue>>,
    backing: Mutex<Backing>,
    counters: Counters,
}

#[derive(Debug)]
enum Backing {
    Empty,
    Bound(Arc<Worker>, JoinHandle<()>),
    Draining(Arc<Worker>, JoinHandle<()>),
}

/// What a worker thread needs besides the disk.
#[derive(Debug)]
struct Worker {
    file: File,
    stop: EventFd,
    stopping: AtomicBool,
    /// The thread is through with the file.
    ended: AtomicBool,
}

/// Whom to tell when a worker has ended.
pub type Ended = Arc<EventFd>;

impl Disk {
    /// An empty slot.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn new(slot: DiskSlot, ram: GuestRam, notifier: Arc<Notifier>) -> Result<Self, Error> {
        Ok(Self {
            slot,
            name: slot.serial(),
            ram,
            notifier,
            kick: eventfd()?,
            capacity: AtomicU64::new(0),
            queue: Mutex::new(None),
            backing: Mutex::new(Backing::Empty),
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

    /// Puts a file behind the slot. `ended` is signalled when a later [`Disk::unbind`] is through.
    ///
    /// # Errors
    /// [`BindError`]; nothing has changed then.
    pub fn bind(
        self: &Arc<Self>,
        file: File,
        events: &Events,
        ended: &Ended,
    ) -> Result<(), BindError> {
        let sectors = check_file(&file, self.read_only())?;
        let mut backing = lock(&self.backing);
        match *backing {
            Backing::Empty => {}
            Backing::Bound(..) => return Err(BindError::NotEmpty),
            Backing::Draining(..) => return Err(BindError::Draining),
        }
        let worker = Arc::new(Worker {
            file,
            stop: eventfd()?,
            stopping: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        events.mute(self.kick_fd())?;
        let (disk, thread_worker) = (Arc::clone(self), Arc::clone(&worker));
        let ended = Arc::clone(ended);
        let thread = std::thread::Builder::new()
            .name(format!("disk-{}", self.name))
            .stack_size(WORKER_STACK)
            .spawn(move || {
                // Without its filter the worker does nothing, as if the disk had no bytes.
                match seccomp::confine(seccomp::Thread::Disk) {
                    Ok(()) => disk.work(&thread_worker),
                    Err(_) => disk.notifier.ask_for_reset(),
                }
                thread_worker.ended.store(true, Ordering::SeqCst);
                let _ = ended.write(1);
            })
            .map_err(Error::host("start a thread"))?;
        *backing = Backing::Bound(worker, thread);
        drop(backing);
        self.notifier
            .change_config(|| self.capacity.store(sectors, Ordering::SeqCst));
        Ok(())
    }

    /// Begins to empty the slot. Answers whether it is empty already; otherwise `ended` will be
    /// signalled, and then [`Disk::collect`] finishes it.
    pub fn unbind(&self) -> bool {
        let mut backing = lock(&self.backing);
        match std::mem::replace(&mut *backing, Backing::Empty) {
            Backing::Empty => true,
            Backing::Bound(worker, thread) => {
                *backing = Backing::Draining(Arc::clone(&worker), thread);
                drop(backing);
                self.notifier
                    .change_config(|| self.capacity.store(0, Ordering::SeqCst));
                worker.stopping.store(true, Ordering::SeqCst);
                let _ = worker.stop.write(1);
                false
            }
            draining @ Backing::Draining(..) => {
                *backing = draining;
                false
            }
        }
    }

    /// Finishes to empty the slot once its worker has ended. Answers whether the slot is empty.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn collect(&self, events: &Events, source: Source) -> Result<bool, Error> {
        let mut backing = lock(&self.backing);
        match std::mem::replace(&mut *backing, Backing::Empty) {
            Backing::Empty => return Ok(true),
            Backing::Draining(worker, thread) if worker.ended.load(Ordering::SeqCst) => {
                // A worker that panicked has ended the process.
                let _ = thread.join();
            }
            other => {
                *backing = other;
                return Ok(false);
            }
        }
        drop(backing);
        events.unmute(source, self.kick_fd())?;
        // What is left in the queue is refused by the device thread.
        let _ = self.kick.write(1);
        Ok(true)
    }

    /// Serves the queue of an empty slot.
    pub fn serve_empty(&self) {
        let _ = self.kick.read();
        self.serve(None, &AtomicBool::new(false));
    }

    /// The worker thread.
    fn work(&self, worker: &Worker) {
        let stop = borrow(&worker.stop);
        while !worker.stopping.load(Ordering::SeqCst) {
            let _ = self.kick.read();
            self.serve(Some(&worker.file), &worker.stopping);
            let mut waiting = [
                PollFd::from_borrowed_fd(self.kick_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(stop, PollFlags::IN),
            ];
            // A failed poll, out of memory for one, is tried again.
            let _ = rustix::event::poll(&mut waiting, None);
        }
    }

    /// Serves requests until there are none or `stopping` is set. The queue is locked for one
    /// request at a time.
    fn serve(&self, file: Option<&File>, stopping: &AtomicBool) {
        while !stopping.load(Ordering::SeqCst) {
            let mut guard = lock(&self.queue);
            let Some(queue) = guard.as_mut() else { return };
            match self.serve_one(queue, file) {
                Ok(true) => {}
                Ok(false) => return,
                Err(_) => {
                    *guard = None;
                    drop(guard);
                    self.counters.failed();
                    self.notifier.ask_for_reset();
                    return;
                }
            }
        }
    }

    /// Serves one request; `false` when there is none.
    fn serve_one(&self, queue: &mut Queue, file: Option<&File>) -> Result<bool, QueueError> {
        let Some(mut chain) = queue.pop(&self.ram)? else {
            // Ask for a notification, and look once more for what came before the driver saw it.
            return queue.set_notifications(&self.ram, true);
        };
        let target = request::Target {
            ram: &self.ram,
            file,
            read_only: self.read_only(),
            sectors: self.capacity.load(Ordering::SeqCst),
            name: &self.name,
        };
        let written = match request::serve(&target, &mut chain) {
            Some(Served { written, moved, ok }) => {
                self.counters.served(moved);
                if !ok {
                    self.counters.failed();
                }
                written
            }
            None => return Err(QueueError::Layout),
        };
        queue.push_used(&self.ram, chain.head, written)?;
        if queue.wants_interrupt(&self.ram)? {
            self.notifier.used(0);
        }
        Ok(true)
    }

    fn kick_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.kick)
    }
}

impl Device for Disk {
    fn id(&self) -> u32 {
        ID
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

    fn activate(&self, queues: Vec<Queue>, _features: u64) {
        *lock(&self.queue) = queues.into_iter().next();
    }

    fn reset(&self) {
        *lock(&self.queue) = None;
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

fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as the eventfd, from which the result borrows.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

impl AsFd for Disk {
    /// The kick.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.kick_fd()
    }
}

#[cfg(test)]
mod tests;
