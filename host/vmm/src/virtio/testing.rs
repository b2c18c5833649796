//! A driver's side for tests: queues in plain memory and interrupts that are only counted.

pub(crate) mod hostile;

use super::Device;
use super::notify::{Interrupt, Notifier};
use super::queue::{Queue, QueueLayout};
use crate::machine::memory::GuestRam;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use vm_memory::{Bytes, GuestAddress};

/// As in `main`, before there is a second thread: with heaps of its own a thread that ends may look into
/// /proc to trim one, which the filter of a disk's worker does not allow.
extern "C" fn one_heap() {
    // SAFETY: sets a parameter of the allocator.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

#[used]
// SAFETY: the section holds functions of this type, which are called before `main`.
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = one_heap;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;
/// Guest memory of the tests: two regions with a hole between them.
pub(crate) const FIRST_END: u64 = 0x20_0000;
pub(crate) const SECOND: u64 = 0x40_0000;
pub(crate) const SECOND_END: u64 = 0x60_0000;

pub(crate) fn ram() -> GuestRam {
    GuestRam::from_ranges(&[
        (GuestAddress(0), 0x10_0000),
        (GuestAddress(0x10_0000), 0x10_0000),
        (GuestAddress(SECOND), 0x20_0000),
    ])
    .unwrap()
}

/// Interrupts that were raised.
#[derive(Debug, Default)]
pub(crate) struct Raised {
    pub(crate) queue: AtomicU32,
    pub(crate) config: AtomicU32,
}

impl Raised {
    pub(crate) fn counts(&self) -> (u32, u32) {
        (
            self.queue.load(Ordering::SeqCst),
            self.config.load(Ordering::SeqCst),
        )
    }
}

#[derive(Debug)]
struct Counting(Arc<Raised>);

impl Interrupt for Counting {
    fn queue(&self, _index: u16) {
        self.0.queue.fetch_add(1, Ordering::SeqCst);
    }

    fn config(&self) {
        self.0.config.fetch_add(1, Ordering::SeqCst);
    }
}

pub(crate) fn notifier() -> (Arc<Notifier>, Arc<Raised>) {
    let raised = Arc::<Raised>::default();
    let notifier = Notifier::new(Box::new(Counting(Arc::clone(&raised))));
    (Arc::new(notifier), raised)
}

/// A driver's view of a queue.
#[derive(Debug)]
pub(crate) struct Ring {
    ram: GuestRam,
    pub(crate) layout: QueueLayout,
    next_descriptor: u16,
    published: u16,
    seen: u16,
}

impl Ring {
    /// A queue of this size at this address, which takes less than 64 KiB.
    pub(crate) fn new(ram: &GuestRam, base: u64, size: u16) -> Self {
        let layout = QueueLayout {
            max: size,
            size,
            ready: true,
            descriptors: base,
            available: base + 0x4000,
            used: base + 0x8000,
        };
        Self {
            ram: ram.clone(),
            layout,
            next_descriptor: 0,
            published: 0,
            seen: 0,
        }
    }

    pub(crate) fn queue(&self) -> Queue {
        Queue::new(&self.layout, &self.ram, false).unwrap()
    }

    /// Writes a descriptor as it is.
    pub(crate) fn descriptor(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        self.descriptor_at(self.layout.descriptors, index, address, length, flags, next);
    }

    pub(crate) fn descriptor_at(
        &self,
        table: u64,
        index: u16,
        address: u64,
        length: u32,
        flags: u16,
        next: u16,
    ) {
        let at = GuestAddress(table + 16 * u64::from(index));
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.ram.write_slice(&bytes, at).unwrap();
    }

    /// Makes a chain of buffers (address, length, whether the device writes) available; answers its
    /// head.
    pub(crate) fn add(&mut self, buffers: &[(u64, u32, bool)]) -> u16 {
        let head = self.next_descriptor;
        for (position, (address, length, write)) in buffers.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.layout.size;
            let last = position + 1 == buffers.len();
            let flags = if *write { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.descriptor(index, *address, *length, flags, self.next_descriptor);
        }
        self.publish(head);
        head
    }

    /// Puts a head into the available ring.
    pub(crate) fn publish(&mut self, head: u16) {
        let slot = u64::from(self.published % self.layout.size);
        let at = GuestAddress(self.layout.available + 4 + 2 * slot);
        self.ram.write_obj(head, at).unwrap();
        self.published = self.published.wrapping_add(1);
        self.set_available(self.published);
    }

    pub(crate) fn set_available(&self, index: u16) {
        let at = GuestAddress(self.layout.available + 2);
        self.ram.write_obj(index, at).unwrap();
    }

    /// The next used buffer: head and length.
    pub(crate) fn used(&mut self) -> Option<(u32, u32)> {
        let index: u16 = self
            .ram
            .read_obj(GuestAddress(self.layout.used + 2))
            .unwrap();
        if index == self.seen {
            return None;
        }
        let slot = u64::from(self.seen % self.layout.size);
        self.seen = self.seen.wrapping_add(1);
        let at = self.layout.used + 4 + 8 * slot;
        let id = self.ram.read_obj(GuestAddress(at)).unwrap();
        Some((id, self.ram.read_obj(GuestAddress(at + 4)).unwrap()))
    }
}

/// Activates a device as the status machine would.
pub(crate) fn activate(device: &dyn Device, notifier: &Notifier, rings: &[&Ring]) {
    notifier.activate();
    device.activate(rings.iter().map(|ring| ring.queue()).collect(), 0);
}

pub(crate) fn put(ram: &GuestRam, address: u64, bytes: &[u8]) {
    ram.write_slice(bytes, GuestAddress(address)).unwrap();
}

pub(crate) fn get(ram: &GuestRam, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}
