//! Links: `struct ifinfomsg` and its attributes (linux/if_link.h).

use crate::message::{Attributes, Message, text, u16_at, u32_at, u64_at};
use crate::socket::{CREATE, EXCLUSIVE, Socket};
use std::io;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const FIXED: usize = 16;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_STATS64: u16 = 23;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
/// ARPHRD_ETHER.
const ETHERNET: u16 = 1;
/// IFF_UP.
const UP: u32 = 1;
/// IFF_LOOPBACK.
const LOOPBACK: u32 = 8;

/// A link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub address: Vec<u8>,
    /// Bytes.
    pub mtu: u32,
    /// IFF_UP and such.
    pub flags: u32,
    /// ARPHRD_ETHER and such.
    pub hardware: u16,
    /// The link that it is a port of, 0 if none.
    pub master: u32,
    /// `veth`, `macvlan`, ...; empty for hardware.
    pub kind: String,
    /// What went through it.
    pub counters: Counters,
}

/// `struct rtnl_link_stats64`, the part that people look at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Received.
    pub rx_packets: u64,
    /// Sent.
    pub tx_packets: u64,
    /// Received.
    pub rx_bytes: u64,
    /// Sent.
    pub tx_bytes: u64,
    /// Bad packets received.
    pub rx_errors: u64,
    /// Packets that could not be sent.
    pub tx_errors: u64,
    /// Packets received for which there was no room.
    pub rx_dropped: u64,
    /// Packets not sent for want of room.
    pub tx_dropped: u64,
}

impl Link {
    /// An Ethernet device (ARPHRD_ETHER).
    #[must_use]
    pub fn is_ethernet(&self) -> bool {
        self.hardware == ETHERNET
    }

    /// Set up (IFF_UP).
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.flags & UP != 0
    }

    /// The loopback device.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.flags & LOOPBACK != 0
    }

    /// From the payload of RTM_NEWLINK.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let mut link = Self {
            hardware: u16_at(payload, 2)?,
            index: u32_at(payload, 4)?,
            flags: u32_at(payload, 8)?,
            ..Self::default()
        };
        for (number, value) in Attributes::after(payload, FIXED) {
            match number {
                IFLA_ADDRESS => link.address = value.to_vec(),
                IFLA_IFNAME => link.name = text(value),
                IFLA_MTU => link.mtu = u32_at(value, 0)?,
                IFLA_MASTER => link.master = u32_at(value, 0)?,
                IFLA_LINKINFO => {
                    let kind = Attributes::after(value, 0).find(|(n, _)| *n == IFLA_INFO_KIND);
                    link.kind = kind.map(|(_, kind)| text(kind)).unwrap_or_default();
                }
                IFLA_STATS64 => link.counters = counters(value)?,
                _ => {}
            }
        }
        Some(link)
    }
}

fn counters(value: &[u8]) -> Option<Counters> {
    Some(Counters {
        rx_packets: u64_at(value, 0)?,
        tx_packets: u64_at(value, 8)?,
        rx_bytes: u64_at(value, 16)?,
        tx_bytes: u64_at(value, 24)?,
        rx_errors: u64_at(value, 32)?,
        tx_errors: u64_at(value, 40)?,
        rx_dropped: u64_at(value, 48)?,
        tx_dropped: u64_at(value, 56)?,
    })
}

fn fixed(index: u32, flags: u32, change: u32) -> Message {
    let mut bytes = vec![0; 4];
    for number in [index, flags, change] {
        bytes.extend(number.to_ne_bytes());
    }
    Message::new(&bytes)
}

/// Every link.
///
/// # Errors
/// The kernel's.
pub fn all(socket: &mut Socket) -> io::Result<Vec<Link>> {
    let replies = socket.dump(RTM_GETLINK, &fixed(0, 0, 0))?;
    Ok(replies
        .iter()
        .filter_map(|reply| Link::parse(&reply.payload))
        .collect())
}

/// The link of a name.
///
/// # Errors
/// The kernel's; NotFound or ENODEV when there is none.
pub fn by_name(socket: &mut Socket, name: &str) -> io::Result<Link> {
    let reply = socket.get(RTM_GETLINK, &fixed(0, 0, 0).with_text(IFLA_IFNAME, name))?;
    Link::parse(&reply.payload).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// What [`set`] changes; what is absent stays.
#[derive(Debug, Clone, Default)]
pub struct Change<'a> {
    /// Up or down.
    pub up: Option<bool>,
    /// A new name, while it is down.
    pub name: Option<&'a str>,
    /// A new hardware address.
    pub address: Option<&'a [u8]>,
    /// A new MTU.
    pub mtu: Option<u32>,
    /// IN6_ADDR_GEN_MODE_NONE: the kernel makes no link-local address by itself.
    pub no_link_local: bool,
}

/// Changes a link.
///
/// # Errors
/// The kernel's.
pub fn set(socket: &mut Socket, index: u32, change: &Change<'_>) -> io::Result<()> {
    let (flags, mask) = match change.up {
        Some(true) => (UP, UP),
        Some(false) => (0, UP),
        None => (0, 0),
    };
    let mut message = fixed(index, flags, mask);
    if let Some(name) = change.name {
        message = message.with_text(IFLA_IFNAME, name);
    }
    if let Some(address) = change.address {
        message = message.with(IFLA_ADDRESS, address);
    }
    if let Some(mtu) = change.mtu {
        message = message.with_u32(IFLA_MTU, mtu);
    }
    if change.no_link_local {
        let mode = Message::new(&[]).with(IFLA_INET6_ADDR_GEN_MODE, &[1]);
        let families = Message::new(&[]).with_nested(u16::from(crate::IPV6), &mode);
        message = message.with_nested(IFLA_AF_SPEC, &families);
    }
    socket.change(RTM_NEWLINK, 0, &message)
}

/// Makes a link of a kind without settings (`dummy`, `bridge`), or with `lower` one upon another
/// (`macvlan`).
///
/// # Errors
/// The kernel's.
pub fn add(socket: &mut Socket, name: &str, kind: &str, lower: Option<u32>) -> io::Result<()> {
    let info = Message::new(&[]).with_text(IFLA_INFO_KIND, kind);
    let mut message = fixed(0, 0, 0).with_text(IFLA_IFNAME, name);
    if let Some(lower) = lower {
        message = message.with_u32(IFLA_LINK, lower);
    }
    let info = info.with_nested(IFLA_INFO_DATA, &Message::default());
    socket.change(
        RTM_NEWLINK,
        CREATE | EXCLUSIVE,
        &message.with_nested(IFLA_LINKINFO, &info),
    )
}
