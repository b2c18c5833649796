//! The pod's network: what plugins are told of the pod, and what the agent is told of the network.

use super::Sandbox;
use crate::place::Place;
use crate::record::SandboxRecord;
use crate::store::blocking;
use crate::{Result, SandboxError};
use bulkhead_agent_api::agent::{NetworkAddress, NetworkInterface, NetworkNeighbour, NetworkRoute};
use bulkhead_cri::v1;
use bulkhead_network::cni::{Bandwidth, Dns, PortMapping, RuntimeSettings};
use bulkhead_network::interface::Interface;
use bulkhead_network::{IpPreference, Mode, PodNetwork, PodRequest};
use bulkhead_vmm_api::{MAX_INTERFACES, queue_pairs};
use ipnet::IpNet;
use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

/// Annotations of Kubernetes, as its bandwidth plugin support has them.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// Bits in a second that such an annotation may ask for.
const BANDWIDTHS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;
/// A burst is what may pass in a tenth of a second, and at least a few large packets. Others take the most
/// that a number holds, 512 MiB, which leaves short transfers without a limit.
const BURSTS_PER_SECOND: u64 = 10;
const LEAST_BURST: u64 = 2_000_000;
/// Annotations of a handler with `network_annotations`.
const IPS: &str = "network.bulkhead/ips";
const MAC: &str = "network.bulkhead/mac";
const ALIASES: &str = "network.bulkhead/aliases";

/// Makes the pod's network, if pods have any.
pub(super) async fn attach(
    sandbox: &Sandbox,
    record: &SandboxRecord,
) -> Result<Option<PodNetwork>> {
    let config = &sandbox.services.config.network;
    let ip_ranges = match config.ip_ranges.is_empty() {
        true => {
            let store = sandbox.services.store.clone();
            ranges(&blocking(move || store.pod_cidrs()).await?)
        }
        false => config.ip_ranges.clone(),
    };
    let runtime = runtime_settings(record, ip_ranges)?;
    if config.mode == Mode::None {
        return match runtime.port_mappings.is_empty() {
            true => Ok(None),
            false => Err(invalid(
                "config.port_mappings",
                "the node's configuration has network.mode \"none\", so no port can lead to a pod",
            )),
        };
    }
    let metadata = record.config.metadata.clone().unwrap_or_default();
    let request = PodRequest {
        id: record.id.clone(),
        namespace: metadata.namespace,
        name: metadata.name,
        uid: metadata.uid,
        runtime,
    };
    let networks = &sandbox.services.networks;
    let network = networks.attach(request, sandbox.stop.cancelled()).await?;
    if network.interfaces.len() > usize::from(MAX_INTERFACES) {
        let names = network.interfaces.iter().map(|one| one.name.as_str());
        return Err(bulkhead_network::NetworkError::Interfaces {
            pod: record.id.clone(),
            problem: format!(
                "it has the interfaces {}, and a VM has {MAX_INTERFACES} at most",
                names.collect::<Vec<_>>().join(", ")
            ),
        }
        .into());
    }
    let mut ips = network.ips.clone();
    match config.ip_preference {
        IpPreference::Cni => {}
        IpPreference::Ipv4 => ips.sort_by_key(IpAddr::is_ipv6),
        IpPreference::Ipv6 => ips.sort_by_key(IpAddr::is_ipv4),
    }
    sandbox.lock_record().ips = ips;
    Ok(Some(network))
}

/// The network namespace for the VMM.
pub(super) fn namespace(network: Option<&PodNetwork>) -> Result<Option<OwnedFd>> {
    let duplicate = network.map(|network| network.namespace.try_clone());
    let failed = SandboxError::io("duplicate the descriptor of a network namespace");
    duplicate.transpose().map_err(failed)
}

/// How many interfaces the VM has.
pub(super) fn count(network: Option<&PodNetwork>) -> u8 {
    // `attach` has refused more than a number of this size holds.
    network.map_or(0, |network| network.interfaces.len() as u8)
}

/// Joins the interfaces to taps, with as many queues as the VM's interfaces have, and hands those to the VM.
pub(super) async fn bind(
    sandbox: &Sandbox,
    place: &dyn Place,
    network: &PodNetwork,
    vcpus: u8,
) -> Result<()> {
    let (spoofing, limits) = {
        let runtime = &sandbox.lock_record().runtime;
        (runtime.allow_spoofing, runtime.network_limits())
    };
    let networks = &sandbox.services.networks;
    let queues = u16::try_from(queue_pairs(vcpus)).unwrap_or(1);
    let taps = networks
        .taps(&sandbox.id(), network, queues, spoofing)
        .await?;
    for (number, queues) in (0..MAX_INTERFACES).zip(taps) {
        place.bind_tap(number, queues, limits).await?;
    }
    Ok(())
}

fn runtime_settings(
    record: &SandboxRecord,
    ip_ranges: Vec<Vec<serde_json::Value>>,
) -> Result<RuntimeSettings> {
    let config = &record.config;
    let annotations = &config.annotations;
    let asked = |name: &str| match record.runtime.network_annotations {
        true => annotations.get(name).filter(|value| !value.is_empty()),
        false => None,
    };
    let words = |value: Option<&String>| {
        let words = value.map(String::as_str).unwrap_or_default().split(',');
        words
            .map(str::trim)
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let dns = config.dns_config.clone().unwrap_or_default();
    Ok(RuntimeSettings {
        port_mappings: port_mappings(&config.port_mappings)?,
        bandwidth: bandwidth(annotations)?,
        dns: Dns {
            nameservers: dns.servers,
            domain: String::new(),
            search: dns.searches,
            options: dns.options,
        },
        aliases: words(asked(ALIASES)),
        ips: words(asked(IPS)),
        mac: asked(MAC).cloned(),
        ip_ranges,
    })
}

/// The node's part of the cluster's network as plugins have ranges: each network is one that a pod has an
/// address of.
fn ranges(cidrs: &[IpNet]) -> Vec<Vec<serde_json::Value>> {
    let range = |cidr: &IpNet| vec![serde_json::json!({ "subnet": cidr.trunc() })];
    cidrs.iter().map(range).collect()
}

fn invalid(field: &'static str, problem: impl Into<String>) -> SandboxError {
    SandboxError::InvalidField {
        field,
        problem: problem.into(),
    }
}

/// Those with a port of the node; the kubelet lists the others too.
fn port_mappings(given: &[v1::PortMapping]) -> Result<Vec<PortMapping>> {
    let wrong = |problem: String| invalid("config.port_mappings", problem);
    let mapped = given.iter().filter(|one| one.host_port > 0);
    let mappings = mapped.map(|one| {
        let port = |number: i32| {
            let port = u16::try_from(number).ok().filter(|port| *port > 0);
            port.ok_or_else(|| wrong(format!("{number} is not a port")))
        };
        if !one.host_ip.is_empty() && one.host_ip.parse::<IpAddr>().is_err() {
            return Err(wrong(format!(
                "host_ip {:?} is not an address",
                one.host_ip
            )));
        }
        Ok(PortMapping {
            host_port: port(one.host_port)?,
            container_port: port(one.container_port)?,
            protocol: one.protocol().as_str_name().to_ascii_lowercase(),
            host_ip: one.host_ip.clone(),
        })
    });
    mappings.collect()
}

fn bandwidth(annotations: &HashMap<String, String>) -> Result<Option<Bandwidth>> {
    let rate = |name: &'static str| {
        let Some(text) = annotations.get(name) else {
            return Ok(0);
        };
        let rate = quantity(text).filter(|rate| BANDWIDTHS.contains(rate));
        rate.ok_or_else(|| {
            invalid(
                "config.annotations",
                format!(
                    "{name} is {text:?}; it must be a quantity from 1k to 1P, in bits per second"
                ),
            )
        })
    };
    let (ingress_rate, egress_rate) = (rate(INGRESS)?, rate(EGRESS)?);
    let burst = |rate: u64| match rate {
        0 => 0,
        rate => (rate / BURSTS_PER_SECOND).clamp(LEAST_BURST, u32::MAX.into()),
    };
    let limits = Bandwidth {
        ingress_rate,
        ingress_burst: burst(ingress_rate),
        egress_rate,
        egress_burst: burst(egress_rate),
    };
    Ok((ingress_rate > 0 || egress_rate > 0).then_some(limits))
}

/// A quantity of Kubernetes: a decimal number and a suffix; parts of one are rounded up.
fn quantity(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|one: char| one.is_ascii_alphabetic());
    let factor: f64 = match text.get(digits.len()..)? {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    if !digits
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        return None;
    }
    let value = (digits.parse::<f64>().ok()? * factor).ceil();
    // Below 2^53 each whole number is exact.
    (0.0..9e15).contains(&value).then_some(value as u64)
}

/// The interfaces as the agent is told.
pub(super) fn interfaces(network: &PodNetwork) -> Vec<NetworkInterface> {
    network.interfaces.iter().map(interface).collect()
}

fn octets(address: Option<&IpAddr>) -> Vec<u8> {
    address.map(bulkhead_netlink::octets).unwrap_or_default()
}

fn interface(one: &Interface) -> NetworkInterface {
    let mut interface = NetworkInterface::new();
    interface.name = one.name.clone();
    interface.mac = one.mac.to_vec();
    interface.mtu = one.mtu;
    interface.ipv6 = one.ipv6;
    interface.addresses = one.addresses.iter().map(address).collect();
    interface.routes = one.routes.iter().map(route).collect();
    let neighbours = one.neighbours.iter().map(|one| {
        let mut neighbour = NetworkNeighbour::new();
        neighbour.address = octets(Some(&one.address));
        neighbour.mac = one.hardware.clone();
        neighbour.flags = one.flags.into();
        neighbour
    });
    interface.neighbours = neighbours.collect();
    interface
}

fn address(one: &bulkhead_netlink::Address) -> NetworkAddress {
    let mut address = NetworkAddress::new();
    address.address = octets(Some(&one.address));
    address.prefix = one.prefix.into();
    address.scope = one.scope.into();
    address.peer = octets(one.peer.as_ref());
    address.broadcast = octets(one.broadcast.as_ref());
    address
}

fn route(one: &bulkhead_netlink::Route) -> NetworkRoute {
    let mut route = NetworkRoute::new();
    route.family = one.family.into();
    route.destination = octets(one.destination.as_ref());
    route.prefix = one.prefix.into();
    let (from, prefix) = one
        .from
        .map_or((None, 0), |(from, prefix)| (Some(from), prefix));
    route.from = octets(from.as_ref());
    route.from_prefix = prefix.into();
    route.gateway = octets(one.gateway.as_ref());
    route.source = octets(one.source.as_ref());
    route.table = one.table;
    route.protocol = one.protocol.into();
    route.scope = one.scope.into();
    route.kind = one.kind.into();
    route.flags = one.flags;
    route.priority = one.priority;
    route.preference = one.preference.map(u32::from);
    route.tos = one.tos.into();
    let metrics = one.metrics.iter();
    route.metrics = metrics
        .map(|(number, value)| (u32::from(*number), *value))
        .collect();
    route.no_interface = one.index == 0;
    route
}

#[cfg(test)]
mod tests {
    use super::{bandwidth, port_mappings, quantity};
    use bulkhead_cri::v1;

    #[test]
    fn quantities_are_kubernetes() {
        for (text, value) in [
            ("1", Some(1)),
            ("10M", Some(10_000_000)),
            ("1.5k", Some(1500)),
            ("1Mi", Some(1 << 20)),
            ("1500m", Some(2)),
            ("1P", Some(1_000_000_000_000_000)),
            ("", None),
            ("M", None),
            ("-1", None),
            ("1e", None),
            ("1X", None),
            ("nan", None),
            ("9000P", None),
        ] {
            assert_eq!(quantity(text), value, "{text}");
        }
    }

    #[test]
    fn bandwidth_annotations_within_their_range() {
        let of = |ingress: &str| {
            bandwidth(
                &[(
                    "kubernetes.io/ingress-bandwidth".to_owned(),
                    ingress.to_owned(),
                )]
                .into(),
            )
        };
        let limits = of("10M").unwrap().unwrap();
        assert_eq!(
            (
                limits.ingress_rate,
                limits.ingress_burst,
                limits.egress_rate
            ),
            (10_000_000, 2_000_000, 0)
        );
        assert!(
            of("10")
                .unwrap_err()
                .to_string()
                .contains("ingress-bandwidth")
        );
        assert!(of("2P").is_err());
        assert_eq!(bandwidth(&Default::default()).unwrap(), None);
    }

    #[test]
    fn ports_without_one_of_the_node_are_not_mapped() {
        let port = |host_port, container_port, host_ip: &str| v1::PortMapping {
            protocol: v1::Protocol::Udp.into(),
            container_port,
            host_port,
            host_ip: host_ip.into(),
        };
        let mapped = port_mappings(&[port(0, 80, ""), port(53, 5353, "127.0.0.1")]).unwrap();
        assert_eq!(mapped.len(), 1);
        assert_eq!(
            (mapped[0].protocol.as_str(), mapped[0].container_port),
            ("udp", 5353)
        );
        for wrong in [port(70_000, 80, ""), port(80, 0, ""), port(80, 80, "here")] {
            assert!(
                port_mappings(&[wrong])
                    .unwrap_err()
                    .to_string()
                    .contains("config.port_mappings")
            );
        }
    }
}
