//! Routing netlink (rtnetlink(7), netlink(7)), as far as the network of a pod needs it: the daemon reads
//! what a plugin has made in a network namespace of the host, the agent makes the same in the guest.
//!
//! Both sides use the same types, so what is read is what is written. Nothing here has a meaning of its
//! own: numbers are the kernel's.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

pub mod address;
pub mod link;
pub mod message;
pub mod neighbour;
pub mod route;
pub mod socket;

pub use address::Address;
pub use link::Link;
pub use message::{Attributes, Message};
pub use neighbour::Neighbour;
pub use route::Route;
pub use socket::{Reply, Socket};

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// AF_INET.
pub const IPV4: u8 = 2;
/// AF_INET6.
pub const IPV6: u8 = 10;

/// The address family's number.
#[must_use]
pub fn family(address: &IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => IPV4,
        IpAddr::V6(_) => IPV6,
    }
}

/// An address of 4 or 16 bytes.
#[must_use]
pub fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(four).into());
    }
    let sixteen = <[u8; 16]>::try_from(bytes).ok()?;
    Some(Ipv6Addr::from(sixteen).into())
}

/// An address as bytes.
#[must_use]
pub fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
