//! Addresses: `struct ifaddrmsg` and its attributes (linux/if_addr.h).

use crate::message::{Attributes, Message, u32_at};
use crate::socket::{CREATE, REPLACE, Socket};
use crate::{family, ip, octets};
use std::io;
use std::net::IpAddr;

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const FIXED: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;

/// IFA_F_NODAD: usable at once, without asking whether somebody else has it.
pub const NODAD: u32 = 0x02;
/// IFA_F_TENTATIVE: not usable yet.
pub const TENTATIVE: u32 = 0x40;
/// IFA_F_DADFAILED: somebody else has it.
pub const DAD_FAILED: u32 = 0x08;
/// IFA_F_NOPREFIXROUTE: the kernel makes no route of it.
pub const NO_PREFIX_ROUTE: u32 = 0x200;

/// An address of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The link.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// The other end of a point-to-point link.
    pub peer: Option<IpAddr>,
    /// Length of the prefix in bits.
    pub prefix: u8,
    /// RT_SCOPE_UNIVERSE and such.
    pub scope: u8,
    /// IFA_F_*.
    pub flags: u32,
    /// IPv4 only.
    pub broadcast: Option<IpAddr>,
}

impl Address {
    /// From the payload of RTM_NEWADDR.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let (mut local, mut other, mut broadcast) = (None, None, None);
        let mut flags = u32::from(*payload.get(2)?);
        for (number, value) in Attributes::after(payload, FIXED) {
            match number {
                IFA_ADDRESS => other = ip(value),
                IFA_LOCAL => local = ip(value),
                IFA_BROADCAST => broadcast = ip(value),
                IFA_FLAGS => flags = u32_at(value, 0)?,
                _ => {}
            }
        }
        let address = local.or(other)?;
        Some(Self {
            index: u32_at(payload, 4)?,
            prefix: *payload.get(1)?,
            scope: *payload.get(3)?,
            peer: other.filter(|other| *other != address),
            address,
            flags,
            broadcast,
        })
    }

    fn message(&self) -> Message {
        // The flags that fit into eight bits are taken from the attribute all the same.
        let mut fixed = vec![family(&self.address), self.prefix, 0, self.scope];
        fixed.extend(self.index.to_ne_bytes());
        let mut message = Message::new(&fixed)
            .with(IFA_LOCAL, &octets(&self.address))
            .with(IFA_ADDRESS, &octets(&self.peer.unwrap_or(self.address)))
            .with_u32(IFA_FLAGS, self.flags);
        if let Some(broadcast) = &self.broadcast {
            message = message.with(IFA_BROADCAST, &octets(broadcast));
        }
        message
    }
}

/// Every address of every link.
///
/// # Errors
/// The kernel's.
pub fn all(socket: &mut Socket) -> io::Result<Vec<Address>> {
    let replies = socket.dump(RTM_GETADDR, &Message::new(&[0; FIXED]))?;
    Ok(replies
        .iter()
        .filter_map(|reply| Address::parse(&reply.payload))
        .collect())
}

/// Adds an address; one that is there gets the new settings.
///
/// # Errors
/// The kernel's.
pub fn add(socket: &mut Socket, address: &Address) -> io::Result<()> {
    socket.change(RTM_NEWADDR, CREATE | REPLACE, &address.message())
}

/// Takes an address away.
///
/// # Errors
/// The kernel's.
pub fn delete(socket: &mut Socket, address: &Address) -> io::Result<()> {
    socket.change(RTM_DELADDR, 0, &address.message())
}

#[cfg(test)]
mod tests {
    use super::{Address, NO_PREFIX_ROUTE, NODAD};

    #[test]
    fn what_is_written_is_read_again() {
        let v4 = Address {
            index: 3,
            address: [10, 1, 2, 3].into(),
            peer: Some([10, 1, 2, 4].into()),
            prefix: 24,
            scope: 0,
            flags: NO_PREFIX_ROUTE,
            broadcast: Some([10, 1, 2, 255].into()),
        };
        let v6 = Address {
            address: [0xfd00, 0, 0, 0, 0, 0, 0, 7].into(),
            peer: None,
            prefix: 64,
            flags: NO_PREFIX_ROUTE | NODAD,
            broadcast: None,
            ..v4.clone()
        };
        for address in [v4, v6] {
            assert_eq!(Address::parse(address.message().bytes()), Some(address));
        }
        assert_eq!(Address::parse(&[2, 24, 0, 0, 1, 0, 0, 0]), None);
    }
}
