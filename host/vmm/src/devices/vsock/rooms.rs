//! Buffers that the guest has provided for packets, several at hand at a time: what a socket has for the
//! guest is read into all of them in one call.

use super::packet::{HEADER, Header};
use crate::machine::memory::GuestRam;
use crate::virtio::iovecs::Iovecs;
use crate::virtio::queue::{Queue, QueueError};
use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

/// The most chains at hand: Linux gives a page each, so this is 128 KiB of data.
const AT_HAND: usize = 32;

/// The receive queue.
#[derive(Debug)]
pub struct Rooms {
    ram: GuestRam,
    queue: Queue,
    chains: VecDeque<Room>,
    /// Where the headers of the chains go, in order.
    headers: Iovecs,
    /// Where their data goes.
    data: Iovecs,
    chain: Iovecs,
    unused: Iovecs,
}

/// A chain with room for a header and some data.
#[derive(Debug, Clone, Copy)]
struct Room {
    head: u16,
    /// Bytes of data that it takes.
    length: u32,
}

impl Rooms {
    /// Nothing at hand.
    #[must_use]
    pub fn new(ram: &GuestRam, queue: Queue) -> Self {
        let list = || Iovecs::new(ram);
        Self {
            ram: ram.clone(),
            queue,
            chains: VecDeque::new(),
            headers: list(),
            data: list(),
            chain: list(),
            unused: list(),
        }
    }

    /// Takes chains from the queue; `false` when there is none, and a notification was asked for.
    ///
    /// # Errors
    /// [`QueueError`].
    pub fn prepare(&mut self) -> Result<bool, QueueError> {
        while self.chains.len() < AT_HAND {
            self.chain.clear();
            let taken = self
                .queue
                .pop_into(&self.ram, &mut self.unused, &mut self.chain)?;
            let Some(taken) = taken else {
                if self.chains.is_empty() && self.queue.set_notifications(&self.ram, true)? {
                    continue;
                }
                return Ok(!self.chains.is_empty());
            };
            let header = HEADER as u32;
            if taken.readable_parts > 0 || taken.writable <= header {
                return Err(QueueError::Layout);
            }
            let length = taken.writable - header;
            self.chain.move_front(HEADER, &mut self.headers);
            self.chain.move_front(length as usize, &mut self.data);
            let head = taken.head;
            self.chains.push_back(Room { head, length });
        }
        Ok(true)
    }

    /// Reads at most `most` bytes from a socket to where the data of the next packets goes.
    ///
    /// # Errors
    /// What `readv(2)` answers.
    pub fn read(&mut self, socket: BorrowedFd<'_>, most: u32) -> Result<u32, io::Error> {
        // At most what was asked for.
        self.data
            .read(socket, most as usize)
            .map(|count| count as u32)
    }

    /// Gives the guest a packet with this header, and further ones with the same if the data that was
    /// read for it takes several. Answers how many.
    ///
    /// # Errors
    /// [`QueueError`].
    pub fn give(&mut self, header: &Header) -> Result<u32, QueueError> {
        let (mut left, mut count) = (header.len, 0);
        while left > 0 || count == 0 {
            let room = self.chains.pop_front().ok_or(QueueError::Layout)?;
            let part = Header {
                len: left.min(room.length),
                ..*header
            };
            self.headers.copy_in(0, &part.bytes());
            self.headers.drop_bytes(HEADER);
            self.data.drop_bytes(room.length as usize);
            let written = HEADER as u32 + part.len;
            self.queue.put_used(&self.ram, room.head, written)?;
            left -= part.len;
            count += 1;
        }
        self.queue.publish_used(&self.ram)?;
        Ok(count)
    }

    /// Whether the driver wants to be told of what it was given.
    ///
    /// # Errors
    /// [`QueueError`].
    pub fn wants_interrupt(&mut self) -> Result<bool, QueueError> {
        self.queue.wants_interrupt(&self.ram)
    }
}
