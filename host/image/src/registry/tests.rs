//! The client against registries in this process that misbehave on demand.

mod authentication;
mod faults;
mod mirrors;
mod sharing;

use super::{Registry, Remote};
use crate::digest::Digest;
use crate::manifest::Descriptor;
use crate::name::Name;
use crate::tests::fixture::config;
use crate::tests::server::Server;
use crate::{Auth, Result, StoreConfig, download};
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

const REPOSITORY: &str = "team/app";

/// What the pulls of a node share, with a directory for their files.
struct Node {
    remote: Arc<Remote>,
    directory: tempfile::TempDir,
}

impl Node {
    fn new(config: StoreConfig) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let blobs = directory.path().join("blobs");
        std::fs::create_dir(&blobs).unwrap();
        let config = StoreConfig {
            registry_config_paths: vec![directory.path().join("certs.d")],
            ..config
        };
        Self {
            remote: Arc::new(Remote::new(config, blobs)),
            directory,
        }
    }

    /// Writes the `hosts.toml` of a registry.
    fn configure(&self, registry: &str, text: &str) {
        let directory = self.directory.path().join("certs.d").join(registry);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("hosts.toml"), text).unwrap();
    }

    async fn open(&self, name: &str, auth: Option<Auth>) -> Result<Arc<Registry>> {
        let name = Name::parse(name)?;
        Registry::open(&self.remote, name, auth).await.map(Arc::new)
    }

    /// Downloads one blob of a repository.
    async fn fetch(&self, name: &str, auth: Option<Auth>, blob: &Descriptor) -> Result<Vec<u8>> {
        let registry = self.open(name, auth).await?;
        let layers = download::layers(&registry, std::slice::from_ref(blob), |_, _| ()).await?;
        let mut bytes = Vec::new();
        layers.open(&blob.digest)?.read_to_end(&mut bytes).unwrap();
        Ok(bytes)
    }

    async fn resolve(&self, name: &str) -> Result<super::Resolved> {
        self.open(name, None).await?.resolve().await
    }

    fn blobs(&self) -> usize {
        let blobs: PathBuf = self.directory.path().join("blobs");
        std::fs::read_dir(blobs).unwrap().count()
    }
}

impl Default for Node {
    fn default() -> Self {
        Self::new(config())
    }
}

/// Bytes that are nowhere the same.
fn content(length: usize) -> Vec<u8> {
    let numbers = (0..length.div_ceil(8) as u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut bytes: Vec<u8> = numbers.flat_map(u64::to_le_bytes).collect();
    bytes.truncate(length);
    bytes
}

fn descriptor(bytes: &[u8]) -> Descriptor {
    let json = serde_json::json!({"digest": Digest::sha256(bytes), "size": bytes.len()});
    serde_json::from_value(json).unwrap()
}

/// A server with one blob.
fn with_blob(bytes: &[u8]) -> (Server, Descriptor) {
    let server = Server::start();
    server.put_blob(REPOSITORY, bytes);
    (server, descriptor(bytes))
}

fn host(server: &Server) -> String {
    format!("127.0.0.1:{}", server.port)
}
