//! Results of plugins: read whatever version they have, turned into the version that the next plugin speaks.

use super::version::Version;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::net::IpAddr;

/// The most addresses, interfaces or routes of a result.
const MAX_ENTRIES: usize = 1024;

/// What a network has given to a pod, as far as the runtime wants to know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniResult {
    /// Interfaces on the host and in the pod.
    pub interfaces: Vec<CniInterface>,
    /// Addresses.
    pub ips: Vec<IpConfig>,
    /// What the plugins say of name servers.
    pub dns: super::Dns,
}

/// An interface of a result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniInterface {
    /// Its name.
    pub name: String,
    /// Its hardware address, as the plugin wrote it.
    #[serde(default)]
    pub mac: String,
    /// The network namespace that it is in; empty for the host's.
    #[serde(default)]
    pub sandbox: String,
}

/// An address of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Address and prefix.
    pub address: IpNet,
    /// The gateway of its network.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// Which of the interfaces has it.
    #[serde(default)]
    pub interface: Option<usize>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    #[serde(default)]
    interfaces: Option<Vec<CniInterface>>,
    #[serde(default)]
    ips: Option<Vec<IpConfig>>,
    #[serde(default)]
    routes: Option<Vec<Value>>,
    #[serde(default)]
    dns: Option<super::Dns>,
}

impl CniResult {
    /// Reads a result of any version.
    ///
    /// # Errors
    /// What is wrong, in a few words.
    pub fn parse(value: &Value) -> Result<Self, String> {
        let wire =
            Wire::deserialize(value).map_err(|error| format!("it is not a result: {error}"))?;
        let interfaces = wire.interfaces.unwrap_or_default();
        let ips = wire.ips.unwrap_or_default();
        let routes = wire.routes.unwrap_or_default();
        for (what, count) in [
            ("interfaces", interfaces.len()),
            ("ips", ips.len()),
            ("routes", routes.len()),
        ] {
            if count > MAX_ENTRIES {
                return Err(format!("it has {count} {what}; {MAX_ENTRIES} is the most"));
            }
        }
        if let Some(wrong) = ips
            .iter()
            .filter_map(|ip| ip.interface)
            .find(|index| *index >= interfaces.len())
        {
            return Err(format!(
                "an address belongs to interface {wrong}, which it does not have"
            ));
        }
        Ok(Self {
            interfaces,
            ips,
            dns: wire.dns.unwrap_or_default(),
        })
    }

    /// The addresses that the pod has on the interface of this name, or on none in particular.
    pub fn addresses(&self, interface: &str) -> impl Iterator<Item = IpAddr> {
        let here =
            move |ip: &&IpConfig| match ip.interface.and_then(|index| self.interfaces.get(index)) {
                Some(found) => found.name == interface && !found.sandbox.is_empty(),
                None => true,
            };
        self.ips.iter().filter(here).map(|ip| ip.address.addr())
    }
}

/// A plugin's output as the result of the version that the list has. What is not known is kept.
///
/// # Errors
/// What is wrong, in a few words.
pub fn convert(output: &[u8], to: Version) -> Result<Value, String> {
    let value: Value = serde_json::from_slice(output)
        .map_err(|error| format!("its output is not JSON: {error}"))?;
    let Value::Object(mut object) = value else {
        return Err("its output is not an object".into());
    };
    // Until 0.2.0 there was one address of each kind, and no interfaces.
    let old: Vec<(&str, Value)> = [("4", "ip4"), ("6", "ip6")]
        .into_iter()
        .filter_map(|(version, key)| Some((version, object.remove(key)?)))
        .collect();
    for (version, ip) in old {
        if let Value::Object(ip) = ip {
            upgrade(&mut object, version, ip)?;
        }
    }
    if let Some(Value::Array(ips)) = object.get_mut("ips") {
        for ip in ips.iter_mut().filter_map(Value::as_object_mut) {
            convert_ip(ip, to);
        }
    }
    object.insert("cniVersion".into(), to.name().into());
    Ok(Value::Object(object))
}

/// Up to 0.4.0 each address says which version of IP it is.
fn convert_ip(ip: &mut Map<String, Value>, to: Version) {
    if to >= Version::V100 {
        ip.remove("version");
        return;
    }
    let address = ip
        .get("address")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let version = if address.contains(':') { "6" } else { "4" };
    ip.entry("version").or_insert_with(|| version.into());
}

fn upgrade(
    object: &mut Map<String, Value>,
    version: &str,
    mut old: Map<String, Value>,
) -> Result<(), String> {
    let mut list = |key: &str| match object
        .entry(key)
        .or_insert_with(|| Value::Array(Vec::new()))
    {
        Value::Array(list) => Ok(std::mem::take(list)),
        _ => Err(format!("{key} is not a list")),
    };
    let mut routes = list("routes")?;
    let mut ips = list("ips")?;
    if let Some(Value::Array(more)) = old.remove("routes") {
        routes.extend(more);
    }
    let mut ip = Map::new();
    ip.insert("version".into(), version.into());
    for (from, to) in [("ip", "address"), ("gateway", "gateway")] {
        if let Some(value) = old.remove(from) {
            ip.insert(to.into(), value);
        }
    }
    ips.push(Value::Object(ip));
    object.insert("routes".into(), Value::Array(routes));
    object.insert("ips".into(), Value::Array(ips));
    Ok(())
}
