//! The split virtqueue, device side (virtio 1.2, 2.7).
//!
//! The rings are the driver's memory: every index read from them is checked, every one that matters
//! later is kept here. A queue's addresses cannot change once it exists.

use super::buffers::{Chain, ChainError, walk};
use super::iovecs::Iovecs;
use crate::machine::memory::GuestRam;
use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

/// VIRTQ_AVAIL_F_NO_INTERRUPT (2.7.6).
const NO_INTERRUPT: u16 = 1;
/// VIRTQ_USED_F_NO_NOTIFY (2.7.8).
const NO_NOTIFY: u16 = 1;

/// A queue as its driver has laid it out so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLayout {
    /// Largest size.
    pub max: u16,
    /// Number of descriptors.
    pub size: u16,
    /// Whether the driver wants to use it.
    pub ready: bool,
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
}

impl QueueLayout {
    /// A queue that the driver has not touched.
    #[must_use]
    pub fn new(max: u16) -> Self {
        Self {
            max,
            size: max,
            ready: false,
            descriptors: 0,
            available: 0,
            used: 0,
        }
    }
}

/// What a driver can do wrong with a queue. Each is a reason to ask for a reset.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Not ready, not a power of two, too large, misaligned, or outside of guest memory.
    #[error("The queue's layout is not usable")]
    Layout,
    /// More buffers are available than the queue holds.
    #[error("The available index is ahead by more than the queue's size")]
    AvailableIndex,
    /// A descriptor head that the device still has was made available again.
    #[error("Descriptor {0} is in flight already")]
    InFlight(u16),
    /// A descriptor chain makes no sense.
    #[error("A descriptor chain is malformed")]
    Chain(#[from] ChainError),
    /// The rings could not be reached.
    #[error("Guest memory could not be reached")]
    Memory(#[from] GuestMemoryError),
}

/// A descriptor chain whose buffers went into lists of ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// The first descriptor, by which the chain is given back.
    pub head: u16,
    /// How many bytes the device may read.
    pub readable: u32,
    /// How many ranges these are.
    pub readable_parts: usize,
    /// How many bytes the device may write.
    pub writable: u32,
    /// How many ranges these are.
    pub writable_parts: usize,
}

/// A virtqueue in use.
#[derive(Debug)]
pub struct Queue {
    size: u16,
    descriptors: GuestAddress,
    available: GuestAddress,
    used: GuestAddress,
    next_available: Wrapping<u16>,
    next_used: Wrapping<u16>,
    /// The used index when it was last decided whether to interrupt.
    signalled: Wrapping<u16>,
    event_idx: bool,
    /// One bit for each descriptor head that the device has.
    in_flight: Vec<u64>,
}

impl Queue {
    /// Checks a layout and starts to use it.
    ///
    /// # Errors
    /// [`QueueError::Layout`].
    pub fn new(layout: &QueueLayout, ram: &GuestRam, event_idx: bool) -> Result<Self, QueueError> {
        let size = layout.size;
        let count = usize::from(size);
        // Table, available ring and used ring with their alignments (2.7).
        let parts = [
            (layout.descriptors, 16, 16 * count),
            (layout.available, 2, 6 + 2 * count),
            (layout.used, 4, 6 + 8 * count),
        ];
        let usable = layout.ready
            && size.is_power_of_two()
            && size <= layout.max
            && parts.into_iter().all(|(address, alignment, length)| {
                address % alignment == 0 && ram.get_slice(GuestAddress(address), length).is_ok()
            });
        if !usable {
            return Err(QueueError::Layout);
        }
        Ok(Self {
            size,
            descriptors: GuestAddress(layout.descriptors),
            available: GuestAddress(layout.available),
            used: GuestAddress(layout.used),
            next_available: Wrapping(0),
            next_used: Wrapping(0),
            signalled: Wrapping(0),
            event_idx,
            in_flight: vec![0; count.div_ceil(64)],
        })
    }

    /// Takes the next available descriptor chain, if there is one.
    ///
    /// # Errors
    /// [`QueueError`]; the queue is of no use afterwards.
    pub fn pop(&mut self, ram: &GuestRam) -> Result<Option<Chain>, QueueError> {
        let Some(head) = self.next_head(ram)? else {
            return Ok(None);
        };
        let chain = Chain::read(ram, self.descriptors, self.size, head)?;
        self.taken(head)?;
        Ok(Some(chain))
    }

    /// Takes the next available descriptor chain, if there is one, straight into lists for the kernel:
    /// what the device may read is added to `readable`, what it may write to `writable`.
    ///
    /// # Errors
    /// [`QueueError`]; the queue and the lists are of no use afterwards.
    pub fn pop_into(
        &mut self,
        ram: &GuestRam,
        readable: &mut Iovecs,
        writable: &mut Iovecs,
    ) -> Result<Option<Taken>, QueueError> {
        let Some(head) = self.next_head(ram)? else {
            return Ok(None);
        };
        let before = (readable.len(), writable.len());
        let visit = |address, length, write| {
            let list = if write {
                &mut *writable
            } else {
                &mut *readable
            };
            list.push(ram, address, length)
        };
        let lengths = walk(ram, self.descriptors, self.size, head, visit)?;
        self.taken(head)?;
        Ok(Some(Taken {
            head,
            readable: lengths.0,
            readable_parts: readable.len() - before.0,
            writable: lengths.1,
            writable_parts: writable.len() - before.1,
        }))
    }

    /// How many descriptors the queue has, and so the most chains that the device can hold.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where the descriptor table, the available ring and the used ring are, for whoever works on them
    /// instead.
    #[must_use]
    pub fn rings(&self) -> [GuestAddress; 3] {
        [self.descriptors, self.available, self.used]
    }

    /// The head that the driver has made available next.
    fn next_head(&self, ram: &GuestRam) -> Result<Option<u16>, QueueError> {
        let available = Wrapping(u16::from_le(
            ram.load(at(self.available, 2), Ordering::Acquire)?,
        ));
        let ahead = (available - self.next_available).0;
        if ahead == 0 {
            return Ok(None);
        }
        if ahead > self.size {
            return Err(QueueError::AvailableIndex);
        }
        let slot = u64::from(self.next_available.0 % self.size);
        let head = u16::from_le(ram.load(at(self.available, 4 + 2 * slot), Ordering::Relaxed)?);
        Ok(Some(head))
    }

    fn taken(&mut self, head: u16) -> Result<(), QueueError> {
        if !self.mark(head, true) {
            return Err(QueueError::InFlight(head));
        }
        self.next_available += 1;
        Ok(())
    }

    /// Takes back the chain that was popped last: it is the next one to be popped again.
    pub fn undo_pop(&mut self, chain: &Chain) {
        self.mark(chain.head, false);
        self.next_available -= 1;
    }

    /// Gives a chain back to the driver, `written` bytes of which the device has filled.
    ///
    /// # Errors
    /// [`QueueError::Memory`].
    pub fn push_used(&mut self, ram: &GuestRam, head: u16, written: u32) -> Result<(), QueueError> {
        self.put_used(ram, head, written)?;
        self.publish_used(ram)
    }

    /// Puts a chain into the used ring, where the driver sees it after [`Queue::publish_used`].
    ///
    /// # Errors
    /// [`QueueError::Memory`].
    pub fn put_used(&mut self, ram: &GuestRam, head: u16, written: u32) -> Result<(), QueueError> {
        self.mark(head, false);
        let slot = u64::from(self.next_used.0 % self.size);
        let mut element = [0; 8];
        let (id, length) = element.split_at_mut(4);
        id.copy_from_slice(&u32::from(head).to_le_bytes());
        length.copy_from_slice(&written.to_le_bytes());
        ram.write_slice(&element, at(self.used, 4 + 8 * slot))?;
        self.next_used += 1;
        Ok(())
    }

    /// Shows the driver all that was put into the used ring.
    ///
    /// # Errors
    /// [`QueueError::Memory`].
    pub fn publish_used(&mut self, ram: &GuestRam) -> Result<(), QueueError> {
        ram.store(
            self.next_used.0.to_le(),
            at(self.used, 2),
            Ordering::Release,
        )?;
        Ok(())
    }

    /// Whether the driver wants to be told of the buffers used since the last time it was asked
    /// (2.7.7.2, 2.7.10).
    ///
    /// # Errors
    /// [`QueueError::Memory`].
    pub fn wants_interrupt(&mut self, ram: &GuestRam) -> Result<bool, QueueError> {
        let (old, new) = (self.signalled, self.next_used);
        if old == new {
            return Ok(false);
        }
        self.signalled = new;
        // The used index must be seen before the driver's wish is read.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let offset = 4 + 2 * u64::from(self.size);
            let event = Wrapping(u16::from_le(
                ram.load(at(self.available, offset), Ordering::Relaxed)?,
            ));
            return Ok((new - event - Wrapping(1)) < (new - old));
        }
        let flags = u16::from_le(ram.load(self.available, Ordering::Relaxed)?);
        Ok(flags & NO_INTERRUPT == 0)
    }

    /// Asks the driver for notifications, or not to send any while the queue is being emptied.
    ///
    /// Answers whether something became available in the meantime, of which no notification comes.
    ///
    /// # Errors
    /// [`QueueError::Memory`].
    pub fn set_notifications(&mut self, ram: &GuestRam, wanted: bool) -> Result<bool, QueueError> {
        if self.event_idx {
            if !wanted {
                // The event index was passed with the first notification; no other comes.
                return Ok(false);
            }
            let offset = 4 + 8 * u64::from(self.size);
            ram.store(
                self.next_available.0.to_le(),
                at(self.used, offset),
                Ordering::Relaxed,
            )?;
        } else {
            let flags = if wanted { 0 } else { NO_NOTIFY };
            ram.store(flags.to_le(), self.used, Ordering::Relaxed)?;
        }
        fence(Ordering::SeqCst);
        let available = u16::from_le(ram.load(at(self.available, 2), Ordering::Relaxed)?);
        Ok(available != self.next_available.0)
    }

    /// Marks a head as being with the device or not; answers whether that is a change.
    fn mark(&mut self, head: u16, taken: bool) -> bool {
        let bit = 1 << (head % 64);
        let Some(word) = self.in_flight.get_mut(usize::from(head / 64)) else {
            return false;
        };
        let before = *word & bit != 0;
        if taken {
            *word |= bit;
        } else {
            *word &= !bit;
        }
        before != taken
    }
}

/// The rings were checked when the queue was made, so these sums cannot overflow.
fn at(base: GuestAddress, offset: u64) -> GuestAddress {
    GuestAddress(base.0.wrapping_add(offset))
}

#[cfg(test)]
mod tests;
