//! What the runtime tells plugins that ask for it by capability (CONVENTIONS.md of the specification).

use super::config::Plugin;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// What is known of a pod that plugins may want.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RuntimeSettings {
    /// Ports of the node that lead to the pod.
    pub port_mappings: Vec<PortMapping>,
    /// Limits of the pod's traffic.
    pub bandwidth: Option<Bandwidth>,
    /// Its name servers.
    pub dns: Dns,
    /// More names of the pod.
    pub aliases: Vec<String>,
    /// Addresses that it is to have, with their prefixes.
    pub ips: Vec<String>,
    /// The hardware address that it is to have.
    pub mac: Option<String>,
    /// Ranges from which its addresses are to come: a list of lists, as the host-local plugin has it.
    pub ip_ranges: Vec<Vec<Value>>,
}

/// A port of the node that leads to the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// The port of the node.
    pub host_port: u16,
    /// The port of the pod.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The address of the node; empty for all.
    #[serde(rename = "hostIP", default, skip_serializing_if = "String::is_empty")]
    pub host_ip: String,
}

/// Limits of a pod's traffic, bits and bits in a second. 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bandwidth {
    /// To the pod.
    pub ingress_rate: u64,
    /// To the pod, at once.
    pub ingress_burst: u64,
    /// From the pod.
    pub egress_rate: u64,
    /// From the pod, at once.
    pub egress_burst: u64,
}

/// Name servers; also the form that results have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses of name servers.
    #[serde(alias = "servers")]
    pub nameservers: Vec<String>,
    /// The pod's own domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Domains to search.
    #[serde(alias = "searches")]
    pub search: Vec<String>,
    /// Options of the resolver.
    pub options: Vec<String>,
}

impl Dns {
    /// It says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nameservers.is_empty() && self.search.is_empty() && self.options.is_empty()
    }
}

impl RuntimeSettings {
    /// `runtimeConfig` for a plugin: what it wants and what there is.
    #[must_use]
    pub fn for_plugin(&self, plugin: &Plugin) -> Map<String, Value> {
        let mut all = Map::new();
        let mut add = |name: &str, present: bool, value: Value| {
            if present && plugin.capabilities.contains(name) {
                all.insert(name.to_owned(), value);
            }
        };
        add(
            "portMappings",
            !self.port_mappings.is_empty(),
            json!(self.port_mappings),
        );
        add("bandwidth", self.bandwidth.is_some(), json!(self.bandwidth));
        // The capability's words differ from a result's.
        let dns = json!({
            "servers": self.dns.nameservers,
            "searches": self.dns.search,
            "options": self.dns.options,
        });
        add("dns", !self.dns.is_empty(), dns);
        add("aliases", !self.aliases.is_empty(), json!(self.aliases));
        add("ips", !self.ips.is_empty(), json!(self.ips));
        add("mac", self.mac.is_some(), json!(self.mac));
        add(
            "ipRanges",
            !self.ip_ranges.is_empty(),
            json!(self.ip_ranges),
        );
        all
    }
}
