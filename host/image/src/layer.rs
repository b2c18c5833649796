//! Layers: how a downloaded blob becomes files (OCI Image Format Specification, "Image Layer
//! Filesystem Changeset").

mod archive;
mod content;
mod pax;
mod tree;
mod unpack;

#[cfg(test)]
mod tests;

pub(crate) use unpack::{Limits, Unpacker};

use std::io;

/// Why a layer could not be unpacked.
#[derive(Debug)]
pub(crate) enum LayerError {
    /// The layer's own fault.
    Invalid(String),
    /// What the layer unpacks to has another digest than the image's configuration says.
    WrongDiffId(crate::digest::Digest),
    /// The operating system refused something.
    Io { doing: String, source: io::Error },
    /// Nobody waits for the image any more.
    Cancelled,
}

type LayerResult<T> = Result<T, LayerError>;

fn invalid<T>(reason: impl Into<String>) -> LayerResult<T> {
    Err(LayerError::Invalid(reason.into()))
}
