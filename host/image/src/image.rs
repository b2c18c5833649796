//! What the store tells about an image and about a pull.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// An image that is complete on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// `sha256:` and the digest of the image's configuration; what the CRI calls the image id.
    pub id: String,
    /// Names with a tag, normalised: `docker.io/library/busybox:latest`.
    pub repo_tags: Vec<String>,
    /// Names with a digest: `docker.io/library/busybox@sha256:…`.
    pub repo_digests: Vec<String>,
    /// Bytes on disk of the EROFS file, which may have holes.
    pub size: u64,
    /// How containers of this image start.
    pub config: ImageConfig,
    /// The kubelet's garbage collection must leave it alone.
    pub pinned: bool,
}

/// The parts of an OCI image configuration that a runtime uses. What the image does not set is
/// empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// The program, before `cmd`.
    pub entrypoint: Vec<String>,
    /// Default arguments, or the program when there is no `entrypoint`.
    pub cmd: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// Absolute path in the image, or empty for `/`.
    pub working_dir: String,
    /// `user`, `uid`, `user:group`, `uid:gid` …, or empty for root.
    pub user: String,
    /// `SIGTERM`, `15`, `RTMIN+3` …, or nothing for the runtime's default.
    pub stop_signal: Option<String>,
    /// Paths that want a volume of their own.
    pub volumes: Vec<String>,
    /// `80/tcp` …
    pub exposed_ports: Vec<String>,
    /// Labels of the image.
    pub labels: BTreeMap<String, String>,
}

/// An image's configuration as its maker wrote it, and what is computed from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Specification {
    /// The OCI image configuration, JSON; its digest is the image's id.
    pub configuration: Vec<u8>,
    /// The digest of all layers one above the other (OCI Image Format Specification, "Layer
    /// ChainID"); empty when there is no layer.
    pub chain_id: String,
}

/// How far a pull is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PullProgress {
    /// What it is doing.
    pub phase: PullPhase,
    /// The image's layers, lowest first; empty until the manifest is known and when the node has
    /// the image already.
    pub layers: Vec<LayerProgress>,
}

/// What a pull is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PullPhase {
    /// Asks the registry what the name stands for.
    #[default]
    Resolving,
    /// Downloads layers.
    Downloading,
    /// Unpacks layers.
    Unpacking,
    /// Makes the EROFS file.
    Writing,
    /// The image is in the store.
    Done,
}

/// How far the download of one layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerProgress {
    /// Digest of the compressed layer.
    pub digest: String,
    /// Bytes that have arrived.
    pub done: u64,
    /// Bytes of the compressed layer.
    pub total: u64,
}

/// What the store occupies: the CRI's `FilesystemUsage`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsInfo {
    /// The store's directory.
    pub root: PathBuf,
    /// Bytes of disk blocks: images, pulls that are under way, the index.
    pub used_bytes: u64,
    /// Files and directories of all that.
    pub used_inodes: u64,
}
