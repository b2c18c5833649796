//! What plugins have made in a pod's network namespace, as the guest is to have it.

use bulkhead_netlink::{Address, Link, Neighbour, Route, Socket, address, link, neighbour, route};
use std::io;
use std::net::IpAddr;

/// RTPROT_KERNEL and RTPROT_RA (linux/rtnetlink.h).
const BY_KERNEL: u8 = 2;
const BY_ADVERTISEMENT: u8 = 9;
/// RTN_MULTICAST.
const MULTICAST: u8 = 5;
/// Links that the kernel makes in each namespace when a module is loaded.
const FALLBACKS: [&str; 8] = [
    "sit", "ipip", "ip6tnl", "gre", "gretap", "erspan", "vti", "vti6",
];

/// An interface of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its number in the namespace.
    pub index: u32,
    /// Its name, which it has in the guest too.
    pub name: String,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Bytes.
    pub mtu: u32,
    /// Whether it speaks IPv6 at all.
    pub ipv6: bool,
    /// Its addresses, except the link-local one that is made of the hardware address.
    pub addresses: Vec<Address>,
    /// The routes that use it, those without a gateway first, and those that use none.
    pub routes: Vec<Route>,
    /// Its permanent neighbours.
    pub neighbours: Vec<Neighbour>,
}

impl Interface {
    /// The addresses themselves.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().map(|address| address.address)
    }
}

/// Everything that is in a namespace.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    /// Links.
    pub links: Vec<Link>,
    /// Addresses.
    pub addresses: Vec<Address>,
    /// Routes.
    pub routes: Vec<Route>,
    /// Neighbours.
    pub neighbours: Vec<Neighbour>,
    /// The names of the links that speak no IPv6.
    pub without_ipv6: Vec<String>,
}

/// Reads the calling thread's network namespace.
///
/// # Errors
/// The kernel's.
pub fn read() -> io::Result<Contents> {
    let mut socket = Socket::open()?;
    let links = link::all(&mut socket)?;
    let without_ipv6 = links
        .iter()
        .filter(|link| {
            let path = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", link.name);
            // A node without IPv6 has no such file.
            !std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "0")
        })
        .map(|link| link.name.clone())
        .collect();
    Ok(Contents {
        addresses: address::all(&mut socket)?,
        routes: route::all(&mut socket)?,
        neighbours: neighbour::all(&mut socket)?,
        links,
        without_ipv6,
    })
}

/// The interfaces that the VM is to have: `first`, then the others by their numbers.
///
/// # Errors
/// What a VM cannot have, in a few words.
pub fn of_pod(contents: &Contents, first: &str) -> Result<Vec<Interface>, String> {
    let mut interfaces = Vec::new();
    for link in &contents.links {
        let fallback = FALLBACKS.contains(&link.kind.as_str()) && !link.is_up();
        // Ports of another link are reached through that.
        if link.is_loopback() || fallback || link.master != 0 || link.kind == "tun" {
            continue;
        }
        if !link.is_up() {
            continue;
        }
        let mac = <[u8; 6]>::try_from(link.address.as_slice());
        let (true, Ok(mac)) = (link.is_ethernet(), mac) else {
            return Err(format!(
                "interface {} is not Ethernet (type {}, {:?})",
                link.name, link.hardware, link.kind
            ));
        };
        let own = link.index;
        let local = IpAddr::from(crate::filter::link_local(mac));
        let addresses = contents.addresses.iter().filter(|one| one.index == own);
        let neighbours = contents.neighbours.iter().filter(|one| {
            one.index == own && one.state == neighbour::PERMANENT && one.hardware.len() == 6
        });
        interfaces.push(Interface {
            index: own,
            name: link.name.clone(),
            mac,
            mtu: link.mtu,
            ipv6: !contents.without_ipv6.contains(&link.name),
            addresses: addresses
                .filter(|one| one.address != local)
                .cloned()
                .collect(),
            routes: routes_of(contents, own)?,
            neighbours: neighbours.cloned().collect(),
        });
    }
    interfaces.sort_by_key(|one| (one.name != first, one.index));
    match interfaces.first_mut() {
        Some(one) if one.name == first => {
            // Such as blackholes, which use no interface at all.
            one.routes.extend(routes_of(contents, 0)?);
        }
        _ => return Err(format!("there is no interface {first}, or it is not up")),
    }
    if let Some(one) = interfaces
        .iter()
        .find(|one| one.addresses.len() > crate::filter::MAX_ADDRESSES)
    {
        return Err(format!(
            "interface {} has {} addresses; {} is the most",
            one.name,
            one.addresses.len(),
            crate::filter::MAX_ADDRESSES
        ));
    }
    Ok(interfaces)
}

fn routes_of(contents: &Contents, index: u32) -> Result<Vec<Route>, String> {
    let mut routes = Vec::new();
    for route in &contents.routes {
        if route.multipath {
            return Err("a route has several next hops".into());
        }
        // The kernel makes these by itself wherever there are addresses.
        let multicast =
            route.kind == MULTICAST || route.destination.is_some_and(|one| one.is_multicast());
        let link_local = route.protocol == BY_KERNEL
            && matches!(route.destination, Some(IpAddr::V6(one)) if one.segments().first() == Some(&0xfe80));
        let skipped = route.table == route::TABLE_LOCAL
            || route.protocol == BY_ADVERTISEMENT
            || multicast
            || link_local;
        if route.index == index && !skipped {
            routes.push(route.clone());
        }
    }
    // A gateway must be reachable when its route is made.
    routes.sort_by_key(|route| route.gateway.is_some());
    Ok(routes)
}

#[cfg(test)]
mod tests;
