//! Routes: `struct rtmsg` and its attributes (linux/rtnetlink.h).

use crate::message::{Attributes, Message, u32_at};
use crate::socket::{CREATE, REPLACE, Socket};
use crate::{IPV4, IPV6, family, ip, octets};
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const FIXED: usize = 12;
const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_PREF: u16 = 20;
/// RTAX_CC_ALGO: a name, not a number.
const CONGESTION_CONTROL: u16 = 16;
/// RTM_F_CLONED: of the cache.
const CLONED: u32 = 0x200;
/// The flags that a route may be made with (RTNH_F_PERVASIVE, RTNH_F_ONLINK); the others are states.
const SETTABLE: u32 = 0x2 | 0x4;
/// RT_TABLE_LOCAL, which the kernel keeps itself.
pub const TABLE_LOCAL: u32 = 255;

/// A route. Numbers are the kernel's: RT_TABLE_*, RTPROT_*, RT_SCOPE_*, RTN_*, RTNH_F_*, RTAX_*.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// AF_INET or AF_INET6.
    pub family: u8,
    /// The destination's prefix; without an address everything.
    pub destination: Option<IpAddr>,
    /// Its length in bits.
    pub prefix: u8,
    /// The source's prefix, for routes by source (IPv6).
    pub from: Option<(IpAddr, u8)>,
    /// Type of service.
    pub tos: u8,
    /// The link, 0 if none.
    pub index: u32,
    /// Through whom; of the other family too.
    pub gateway: Option<IpAddr>,
    /// The source address that is preferred.
    pub source: Option<IpAddr>,
    /// Which table.
    pub table: u32,
    /// Who made it.
    pub protocol: u8,
    /// How far away.
    pub scope: u8,
    /// Unicast, blackhole, ...
    pub kind: u8,
    /// Such as on-link.
    pub flags: u32,
    /// Also called metric: the lowest wins.
    pub priority: Option<u32>,
    /// RFC 4191 preference (IPv6).
    pub preference: Option<u8>,
    /// By RTAX_*: MTU, window, advertised MSS, ...
    pub metrics: BTreeMap<u16, u32>,
    /// It has several next hops, which are not read.
    pub multipath: bool,
}

impl Route {
    /// From the payload of RTM_NEWROUTE; `None` also for an entry of the cache.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let byte = |at: usize| payload.get(at).copied();
        let flags = u32_at(payload, 8)?;
        if flags & CLONED != 0 {
            return None;
        }
        let mut route = Self {
            family: byte(0)?,
            destination: None,
            prefix: byte(1)?,
            from: None,
            tos: byte(3)?,
            index: 0,
            gateway: None,
            source: None,
            table: byte(4)?.into(),
            protocol: byte(5)?,
            scope: byte(6)?,
            kind: byte(7)?,
            flags: flags & SETTABLE,
            priority: None,
            preference: None,
            metrics: BTreeMap::new(),
            multipath: false,
        };
        for (number, value) in Attributes::after(payload, FIXED) {
            match number {
                RTA_DST => route.destination = ip(value),
                RTA_SRC => route.from = ip(value).zip(byte(2)),
                RTA_OIF => route.index = u32_at(value, 0)?,
                RTA_GATEWAY => route.gateway = ip(value),
                RTA_VIA => route.gateway = ip(value.get(2..)?),
                RTA_PREFSRC => route.source = ip(value),
                RTA_PRIORITY => route.priority = u32_at(value, 0),
                RTA_TABLE => route.table = u32_at(value, 0)?,
                RTA_PREF => route.preference = value.first().copied(),
                RTA_MULTIPATH => route.multipath = true,
                RTA_METRICS => {
                    let metrics =
                        Attributes::after(value, 0).filter(|(n, _)| *n != CONGESTION_CONTROL);
                    route.metrics = metrics
                        .filter_map(|(number, value)| Some((number, u32_at(value, 0)?)))
                        .collect();
                }
                _ => {}
            }
        }
        Some(route)
    }

    fn message(&self) -> Message {
        let from = self.from.map_or(0, |(_, length)| length);
        // A table whose number does not fit into eight bits is RT_TABLE_UNSPEC here.
        let table = u8::try_from(self.table).unwrap_or(0);
        let mut fixed = vec![self.family, self.prefix, from, self.tos, table];
        fixed.extend([self.protocol, self.scope, self.kind]);
        fixed.extend(self.flags.to_ne_bytes());
        let mut message = Message::new(&fixed).with_u32(RTA_TABLE, self.table);
        if let Some(destination) = &self.destination {
            message = message.with(RTA_DST, &octets(destination));
        }
        if let Some((from, _)) = &self.from {
            message = message.with(RTA_SRC, &octets(from));
        }
        if self.index != 0 {
            message = message.with_u32(RTA_OIF, self.index);
        }
        match &self.gateway {
            Some(gateway) if family(gateway) == self.family => {
                message = message.with(RTA_GATEWAY, &octets(gateway));
            }
            Some(gateway) => {
                let mut via = u16::from(family(gateway)).to_ne_bytes().to_vec();
                via.extend(octets(gateway));
                message = message.with(RTA_VIA, &via);
            }
            None => {}
        }
        if let Some(source) = &self.source {
            message = message.with(RTA_PREFSRC, &octets(source));
        }
        if let Some(priority) = self.priority {
            message = message.with_u32(RTA_PRIORITY, priority);
        }
        if let Some(preference) = self.preference {
            message = message.with(RTA_PREF, &[preference]);
        }
        if !self.metrics.is_empty() {
            let metrics = self.metrics.iter();
            let nested = metrics.fold(Message::default(), |all, (number, value)| {
                all.with_u32(*number, *value)
            });
            message = message.with_nested(RTA_METRICS, &nested);
        }
        message
    }
}

/// Every route of every table, IPv4 and IPv6.
///
/// # Errors
/// The kernel's.
pub fn all(socket: &mut Socket) -> io::Result<Vec<Route>> {
    let mut routes = Vec::new();
    for family in [IPV4, IPV6] {
        let mut fixed = [0; FIXED];
        if let Some(first) = fixed.first_mut() {
            *first = family;
        }
        let replies = socket.dump(RTM_GETROUTE, &Message::new(&fixed))?;
        // A node without IPv6 answers for every family.
        let own = replies
            .iter()
            .filter_map(|reply| Route::parse(&reply.payload))
            .filter(|route| route.family == family);
        routes.extend(own);
    }
    Ok(routes)
}

/// Adds a route, in the place of one with the same destination, table and priority.
///
/// # Errors
/// The kernel's.
pub fn add(socket: &mut Socket, route: &Route) -> io::Result<()> {
    socket.change(RTM_NEWROUTE, CREATE | REPLACE, &route.message())
}

/// Takes a route away.
///
/// # Errors
/// The kernel's.
pub fn delete(socket: &mut Socket, route: &Route) -> io::Result<()> {
    socket.change(RTM_DELROUTE, 0, &route.message())
}

#[cfg(test)]
mod tests {
    use super::Route;

    #[test]
    fn what_is_written_is_read_again() {
        let v4 = Route {
            family: 2,
            destination: Some([10, 0, 0, 0].into()),
            prefix: 8,
            from: None,
            tos: 0,
            index: 4,
            gateway: Some([10, 1, 0, 1].into()),
            source: Some([10, 1, 0, 9].into()),
            table: 1000,
            protocol: 3,
            scope: 0,
            kind: 1,
            flags: 4,
            priority: Some(77),
            preference: None,
            metrics: [(2, 1300), (8, 1200)].into(),
            multipath: false,
        };
        let other_family = Route {
            gateway: Some([0xfe80, 0, 0, 0, 0, 0, 0, 1].into()),
            ..v4.clone()
        };
        let v6 = Route {
            family: 10,
            destination: None,
            prefix: 0,
            from: Some(([0xfd00, 0, 0, 0, 0, 0, 0, 0].into(), 8)),
            source: None,
            preference: Some(1),
            ..other_family.clone()
        };
        for route in [v4, other_family, v6] {
            assert_eq!(Route::parse(route.message().bytes()), Some(route));
        }
    }
}
