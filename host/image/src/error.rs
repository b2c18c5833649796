//! What can go wrong, by what the caller can do about it.

use std::io;
use std::sync::Arc;

/// Why an image operation failed. It can be cloned because every caller that waited for the same
/// pull gets it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The registry, or for [`open_disk`](crate::ImageStore::open_disk) the store, has no such
    /// image. gRPC `NOT_FOUND`.
    #[error("Image {image} does not exist; check its name and tag")]
    NotFound {
        /// The image as it was asked for.
        image: String,
    },
    /// The registry wants other credentials. gRPC `UNAUTHENTICATED`.
    #[error(
        "The registry did not let us read {image}; check that it exists and that the pod's image \
         pull secret may read it"
    )]
    Unauthorized {
        /// The image as it was asked for.
        image: String,
    },
    /// The name is not an image reference. gRPC `INVALID_ARGUMENT`.
    #[error("{reference:?} is not an image name: {reason}")]
    InvalidReference {
        /// The text.
        reference: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The credentials can not be read. gRPC `INVALID_ARGUMENT`.
    #[error("The registry credentials are not \"username:password\" in Base64")]
    InvalidAuth,
    /// What arrived is not what its digest says. gRPC `DATA_LOSS`.
    #[error(
        "The {what} of {image} should be {expected} but is {got}; the registry or something \
         before it is broken or hostile"
    )]
    DigestMismatch {
        /// The image as it was asked for.
        image: String,
        /// Manifest, configuration or layer.
        what: String,
        /// The digest that was asked for.
        expected: String,
        /// The digest of what arrived.
        got: String,
    },
    /// What arrived is longer or shorter than its descriptor says. gRPC `DATA_LOSS`.
    #[error("The {what} of {image} should have {expected} bytes but has {got}")]
    SizeMismatch {
        /// The image as it was asked for.
        image: String,
        /// Manifest, configuration or layer.
        what: String,
        /// Bytes that were announced.
        expected: u64,
        /// Bytes that arrived.
        got: u64,
    },
    /// The registry can not be reached, or the connection broke or stalled. gRPC `UNAVAILABLE`;
    /// try again later.
    #[error("Registry {registry} can not be reached or stopped answering while we read {image}")]
    RegistryUnreachable {
        /// The image as it was asked for.
        image: String,
        /// `host` or `host:port`.
        registry: String,
        /// What the HTTP client says.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The registry answered something else than the image. gRPC `UNAVAILABLE`.
    #[error("Registry {registry} answered {status} when asked for {image}")]
    RegistryRefused {
        /// The image as it was asked for.
        image: String,
        /// `host` or `host:port`.
        registry: String,
        /// The HTTP status and what the registry says about it.
        status: String,
    },
    /// The disk of the store is full. gRPC `RESOURCE_EXHAUSTED`.
    #[error("The disk of the image store is full while {doing}; free some space or remove images")]
    NoSpace {
        /// What was being done.
        doing: String,
    },
    /// The manifest or configuration can not be used. gRPC `FAILED_PRECONDITION`.
    #[error("Image {image} can not be used: {reason}")]
    InvalidImage {
        /// The image as it was asked for.
        image: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A layer can not be unpacked. gRPC `FAILED_PRECONDITION`.
    #[error("Layer {layer} of {image} can not be unpacked: {reason}")]
    InvalidLayer {
        /// The image as it was asked for.
        image: String,
        /// Digest of the layer.
        layer: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process has the store open. gRPC does not see it: the daemon does not start.
    #[error("The image store {root} is in use by another process")]
    InUse {
        /// The store's directory.
        root: String,
    },
    /// The store's index can not be read.
    #[error(
        "The image store's index {path} can not be understood ({reason}); if no newer version \
         wrote it, remove it and the images will be pulled again"
    )]
    InvalidIndex {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The operating system refused something. gRPC `INTERNAL`.
    #[error("The image store failed while {doing}")]
    Io {
        /// What was being done.
        doing: String,
        /// The operating system's answer.
        #[source]
        source: Arc<io::Error>,
    },
}

impl ImageError {
    /// An I/O error, told apart from a full disk.
    pub(crate) fn io(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let (doing, source) = (doing.into(), source.into());
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { doing },
            _ => Self::Io {
                doing,
                source: Arc::new(source),
            },
        }
    }
}
