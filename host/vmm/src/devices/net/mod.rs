//! virtio-net (virtio 1.2, 5.1): the network interface, with a tap of the host bound later.
//!
//! Until [`Net::bind`] the link is down and what the guest sends is dropped. The tap carries the same
//! header as the queues (IFF_VNET_HDR, 12 bytes), so segmentation and checksum offloads pass through; the
//! guest's headers are checked on the way. The interface has no address of its own: which one it gets is
//! the pod's business, not the machine's.
//!
//! ```text
//!  guest   receive 0  transmit 0   receive 1  transmit 1   ...   control
//!               \      /                \      /                 /
//!  thread        pair 0 ----------------------------------------
//!                  |                    pair 1
//!  tap          queue 0                 queue 1            ...
//! ```

mod control;
mod features;
mod header;
mod limits;
mod pair;
mod receive;
mod tap;
mod transmit;
mod vhost;

use crate::devices::counters::Counters;
use crate::error::Error;
use crate::machine::memory::GuestRam;
use crate::sync::lock;
use crate::virtio::notify::Notifier;
use crate::virtio::queue::{Queue, QueueError};
use crate::virtio::{Device, copy_config};
use bulkhead_vmm_api::{DeviceCounters, NetworkLimits};
use limits::Limits;
use pair::Pair;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tap::Tap;
pub use tap::TapError;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

const ID: u32 = 1;
const QUEUE_SIZE: u16 = 256;
/// The control queue has one command at a time.
const CONTROL_SIZE: u16 = 16;
/// The most commands of the control queue before packets get their turn.
const CONTROL_TURN: usize = 16;
/// VIRTIO_NET_S_LINK_UP.
const LINK_UP: u16 = 1;

/// The network interface.
#[derive(Debug)]
pub struct Net {
    ram: GuestRam,
    notifier: Arc<Notifier>,
    pairs: Vec<Pair>,
    uses_vhost: bool,
    queue_sizes: Vec<u16>,
    offered: u64,
    link: AtomicBool,
    control_kick: EventFd,
    /// The control queue stands where the second pair's would, for the driver uses one pair only.
    control_second: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tap: Tap,
    features: u64,
    /// How many pairs the driver uses.
    active: usize,
    control: Option<ControlQueue>,
}

#[derive(Debug)]
struct ControlQueue {
    queue: Queue,
    number: u16,
}

impl Net {
    /// An interface with this many pairs of queues, 1 to [`bulkhead_vmm_api::MAX_QUEUE_PAIRS`], and
    /// without a tap. With an open `/dev/vhost-net` for each pair the host's kernel moves the packets.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn new(
        ram: GuestRam,
        notifier: Arc<Notifier>,
        pairs: usize,
        vhost: Vec<OwnedFd>,
    ) -> Result<Self, Error> {
        let uses_vhost = !vhost.is_empty();
        let mut vhost = vhost.into_iter();
        let control_kick =
            EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(Error::host("create an eventfd"))?;
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * pairs];
        if pairs > 1 {
            queue_sizes.push(CONTROL_SIZE);
        }
        let pairs = (0..pairs)
            .map(|index| Pair::new(ram.clone(), Arc::clone(&notifier), index, vhost.next()))
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(first) = pairs.first() {
            first.watch_control(&control_kick)?;
        }
        Ok(Self {
            ram,
            notifier,
            offered: features::offered(pairs.len(), features::host_segments_udp()),
            pairs,
            uses_vhost,
            queue_sizes,
            link: AtomicBool::new(false),
            control_kick,
            control_second: AtomicBool::new(false),
            state: Mutex::default(),
        })
    }

    /// How many pairs of queues there are, each of which wants a thread that calls [`Net::turn`].
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.pairs.len()
    }

    /// Whether the host's kernel moves the packets.
    #[must_use]
    pub fn uses_vhost(&self) -> bool {
        self.uses_vhost
    }

    /// What the device has done; requests are packets. Those that vhost-net moves are not counted.
    #[must_use]
    pub fn counters(&self, device: &str) -> DeviceCounters {
        Counters::sum(self.pairs.iter().map(|pair| &pair.counters), device)
    }

    /// Puts a tap behind the interface, as one queue or as several, and brings the link up. With fewer
    /// queues than pairs the later pairs only send. Limits are for all pairs together.
    ///
    /// # Errors
    /// [`TapError`]; the interface has no tap then.
    pub fn bind(&self, queues: Vec<OwnedFd>, limits: &NetworkLimits) -> Result<(), TapError> {
        let (count, most) = (queues.len(), self.pairs.len());
        if count == 0 || count > most {
            return Err(TapError::Count { count, most });
        }
        let limited = [limits.ingress, limits.egress];
        let mut rates = limited
            .iter()
            .flat_map(|way| [way.ops, way.bytes])
            .flatten();
        if !rates.all(|rate| rate.is_valid()) {
            return Err(TapError::Limits);
        }
        if self.uses_vhost && !limits.is_none() {
            return Err(TapError::Unlimited);
        }
        let mut state = lock(&self.state);
        if !state.tap.is_empty() {
            return Err(TapError::NotEmpty);
        }
        let mut tap = Tap::new(queues)?;
        tap.set_offloads(state.features)?;
        tap.use_queues(state.active)?;
        self.connect(&tap, limits)?;
        state.tap = tap;
        drop(state);
        self.notifier
            .change_config(|| self.link.store(true, Ordering::SeqCst));
        Ok(())
    }

    fn connect(&self, tap: &Tap, limits: &NetworkLimits) -> Result<(), TapError> {
        let limits = Arc::new(Limits::new(limits));
        for (index, pair) in self.pairs.iter().enumerate() {
            if let Some((queue, own)) = tap.of_pair(index) {
                pair.bind(queue, own, Arc::clone(&limits))
                    .map_err(TapError::Host)?;
            }
        }
        Ok(())
    }

    /// Puts any sockets in the place of the tap.
    #[cfg(any(test, fuzzing))]
    pub fn bind_sockets(
        &self,
        sockets: Vec<OwnedFd>,
        limits: &NetworkLimits,
    ) -> Result<(), TapError> {
        self.connect(&Tap::unchecked(sockets), limits)
    }

    /// Has the threads of all pairs come back from waiting when the descriptor becomes readable. It must
    /// stay open as long as `self`.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn wake_by(&self, fd: BorrowedFd<'_>) -> Result<(), Error> {
        self.pairs.iter().try_for_each(|pair| pair.wake_by(fd))
    }

    /// Waits for work of pair number `index` if it is to `block`, and does it within a turn. Answers
    /// whether there may be more.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn turn(&self, index: usize, block: bool) -> Result<bool, Error> {
        let Some(pair) = self.pairs.get(index) else {
            return Ok(false);
        };
        let mut more = false;
        let woken = pair.wait(block)?;
        // What is notified as the second pair's may be the control queue.
        let moved = woken.kick && index == 1 && self.control_second.load(Ordering::SeqCst);
        if woken.control || moved {
            more = self.serve_control();
        }
        Ok(pair.serve() || more)
    }

    /// Obeys the control queue, within a turn; answers whether there may be more in it.
    fn serve_control(&self) -> bool {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let Some(mut control) = state.control.take() else {
            return false;
        };
        match self.obey(state, &mut control) {
            Ok(more) => {
                state.control = Some(control);
                if more {
                    let _ = self.control_kick.write(1);
                }
                more
            }
            Err(_) => {
                drop(guard);
                self.notifier.ask_for_reset();
                false
            }
        }
    }

    fn obey(&self, state: &mut State, control: &mut ControlQueue) -> Result<bool, QueueError> {
        let queue = &mut control.queue;
        let mut more = true;
        for _ in 0..CONTROL_TURN {
            let Some(mut chain) = queue.pop(&self.ram)? else {
                if queue.set_notifications(&self.ram, true)? {
                    continue;
                }
                more = false;
                break;
            };
            let features = state.features;
            let set = |count| self.set_pairs(state, usize::from(count));
            let written = control::obey(&self.ram, &mut chain, features, set)?;
            queue.push_used(&self.ram, chain.head, written)?;
        }
        if queue.wants_interrupt(&self.ram)? {
            self.notifier.used(control.number);
        }
        Ok(more)
    }

    fn set_pairs(&self, state: &mut State, count: usize) -> bool {
        if count == 0 || count > self.pairs.len() || state.tap.use_queues(count).is_err() {
            return false;
        }
        state.active = count;
        true
    }
}

impl Device for Net {
    fn id(&self) -> u32 {
        ID
    }

    fn features(&self) -> u64 {
        self.offered
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    /// Without VIRTIO_NET_F_MQ there is one pair, and the control queue comes behind it (5.1.2).
    fn queues_in_use(&self, features: u64) -> usize {
        let pairs = match features & features::MQ {
            0 => 1,
            _ => self.pairs.len(),
        };
        2 * pairs + usize::from(features & features::CTRL_VQ != 0)
    }

    /// `struct virtio_net_config` (5.1.4): six bytes of address that is not offered, the status, and the
    /// number of pairs.
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let up = self.link.load(Ordering::SeqCst);
        let [s0, s1] = if up { LINK_UP } else { 0 }.to_le_bytes();
        let [p0, p1] = (self.pairs.len() as u16).to_le_bytes();
        copy_config(&[0, 0, 0, 0, 0, 0, s0, s1, p0, p1], offset, data);
    }

    fn activate(&self, queues: Vec<Queue>, features: u64) {
        let mut state = lock(&self.state);
        state.features = features;
        // The driver begins with one pair (5.1.6.5.5).
        state.active = 1;
        // The tap has taken the same calls before, and an offload too few harms nobody.
        let _ = state.tap.set_offloads(features);
        let _ = state.tap.use_queues(1);
        let count = queues.len() as u16;
        let second = count == 3 && self.pairs.len() > 1;
        self.control_second.store(second, Ordering::SeqCst);
        let mut queues = queues.into_iter();
        let mut pairs = self.pairs.iter();
        while let (Some(first), second) = (queues.next(), queues.next()) {
            match (second, pairs.next()) {
                (Some(second), Some(pair)) => pair.activate(first, second, features),
                (None, _) => {
                    state.control = Some(ControlQueue {
                        queue: first,
                        number: count - 1,
                    });
                    let _ = self.control_kick.write(1);
                }
                _ => {}
            }
        }
    }

    fn reset(&self) {
        let mut state = lock(&self.state);
        state.features = 0;
        state.active = 0;
        state.control = None;
        drop(state);
        for pair in &self.pairs {
            pair.reset();
        }
    }

    fn kick(&self) -> &EventFd {
        &self.control_kick
    }

    fn kick_of(&self, queue: u16) -> &EventFd {
        let pair = self.pairs.get(usize::from(queue / 2));
        match (pair, queue % 2) {
            (Some(pair), 0) => &pair.receive_kick,
            (Some(pair), _) => &pair.transmit_kick,
            (None, _) => &self.control_kick,
        }
    }
}

#[cfg(test)]
mod tests;
