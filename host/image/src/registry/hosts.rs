//! Which hosts serve a registry, and how they are spoken to: containerd's `certs.d` directories
//! (containerd's `docs/hosts.md`) and the older certificate directories of Docker.
//!
//! A directory of an administrator works unchanged; where this is stricter than containerd is in
//! `docs/decisions/registry-client.md`.

mod file;

#[cfg(test)]
mod tests;

pub(crate) use file::parse;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The most bytes of a `hosts.toml`, a certificate file or a key file.
pub(super) const MAX_FILE: u64 = 1 << 20;
/// The most certificate files that a directory can have.
const MAX_CERTIFICATES: usize = 256;
const DEFAULT_DIRECTORY: &str = "_default";
pub(super) const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_SERVER: &str = "registry-1.docker.io";

/// How a host is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Https,
    Http,
    /// TLS, and plain HTTP when the host does not speak TLS.
    Either,
}

/// One host that serves a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) protocol: Protocol,
    /// `host` or `host:port`.
    pub(crate) authority: String,
    /// Before `/repository/…`: `/v2`, more or nothing.
    pub(crate) path: String,
    /// It may be asked for manifests by digest and for blobs.
    pub(crate) pull: bool,
    /// It may be asked what a tag stands for.
    pub(crate) resolve: bool,
    pub(crate) tls: TlsFiles,
    pub(crate) header: Vec<(String, String)>,
    pub(crate) dial_timeout: Option<Duration>,
    pub(crate) proxy: Option<String>,
}

/// What differs from the system's TLS settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// Files with certificates of authorities, on top of the system's.
    pub(crate) ca: Vec<PathBuf>,
    /// Certificates that we show; the key is in the same file when there is none.
    pub(crate) client: Vec<(PathBuf, Option<PathBuf>)>,
    pub(crate) skip_verify: Option<bool>,
}

impl TlsFiles {
    fn is_set(&self) -> bool {
        !self.ca.is_empty() || !self.client.is_empty() || self.skip_verify.is_some()
    }
}

impl Host {
    /// The registry itself, without settings.
    pub(crate) fn upstream(registry: &str, plain_http: bool) -> Self {
        let tls = TlsFiles {
            // containerd does not check the certificate of a registry of this machine either.
            skip_verify: (!plain_http && is_loopback(registry)).then_some(true),
            ..TlsFiles::default()
        };
        Self {
            protocol: match plain_http {
                true => Protocol::Http,
                false if is_loopback(registry) => loopback_protocol(registry),
                false => Protocol::Https,
            },
            authority: wire_authority(registry).to_owned(),
            path: "/v2".to_owned(),
            pull: true,
            resolve: true,
            tls,
            header: Vec::new(),
            dial_timeout: None,
            proxy: None,
        }
    }

    /// Requests must say which registry they are meant for, as this host serves more than one.
    pub(crate) fn is_mirror_of(&self, registry: &str) -> bool {
        self.authority != registry && self.authority != wire_authority(registry)
    }
}

/// Which file can not be used, and why.
#[derive(Debug)]
pub(crate) struct BadSettings {
    pub(crate) path: PathBuf,
    pub(crate) reason: String,
}

/// The hosts of a registry, in the order in which they are tried. Blocks.
pub(crate) fn find(
    roots: &[PathBuf],
    registry: &str,
    plain_http: bool,
) -> Result<Vec<Host>, BadSettings> {
    let upstream = Host::upstream(registry, plain_http);
    let Some(directory) = directory(roots, registry)? else {
        return Ok(vec![upstream]);
    };
    let path = directory.join("hosts.toml");
    let bad = |reason: String| BadSettings {
        path: path.clone(),
        reason,
    };
    match read(&path) {
        Ok(bytes) if !bytes.is_empty() => {
            let text = String::from_utf8(bytes).map_err(|error| bad(error.to_string()))?;
            parse(&text, &directory, upstream).map_err(bad)
        }
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(bad(error.to_string())),
        _ => {
            let tls = certificates(&directory).map_err(|error| BadSettings {
                path: directory.clone(),
                reason: error.to_string(),
            })?;
            Ok(vec![Host {
                tls: TlsFiles {
                    skip_verify: upstream.tls.skip_verify,
                    ..tls
                },
                ..upstream
            }])
        }
    }
}

/// The directory with a registry's settings: `host_port_` and `host:port` come before `_default`.
fn directory(roots: &[PathBuf], registry: &str) -> Result<Option<PathBuf>, BadSettings> {
    for root in roots {
        let underscored = registry
            .rsplit_once(':')
            .map(|(host, port)| format!("{host}_{port}_"));
        let names = underscored
            .as_deref()
            .into_iter()
            .chain([registry, DEFAULT_DIRECTORY]);
        for name in names {
            let path = root.join(name);
            match std::fs::metadata(&path) {
                Ok(_) => return Ok(Some(path)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    let reason = error.to_string();
                    return Err(BadSettings { path, reason });
                }
            }
        }
    }
    Ok(None)
}

/// Docker's layout: `*.crt` are authorities, `*.cert` with `*.key` of the same name are ours.
fn certificates(directory: &Path) -> std::io::Result<TlsFiles> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if paths.len() == MAX_CERTIFICATES {
            let reason = format!("it has more than {MAX_CERTIFICATES} entries");
            return Err(std::io::Error::other(reason));
        }
        if !entry.file_type()?.is_dir() {
            paths.push(entry.path());
        }
    }
    paths.sort();
    let ending = |path: &PathBuf, ending: &str| path.extension().is_some_and(|e| e == ending);
    let key = |path: &PathBuf| Some(path.with_extension("key")).filter(|key| key.exists());
    Ok(TlsFiles {
        ca: paths
            .iter()
            .filter(|path| ending(path, "crt"))
            .cloned()
            .collect(),
        client: paths
            .iter()
            .filter(|path| ending(path, "cert"))
            .map(|path| (path.clone(), key(path)))
            .collect(),
        skip_verify: None,
    })
}

/// Reads a settings file of at most [`MAX_FILE`] bytes.
pub(super) fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path)?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        let reason = format!("it has more than {MAX_FILE} bytes");
        return Err(std::io::Error::other(reason));
    }
    Ok(bytes)
}

/// The host of `host`, `host:port`, `[address]` or `[address]:port`.
fn bare_host(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    }
}

fn port(authority: &str) -> Option<&str> {
    let rest = authority.rsplit_once(']').map_or(authority, |(_, r)| r);
    rest.rsplit_once(':').map(|(_, port)| port)
}

/// The registry runs on this machine.
pub(crate) fn is_loopback(authority: &str) -> bool {
    let host = bare_host(authority);
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

/// containerd's rule: only a port of its own leaves the protocol open, and port 80 does not.
fn loopback_protocol(authority: &str) -> Protocol {
    match port(authority) {
        None | Some("443") => Protocol::Https,
        Some("80") => Protocol::Http,
        Some(_) => Protocol::Either,
    }
}

/// Where a registry's server is: Docker Hub's is not at its name.
pub(crate) fn wire_authority(registry: &str) -> &str {
    match registry {
        DOCKER_HUB => DOCKER_HUB_SERVER,
        other => other,
    }
}
