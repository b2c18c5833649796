//! What an operator can set.

use std::path::PathBuf;
use std::time::Duration;

/// Where registries are configured: our own directory, and containerd's, so that a node that moves
/// to Bulkhead keeps its mirrors.
const REGISTRY_CONFIG_PATHS: [&str; 2] = ["/etc/bulkhead/certs.d", "/etc/containerd/certs.d"];

/// Settings of an image store.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Registries (`host` or `host:port`) that are spoken to over plain HTTP when no `hosts.toml`
    /// says otherwise. Those of this machine (`localhost`, `127.0.0.0/8`, `::1`) need not be named:
    /// they are tried over TLS, whose certificate is not checked, and then over plain HTTP.
    pub plain_http: Vec<String>,
    /// Directories in containerd's `certs.d` format. The first one with settings for a registry
    /// counts; one that does not exist is passed over.
    pub registry_config_paths: Vec<PathBuf>,
    /// A Docker `config.json` with credentials for pulls that bring none.
    pub docker_config: Option<PathBuf>,
    /// Images that the kubelet's garbage collection must leave alone, by name.
    pub pinned: Vec<String>,
    /// How long a connection to a registry may take, where its `hosts.toml` sets no
    /// `dial_timeout`.
    pub connect_timeout: Duration,
    /// How long a registry may send nothing before the connection is given up and, where that may
    /// help, a new one is made.
    pub stall_timeout: Duration,
    /// A download that gets no new bytes for so long fails, however often it is tried again.
    pub progress_timeout: Duration,
    /// The pause before a request is tried again; it doubles with every further try.
    pub retry_delay: Duration,
    /// How many layers of one image are downloaded at the same time.
    pub parallel_downloads: usize,
    /// The most bytes that all downloads together take from the network in a second; zero for no
    /// limit.
    pub bytes_per_second: u64,
    /// The most bytes that the layers of one image may unpack to, all together.
    pub max_unpacked_bytes: u64,
    /// The most entries (files, directories, links) that the layers of one image may have.
    pub max_entries: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            plain_http: Vec::new(),
            registry_config_paths: REGISTRY_CONFIG_PATHS.map(PathBuf::from).to_vec(),
            docker_config: None,
            pinned: Vec::new(),
            connect_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(60),
            progress_timeout: Duration::from_secs(300),
            retry_delay: Duration::from_millis(500),
            parallel_downloads: 3,
            bytes_per_second: 0,
            max_unpacked_bytes: 64 << 30,
            max_entries: 4 << 20,
        }
    }
}
