//! virtio-net (virtio 1.2, 5.1): the network interface, with a tap of the host bound later.
//!
//! Until [`Net::bind`] the link is down and what the guest sends is dropped. The tap carries the same
//! header as the queues (IFF_VNET_HDR, 12 bytes), so segmentation and checksum offloads pass through
//! without being looked at here; the host's kernel checks them. The interface has no address of its
//! own: which one it gets is the pod's business, not the machine's.
//!
//! A packet from the guest goes to the tap straight from its buffers. One for the guest is read into
//! a buffer first, since its length decides how many of the guest's buffers it takes (5.1.6.4).

mod tap;

use crate::devices::counters::Counters;
use crate::error::Error;
use crate::events::Events;
use crate::machine::memory::GuestRam;
use crate::sync::lock;
use crate::virtio::buffers::{Call, Chain};
use crate::virtio::notify::Notifier;
use crate::virtio::queue::{Queue, QueueError};
use crate::virtio::{Device, copy_config};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
pub use tap::TapError;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

const ID: u32 = 1;
const RX: u16 = 0;
const TX: u16 = 1;
const QUEUE_SIZES: &[u16] = &[256, 256];
/// `struct virtio_net_hdr_v1` (5.1.6).
const HEADER: u32 = 12;
/// Where the header says how many buffers the packet takes.
const NUM_BUFFERS: usize = 10;
/// The longest packet with its header: what a segmentation offload can make.
const MAX_PACKET: u32 = HEADER + 14 + 65_535;
/// The most packets each way before other devices get their turn.
const TURN: usize = 128;

// Features (5.1.3).
const F_CSUM: u64 = 1 << 0;
pub(super) const F_GUEST_CSUM: u64 = 1 << 1;
pub(super) const F_GUEST_TSO4: u64 = 1 << 7;
pub(super) const F_GUEST_TSO6: u64 = 1 << 8;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;
/// VIRTIO_NET_S_LINK_UP.
const LINK_UP: u16 = 1;

/// The network interface.
#[derive(Debug)]
pub struct Net {
    ram: GuestRam,
    notifier: Arc<Notifier>,
    kick: EventFd,
    link: AtomicBool,
    state: Mutex<State>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct State {
    tap: Option<OwnedFd>,
    queues: Option<(Queue, Queue)>,
    features: u64,
    /// The tap may have something to read.
    readable: bool,
    /// A packet for the guest, read from the tap; empty when there is none.
    packet: Vec<u8>,
}

impl Net {
    /// An interface without a tap.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn new(ram: GuestRam, notifier: Arc<Notifier>) -> Result<Self, Error> {
        Ok(Self {
            ram,
            notifier,
            kick: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
                .map_err(Error::host("create an eventfd"))?,
            link: AtomicBool::new(false),
            state: Mutex::default(),
            counters: Counters::default(),
        })
    }

    /// What the device has done; `requests` are packets.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Puts a tap behind the interface and brings the link up.
    ///
    /// # Errors
    /// [`TapError`]; nothing has changed then.
    pub fn bind(self: &Arc<Self>, tap: OwnedFd, events: &Events) -> Result<(), TapError> {
        tap::check(tap.as_fd())?;
        let mut state = lock(&self.state);
        if state.tap.is_some() {
            return Err(TapError::NotEmpty);
        }
        tap::set_offloads(tap.as_fd(), state.features)?;
        let net = Arc::clone(self);
        events
            .add_edge(tap.as_fd(), Arc::new(move || net.tap_readable()))
            .map_err(TapError::Host)?;
        state.tap = Some(tap);
        state.readable = true;
        drop(state);
        self.notifier
            .change_config(|| self.link.store(true, Ordering::SeqCst));
        let _ = self.kick.write(1);
        Ok(())
    }

    /// Puts any socket in the place of the tap.
    #[cfg(fuzzing)]
    pub fn bind_socket(&self, socket: OwnedFd) {
        lock(&self.state).tap = Some(socket);
    }

    /// The tap has packets.
    pub fn tap_readable(&self) {
        lock(&self.state).readable = true;
        self.serve();
    }

    /// Moves packets both ways as long as there are any, within a turn.
    pub fn serve(&self) {
        let _ = self.kick.read();
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let Some((mut rx, mut tx)) = state.queues.take() else {
            return;
        };
        match self.turn(state, &mut rx, &mut tx) {
            Ok(finished) => {
                state.queues = Some((rx, tx));
                if !finished {
                    let _ = self.kick.write(1);
                }
            }
            Err(_) => {
                drop(guard);
                self.counters.failed();
                self.notifier.ask_for_reset();
            }
        }
    }

    /// Answers whether there is nothing left to do.
    fn turn(&self, state: &mut State, rx: &mut Queue, tx: &mut Queue) -> Result<bool, QueueError> {
        let mut finished = false;
        for _ in 0..TURN {
            let sent = self.transmit(state, tx)?;
            let received = self.receive(state, rx)?;
            if !sent && !received {
                finished = true;
                break;
            }
        }
        for (index, queue) in [(RX, rx), (TX, tx)] {
            if queue.wants_interrupt(&self.ram)? {
                self.notifier.used(index);
            }
        }
        Ok(finished)
    }

    /// Takes one packet from the guest; `false` when there is none.
    fn transmit(&self, state: &State, queue: &mut Queue) -> Result<bool, QueueError> {
        let Some(chain) = queue.pop(&self.ram)? else {
            return queue.set_notifications(&self.ram, true);
        };
        let length = chain.readable.len();
        if length < HEADER {
            return Err(QueueError::Layout);
        }
        if let Some(tap) = &state.tap {
            let sent = length <= MAX_PACKET
                && chain
                    .readable
                    .vectored(&self.ram, tap.as_fd(), Call::Write)
                    .is_ok();
            if sent {
                self.counters.served(u64::from(length - HEADER));
            } else {
                // Too long, or the host's kernel does not like its header: dropped, as on a wire.
                self.counters.failed();
            }
        }
        queue.push_used(&self.ram, chain.head, 0)?;
        Ok(true)
    }

    /// Gives one packet to the guest; `false` when there is none or no room for it.
    fn receive(&self, state: &mut State, queue: &mut Queue) -> Result<bool, QueueError> {
        if state.packet.is_empty() && !read_packet(state) {
            return Ok(false);
        }
        let mergeable = state.features & F_MRG_RXBUF != 0;
        let mut chains: Vec<Chain> = Vec::new();
        let mut room = 0;
        while room < state.packet.len() {
            if !mergeable && !chains.is_empty() {
                // It does not fit into a buffer, and may not take two.
                put_back(queue, &chains);
                state.packet.clear();
                self.counters.failed();
                return Ok(true);
            }
            let Some(chain) = queue.pop(&self.ram)? else {
                // Asked before anything is put back: the notification is wanted for new buffers.
                if queue.set_notifications(&self.ram, true)? {
                    continue;
                }
                // The packet waits for them.
                put_back(queue, &chains);
                return Ok(false);
            };
            if chain.writable.is_empty() {
                return Err(QueueError::Layout);
            }
            room += chain.writable.len() as usize;
            chains.push(chain);
        }
        self.deliver(state, queue, chains)?;
        Ok(true)
    }

    /// Copies the packet into buffers that have room for it.
    fn deliver(
        &self,
        state: &mut State,
        queue: &mut Queue,
        chains: Vec<Chain>,
    ) -> Result<(), QueueError> {
        // At most the queue's size.
        let count = (chains.len() as u16).to_le_bytes();
        if let Some(field) = state.packet.get_mut(NUM_BUFFERS..NUM_BUFFERS + 2) {
            field.copy_from_slice(&count);
        }
        let mut rest = state.packet.as_slice();
        for mut chain in chains {
            let length = rest.len().min(chain.writable.len() as usize);
            let (now, later) = rest.split_at(length);
            if chain.writable.write(&self.ram, now).is_err() {
                return Err(QueueError::Layout);
            }
            // At most MAX_PACKET.
            queue.push_used(&self.ram, chain.head, length as u32)?;
            rest = later;
        }
        let length = state.packet.len() as u64;
        self.counters.served(length - u64::from(HEADER));
        state.packet.clear();
        Ok(())
    }
}

fn put_back(queue: &mut Queue, chains: &[Chain]) {
    for chain in chains.iter().rev() {
        queue.undo_pop(chain);
    }
}

/// Reads a packet from the tap; `false` when there is none.
fn read_packet(state: &mut State) -> bool {
    while let Some(tap) = state.tap.as_ref().filter(|_| state.readable) {
        state.packet.resize(MAX_PACKET as usize, 0);
        let result = rustix::io::retry_on_intr(|| rustix::io::read(tap, &mut *state.packet));
        // Errors other than EAGAIN (the device is down, say) are followed by an event as well.
        let length = result.unwrap_or(0);
        if length >= HEADER as usize {
            state.packet.truncate(length);
            return true;
        }
        state.packet.clear();
        state.readable = length > 0;
    }
    false
}

impl Device for Net {
    fn id(&self) -> u32 {
        ID
    }

    fn features(&self) -> u64 {
        let transmit = F_CSUM | F_HOST_TSO4 | F_HOST_TSO6;
        let receive = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_MRG_RXBUF;
        transmit | receive | F_STATUS
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    /// `struct virtio_net_config` (5.1.4): six bytes of address that is not offered, then the status.
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let up = self.link.load(Ordering::SeqCst);
        let [low, high] = if up { LINK_UP } else { 0 }.to_le_bytes();
        copy_config(&[0, 0, 0, 0, 0, 0, low, high], offset, data);
    }

    fn activate(&self, queues: Vec<Queue>, features: u64) {
        let mut state = lock(&self.state);
        state.features = features;
        if let Some(tap) = &state.tap {
            // The tap has taken the same call before, and an offload too few harms nobody.
            let _ = tap::set_offloads(tap.as_fd(), features);
        }
        let mut queues = queues.into_iter();
        if let (Some(rx), Some(tx)) = (queues.next(), queues.next()) {
            state.queues = Some((rx, tx));
        }
    }

    fn reset(&self) {
        let mut state = lock(&self.state);
        state.queues = None;
        state.features = 0;
        state.packet = Vec::new();
    }

    fn kick(&self) -> &EventFd {
        &self.kick
    }
}

#[cfg(test)]
mod tests;
