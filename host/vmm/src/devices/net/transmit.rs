//! Packets from the guest: each leaves in one system call, straight from the guest's buffers.

use super::header::{HEADER, admit};
use super::limits::{Limit, Progress};
use crate::devices::counters::Counters;
use crate::machine::memory::GuestRam;
use crate::virtio::iovecs::Iovecs;
use crate::virtio::queue::{Queue, QueueError};
use std::os::fd::BorrowedFd;

/// A transmit queue.
#[derive(Debug)]
pub(super) struct Transmitter {
    pub(super) queue: Queue,
    features: u64,
    packet: Iovecs,
    /// What the driver should not have put into its chains.
    unused: Iovecs,
}

impl Transmitter {
    pub(super) fn new(ram: &GuestRam, queue: Queue, features: u64) -> Self {
        Self {
            queue,
            features,
            packet: Iovecs::new(ram),
            unused: Iovecs::new(ram),
        }
    }

    /// Sends at most `most` packets; without a tap they are dropped, as by a wire that is not plugged in.
    pub(super) fn run(
        &mut self,
        ram: &GuestRam,
        tap: Option<BorrowedFd<'_>>,
        most: usize,
        limit: &Limit,
        counters: &Counters,
    ) -> Result<Progress, QueueError> {
        for _ in 0..most {
            if let Some(wait) = limit.wait() {
                return Ok(Progress::Wait(wait));
            }
            self.packet.clear();
            self.unused.clear();
            let taken = self
                .queue
                .pop_into(ram, &mut self.packet, &mut self.unused)?;
            let Some(taken) = taken else {
                if self.queue.set_notifications(ram, true)? {
                    continue;
                }
                return Ok(Progress::Idle);
            };
            let length = taken.readable as usize;
            let mut header = [0; HEADER];
            if self.packet.copy_out(0, &mut header) < HEADER {
                return Err(QueueError::Layout);
            }
            if let Some(tap) = tap {
                // What makes no sense, or is not to the taste of the host's kernel, is dropped.
                let sent = admit(&mut header, length, self.features)
                    && self
                        .packet
                        .write_replacing(tap, &mut header, HEADER)
                        .is_ok();
                if sent {
                    limit.spend(length - HEADER);
                    counters.served((length - HEADER) as u64);
                } else {
                    counters.failed();
                }
            }
            self.queue.push_used(ram, taken.head, 0)?;
        }
        Ok(Progress::More)
    }
}
