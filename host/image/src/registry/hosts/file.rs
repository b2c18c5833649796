//! `hosts.toml`.

use super::{Host, Protocol, TlsFiles, is_loopback, port, wire_authority};
use reqwest::Url;
use serde::Deserialize;
use std::path::Path;
use std::time::Duration;
use toml::{Table, Value};

/// The most hosts of a file, certificates of a host and headers of a host.
const MAX_ENTRIES: usize = 64;
const KNOWN_KEYS: [&str; 8] = [
    "capabilities",
    "ca",
    "client",
    "skip_verify",
    "header",
    "override_path",
    "dial_timeout",
    "proxy",
];

#[derive(Default, Deserialize)]
#[serde(default)]
struct Fields {
    capabilities: Vec<String>,
    ca: Option<OneOrMore>,
    client: Option<Client>,
    skip_verify: Option<bool>,
    header: std::collections::BTreeMap<String, OneOrMore>,
    override_path: bool,
    dial_timeout: Option<String>,
    proxy: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "it must be a string or a list of strings")]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "client must be a path, a list of paths or a list of [certificate, key]"
)]
enum Client {
    One(String),
    More(Vec<CertificateAndKey>),
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "client must be a path, a list of paths or a list of [certificate, key]"
)]
enum CertificateAndKey {
    Both(String),
    Pair([String; 2]),
}

impl OneOrMore {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::More(list) => list,
        }
    }
}

/// Reads a `hosts.toml` of a directory; the hosts come in the order of the file and at last the
/// server, which is `upstream` if the file names none.
///
/// Keys that we do not know are passed over, as containerd does, and logged.
pub(crate) fn parse(text: &str, directory: &Path, upstream: Host) -> Result<Vec<Host>, String> {
    let mut root: Table = text.parse().map_err(|error: toml::de::Error| {
        let message = error.to_string();
        message.trim().to_owned()
    })?;
    let server = match root.remove("server") {
        None => None,
        Some(Value::String(server)) => Some(server).filter(|server| !server.is_empty()),
        Some(_) => return Err("server must be a string".to_owned()),
    };
    let hosts = match root.remove("host") {
        None => Table::new(),
        Some(Value::Table(hosts)) => hosts,
        Some(_) => return Err("host must be a table for each host: [host.\"https://…\"]".into()),
    };
    if hosts.len() > MAX_ENTRIES {
        return Err(format!("it has more than {MAX_ENTRIES} hosts"));
    }
    let mut list = Vec::with_capacity(hosts.len() + 1);
    for (address, fields) in hosts {
        let blame = |reason: String| format!("host {address:?}: {reason}");
        let fields = read_fields(fields).map_err(blame)?;
        list.push(named(&address, fields, directory).map_err(blame)?);
    }
    let fields = read_fields(Value::Table(root))?;
    list.push(match server {
        Some(server) => {
            let blame = |reason: String| format!("server {server:?}: {reason}");
            named(&server, fields, directory).map_err(blame)?
        }
        None => unnamed(fields, directory, upstream)?,
    });
    Ok(list)
}

fn read_fields(value: Value) -> Result<Fields, String> {
    let Value::Table(table) = &value else {
        return Err("it must be a table".to_owned());
    };
    for key in table
        .keys()
        .filter(|key| !KNOWN_KEYS.contains(&key.as_str()))
    {
        tracing::warn!(key, "A hosts.toml has a key that is not known");
    }
    Fields::deserialize(value).map_err(|error| error.to_string().trim().to_owned())
}

/// A host with an address of its own.
fn named(address: &str, fields: Fields, directory: &Path) -> Result<Host, String> {
    let address = match address.contains("://") {
        true => address.to_owned(),
        false => format!("https://{address}"),
    };
    let url = Url::parse(&address).map_err(|error| error.to_string())?;
    let https = match url.scheme() {
        "https" => true,
        "http" => false,
        _ => return Err("its address must begin with https:// or http://".to_owned()),
    };
    let plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    let host = url.host_str().filter(|_| plain && url.password().is_none());
    let host = host.ok_or("its address must be a host, with a port and a path at most")?;
    // The scheme's own port says something too if it is written out.
    let written = address.split('/').nth(2).and_then(port);
    let authority = match (url.port(), written) {
        (Some(port), _) => format!("{host}:{port}"),
        // What is written is a port only if it is the one that the address means.
        (None, Some(port)) if port.parse().ok() == url.port_or_known_default() => {
            format!("{host}:{port}")
        }
        _ => host.to_owned(),
    };
    let mut path = url.path().trim_end_matches('/').to_owned();
    if !fields.override_path && !path.ends_with("/v2") {
        path += "/v2";
    }
    let tls = tls_files(&fields, directory)?;
    let (pull, resolve) = capabilities(&fields.capabilities)?;
    Ok(Host {
        protocol: match https {
            true => Protocol::Https,
            // containerd's rule: settings for TLS at a host without it mean that it may have it.
            false if tls.is_set() && port(&authority) != Some("80") => Protocol::Either,
            false => Protocol::Http,
        },
        authority: wire_authority(&authority).to_owned(),
        path,
        pull,
        resolve,
        tls,
        header: headers(fields.header)?,
        dial_timeout: fields.dial_timeout.as_deref().map(duration).transpose()?,
        proxy: fields.proxy.map(proxy).transpose()?,
    })
}

/// The registry itself, with the file's settings for TLS. Like containerd's it can do everything
/// then, whatever the file says.
fn unnamed(fields: Fields, directory: &Path, upstream: Host) -> Result<Host, String> {
    let mut tls = tls_files(&fields, directory)?;
    capabilities(&fields.capabilities)?;
    if is_loopback(&upstream.authority) && upstream.protocol != Protocol::Http {
        tls.skip_verify = Some(true);
    }
    Ok(Host {
        tls,
        header: headers(fields.header)?,
        dial_timeout: fields.dial_timeout.as_deref().map(duration).transpose()?,
        proxy: fields.proxy.map(proxy).transpose()?,
        ..upstream
    })
}

fn capabilities(list: &[String]) -> Result<(bool, bool), String> {
    let (mut pull, mut resolve) = (list.is_empty(), list.is_empty());
    for capability in list {
        match capability.to_ascii_lowercase().as_str() {
            "pull" => pull = true,
            "resolve" => resolve = true,
            "push" | "referrers" => {}
            _ => return Err(format!("{capability:?} is no capability")),
        }
    }
    Ok((pull, resolve))
}

fn tls_files(fields: &Fields, directory: &Path) -> Result<TlsFiles, String> {
    let path = |path: &String| directory.join(path);
    let ca: Vec<_> = match &fields.ca {
        None => Vec::new(),
        Some(OneOrMore::One(ca)) => vec![path(ca)],
        Some(OneOrMore::More(list)) => list.iter().map(path).collect(),
    };
    let client: Vec<_> = match &fields.client {
        None => Vec::new(),
        Some(Client::One(both)) => vec![(path(both), None)],
        Some(Client::More(list)) => list
            .iter()
            .map(|entry| match entry {
                CertificateAndKey::Both(both) => (path(both), None),
                CertificateAndKey::Pair([certificate, key]) => (
                    path(certificate),
                    Some(path(key)).filter(|_| !key.is_empty()),
                ),
            })
            .collect(),
    };
    if ca.len() > MAX_ENTRIES || client.len() > MAX_ENTRIES {
        return Err(format!("it has more than {MAX_ENTRIES} certificates"));
    }
    Ok(TlsFiles {
        ca,
        client,
        skip_verify: fields.skip_verify,
    })
}

fn headers(
    fields: std::collections::BTreeMap<String, OneOrMore>,
) -> Result<Vec<(String, String)>, String> {
    let mut list = Vec::new();
    for (name, values) in fields {
        let bad = || format!("{name:?} can not be a header");
        reqwest::header::HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
        for value in values.into_vec() {
            reqwest::header::HeaderValue::from_str(&value).map_err(|_| bad())?;
            list.push((name.clone(), value));
        }
    }
    match list.len() > MAX_ENTRIES {
        true => Err(format!("it has more than {MAX_ENTRIES} headers")),
        false => Ok(list),
    }
}

fn proxy(address: String) -> Result<String, String> {
    let known = ["http", "https", "socks5", "socks5h"];
    let url = Url::parse(&address)
        .ok()
        .filter(|url| known.contains(&url.scheme()) && url.has_host());
    match url {
        Some(url) if matches!(url.path(), "" | "/") && url.query().is_none() => Ok(address),
        _ => Err(format!(
            "proxy {address:?} must be http://, https://, socks5:// or socks5h:// and a host"
        )),
    }
}

/// A duration as Go writes it: `1s`, `1m30s`, `1.5h`, `300ms`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("dial_timeout {text:?} is no duration such as \"1m30s\" or \"300ms\"");
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, tail) = digits
            .and_then(|at| rest.split_at_checked(at))
            .ok_or_else(bad)?;
        let unit = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at_checked(unit).ok_or_else(bad)?;
        let scale = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(bad()),
        };
        seconds += number.parse::<f64>().map_err(|_| bad())? * scale;
        rest = tail;
    }
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() && seconds <= 3600.0 => Ok(duration),
        _ => Err(bad()),
    }
}
