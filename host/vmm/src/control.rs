//! The control socket: what the daemon asks, and what it gets.
//!
//! The main thread serves it with `poll(2)` until the VM has ended. Nothing here waits for a guest
//! or a disk: emptying a slot is answered when its last request has ended, and meanwhile only that one
//! connection is not read. When the daemon goes, its connections end and the VM goes on.

use crate::devices::blk::{BindError, Disk};
use crate::error::{Error, chain};
use crate::exits::Exits;
use crate::machine::Machine;
use crate::vcpu::Threads;
use crate::verdict::End;
use bulkhead_vmm_api::wire::{self, WireError};
use bulkhead_vmm_api::{
    DeviceCounters, DiskSlot, ExitReason, MAX_PACKET, PROTOCOL_VERSION, Reply, Request, VmState,
    VmmStatus,
};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The most control connections at once.
const MAX_CONNECTIONS: usize = 16;

/// The server's end of the control socket.
#[derive(Debug)]
pub struct Control {
    machine: Arc<Machine>,
    listener: OwnedFd,
    connections: Vec<Connection>,
    /// Signalled when a slot that was being emptied is empty.
    ended: Arc<EventFd>,
    /// Once they run.
    vcpus: Option<Threads>,
    shutdown: Shutdown,
    main_ns: u64,
}

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    /// What must have happened before the next answer.
    waits_for: Option<Wait>,
}

/// What an answer can wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// The slot is empty.
    Empty(DiskSlot),
    /// The guest stands still.
    Paused,
    /// The VM has ended.
    End,
}

/// How far a [`Request::ShutDown`] has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shutdown {
    No,
    /// The guest is being stopped.
    Stopping,
    /// The disks are being let go of.
    Emptying,
}

/// What to do with a connection after a request.
enum After {
    Keep,
    WaitFor(Wait),
    Close,
    Feed,
}

impl Control {
    /// A server for this machine.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn new(machine: Arc<Machine>, listener: OwnedFd, main_ns: u64) -> Result<Self, Error> {
        rustix::io::ioctl_fionbio(&listener, true)
            .map_err(Error::host("make a socket non-blocking"))?;
        let ended =
            EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(Error::host("create an eventfd"))?;
        Ok(Self {
            machine,
            listener,
            connections: Vec::new(),
            ended: Arc::new(ended),
            vcpus: None,
            shutdown: Shutdown::No,
            main_ns,
        })
    }

    /// The vCPUs run from now on, unless the VM was paused already.
    pub fn take_vcpus(&mut self, vcpus: Threads) {
        self.vcpus = Some(vcpus);
    }

    /// Serves what is there already and waits for nothing: what the daemon asked before it started
    /// the VMM is done before the guest runs.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn serve_pending(&mut self) -> Result<(), Error> {
        let now = rustix::time::Timespec::default();
        while !self.machine.verdict.is_decided() && self.turn(Some(now))? {}
        Ok(())
    }

    /// Serves until the VM has ended.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn serve(mut self) -> Result<End, Error> {
        loop {
            if let Some(end) = self.machine.verdict.end() {
                return Ok(end);
            }
            self.turn(None)?;
        }
    }

    /// Waits for at most `timeout` and serves what is ready; answers whether anything was.
    fn turn(&mut self, timeout: Option<rustix::time::Timespec>) -> Result<bool, Error> {
        // SAFETY: the descriptor is open as long as the eventfd, which lives in `self`.
        let ended = unsafe { BorrowedFd::borrow_raw(self.ended.as_raw_fd()) };
        let always = [self.machine.verdict.as_fd(), ended, self.listener.as_fd()];
        // Nobody is interested in it at other times, and it stays readable.
        let stopping = self.waits_until_stopped();
        let stopped = stopping.then(|| self.machine.gate.stopped());
        let reading = self.connections.iter().filter(|c| c.waits_for.is_none());
        let mut waiting: Vec<PollFd<'_>> = always
            .into_iter()
            .chain(stopped)
            .chain(reading.map(|connection| connection.socket.as_fd()))
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        let count =
            rustix::io::retry_on_intr(|| rustix::event::poll(&mut waiting, timeout.as_ref()))
                .map_err(Error::host("wait for events"))?;
        let mut ready = waiting.iter().map(|fd| !fd.revents().is_empty());
        let _verdict = ready.next();
        let ended = ready.next().unwrap_or(false);
        let accept = ready.next().unwrap_or(false);
        if stopping {
            let _stopped = ready.next();
        }
        let readable: Vec<bool> = ready.collect();

        self.serve_connections(&readable);
        if ended {
            let _ = self.ended.read();
            self.collect();
        }
        if accept {
            self.accept();
        }
        self.settle();
        Ok(count > 0)
    }

    fn waits_until_stopped(&self) -> bool {
        let pausing = |connection: &Connection| connection.waits_for == Some(Wait::Paused);
        self.shutdown == Shutdown::Stopping || self.connections.iter().any(pausing)
    }

    /// Answers who has waited for what is so now.
    fn settle(&mut self) {
        let (is_closed, is_stopped) = {
            let gate = &self.machine.gate;
            (gate.is_closed(), gate.is_stopped())
        };
        if self.shutdown == Shutdown::Stopping && is_stopped {
            self.shutdown = Shutdown::Emptying;
        }
        // To ask again does no harm, and answers whether the slot is empty.
        let empty = |disk: &Arc<Disk>| disk.unbind(&self.ended);
        let ends = self.shutdown == Shutdown::Emptying
            && self
                .machine
                .disks
                .iter()
                .filter(|disk| !empty(disk))
                .count()
                == 0;
        self.connections.retain_mut(|connection| {
            let reply = match connection.waits_for {
                Some(Wait::Paused) if is_stopped => Reply::Done,
                Some(Wait::Paused) if !is_closed => {
                    error("The VM was resumed before it had stopped")
                }
                Some(Wait::End) if ends => Reply::Done,
                _ => return true,
            };
            connection.waits_for = None;
            matches!(answer(&connection.socket, &reply), After::Keep)
        });
        if ends {
            let text = "The daemon shut the VM down.";
            self.machine.verdict.decide(ExitReason::ShutDown, text);
        }
    }

    /// Has all vCPUs and the device thread stop.
    fn stop(&self) {
        self.machine.gate.close();
        if let Some(vcpus) = &self.vcpus {
            vcpus.kick();
        }
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok(socket) = accept_with(&self.listener, flags) {
            // One too many is closed at once.
            if self.connections.len() < MAX_CONNECTIONS {
                self.connections.push(Connection {
                    socket,
                    waits_for: None,
                });
            }
        }
    }

    /// Reads one request from each connection that has one.
    fn serve_connections(&mut self, readable: &[bool]) {
        let mut readable = readable.iter();
        for mut connection in std::mem::take(&mut self.connections) {
            let is_readable =
                connection.waits_for.is_none() && readable.next().copied().unwrap_or(false);
            if !is_readable {
                self.connections.push(connection);
                continue;
            }
            match self.serve_one(&connection.socket) {
                After::Keep => self.connections.push(connection),
                After::WaitFor(what) => {
                    connection.waits_for = Some(what);
                    self.connections.push(connection);
                }
                After::Close => {}
                After::Feed => {
                    // It is closed when it cannot be used, and so the daemon knows.
                    let _ = self.machine.vsock.set_feed(connection.socket);
                }
            }
        }
    }

    fn serve_one(&mut self, socket: &OwnedFd) -> After {
        let (request, fds) = match wire::receive::<Request>(socket) {
            Ok(Some(request)) => request,
            Err(WireError::Socket(Errno::AGAIN)) => return After::Keep,
            Err(error @ WireError::Malformed(_)) => return answer(socket, &refusal(&error)),
            Ok(None) | Err(_) => return After::Close,
        };
        match self.handle(request, fds) {
            Ok(Answer::Now(reply)) => answer(socket, &reply),
            Ok(Answer::When(what)) => After::WaitFor(what),
            Ok(Answer::Feed) => match answer(socket, &Reply::Done) {
                After::Keep => After::Feed,
                other => other,
            },
            Err(reply) => answer(socket, &reply),
        }
    }

    fn handle(&mut self, request: Request, fds: Vec<OwnedFd>) -> Result<Answer, Reply> {
        let done = Ok(Answer::Now(Reply::Done));
        if self.shutdown != Shutdown::No
            && matches!(
                request,
                Request::BindDisk { .. } | Request::BindTap { .. } | Request::Resume
            )
        {
            return Err(error("The VM is being shut down"));
        }
        match request {
            Request::BindDisk { slot, limits } => {
                let file = File::from(one(fds)?);
                let disk = self.disk(slot)?;
                self.machine
                    .signal_disk(slot)
                    .map_err(|error| refusal(&error))?;
                disk.bind(file, &limits)
                    .map_err(|error: BindError| refusal(&error))?;
                done
            }
            Request::UnbindDisk { slot } => {
                if self.disk(slot)?.unbind(&self.ended) {
                    done
                } else {
                    Ok(Answer::When(Wait::Empty(slot)))
                }
            }
            Request::MeasureDisk { slot } => {
                let bytes = self.disk(slot)?.measure();
                let bytes = bytes.map_err(|error| refusal(&error))?;
                Ok(Answer::Now(Reply::DiskSize { bytes }))
            }
            Request::BindTap { interface, limits } => {
                let net = self.machine.nets.get(usize::from(interface));
                let missing = || format!("The machine has no network interface {interface}");
                let net = net.ok_or_else(|| error(&missing()))?;
                net.bind(fds, &limits).map_err(|error| refusal(&error))?;
                done
            }
            Request::BindFileDaemon => {
                let volumes = self.machine.volumes.as_ref();
                let volumes = volumes.ok_or_else(|| error("The machine has no shared volumes"))?;
                let bound = volumes.bind(fds, &self.machine.events);
                bound.map_err(|error| refusal(&error))?;
                done
            }
            Request::Status => Ok(Answer::Now(Reply::Status(self.status()))),
            Request::Console { max_bytes } => Ok(Answer::Now(self.console(max_bytes))),
            Request::AcceptGuestConnections => Ok(Answer::Feed),
            Request::Pause => {
                self.stop();
                Ok(Answer::When(Wait::Paused))
            }
            Request::Resume => {
                self.machine.gate.open();
                done
            }
            Request::ShutDown => {
                if self.shutdown == Shutdown::No {
                    self.shutdown = Shutdown::Stopping;
                    self.stop();
                }
                Ok(Answer::When(Wait::End))
            }
            Request::RenewGeneration => {
                let generation = &self.machine.generation;
                generation.renew().map_err(|error| refusal(&error))?;
                done
            }
            Request::Kill => {
                let text = "The daemon ended the VM.";
                self.machine.verdict.decide(ExitReason::Killed, text);
                done
            }
        }
    }

    fn disk(&self, slot: DiskSlot) -> Result<&Arc<Disk>, Reply> {
        self.machine
            .disks
            .iter()
            .find(|disk| disk.slot() == slot)
            .ok_or_else(|| error(&format!("The machine has no slot {}", slot.serial())))
    }

    fn status(&self) -> VmmStatus {
        let machine = &self.machine;
        let console = DeviceCounters {
            accesses: machine.serial.accesses(),
            ..machine.serial.counters().named("console")
        };
        let platform = DeviceCounters {
            device: "platform".to_owned(),
            accesses: machine.platform.accesses().saturating_sub(console.accesses),
            ..DeviceCounters::default()
        };
        // From here on in the order of the windows.
        let mut devices = vec![
            machine.vsock.counters().named("vsock"),
            machine.rng.counters().named("rng"),
            machine.balloon.counters().named("balloon"),
        ];
        for (number, net) in machine.nets.iter().enumerate() {
            devices.push(net.counters(&format!("net{number}")));
        }
        if let Some(volumes) = &machine.volumes {
            devices.push(volumes.device().counters().named("volumes"));
        }
        for disk in &machine.disks {
            devices.push(disk.counters().named(&disk.slot().serial()));
        }
        for (device, accesses) in devices.iter_mut().zip(machine.register_accesses()) {
            device.accesses = accesses;
        }
        devices.extend([console, platform]);
        let state = match (machine.gate.is_closed(), machine.gate.is_stopped()) {
            (false, _) => VmState::Running,
            (true, false) => VmState::Pausing,
            (true, true) => VmState::Paused,
        };
        VmmStatus {
            state,
            guest_memory_bytes: machine.resident_bytes(),
            exits: Exits::sum(&machine.exits),
            version: PROTOCOL_VERSION,
            main_ns: self.main_ns,
            vcpus_started_ns: machine.started_ns.load(Ordering::Relaxed),
            devices,
        }
    }

    /// The newest part of the console that fits into a packet: control characters and such take
    /// several bytes there.
    fn console(&self, max_bytes: u32) -> Reply {
        let mut wanted = usize::try_from(max_bytes).unwrap_or(usize::MAX);
        loop {
            let bytes = self.machine.serial.newest(wanted);
            let reply = Reply::Console {
                text: String::from_utf8_lossy(&bytes).into_owned(),
            };
            let length = serde_json::to_vec(&reply).map_or(usize::MAX, |packet| packet.len());
            if length <= MAX_PACKET || bytes.is_empty() {
                return reply;
            }
            wanted = bytes.len() - bytes.len().div_ceil(8);
        }
    }

    /// Answers who waited for slots that are empty now.
    fn collect(&mut self) {
        let disks = &self.machine.disks;
        self.connections.retain_mut(|connection| {
            let Some(Wait::Empty(slot)) = connection.waits_for else {
                return true;
            };
            let disk = disks.iter().find(|disk| disk.slot() == slot);
            if !disk.is_some_and(|disk| disk.is_empty()) {
                return true;
            }
            connection.waits_for = None;
            matches!(answer(&connection.socket, &Reply::Done), After::Keep)
        });
    }
}

enum Answer {
    Now(Reply),
    When(Wait),
    Feed,
}

/// Sends a reply. A daemon that does not read its replies loses the connection.
fn answer(socket: &OwnedFd, reply: &Reply) -> After {
    match wire::send(socket, reply, &[]) {
        Ok(()) => After::Keep,
        Err(_) => After::Close,
    }
}

fn one(fds: Vec<OwnedFd>) -> Result<OwnedFd, Reply> {
    match <[OwnedFd; 1]>::try_from(fds) {
        Ok([fd]) => Ok(fd),
        Err(fds) => Err(error(&format!(
            "The request needs one descriptor and came with {}",
            fds.len()
        ))),
    }
}

fn error(message: &str) -> Reply {
    Reply::Error {
        message: message.to_owned(),
    }
}

fn refusal(cause: &dyn std::error::Error) -> Reply {
    error(&chain(cause))
}
