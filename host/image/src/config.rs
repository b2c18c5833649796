//! What an operator can set.

use std::time::Duration;

/// Settings of an image store.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Registries (`host` or `host:port`) that are spoken to over plain HTTP. `localhost`,
    /// `127.0.0.0/8` and `::1` always are.
    pub plain_http: Vec<String>,
    /// Images that the kubelet's garbage collection must leave alone, by name.
    pub pinned: Vec<String>,
    /// How long a connection to a registry may take.
    pub connect_timeout: Duration,
    /// How long a registry may send nothing before the pull fails.
    pub stall_timeout: Duration,
    /// How many layers of one image are downloaded at the same time.
    pub parallel_downloads: usize,
    /// The most bytes that the layers of one image may unpack to, all together.
    pub max_unpacked_bytes: u64,
    /// The most entries (files, directories, links) that the layers of one image may have.
    pub max_entries: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            plain_http: Vec::new(),
            pinned: Vec::new(),
            connect_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(60),
            parallel_downloads: 3,
            max_unpacked_bytes: 64 << 30,
            max_entries: 4 << 20,
        }
    }
}
