//! A routing netlink socket: requests one after another, each to its end.

use crate::message::{HEADER, Message, u16_at, u32_at};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::io;
use std::os::fd::OwnedFd;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const F_REQUEST: u16 = 1;
const F_MULTI: u16 = 2;
const F_ACK: u16 = 4;
/// NLM_F_DUMP_INTR: something changed meanwhile, so the answer may have it twice or not at all.
const F_DUMP_INTERRUPTED: u16 = 0x10;
const F_DUMP: u16 = 0x300;
/// NLM_F_EXCL: fail if it is there.
pub const EXCLUSIVE: u16 = 0x200;
/// NLM_F_REPLACE: take the place of what is there.
pub const REPLACE: u16 = 0x100;
/// NLM_F_CREATE.
pub const CREATE: u16 = 0x400;
/// The longest datagram that the kernel sends: a page for most, 32 KiB for dumps.
const BUFFER: usize = 64 << 10;
/// How often a dump that was interrupted is begun again.
const ATTEMPTS: usize = 16;

/// A socket of the network namespace in which it was opened, whatever its users are in later.
#[derive(Debug)]
pub struct Socket {
    socket: OwnedFd,
    sequence: u32,
}

/// A message from the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// RTM_NEWLINK and such.
    pub kind: u16,
    /// The fixed part and the attributes.
    pub payload: Vec<u8>,
}

struct Step {
    reply: Option<Reply>,
    finished: bool,
    interrupted: bool,
}

impl Socket {
    /// In the network namespace of the calling thread.
    ///
    /// # Errors
    /// The system's.
    pub fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE is number 0.
            None,
        )?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sends a request that changes something, and waits until it is done. `flags` are [`CREATE`] and
    /// such.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn change(&mut self, kind: u16, flags: u16, message: &Message) -> io::Result<()> {
        self.exchange(kind, F_ACK | flags, message).map(drop)
    }

    /// Asks for one thing.
    ///
    /// # Errors
    /// The kernel's refusal, or NotFound when it says nothing.
    pub fn get(&mut self, kind: u16, message: &Message) -> io::Result<Reply> {
        let replies = self.exchange(kind, F_ACK, message)?;
        let reply = replies.unwrap_or_default().into_iter().next();
        reply.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Asks for everything of a kind.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn dump(&mut self, kind: u16, message: &Message) -> io::Result<Vec<Reply>> {
        for _ in 0..ATTEMPTS {
            if let Some(replies) = self.exchange(kind, F_DUMP, message)? {
                return Ok(replies);
            }
        }
        Err(Errno::INTR.into())
    }

    /// `None` when the answer was interrupted by a change.
    fn exchange(
        &mut self,
        kind: u16,
        flags: u16,
        message: &Message,
    ) -> io::Result<Option<Vec<Reply>>> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(HEADER + message.bytes().len()).map_err(io::Error::other)?;
        let mut request = length.to_ne_bytes().to_vec();
        request.extend(kind.to_ne_bytes());
        request.extend((F_REQUEST | flags).to_ne_bytes());
        request.extend(self.sequence.to_ne_bytes());
        request.extend(0u32.to_ne_bytes());
        request.extend(message.bytes());
        rustix::net::send(&self.socket, &request, SendFlags::empty())?;
        let mut replies = Vec::new();
        let mut interrupted = false;
        let mut buffer = vec![0; BUFFER];
        loop {
            let receive = || rustix::net::recv(&self.socket, &mut *buffer, RecvFlags::TRUNC);
            let (_, length) = rustix::io::retry_on_intr(receive)?;
            let Some(mut rest) = buffer.get(..length) else {
                return Err(io::Error::other("A netlink message is too long"));
            };
            while !rest.is_empty() {
                let (step, next) = self.one(rest)?;
                rest = next;
                interrupted |= step.interrupted;
                replies.extend(step.reply);
                if step.finished {
                    return Ok((!interrupted).then_some(replies));
                }
            }
        }
    }

    /// Takes one message of a datagram; returns the rest.
    fn one<'a>(&self, bytes: &'a [u8]) -> io::Result<(Step, &'a [u8])> {
        let malformed = || io::Error::other("A netlink message is malformed");
        let length = u32_at(bytes, 0).ok_or_else(malformed)?;
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let kind = u16_at(bytes, 4).ok_or_else(malformed)?;
        let flags = u16_at(bytes, 6).ok_or_else(malformed)?;
        let sequence = u32_at(bytes, 8).ok_or_else(malformed)?;
        let payload = bytes.get(HEADER..length).ok_or_else(malformed)?;
        let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let mut step = Step {
            reply: None,
            finished: false,
            interrupted: flags & F_MULTI != 0 && flags & F_DUMP_INTERRUPTED != 0,
        };
        match kind {
            // The end of an answer to an earlier request that failed half way.
            _ if sequence != self.sequence => step.interrupted = false,
            NLMSG_ERROR | NLMSG_DONE => {
                // Zero, or an error's number, negative. A dump may end with one too.
                let error = u32_at(payload, 0).unwrap_or(0).cast_signed();
                if error < 0 {
                    return Err(io::Error::from_raw_os_error(error.saturating_neg()));
                }
                step.finished = true;
            }
            kind => {
                step.reply = Some(Reply {
                    kind,
                    payload: payload.to_vec(),
                });
            }
        }
        Ok((step, rest))
    }
}
