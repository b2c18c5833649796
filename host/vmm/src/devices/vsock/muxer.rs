//! All connections of a VM, apart from the virtqueues.
//!
//! Sockets are watched by an epoll instance of the muxer's own, edge-triggered: a connection
//! remembers that its socket is readable until reading says otherwise. Connections with something for
//! the guest stand in a line and take turns, a packet each.

use super::connection::{Connection, Next, State};
use super::handshake::{Handshake, Progress};
use super::packet::{GUEST_CID, HOST_CID, Header, STREAM, op};
use super::pool::Pool;
use super::rooms::Rooms;
use crate::error::Error;
use crate::virtio::iovecs::Iovecs;
use bulkhead_vmm_api::{GuestConnection, wire};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, accept_with, socketpair, sockopt};
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The most connections, handshakes included.
pub const MAX_CONNECTIONS: usize = 1024;
/// The most RSTs that wait for room in the guest's queue; with more, no packet of it is read.
const MAX_RESETS: usize = 256;
/// Host ports of connections into the guest count up from here.
const FIRST_PORT: u32 = 1 << 30;
const LISTENER: u64 = u64::MAX;
const FEED: u64 = u64::MAX - 1;
const EVENTS: usize = 64;
/// What a socket is always watched for.
const WATCHED: epoll::EventFlags = epoll::EventFlags::IN
    .union(epoll::EventFlags::RDHUP)
    .union(epoll::EventFlags::ET);

/// Which place of the table, and which of its users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    fn token(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    fn from_token(token: u64) -> Self {
        Self {
            index: token as u32,
            generation: (token >> 32) as u32,
        }
    }
}

#[derive(Debug)]
enum Peer {
    Handshake(Handshake),
    Connection(Connection),
}

#[derive(Debug, Default)]
struct Place {
    generation: u32,
    peer: Option<Peer>,
    /// Whether it stands in the line for the guest.
    in_line: bool,
    /// Whether it is watched for the socket to take more.
    watched_out: bool,
}

/// All connections.
#[derive(Debug)]
pub struct Muxer {
    epoll: OwnedFd,
    listener: OwnedFd,
    feed: Option<OwnedFd>,
    places: Vec<Place>,
    free: Vec<u32>,
    by_ports: HashMap<(u32, u32), Key>,
    line: VecDeque<Key>,
    resets: VecDeque<Header>,
    pool: Pool,
    next_port: u32,
    /// Whether a guest is there to be connected to.
    active: bool,
    /// Whether connections may be waiting of which no event will tell.
    accept_again: bool,
}

impl Muxer {
    /// No connections yet.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn new(listener: OwnedFd) -> Result<Self, Error> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(Error::host("create an epoll instance"))?;
        rustix::io::ioctl_fionbio(&listener, true)
            .map_err(Error::host("make a socket non-blocking"))?;
        epoll::add(
            &epoll,
            &listener,
            epoll::EventData::new_u64(LISTENER),
            epoll::EventFlags::IN | epoll::EventFlags::ET,
        )
        .map_err(Error::host("watch a socket"))?;
        Ok(Self {
            epoll,
            listener,
            feed: None,
            places: Vec::new(),
            free: Vec::new(),
            by_ports: HashMap::new(),
            line: VecDeque::new(),
            resets: VecDeque::new(),
            pool: Pool::default(),
            next_port: FIRST_PORT,
            active: false,
            accept_again: false,
        })
    }

    /// A guest is ready.
    pub fn activate(&mut self) {
        self.active = true;
    }

    /// The guest's driver has gone, and all connections with it.
    pub fn reset(&mut self) {
        self.active = false;
        self.places.clear();
        self.free.clear();
        self.by_ports.clear();
        self.line.clear();
        self.resets.clear();
        self.pool = Pool::default();
    }

    /// Takes the connection on which the daemon is told what the guest dials.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn set_feed(&mut self, feed: OwnedFd) -> Result<(), Error> {
        rustix::io::ioctl_fionbio(&feed, true)
            .map_err(Error::host("make a socket non-blocking"))?;
        epoll::add(
            &self.epoll,
            &feed,
            epoll::EventData::new_u64(FEED),
            epoll::EventFlags::RDHUP,
        )
        .map_err(Error::host("watch a socket"))?;
        // The older feed is closed, and no longer watched, by being dropped.
        self.feed = Some(feed);
        Ok(())
    }

    /// Whether another packet of the guest may be read.
    #[must_use]
    pub fn takes_packets(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// Whether [`Muxer::fill`] may have a packet.
    #[must_use]
    pub fn has_packets(&self) -> bool {
        !self.resets.is_empty() || !self.line.is_empty()
    }

    /// How many handshakes and connections there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many pairs of ports are known, how many bytes wait for the host, and how many may.
    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize, u32) {
        let waiting = self.places.iter().map(|place| match &place.peer {
            Some(Peer::Connection(connection)) => connection.waiting(),
            _ => 0,
        });
        (self.by_ports.len(), waiting.sum(), self.pool.taken())
    }

    /// A packet came from the guest.
    pub fn packet(&mut self, header: &Header, data: &mut Iovecs) {
        if header.src_cid != GUEST_CID || header.dst_cid != HOST_CID {
            // Not from this guest or not to this host: there is nobody to answer.
            return;
        }
        if header.kind != STREAM {
            return self.refuse(header);
        }
        let ports = (header.dst_port, header.src_port);
        let Some(key) = self.by_ports.get(&ports).copied() else {
            return match header.op {
                op::REQUEST => self.dialled(header),
                op::RST => {}
                _ => self.refuse(header),
            };
        };
        let Some(connection) = self.connection(key) else {
            return;
        };
        let next = connection.packet(header, data);
        self.watch_out(key);
        match next {
            Next::Continue => self.line_up(key),
            Next::Close => self.detach(key),
            Next::Reset => {
                self.detach(key);
                self.refuse(header);
            }
        }
    }

    /// Makes the next packet for the guest, its data in `rooms`; answers the header, or `None` when there
    /// is no packet.
    pub fn fill(&mut self, rooms: &mut Rooms) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(key) = self.line.pop_front() {
            if let Some(place) = self.place(key) {
                place.in_line = false;
            }
            let Some(connection) = self.connection(key) else {
                continue;
            };
            let header = connection.fill(rooms);
            self.line_up(key);
            if header.is_some() {
                return header;
            }
        }
        None
    }

    /// Looks at the sockets without waiting. Answers whether there may be more to look at.
    pub fn poll(&mut self) -> bool {
        let mut ready = Vec::with_capacity(EVENTS);
        let zero = rustix::time::Timespec::default();
        let result = epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut ready),
            Some(&zero),
        );
        if result.is_err() {
            // Interrupted: level-triggered one level up, so it comes again.
            return false;
        }
        if self.accept_again {
            self.accept();
        }
        let full = ready.len() == EVENTS;
        for event in ready {
            match event.data.u64() {
                LISTENER => self.accept(),
                FEED => self.feed = None,
                token => self.socket_event(Key::from_token(token), event.flags),
            }
        }
        full
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        loop {
            match accept_with(&self.listener, flags) {
                // Without a guest, or with too many connections, it is closed at once.
                Ok(stream) if self.active => {
                    if let Some(key) = self.insert(Peer::Handshake(Handshake::new(stream))) {
                        self.shake_hands(key);
                    }
                }
                Ok(_) | Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => {
                    // Out of descriptors, say: tried again when something else has happened.
                    self.accept_again = error != Errno::AGAIN;
                    return;
                }
            }
        }
    }

    fn socket_event(&mut self, key: Key, flags: epoll::EventFlags) {
        use epoll::EventFlags as F;
        let Some(place) = self.place(key) else { return };
        let connection = match place.peer.as_mut() {
            Some(Peer::Handshake(_)) => return self.shake_hands(key),
            Some(Peer::Connection(connection)) => connection,
            None => return,
        };
        if flags.intersects(F::IN | F::RDHUP) {
            connection.set_readable();
        }
        if flags.intersects(F::HUP | F::ERR) {
            connection.hang_up();
        } else if flags.intersects(F::OUT) {
            connection.flush();
        }
        self.watch_out(key);
        let Some(connection) = self.connection(key) else {
            return;
        };
        match connection.state() {
            State::Draining if connection.drained() => self.remove(key),
            State::Connecting if flags.intersects(F::HUP | F::ERR) => {
                // The host no longer wants it.
                let (host, guest) = connection.ports();
                self.detach(key);
                self.push_reset(host, guest, STREAM);
            }
            _ => self.line_up(key),
        }
    }

    /// Goes on with a connection that the host opens.
    fn shake_hands(&mut self, key: Key) {
        let Some(place) = self.place(key) else { return };
        let Some(Peer::Handshake(handshake)) = place.peer.take() else {
            return;
        };
        match handshake.read() {
            Progress::Waiting(handshake) => {
                if let Some(place) = self.place(key) {
                    place.peer = Some(Peer::Handshake(handshake));
                }
            }
            Progress::Connect(stream, guest_port) => {
                let host_port = self.choose_port(guest_port);
                let buffer = self.take_buffer(&stream);
                let connection = Connection::to_guest(stream, host_port, guest_port, buffer);
                self.by_ports.insert((host_port, guest_port), key);
                if let Some(place) = self.place(key) {
                    place.peer = Some(Peer::Connection(connection));
                }
                self.line_up(key);
            }
            Progress::Refused => self.remove(key),
        }
    }

    /// A host port that no connection to this guest port has. There are far fewer connections than
    /// ports, so one is found.
    fn choose_port(&mut self, guest_port: u32) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
            if !self.by_ports.contains_key(&(port, guest_port)) {
                return port;
            }
        }
    }

    /// The guest has dialled: the daemon gets one end of a socket pair.
    fn dialled(&mut self, request: &Header) {
        let opened = self.open_for_guest(request);
        if opened.is_none() {
            self.refuse(request);
        }
    }

    fn open_for_guest(&mut self, request: &Header) -> Option<()> {
        let feed = self.feed.as_ref()?;
        if self.len() >= MAX_CONNECTIONS {
            return None;
        }
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
        rustix::io::ioctl_fionbio(&ours, true).ok()?;
        let port = request.dst_port;
        match wire::send(feed, &GuestConnection { port }, &[theirs.as_fd()]) {
            Ok(()) => {}
            Err(wire::WireError::Socket(Errno::AGAIN)) => return None,
            Err(_) => {
                self.feed = None;
                return None;
            }
        }
        let buffer = self.take_buffer(&ours);
        let connection = Connection::from_guest(ours, request, buffer);
        let Some(key) = self.insert(Peer::Connection(connection)) else {
            self.pool.give_back(buffer);
            return None;
        };
        self.by_ports.insert((port, request.src_port), key);
        self.line_up(key);
        Some(())
    }

    /// A connection's part of the memory that all connections may take. The socket's own buffer, which is
    /// the host kernel's memory, is made as large.
    fn take_buffer(&mut self, stream: &OwnedFd) -> u32 {
        let buffer = self.pool.take();
        // Best effort: the kernel has limits of its own.
        let _ = sockopt::set_socket_send_buffer_size(stream, buffer as usize);
        buffer
    }

    /// Answers a packet by RST.
    fn refuse(&mut self, header: &Header) {
        if header.op != op::RST {
            self.push_reset(header.dst_port, header.src_port, header.kind);
        }
    }

    fn push_reset(&mut self, host_port: u32, guest_port: u32, kind: u16) {
        // `takes_packets` keeps the guest from adding to this without end; this keeps the host.
        if self.resets.len() >= MAX_RESETS + MAX_CONNECTIONS {
            return;
        }
        self.resets.push_back(Header {
            src_cid: HOST_CID,
            dst_cid: GUEST_CID,
            src_port: host_port,
            dst_port: guest_port,
            kind,
            op: op::RST,
            ..Header::default()
        });
    }

    /// The connection is over for the guest; it goes when the host has got everything.
    fn detach(&mut self, key: Key) {
        let Some(connection) = self.connection(key) else {
            return;
        };
        let ports = connection.ports();
        connection.drain();
        let drained = connection.drained();
        self.by_ports.remove(&ports);
        if drained {
            self.remove(key);
        }
    }

    /// Puts a connection into the line if it has something for the guest.
    fn line_up(&mut self, key: Key) {
        let wants = self.connection(key).is_some_and(|c| c.has_packet());
        let Some(place) = self.place(key) else { return };
        if wants && !place.in_line {
            place.in_line = true;
            self.line.push_back(key);
        }
    }

    /// Has the socket watched for room as long as something waits for it, and not longer: otherwise the
    /// host's every read from its end would be an event here.
    fn watch_out(&mut self, key: Key) {
        use epoll::EventFlags as F;
        let Some(place) = self.places.get_mut(key.index as usize) else {
            return;
        };
        let Some(Peer::Connection(connection)) = &place.peer else {
            return;
        };
        let wanted = connection.is_congested();
        if place.generation != key.generation || place.watched_out == wanted {
            return;
        }
        place.watched_out = wanted;
        let out = if wanted { F::OUT } else { F::empty() };
        // Reports at once what is ready at this moment, so nothing is missed.
        let _ = epoll::modify(
            &self.epoll,
            connection.stream(),
            epoll::EventData::new_u64(key.token()),
            WATCHED | out,
        );
    }

    fn place(&mut self, key: Key) -> Option<&mut Place> {
        self.places
            .get_mut(key.index as usize)
            .filter(|place| place.generation == key.generation)
    }

    fn connection(&mut self, key: Key) -> Option<&mut Connection> {
        match self.place(key)?.peer.as_mut()? {
            Peer::Connection(connection) => Some(connection),
            Peer::Handshake(_) => None,
        }
    }

    fn insert(&mut self, peer: Peer) -> Option<Key> {
        if self.len() >= MAX_CONNECTIONS {
            return None;
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.places.push(Place::default());
                // At most MAX_CONNECTIONS.
                self.places.len() as u32 - 1
            }
        };
        let place = self.places.get_mut(index as usize)?;
        let key = Key {
            index,
            generation: place.generation,
        };
        let watched = epoll::add(
            &self.epoll,
            match &peer {
                Peer::Handshake(handshake) => handshake.stream(),
                Peer::Connection(connection) => connection.stream(),
            },
            epoll::EventData::new_u64(key.token()),
            WATCHED,
        );
        if watched.is_err() {
            self.free.push(index);
            return None;
        }
        place.peer = Some(peer);
        place.watched_out = false;
        Some(key)
    }

    fn remove(&mut self, key: Key) {
        if let Some(place) = self.place(key) {
            // Closing the socket takes it out of the epoll instance.
            let peer = place.peer.take();
            place.in_line = false;
            place.generation = place.generation.wrapping_add(1);
            self.free.push(key.index);
            if let Some(Peer::Connection(connection)) = peer {
                self.pool.give_back(connection.buffer());
            }
        }
    }
}

impl AsFd for Muxer {
    /// Readable when [`Muxer::poll`] has something to look at.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
