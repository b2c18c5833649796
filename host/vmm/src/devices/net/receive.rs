//! Packets for the guest: each arrives in one system call, straight in the guest's buffers.
//!
//! How long a packet is shows when it has been read, and a tap cuts off what does not fit. So buffers for
//! the longest packet are offered as far as the guest has provided them, and behind them memory of this
//! process. What had to go there waits until the guest provides more, and is copied (5.1.6.4).

use super::features::{GUEST_LARGE, MRG_RXBUF};
use super::header::{HEADER, MAX_PACKET, NUM_BUFFERS};
use super::limits::{Limit, Progress};
use crate::devices::counters::Counters;
use crate::machine::memory::GuestRam;
use crate::virtio::iovecs::Iovecs;
use crate::virtio::queue::{Queue, QueueError};
use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::BorrowedFd;

/// Room that is offered to packets that are not made of several; an MTU of jumbo frames fits.
const USUAL_PACKET: usize = 10 * 1024;
/// Ranges that are offered at the most: with the longest chain and the spill below what the kernel takes.
const MAX_PARTS: usize = 700;

/// A receive queue.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) queue: Queue,
    mergeable: bool,
    wanted: usize,
    /// Chains that were taken from the queue and not used yet.
    chains: VecDeque<Prepared>,
    /// Their ranges, in order.
    ranges: Iovecs,
    /// How many bytes these take.
    room: usize,
    /// Ranges that a waiting packet's rest is copied to.
    copied: Iovecs,
    /// Takes what the guest's buffers had no room for.
    spill: Vec<u8>,
    /// The part of the spill that waits for buffers; empty when none does.
    waiting: Range<usize>,
    unused: Iovecs,
}

#[derive(Debug, Clone, Copy)]
struct Prepared {
    head: u16,
    length: usize,
    /// How many entries of `ranges` are its.
    parts: usize,
}

impl Receiver {
    pub(super) fn new(ram: &GuestRam, queue: Queue, features: u64) -> Self {
        let large = features & GUEST_LARGE != 0;
        Self {
            queue,
            mergeable: features & MRG_RXBUF != 0,
            wanted: if large { MAX_PACKET } else { USUAL_PACKET },
            chains: VecDeque::new(),
            ranges: Iovecs::new(ram),
            room: 0,
            copied: Iovecs::new(ram),
            spill: vec![0; MAX_PACKET],
            waiting: 0..0,
            unused: Iovecs::new(ram),
        }
    }

    /// Takes at most `most` packets from the tap, as long as it is `readable` and there is room for them.
    pub(super) fn run(
        &mut self,
        ram: &GuestRam,
        tap: BorrowedFd<'_>,
        readable: &mut bool,
        most: usize,
        limit: &Limit,
        counters: &Counters,
    ) -> Result<Progress, QueueError> {
        for _ in 0..most {
            if !self.waiting.is_empty() {
                if !self.finish_waiting(ram, counters)? {
                    return Ok(Progress::Idle);
                }
                continue;
            }
            if !*readable {
                return Ok(Progress::Idle);
            }
            if let Some(wait) = limit.wait() {
                return Ok(Progress::Wait(wait));
            }
            if !self.prepare(ram)? {
                return Ok(Progress::Idle);
            }
            let parts = self.ranges.len();
            // Errors other than EAGAIN (the device is down, say) are followed by an event as well.
            let read = self.ranges.read_with_tail(tap, parts, &mut self.spill);
            let length = read.unwrap_or(0);
            if length == 0 {
                *readable = false;
                return Ok(Progress::Idle);
            }
            if length < HEADER {
                continue;
            }
            limit.spend(length - HEADER);
            if length <= self.room {
                self.deliver(ram, length)?;
                counters.served((length - HEADER) as u64);
            } else if self.mergeable {
                self.waiting = 0..length - self.room;
            } else {
                // It does not fit into a buffer, and may not take two.
                counters.failed();
            }
        }
        Ok(Progress::More)
    }

    /// Takes chains from the queue until there is room for what may come; `false` when there is none at
    /// all, and a notification was asked for.
    fn prepare(&mut self, ram: &GuestRam) -> Result<bool, QueueError> {
        loop {
            let enough = if self.mergeable {
                self.room >= self.wanted || self.ranges.len() >= MAX_PARTS
            } else {
                !self.chains.is_empty()
            };
            if enough {
                return Ok(true);
            }
            let taken = self
                .queue
                .pop_into(ram, &mut self.unused, &mut self.ranges)?;
            let Some(taken) = taken else {
                if !self.chains.is_empty() {
                    return Ok(true);
                }
                if self.queue.set_notifications(ram, true)? {
                    continue;
                }
                return Ok(false);
            };
            if taken.readable_parts > 0 || taken.writable == 0 {
                return Err(QueueError::Layout);
            }
            let length = taken.writable as usize;
            self.room += length;
            self.chains.push_back(Prepared {
                head: taken.head,
                length,
                parts: taken.writable_parts,
            });
        }
    }

    /// Copies the rest of a waiting packet to buffers that have come; `false` when there are too few.
    fn finish_waiting(&mut self, ram: &GuestRam, counters: &Counters) -> Result<bool, QueueError> {
        while !self.waiting.is_empty() {
            if self.chains.len() >= usize::from(self.queue.size()) {
                // All of the queue is not enough, and so it never will be.
                self.drop_waiting(ram)?;
                counters.failed();
                return Ok(true);
            }
            self.copied.clear();
            let taken = self
                .queue
                .pop_into(ram, &mut self.unused, &mut self.copied)?;
            let Some(taken) = taken else {
                if self.queue.set_notifications(ram, true)? {
                    continue;
                }
                return Ok(false);
            };
            if taken.readable_parts > 0 || taken.writable == 0 {
                return Err(QueueError::Layout);
            }
            let rest = self.spill.get(self.waiting.clone()).unwrap_or_default();
            self.waiting.start += self.copied.copy_in(0, rest);
            self.chains.push_back(Prepared {
                head: taken.head,
                length: taken.writable as usize,
                parts: 0,
            });
        }
        // It began with everything that was prepared, and what it takes of the spill ends with `waiting`.
        let length = self.room + self.waiting.end;
        self.deliver(ram, length)?;
        counters.served((length - HEADER) as u64);
        Ok(true)
    }

    /// Gives the buffers of a packet that cannot be completed back unused.
    fn drop_waiting(&mut self, ram: &GuestRam) -> Result<(), QueueError> {
        for chain in self.chains.drain(..) {
            self.queue.put_used(ram, chain.head, 0)?;
        }
        self.ranges.clear();
        self.room = 0;
        self.waiting = 0..0;
        self.queue.publish_used(ram)
    }

    /// Hands over a packet of `length` bytes that lies in the first chains, all of them at once.
    fn deliver(&mut self, ram: &GuestRam, length: usize) -> Result<(), QueueError> {
        let mut left = length;
        let mut count = 0_u16;
        for chain in &self.chains {
            count += 1;
            left = left.saturating_sub(chain.length);
            if left == 0 {
                break;
            }
        }
        self.ranges.copy_in(NUM_BUFFERS, &count.to_le_bytes());
        let (mut left, mut parts) = (length, 0);
        for chain in self.chains.drain(..usize::from(count)) {
            let part = left.min(chain.length);
            // At most MAX_PACKET.
            self.queue.put_used(ram, chain.head, part as u32)?;
            left -= part;
            parts += chain.parts;
            if chain.parts > 0 {
                self.room -= chain.length;
            }
        }
        self.ranges.drop_front(parts);
        self.waiting = 0..0;
        self.queue.publish_used(ram)
    }
}
