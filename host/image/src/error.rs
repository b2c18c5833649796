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
        "Registry {registry} did not let us read the {step} of {image} ({reason}); check that the \
         image exists and that the pod's image pull secret, or the node's docker_config, may read it"
    )]
    Unauthorized {
        /// The image as it was asked for.
        image: String,
        /// `host` or `host:port`.
        registry: String,
        /// What we wanted.
        step: String,
        /// What the registry or its token server says.
        reason: String,
    },
    /// The credentials for a registry can not be had. gRPC `FAILED_PRECONDITION`.
    #[error(
        "The credentials for registry {registry}, which {image} needs, can not be had: {reason}"
    )]
    Credentials {
        /// The image as it was asked for.
        image: String,
        /// `host` or `host:port`.
        registry: String,
        /// Which file or program, and what is wrong with it.
        reason: String,
    },
    /// A registry's directory below `registry_config_paths` can not be used. gRPC
    /// `FAILED_PRECONDITION`.
    #[error("The settings of registry {registry} in {path} can not be used: {reason}")]
    RegistrySettings {
        /// `host` or `host:port`.
        registry: String,
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
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
    #[error(
        "Registry {registry} can not be reached or stopped answering while we read the {step} of \
         {image}; check its address, the network and, if it is said below, the certificate"
    )]
    RegistryUnreachable {
        /// The image as it was asked for.
        image: String,
        /// `host` or `host:port`.
        registry: String,
        /// What we wanted.
        step: String,
        /// What the HTTP client says.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The registry answered something else than the image. gRPC `UNAVAILABLE`.
    #[error("Registry {registry} answered {status} when asked for the {step} of {image}")]
    RegistryRefused {
        /// The image as it was asked for.
        image: String,
        /// `host` or `host:port`.
        registry: String,
        /// What we wanted.
        step: String,
        /// The HTTP status and what the registry says about it.
        status: String,
    },
    /// A download got no new bytes for too long. gRPC `DEADLINE_EXCEEDED`.
    #[error(
        "The {step} of {image} has not come further for {seconds} s, from registry {registry} at \
         last; check the network, or raise image_pull_progress_timeout_seconds"
    )]
    NoProgress {
        /// The image as it was asked for.
        image: String,
        /// `host` or `host:port`.
        registry: String,
        /// What we wanted.
        step: String,
        /// The time limit.
        seconds: u64,
    },
    /// Several hosts serve the registry and none had the image. The error that says most, and how
    /// the other hosts failed; the gRPC code is that of the error.
    #[error("{} (before that: {others})", chain(.error))]
    NoHost {
        /// The error that says most.
        error: Box<ImageError>,
        /// The others, in one line.
        others: String,
    },
    /// The disk of this node does not give back what the image was. The image is no longer in the
    /// store. gRPC `DATA_LOSS`.
    #[error(
        "Image {image} was damaged on the disk of this node and has been removed; pull it again, \
         and check the disk if it happens again"
    )]
    Damaged {
        /// The image's id.
        image: String,
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
    /// What went wrong, without the hosts that failed before.
    pub fn main(&self) -> &Self {
        match self {
            Self::NoHost { error, .. } => error.main(),
            other => other,
        }
    }

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

/// An error and its causes in one line; a message never repeats its source's.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
