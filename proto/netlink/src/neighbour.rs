//! Neighbours: `struct ndmsg` and its attributes (linux/neighbour.h).

use crate::message::{Attributes, Message, u16_at, u32_at};
use crate::socket::{CREATE, REPLACE, Socket};
use crate::{family, ip, octets};
use std::io;
use std::net::IpAddr;

const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
const FIXED: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// NUD_PERMANENT.
pub const PERMANENT: u16 = 0x80;

/// An entry of the ARP or neighbour table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The link.
    pub index: u32,
    /// NUD_*.
    pub state: u16,
    /// NTF_*.
    pub flags: u8,
    /// Its network address.
    pub address: IpAddr,
    /// Its hardware address.
    pub hardware: Vec<u8>,
}

impl Neighbour {
    /// From the payload of RTM_NEWNEIGH.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let (mut address, mut hardware) = (None, Vec::new());
        for (number, value) in Attributes::after(payload, FIXED) {
            match number {
                NDA_DST => address = ip(value),
                NDA_LLADDR => hardware = value.to_vec(),
                _ => {}
            }
        }
        Some(Self {
            index: u32_at(payload, 4)?,
            state: u16_at(payload, 8)?,
            flags: *payload.get(10)?,
            address: address?,
            hardware,
        })
    }

    fn message(&self) -> Message {
        let mut fixed = vec![family(&self.address), 0, 0, 0];
        fixed.extend(self.index.to_ne_bytes());
        fixed.extend(self.state.to_ne_bytes());
        fixed.extend([self.flags, 0]);
        Message::new(&fixed)
            .with(NDA_DST, &octets(&self.address))
            .with(NDA_LLADDR, &self.hardware)
    }
}

/// Every neighbour of every link.
///
/// # Errors
/// The kernel's.
pub fn all(socket: &mut Socket) -> io::Result<Vec<Neighbour>> {
    let replies = socket.dump(RTM_GETNEIGH, &Message::new(&[0; FIXED]))?;
    Ok(replies
        .iter()
        .filter_map(|reply| Neighbour::parse(&reply.payload))
        .collect())
}

/// Adds a neighbour, in the place of what is there.
///
/// # Errors
/// The kernel's.
pub fn add(socket: &mut Socket, neighbour: &Neighbour) -> io::Result<()> {
    socket.change(RTM_NEWNEIGH, CREATE | REPLACE, &neighbour.message())
}

#[cfg(test)]
mod tests {
    use super::{Neighbour, PERMANENT};

    #[test]
    fn what_is_written_is_read_again() {
        let neighbour = Neighbour {
            index: 2,
            state: PERMANENT,
            flags: 0,
            address: [169, 254, 1, 1].into(),
            hardware: vec![0xee; 6],
        };
        let bytes = neighbour.message();
        assert_eq!(Neighbour::parse(bytes.bytes()), Some(neighbour));
    }
}
