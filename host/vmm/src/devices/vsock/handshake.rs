//! How the host opens a connection: `CONNECT port\n`, answered by `OK port\n` once the guest has
//! accepted. The port in the answer is the one that the VMM has chosen for the host's end.

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use std::os::fd::{AsFd, OwnedFd};

/// The longest line: `CONNECT 4294967295\n` and a little.
const MAX_LINE: usize = 32;

/// A connection whose line has not been read to its end.
#[derive(Debug)]
pub struct Handshake {
    stream: OwnedFd,
    line: Vec<u8>,
}

/// What came of reading.
#[derive(Debug)]
pub enum Progress {
    /// The line is not complete.
    Waiting(Handshake),
    /// The guest's port is wanted.
    Connect(OwnedFd, u32),
    /// The peer is gone, or does not keep to the convention.
    Refused,
}

impl Handshake {
    /// A new connection; the socket does not block.
    #[must_use]
    pub fn new(stream: OwnedFd) -> Self {
        Self {
            stream,
            line: Vec::new(),
        }
    }

    /// The socket.
    #[must_use]
    pub fn stream(&self) -> &OwnedFd {
        &self.stream
    }

    /// Reads what has come, not a byte beyond the line's end: the rest is for the guest.
    #[must_use]
    pub fn read(mut self) -> Progress {
        let mut bytes = [0; MAX_LINE];
        loop {
            let peeked = match recv(self.stream.as_fd(), &mut bytes, RecvFlags::PEEK) {
                Ok((0, _)) => return Progress::Refused,
                Ok((count, _)) => bytes.get(..count).unwrap_or_default(),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Progress::Waiting(self),
                Err(_) => return Progress::Refused,
            };
            let end = peeked.iter().position(|byte| *byte == b'\n');
            let count = end.map_or(peeked.len(), |end| end + 1);
            let part = bytes.get_mut(..count).unwrap_or_default();
            match recv(self.stream.as_fd(), &mut *part, RecvFlags::empty()) {
                Ok((taken, _)) if taken == count => self.line.extend_from_slice(part),
                _ => return Progress::Refused,
            }
            if end.is_some() {
                return match parse(&self.line) {
                    Some(port) => Progress::Connect(self.stream, port),
                    None => Progress::Refused,
                };
            }
            if self.line.len() >= MAX_LINE {
                return Progress::Refused;
            }
        }
    }
}

fn parse(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?.strip_suffix(b"\n")?;
    let digits = std::str::from_utf8(digits).ok()?;
    if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        digits.parse().ok()
    } else {
        None
    }
}
