//! One stream between a guest's socket and a socket of the host (virtio 1.2, 5.10.6.3 to 5.10.6.6).
//!
//! ```text
//!  Connecting --RESPONSE--> Open --both directions shut, or RST--> Draining --outbox empty--> gone
//! ```
//!
//! Data flows straight between the guest's buffers and the socket. Only what the socket does not
//! take at once waits in the outbox, which the guest cannot fill beyond the credit it was given.

use super::packet::{GUEST_CID, HOST_CID, Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, STREAM, op};
use super::rooms::Rooms;
use crate::virtio::iovecs::Iovecs;
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown};
use std::collections::VecDeque;
use std::io;
use std::num::Wrapping;
use std::os::fd::{AsFd, OwnedFd};

/// The guest is told of room again when a part of the buffer has been freed, one of so many.
const CREDIT_STEPS: u32 = 4;

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The host asked, the guest has not answered.
    Connecting,
    /// Data flows.
    Open,
    /// Over for the guest; what it had sent still goes to the host.
    Draining,
}

/// What to do after a packet or an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Go on.
    Continue,
    /// The connection is over for the guest, which needs no answer.
    Close,
    /// The connection is over, and the guest must be told by RST.
    Reset,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    stream: OwnedFd,
    host_port: u32,
    guest_port: u32,
    /// The buffer that the guest is told of, and the outbox's cap.
    buffer: u32,
    state: State,
    /// A REQUEST or RESPONSE that the guest has not been sent yet.
    opening: Option<u16>,
    /// The guest asked how much room there is.
    credit_asked: bool,

    // From the guest to the host.
    outbox: VecDeque<u8>,
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    told: Wrapping<u32>,
    /// The guest sends no more.
    guest_done: bool,
    /// The host receives no more; what the guest sends is dropped.
    host_deaf: bool,

    // From the host to the guest.
    guest_room: u32,
    guest_forwarded: Wrapping<u32>,
    sent: Wrapping<u32>,
    /// The socket may have something to read.
    readable: bool,
    /// The host sends no more, or the guest receives no more.
    host_done: bool,
    guest_deaf: bool,
    /// The shutdown flags that the guest was sent.
    shutdown_told: u32,
}

impl Connection {
    /// A connection that the host opens, with a buffer of so many bytes for what the guest sends.
    #[must_use]
    pub fn to_guest(stream: OwnedFd, host_port: u32, guest_port: u32, buffer: u32) -> Self {
        Self {
            stream,
            host_port,
            guest_port,
            buffer,
            state: State::Connecting,
            opening: Some(op::REQUEST),
            credit_asked: false,
            outbox: VecDeque::new(),
            received: Wrapping(0),
            forwarded: Wrapping(0),
            told: Wrapping(0),
            guest_done: false,
            host_deaf: false,
            guest_room: 0,
            guest_forwarded: Wrapping(0),
            sent: Wrapping(0),
            readable: false,
            host_done: false,
            guest_deaf: false,
            shutdown_told: 0,
        }
    }

    /// A connection that the guest has opened with this REQUEST.
    #[must_use]
    pub fn from_guest(stream: OwnedFd, request: &Header, buffer: u32) -> Self {
        let mut connection = Self::to_guest(stream, request.dst_port, request.src_port, buffer);
        connection.state = State::Open;
        connection.opening = Some(op::RESPONSE);
        connection.readable = true;
        connection.learn_credit(request);
        connection
    }

    /// The host's and the guest's port.
    #[must_use]
    pub fn ports(&self) -> (u32, u32) {
        (self.host_port, self.guest_port)
    }

    /// How far it has come.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// The host's socket.
    #[must_use]
    pub fn stream(&self) -> &OwnedFd {
        &self.stream
    }

    /// The size of its buffer.
    #[must_use]
    pub fn buffer(&self) -> u32 {
        self.buffer
    }

    /// How many bytes wait for the host's socket to take them.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.outbox.len()
    }

    /// Whether something waits for the host's socket to take it.
    #[must_use]
    pub fn is_congested(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Whether there is nothing left to do for the host either.
    #[must_use]
    pub fn drained(&self) -> bool {
        self.outbox.is_empty() || self.host_deaf
    }

    /// The connection is over for the guest.
    pub fn drain(&mut self) {
        self.state = State::Draining;
    }

    /// A packet for this connection came from the guest.
    pub fn packet(&mut self, header: &Header, data: &mut Iovecs) -> Next {
        self.learn_credit(header);
        match (header.op, self.state) {
            (op::RESPONSE, State::Connecting) => self.accepted(),
            (op::RST, _) => Next::Close,
            (op::RW, State::Open) if !self.guest_done => self.data(header.len, data),
            (op::CREDIT_UPDATE, State::Open) => Next::Continue,
            (op::CREDIT_REQUEST, State::Open) => {
                self.credit_asked = true;
                Next::Continue
            }
            (op::SHUTDOWN, State::Open) => self.shut_down(header.flags),
            _ => Next::Reset,
        }
    }

    /// The socket may be readable.
    pub fn set_readable(&mut self) {
        self.readable = true;
    }

    /// The host has closed its end; what it sent before can still be read.
    pub fn hang_up(&mut self) {
        self.readable = true;
        self.go_deaf();
    }

    /// Sends what waits in the outbox.
    pub fn flush(&mut self) {
        while !self.outbox.is_empty() && !self.host_deaf {
            let (front, _) = self.outbox.as_slices();
            match rustix::net::send(&self.stream, front, SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    self.outbox.drain(..sent.min(self.outbox.len()));
                    // No more than the buffer was in the outbox.
                    self.forwarded += sent as u32;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.go_deaf(),
            }
        }
        // An idle connection holds no buffer.
        self.outbox = VecDeque::new();
        if self.guest_done && !self.host_deaf {
            let _ = rustix::net::shutdown(&self.stream, Shutdown::Write);
        }
    }

    /// Whether [`Connection::fill`] may have something for the guest.
    #[must_use]
    pub fn has_packet(&self) -> bool {
        match self.state {
            State::Connecting => self.opening.is_some(),
            State::Draining => false,
            State::Open => {
                self.opening.is_some()
                    || self.credit_asked
                    || self.owes_credit()
                    || self.shutdown_flags() != self.shutdown_told
                    || (self.readable && !self.host_done && self.credit() > 0)
            }
        }
    }

    /// Makes the next packet for the guest, its data read from the socket into `rooms`, where it may take
    /// several; `None` when there is none after all.
    pub fn fill(&mut self, rooms: &mut Rooms) -> Option<Header> {
        if self.state == State::Draining {
            return None;
        }
        if let Some(opening) = self.opening.take() {
            return Some(self.header(opening));
        }
        if self.state == State::Connecting {
            return None;
        }
        if let Some(length) = self.read(rooms) {
            self.sent += length;
            let mut header = self.header(op::RW);
            header.len = length;
            return Some(header);
        }
        let flags = self.shutdown_flags();
        if flags != self.shutdown_told {
            self.shutdown_told = flags;
            let mut header = self.header(op::SHUTDOWN);
            header.flags = flags;
            return Some(header);
        }
        (self.credit_asked || self.owes_credit()).then(|| self.header(op::CREDIT_UPDATE))
    }

    /// A header to the guest; it carries the room that there is now.
    fn header(&mut self, op: u16) -> Header {
        self.told = self.forwarded;
        self.credit_asked = false;
        Header {
            src_cid: HOST_CID,
            dst_cid: GUEST_CID,
            src_port: self.host_port,
            dst_port: self.guest_port,
            kind: STREAM,
            op,
            buf_alloc: self.buffer,
            fwd_cnt: self.forwarded.0,
            ..Header::default()
        }
    }

    /// Reads from the socket into the guest's buffers, as far as it has given credit.
    fn read(&mut self, rooms: &mut Rooms) -> Option<u32> {
        if !self.readable || self.host_done {
            return None;
        }
        let credit = self.credit();
        if credit == 0 {
            return None;
        }
        match rooms.read(self.stream.as_fd(), credit) {
            Ok(0) => self.host_done = true,
            Ok(count) => return Some(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(_) => {
                self.host_done = true;
                self.go_deaf();
            }
        }
        None
    }

    /// How many bytes the guest has room for.
    fn credit(&self) -> u32 {
        let under_way = (self.sent - self.guest_forwarded).0;
        self.guest_room.saturating_sub(under_way)
    }

    fn learn_credit(&mut self, header: &Header) {
        self.guest_room = header.buf_alloc;
        self.guest_forwarded = Wrapping(header.fwd_cnt);
    }

    fn owes_credit(&self) -> bool {
        !self.guest_done && (self.forwarded - self.told).0 >= self.buffer / CREDIT_STEPS
    }

    fn shutdown_flags(&self) -> u32 {
        let send = if self.host_done { SHUTDOWN_SEND } else { 0 };
        let receive = if self.host_deaf { SHUTDOWN_RECEIVE } else { 0 };
        send | receive
    }

    /// The guest has accepted: the host is told so in the convention's words.
    fn accepted(&mut self) -> Next {
        let line = format!("OK {}\n", self.host_port);
        match rustix::net::send(&self.stream, line.as_bytes(), SendFlags::NOSIGNAL) {
            Ok(sent) if sent == line.len() => {
                self.state = State::Open;
                self.readable = true;
                Next::Continue
            }
            // A fresh socket takes a line, so the host has gone.
            _ => Next::Reset,
        }
    }

    fn data(&mut self, length: u32, data: &mut Iovecs) -> Next {
        let waiting = (self.received - self.forwarded).0;
        if length > self.buffer.saturating_sub(waiting) {
            // The guest disregards the credit that it was given (5.10.6.3).
            return Next::Reset;
        }
        self.received += length;
        let mut left = length;
        if self.outbox.is_empty() && !self.host_deaf && length > 0 {
            match data.write(self.stream.as_fd()) {
                Ok(count) => {
                    data.drop_bytes(count);
                    // No more than `length`.
                    self.forwarded += count as u32;
                    left -= count as u32;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.go_deaf(),
            }
        }
        if self.host_deaf {
            self.forwarded += left;
            return Next::Continue;
        }
        if left > 0 {
            let mut rest = vec![0; left as usize];
            data.copy_out(0, &mut rest);
            self.outbox.extend(rest);
        }
        Next::Continue
    }

    fn shut_down(&mut self, flags: u32) -> Next {
        if flags & SHUTDOWN_SEND != 0 && !self.guest_done {
            self.guest_done = true;
            self.flush();
        }
        if flags & SHUTDOWN_RECEIVE != 0 && !self.guest_deaf {
            self.guest_deaf = true;
            self.host_done = true;
            let _ = rustix::net::shutdown(&self.stream, Shutdown::Read);
        }
        if self.guest_done && self.guest_deaf {
            // A clean end, which is answered by RST (5.10.6.5).
            Next::Reset
        } else {
            Next::Continue
        }
    }

    /// The host's socket takes no more: what waits is dropped, and counts as forwarded.
    fn go_deaf(&mut self) {
        self.host_deaf = true;
        // No more than the buffer is in the outbox.
        self.forwarded += self.outbox.len() as u32;
        self.outbox = VecDeque::new();
    }
}
