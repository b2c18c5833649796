//! virtio-vsock (virtio 1.2, 5.10): streams between the guest and Unix sockets of the host.
//!
//! [`muxer`] knows the connections, [`connection`] one of them, [`handshake`] how the host opens one,
//! [`packet`] the headers, [`rooms`] where packets for the guest go, [`pool`] how much memory all of it may
//! take. What is here moves packets between them and the virtqueues.

pub mod connection;
pub mod handshake;
pub mod muxer;
pub mod packet;
pub mod pool;
pub mod rooms;

use crate::devices::counters::Counters;
use crate::error::Error;
use crate::machine::memory::GuestRam;
use crate::sync::lock;
use crate::virtio::iovecs::Iovecs;
use crate::virtio::notify::Notifier;
use crate::virtio::queue::{Queue, QueueError};
use crate::virtio::{Device, copy_config};
use muxer::Muxer;
use packet::{GUEST_CID, HEADER, Header};
use rooms::Rooms;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

const ID: u32 = 19;
const RX: u16 = 0;
const TX: u16 = 1;
/// Receive, transmit, event. Linux fills the whole receive queue with pages of 4 KiB at boot.
const QUEUE_SIZES: &[u16] = &[128, 128, 4];
/// The most packets each way before other devices get their turn.
const TURN: usize = 64;

/// The vsock device.
#[derive(Debug)]
pub struct Vsock {
    ram: GuestRam,
    notifier: Arc<Notifier>,
    kick: EventFd,
    /// The muxer's descriptor again, for whoever waits for it without the lock.
    muxer_fd: OwnedFd,
    state: Mutex<State>,
    counters: Counters,
}

#[derive(Debug)]
struct State {
    muxer: Muxer,
    queues: Option<Queues>,
}

#[derive(Debug)]
struct Queues {
    rooms: Rooms,
    tx: Queue,
    /// The packet that is being looked at.
    packet: Iovecs,
    unused: Iovecs,
    /// Kept for the driver; no event is ever sent.
    _event: Queue,
}

impl Vsock {
    /// The device with its listening socket.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn new(ram: GuestRam, notifier: Arc<Notifier>, listener: OwnedFd) -> Result<Self, Error> {
        let muxer = Muxer::new(listener)?;
        let muxer_fd = muxer
            .as_fd()
            .try_clone_to_owned()
            .map_err(Error::host("duplicate a descriptor"))?;
        Ok(Self {
            ram,
            notifier,
            kick: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
                .map_err(Error::host("create an eventfd"))?,
            muxer_fd,
            state: Mutex::new(State {
                muxer,
                queues: None,
            }),
            counters: Counters::default(),
        })
    }

    /// What the device has done; `requests` are packets.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Takes the connection on which the daemon is told what the guest dials.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn set_feed(&self, feed: OwnedFd) -> Result<(), Error> {
        lock(&self.state).muxer.set_feed(feed)
    }

    /// The descriptor that is readable when sockets of the host want attention.
    #[must_use]
    pub fn sockets(&self) -> BorrowedFd<'_> {
        self.muxer_fd.as_fd()
    }

    /// Moves packets both ways as long as there are any, within a turn.
    pub fn serve(&self) {
        let _ = self.kick.read();
        let mut state = lock(&self.state);
        let State { muxer, queues } = &mut *state;
        let more = muxer.poll();
        let Some(rings) = queues.as_mut() else { return };
        match self.turn(muxer, rings) {
            Ok(finished) => {
                if more || !finished {
                    let _ = self.kick.write(1);
                }
            }
            Err(_) => {
                *queues = None;
                muxer.reset();
                drop(state);
                self.counters.failed();
                self.notifier.ask_for_reset();
            }
        }
    }

    /// Answers whether there is nothing left to do.
    fn turn(&self, muxer: &mut Muxer, queues: &mut Queues) -> Result<bool, QueueError> {
        let mut finished = false;
        for _ in 0..TURN {
            let sent = self.transmit(muxer, queues)?;
            let received = self.receive(muxer, &mut queues.rooms)?;
            if !sent && !received {
                finished = true;
                break;
            }
        }
        if queues.tx.wants_interrupt(&self.ram)? {
            self.notifier.used(TX);
        }
        Ok(finished)
    }

    /// Takes one packet from the guest; `false` when there is none or it has to wait.
    fn transmit(&self, muxer: &mut Muxer, queues: &mut Queues) -> Result<bool, QueueError> {
        if !muxer.takes_packets() {
            return Ok(false);
        }
        let Queues {
            tx, packet, unused, ..
        } = queues;
        packet.clear();
        unused.clear();
        let Some(taken) = tx.pop_into(&self.ram, packet, unused)? else {
            return tx.set_notifications(&self.ram, true);
        };
        let mut bytes = [0; HEADER];
        let complete = packet.copy_out(0, &mut bytes) == HEADER;
        // The one copy of the header that is ever looked at.
        let header = Header::parse(&bytes);
        let length = taken.readable.checked_sub(HEADER as u32);
        if !complete || length.is_none_or(|length| header.len > length) {
            return Err(QueueError::Layout);
        }
        packet.drop_bytes(HEADER);
        packet.keep_bytes(header.len as usize);
        muxer.packet(&header, packet);
        self.counters.served(u64::from(header.len));
        tx.push_used(&self.ram, taken.head, 0)?;
        Ok(true)
    }

    /// Gives the guest what one connection has for it, as far as there is room; `false` when there is
    /// nothing, or no room.
    fn receive(&self, muxer: &mut Muxer, rooms: &mut Rooms) -> Result<bool, QueueError> {
        if !muxer.has_packets() || !rooms.prepare()? {
            return Ok(false);
        }
        let Some(header) = muxer.fill(rooms) else {
            return Ok(false);
        };
        rooms.give(&header)?;
        self.counters.served(u64::from(header.len));
        if rooms.wants_interrupt()? {
            self.notifier.used(RX);
        }
        Ok(true)
    }
}

impl Device for Vsock {
    fn id(&self) -> u32 {
        ID
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    /// `struct virtio_vsock_config` (5.10.4).
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        copy_config(&GUEST_CID.to_le_bytes(), offset, data);
    }

    fn activate(&self, queues: Vec<Queue>, _features: u64) {
        let mut queues = queues.into_iter();
        let mut state = lock(&self.state);
        if let (Some(rx), Some(tx), Some(event)) = (queues.next(), queues.next(), queues.next()) {
            state.queues = Some(Queues {
                rooms: Rooms::new(&self.ram, rx),
                tx,
                packet: Iovecs::new(&self.ram),
                unused: Iovecs::new(&self.ram),
                _event: event,
            });
            state.muxer.activate();
        }
    }

    fn reset(&self) {
        let mut state = lock(&self.state);
        state.queues = None;
        state.muxer.reset();
    }

    fn kick(&self) -> &EventFd {
        &self.kick
    }
}

#[cfg(test)]
mod tests;
