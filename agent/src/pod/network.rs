//! The pod's network: each interface as the host's network namespace has it.
//!
//! Addresses are made without the routes that the kernel would derive from them, and then every route by
//! itself, so that the guest has those that the plugins left and no others. IPv6 addresses are made without
//! duplicate address detection: whether they are unique was settled when they were given, and a pod that is
//! ready must be able to use them.

use crate::error::Context;
use crate::{Error, Result, id};
use bulkhead_agent_api::agent::{NetworkAddress, NetworkInterface, NetworkNeighbour, NetworkRoute};
use bulkhead_netlink::link::Change;
use bulkhead_netlink::{
    Address, Link, Neighbour, Route, Socket, address, ip, link, neighbour, route,
};
use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

/// The most interfaces, and entries of each kind in one of them.
const MAX_INTERFACES: usize = 16;
const MAX_ENTRIES: usize = 4096;
/// IFNAMSIZ without the NUL.
const MAX_NAME: usize = 15;
/// The least MTU with which IPv6 works (RFC 8200).
const IPV6_MTU: u32 = 1280;
/// RT_SCOPE_LINK.
const LINK_SCOPE: u8 = 253;
/// RTPROT_KERNEL.
const BY_KERNEL: u8 = 2;
/// RTN_UNICAST: of the others the kernel makes its own.
const UNICAST: u8 = 1;
/// Of the names that interfaces have while they change names.
const TEMPORARY: &str = "bulkhead";

/// An interface, checked; the link numbers in it are filled in later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    name: String,
    mac: [u8; 6],
    mtu: u32,
    ipv6: bool,
    addresses: Vec<Address>,
    routes: Vec<Route>,
    neighbours: Vec<Neighbour>,
}

/// Checks what the request says.
pub(crate) fn parse(interfaces: &[NetworkInterface]) -> Result<Vec<Interface>> {
    if interfaces.len() > MAX_INTERFACES {
        return Err(Error::Invalid(format!(
            "There are more than {MAX_INTERFACES} interfaces"
        )));
    }
    interfaces.iter().map(parse_one).collect()
}

fn parse_one(given: &NetworkInterface) -> Result<Interface> {
    let name = given.name.clone();
    let invalid = |what: &str| {
        Error::Invalid(format!(
            "Interface {}: {what} is not valid",
            id::quote(&name)
        ))
    };
    if name.len() > MAX_NAME || !id::check(&name) {
        return Err(invalid("its name"));
    }
    let counts = [
        given.addresses.len(),
        given.routes.len(),
        given.neighbours.len(),
    ];
    if counts.iter().any(|count| *count > MAX_ENTRIES) {
        return Err(invalid("the number of its addresses, routes or neighbours"));
    }
    Ok(Interface {
        mac: <[u8; 6]>::try_from(given.mac.as_slice()).map_err(|_| invalid("its MAC"))?,
        mtu: given.mtu,
        ipv6: given.ipv6 && given.mtu >= IPV6_MTU,
        addresses: given
            .addresses
            .iter()
            .map(to_address)
            .collect::<Option<_>>()
            .ok_or_else(|| invalid("an address"))?,
        routes: given
            .routes
            .iter()
            .map(to_route)
            .collect::<Option<_>>()
            .ok_or_else(|| invalid("a route"))?,
        neighbours: given
            .neighbours
            .iter()
            .map(to_neighbour)
            .collect::<Option<_>>()
            .ok_or_else(|| invalid("a neighbour"))?,
        name,
    })
}

/// An address that may be absent; `None` if it is neither absent nor one.
fn optional(bytes: &[u8]) -> Option<Option<IpAddr>> {
    match bytes.is_empty() {
        true => Some(None),
        false => ip(bytes).map(Some),
    }
}

fn to_address(given: &NetworkAddress) -> Option<Address> {
    let address = ip(&given.address)?;
    let flags = match address {
        IpAddr::V4(_) => address::NO_PREFIX_ROUTE,
        IpAddr::V6(_) => address::NO_PREFIX_ROUTE | address::NODAD,
    };
    Some(Address {
        index: 0,
        address,
        peer: optional(&given.peer)?,
        prefix: u8::try_from(given.prefix).ok()?,
        scope: u8::try_from(given.scope).ok()?,
        flags,
        broadcast: optional(&given.broadcast)?,
    })
}

fn to_route(given: &NetworkRoute) -> Option<Route> {
    let byte = |number: u32| u8::try_from(number).ok();
    let from = optional(&given.from)?;
    let metrics = given.metrics.iter();
    Some(Route {
        family: byte(given.family)?,
        destination: optional(&given.destination)?,
        prefix: byte(given.prefix)?,
        from: from.zip(byte(given.from_prefix)),
        tos: byte(given.tos)?,
        // Stands for the interface until its number is known.
        index: u32::from(!given.no_interface),
        gateway: optional(&given.gateway)?,
        source: optional(&given.source)?,
        table: given.table,
        protocol: byte(given.protocol)?,
        scope: byte(given.scope)?,
        kind: byte(given.kind)?,
        flags: given.flags,
        priority: given.priority,
        preference: given.preference.and_then(byte),
        metrics: metrics
            .map(|(number, value)| Some((u16::try_from(*number).ok()?, *value)))
            .collect::<Option<_>>()?,
        multipath: false,
    })
}

fn to_neighbour(given: &NetworkNeighbour) -> Option<Neighbour> {
    Some(Neighbour {
        index: 0,
        state: neighbour::PERMANENT,
        flags: u8::try_from(given.flags).ok()?,
        address: ip(&given.address)?,
        hardware: given.mac.clone(),
    })
}

/// Makes the machine's interfaces these.
pub(crate) fn configure(interfaces: &[Interface], sysctls: &Path) -> Result<()> {
    if interfaces.is_empty() {
        return Ok(());
    }
    let mut socket = Socket::open().context(|| "Cannot open a netlink socket")?;
    let links = machine_links(&mut socket)?;
    if links.len() < interfaces.len() {
        return Err(Error::Precondition(format!(
            "The machine has {} network interfaces and the pod needs {}",
            links.len(),
            interfaces.len()
        )));
    }
    // One may have the name that another is to get.
    for (number, (link, wanted)) in links.iter().zip(interfaces).enumerate() {
        if link.name != wanted.name {
            let name = format!("{TEMPORARY}{number}");
            rename(&mut socket, link, &name)?;
        }
    }
    for (link, wanted) in links.iter().zip(interfaces) {
        if link.name != wanted.name {
            rename(&mut socket, link, &wanted.name)?;
        }
        one(&mut socket, link, wanted, sysctls)
            .context(|| format!("Cannot configure interface {}", wanted.name))?;
    }
    Ok(())
}

/// The machine's own interfaces, in the order of its devices: others have no device behind them.
fn machine_links(socket: &mut Socket) -> Result<Vec<Link>> {
    let mut links = link::all(socket).context(|| "Cannot list the interfaces")?;
    let device = |link: &Link| Path::new("/sys/class/net").join(&link.name).join("device");
    links.retain(|link| device(link).exists());
    links.sort_by_key(|link| link.index);
    Ok(links)
}

fn rename(socket: &mut Socket, link: &Link, name: &str) -> Result<()> {
    let what = || format!("Cannot name interface {} {name}", link.name);
    let down = Change {
        up: Some(false),
        ..Default::default()
    };
    link::set(socket, link.index, &down).context(what)?;
    let named = Change {
        name: Some(name),
        ..Default::default()
    };
    link::set(socket, link.index, &named).context(what)
}

fn one(
    socket: &mut Socket,
    link: &Link,
    wanted: &Interface,
    sysctls: &Path,
) -> std::io::Result<()> {
    let index = link.index;
    let no_link_local = Change {
        no_link_local: true,
        ..Default::default()
    };
    link::set(socket, index, &no_link_local)?;
    let conf = sysctls.join("net/ipv6/conf").join(&wanted.name);
    // With a small MTU there is no IPv6 to be set.
    if wanted.ipv6 || conf.exists() {
        // Addresses that a router would have it make are not the pod's.
        fs::write(conf.join("autoconf"), "0")?;
        let disabled = if wanted.ipv6 { "0" } else { "1" };
        fs::write(conf.join("disable_ipv6"), disabled)?;
    }
    if link.address != wanted.mac || link.mtu != wanted.mtu || !link.is_up() {
        let change = Change {
            up: Some(true),
            address: Some(&wanted.mac),
            mtu: Some(wanted.mtu),
            ..Default::default()
        };
        link::set(socket, index, &change)?;
    }
    addresses(socket, index, wanted)?;
    routes(socket, index, wanted)?;
    for neighbour in &wanted.neighbours {
        let neighbour = Neighbour {
            index,
            ..neighbour.clone()
        };
        neighbour::add(socket, &neighbour)?;
    }
    Ok(())
}

fn addresses(socket: &mut Socket, index: u32, wanted: &Interface) -> std::io::Result<()> {
    let mut all: Vec<Address> = wanted.addresses.clone();
    if wanted.ipv6 {
        // The kernel's own way to make it would try whether it is unique. Its route is the kernel's.
        all.insert(0, link_local(wanted.mac));
    }
    for address in &mut all {
        address.index = index;
    }
    let have = address::all(socket)?;
    for old in have.iter().filter(|old| old.index == index) {
        let same = |new: &Address| new.address == old.address && new.prefix == old.prefix;
        if !all.iter().any(same) {
            address::delete(socket, old)?;
        }
    }
    for address in &all {
        address::add(socket, address)?;
    }
    let unusable = address::TENTATIVE | address::DAD_FAILED;
    let have = address::all(socket)?;
    match have
        .iter()
        .find(|one| one.index == index && one.flags & unusable != 0)
    {
        Some(one) => Err(std::io::Error::other(format!(
            "address {} is not usable",
            one.address
        ))),
        None => Ok(()),
    }
}

fn link_local(mac: [u8; 6]) -> Address {
    let [a, b, c, d, e, f] = mac;
    let address = Ipv6Addr::from([
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ]);
    Address {
        index: 0,
        address: address.into(),
        peer: None,
        prefix: 64,
        scope: LINK_SCOPE,
        flags: address::NODAD,
        broadcast: None,
    }
}

fn routes(socket: &mut Socket, index: u32, wanted: &Interface) -> std::io::Result<()> {
    let mut all = wanted.routes.clone();
    for route in &mut all {
        route.index *= index;
    }
    for old in route::all(socket)? {
        let ours = old.table != route::TABLE_LOCAL && old.kind == UNICAST;
        let of_link_local = old.protocol == BY_KERNEL && old.destination.is_some_and(is_link_local);
        if old.index == index && ours && !of_link_local && !all.contains(&old) {
            route::delete(socket, &old)?;
        }
    }
    for route in &all {
        route::add(socket, route)?;
    }
    Ok(())
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.segments().first() == Some(&0xfe80))
}

#[cfg(test)]
mod tests {
    use super::parse;
    use bulkhead_agent_api::agent::{NetworkAddress, NetworkInterface};

    fn interface() -> NetworkInterface {
        let mut address = NetworkAddress::new();
        address.address = vec![10, 0, 0, 7];
        address.prefix = 24;
        let mut interface = NetworkInterface::new();
        interface.name = "eth0".into();
        interface.mac = vec![2, 0, 0, 0, 0, 7];
        interface.mtu = 1400;
        interface.ipv6 = true;
        interface.addresses = vec![address];
        interface
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let refused = |change: fn(&mut NetworkInterface)| {
            let mut one = interface();
            change(&mut one);
            parse(&[one]).unwrap_err().to_string()
        };
        assert!(parse(&[interface()]).is_ok());
        assert!(refused(|one| one.name = "../x".into()).contains("its name"));
        assert!(refused(|one| one.name = "sixteen-letters-".into()).contains("its name"));
        assert!(refused(|one| one.mac = vec![1; 5]).contains("its MAC"));
        assert!(refused(|one| one.addresses[0].address = vec![1; 5]).contains("an address"));
        assert!(refused(|one| one.addresses[0].prefix = 300).contains("an address"));
        assert!(refused(|one| one.addresses[0].peer = vec![1]).contains("an address"));
        assert!(parse(&vec![interface(); 17]).is_err());
    }

    #[test]
    fn a_small_mtu_has_no_ipv6() {
        let mut small = interface();
        small.mtu = 1000;
        assert!(!parse(&[small]).unwrap()[0].ipv6);
    }
}
