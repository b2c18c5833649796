//! A virtqueue of which the VMM is the driver and the file daemon the device (virtio 1.2, 2.7), in memory that
//! both have. What the daemon writes there is believed as little as what a guest writes.

use super::Broken;
use crate::machine::memory::GuestRam;
use bulkhead_vmm_api::bounce::{QUEUE_SIZE, rings};
use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// VIRTQ_USED_F_NO_NOTIFY (2.7.8).
const NO_NOTIFY: u16 = 1;

/// A part of the shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) address: u64,
    pub(super) length: u32,
}

/// The driver's side of a queue.
#[derive(Debug)]
pub(super) struct Ring {
    descriptors: u64,
    available: u64,
    used: u64,
    published: Wrapping<u16>,
    seen: Wrapping<u16>,
}

impl Ring {
    /// A queue that nobody has used yet.
    pub(super) fn new(queue: usize) -> Self {
        let [descriptors, available, used] = rings(queue);
        Self {
            descriptors,
            available,
            used,
            published: Wrapping(0),
            seen: Wrapping(0),
        }
    }

    /// Makes a request available, with room for its reply unless that is empty. The descriptors are those of
    /// the slot.
    pub(super) fn add(
        &mut self,
        memory: &GuestRam,
        slot: u16,
        request: Part,
        reply: Part,
    ) -> Result<(), GuestMemoryError> {
        let head = 2 * slot;
        let more = if reply.length > 0 { NEXT } else { 0 };
        self.describe(memory, head, request, more, head + 1)?;
        self.describe(memory, head + 1, reply, WRITE, 0)?;
        let place = u64::from(self.published.0 % QUEUE_SIZE);
        memory.write_obj(head.to_le(), GuestAddress(self.available + 4 + 2 * place))?;
        self.published += 1;
        let index = GuestAddress(self.available + 2);
        memory.store(self.published.0.to_le(), index, Ordering::Release)
    }

    fn describe(
        &self,
        memory: &GuestRam,
        index: u16,
        part: Part,
        flags: u16,
        next: u16,
    ) -> Result<(), GuestMemoryError> {
        let mut bytes = [0; 16];
        let fields = part.address.to_le_bytes().into_iter();
        let fields = fields
            .chain(part.length.to_le_bytes())
            .chain(flags.to_le_bytes())
            .chain(next.to_le_bytes());
        for (to, from) in bytes.iter_mut().zip(fields) {
            *to = from;
        }
        memory.write_slice(
            &bytes,
            GuestAddress(self.descriptors + 16 * u64::from(index)),
        )
    }

    /// Whether the daemon has to be told of what was made available.
    pub(super) fn wants_kick(&self, memory: &GuestRam) -> Result<bool, GuestMemoryError> {
        // The available index must be seen before the daemon's wish is read.
        fence(Ordering::SeqCst);
        let flags: u16 = memory.load(GuestAddress(self.used), Ordering::Relaxed)?;
        Ok(u16::from_le(flags) & NO_NOTIFY == 0)
    }

    /// The next slot whose request has been served, and how many bytes its reply has.
    pub(super) fn next_used(&mut self, memory: &GuestRam) -> Result<Option<(u16, u32)>, Broken> {
        let index = memory.load(GuestAddress(self.used + 2), Ordering::Acquire)?;
        let ahead = Wrapping(u16::from_le(index)) - self.seen;
        if ahead.0 == 0 {
            return Ok(None);
        }
        if ahead.0 > QUEUE_SIZE {
            return Err(Broken::Ring);
        }
        let at = self.used + 4 + 8 * u64::from(self.seen.0 % QUEUE_SIZE);
        let head = u32::from_le(memory.read_obj(GuestAddress(at))?);
        let length = u32::from_le(memory.read_obj(GuestAddress(at + 4))?);
        self.seen += 1;
        match u16::try_from(head) {
            Ok(head) if head < QUEUE_SIZE && head % 2 == 0 => Ok(Some((head / 2, length))),
            _ => Err(Broken::Ring),
        }
    }
}
