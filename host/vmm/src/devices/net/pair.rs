//! A pair of queues, one for each direction, with the queue of the tap that it works on.
//!
//! A thread of its own serves each pair, so that pairs do not wait for each other, nor other devices for
//! any of them. With vhost-net the packets are the kernel's, and the thread only interrupts. Every source is
//! watched edge-triggered: what is known to be there is remembered.

use super::limits::{Limits, Progress};
use super::receive::Receiver;
use super::transmit::Transmitter;
use super::vhost::Vhost;
use crate::devices::counters::Counters;
use crate::error::Error;
use crate::machine::memory::GuestRam;
use crate::rate::Timer;
use crate::sync::lock;
use crate::virtio::notify::Notifier;
use crate::virtio::queue::{Queue, QueueError};
use rustix::event::epoll;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The most packets each way before it is looked what else has happened.
const TURN: usize = 64;

// What an event is of.
const KICK: u64 = 0;
const TAP: u64 = 1;
const CONTROL: u64 = 2;
const TIMER: u64 = 3;
/// vhost-net has used buffers of the receive queue; of the transmit queue; has found nonsense.
const CALLS: [u64; 2] = [4, 5];
const ERRORS: u64 = 6;

/// What a pair's thread was woken by.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Woken {
    /// The driver has notified one of the queues.
    pub(super) kick: bool,
    /// The driver has notified the control queue.
    pub(super) control: bool,
}

/// A pair of queues.
#[derive(Debug)]
pub(super) struct Pair {
    ram: GuestRam,
    notifier: Arc<Notifier>,
    /// The receive queue's number; the transmit queue's is the next.
    first_queue: u16,
    epoll: OwnedFd,
    pub(super) receive_kick: EventFd,
    pub(super) transmit_kick: EventFd,
    vhost: Option<Vhost>,
    /// Wakes the pair when a rate limit lets it go on.
    timer: Timer,
    state: Mutex<State>,
    pub(super) counters: Counters,
}

#[derive(Debug, Default)]
struct State {
    /// What packets of the guest are written to.
    out: Option<Arc<OwnedFd>>,
    /// What packets for the guest are read from.
    input: Option<Arc<OwnedFd>>,
    limits: Arc<Limits>,
    /// There may be something to read.
    readable: bool,
    queues: Option<(Receiver, Transmitter)>,
    /// vhost-net knows the queues.
    started: bool,
}

impl Pair {
    pub(super) fn new(
        ram: GuestRam,
        notifier: Arc<Notifier>,
        index: usize,
        vhost: Option<OwnedFd>,
    ) -> Result<Self, Error> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(Error::host("create an epoll instance"))?;
        let kick =
            || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(Error::host("create an eventfd"));
        let (receive_kick, transmit_kick) = (kick()?, kick()?);
        let vhost = vhost
            .map(|device| Vhost::new(device, &ram, [&receive_kick, &transmit_kick]))
            .transpose()?;
        let pair = Self {
            ram,
            notifier,
            // There are few pairs.
            first_queue: 2 * index as u16,
            epoll,
            receive_kick,
            transmit_kick,
            vhost,
            timer: Timer::new()?,
            state: Mutex::default(),
            counters: Counters::default(),
        };
        match &pair.vhost {
            Some(vhost) => {
                for (call, what) in vhost.calls.iter().zip(CALLS) {
                    pair.watch(eventfd(call), what)?;
                }
                pair.watch(eventfd(&vhost.errors), ERRORS)?;
                if index == 1 {
                    // It may be the control queue's.
                    pair.watch(eventfd(&pair.receive_kick), KICK)?;
                }
            }
            None => {
                pair.watch(eventfd(&pair.receive_kick), KICK)?;
                pair.watch(eventfd(&pair.transmit_kick), KICK)?;
                pair.watch(pair.timer.as_fd(), TIMER)?;
            }
        }
        Ok(pair)
    }

    /// Has this pair's thread look at the control queue, too.
    pub(super) fn watch_control(&self, kick: &EventFd) -> Result<(), Error> {
        self.watch(eventfd(kick), CONTROL)
    }

    /// Has this pair's thread come back from waiting when the descriptor becomes readable.
    pub(super) fn wake_by(&self, fd: BorrowedFd<'_>) -> Result<(), Error> {
        self.watch(fd, KICK)
    }

    fn watch(&self, fd: BorrowedFd<'_>, what: u64) -> Result<(), Error> {
        let data = epoll::EventData::new_u64(what);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&self.epoll, fd, data, flags).map_err(Error::host("watch a descriptor"))
    }

    /// Puts a tap behind the pair; without `input` packets only leave by it.
    pub(super) fn bind(
        &self,
        out: Arc<OwnedFd>,
        input: bool,
        limits: Arc<Limits>,
    ) -> Result<(), Error> {
        let mut state = lock(&self.state);
        state.limits = limits;
        if input && self.vhost.is_none() {
            self.watch(out.as_fd(), TAP)?;
        }
        if input {
            state.input = Some(Arc::clone(&out));
            state.readable = true;
        }
        state.out = Some(out);
        self.connect(&state)
            .map_err(Error::host("connect vhost-net with the tap"))?;
        drop(state);
        self.wake();
        Ok(())
    }

    /// Has vhost-net move packets if it knows the queues and there is a tap.
    fn connect(&self, state: &State) -> std::io::Result<()> {
        match (&self.vhost, &state.out) {
            (Some(vhost), Some(tap)) if state.started => {
                vhost.set_tap(tap.as_fd(), state.input.is_some())
            }
            _ => Ok(()),
        }
    }

    /// Has the pair's thread look at everything.
    pub(super) fn wake(&self) {
        let _ = self.transmit_kick.write(1);
    }

    /// The driver is ready.
    pub(super) fn activate(&self, receive: Queue, transmit: Queue, features: u64) {
        if let Some(vhost) = &self.vhost {
            let mut state = lock(&self.state);
            let started = vhost.start(&self.ram, [&receive, &transmit], features);
            state.started = started.is_ok();
            if started.and_then(|()| self.connect(&state)).is_err() {
                drop(state);
                self.notifier.ask_for_reset();
            }
            return;
        }
        let receiver = Receiver::new(&self.ram, receive, features);
        let transmitter = Transmitter::new(&self.ram, transmit, features);
        lock(&self.state).queues = Some((receiver, transmitter));
        self.wake();
    }

    /// Gives up the queues.
    pub(super) fn reset(&self) {
        let mut state = lock(&self.state);
        state.queues = None;
        if let Some(vhost) = &self.vhost {
            vhost.stop();
            state.started = false;
        }
    }

    /// Looks what there is to do, and waits for it if it is to.
    pub(super) fn wait(&self, block: bool) -> Result<Woken, Error> {
        let nothing = epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(KICK),
        };
        let mut events = [nothing; 8];
        let zero = rustix::time::Timespec::default();
        let timeout = (!block).then_some(&zero);
        let count =
            rustix::io::retry_on_intr(|| epoll::wait(&self.epoll, &mut events[..], timeout))
                .map_err(Error::host("wait for events"))?;
        let mut woken = Woken::default();
        for event in events.iter().take(count) {
            match event.data.u64() {
                TAP => lock(&self.state).readable = true,
                CONTROL => woken.control = true,
                ERRORS => self.notifier.ask_for_reset(),
                call if CALLS.contains(&call) => {
                    // The second of the two is the transmit queue's.
                    let transmit = u16::from(call != CALLS[0]);
                    self.notifier.used(self.first_queue + transmit);
                }
                _ => woken.kick = true,
            }
        }
        Ok(woken)
    }

    /// Moves packets both ways, within a turn; answers whether there may be more to do.
    pub(super) fn serve(&self) -> bool {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let Some((mut receiver, mut transmitter)) = state.queues.take() else {
            return false;
        };
        match self.turn(state, &mut receiver, &mut transmitter) {
            Ok(more) => {
                state.queues = Some((receiver, transmitter));
                more
            }
            Err(_) => {
                drop(guard);
                self.counters.failed();
                self.notifier.ask_for_reset();
                false
            }
        }
    }

    fn turn(
        &self,
        state: &mut State,
        receiver: &mut Receiver,
        transmitter: &mut Transmitter,
    ) -> Result<bool, QueueError> {
        let (ram, counters) = (&self.ram, &self.counters);
        let out = state.out.as_ref().map(|tap| tap.as_fd());
        let limits = &state.limits;
        let sent = transmitter.run(ram, out, TURN, &limits.egress, counters)?;
        let received = match &state.input {
            Some(tap) => {
                let readable = &mut state.readable;
                receiver.run(ram, tap.as_fd(), readable, TURN, &limits.ingress, counters)?
            }
            None => Progress::Idle,
        };
        let queues = [&mut receiver.queue, &mut transmitter.queue];
        for (index, queue) in (self.first_queue..).zip(queues) {
            if queue.wants_interrupt(&self.ram)? {
                self.notifier.used(index);
            }
        }
        let waits = [sent, received].into_iter().filter_map(|way| match way {
            Progress::Wait(wait) => Some(wait),
            _ => None,
        });
        if let Some(wait) = waits.min() {
            // It can only be refused a time that there is not.
            let _ = self.timer.set(wait);
        }
        Ok([sent, received].contains(&Progress::More))
    }
}

fn eventfd(fd: &EventFd) -> BorrowedFd<'_> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open as long as the eventfd, which is borrowed as long.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}
