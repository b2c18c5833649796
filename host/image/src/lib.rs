//! Pulls OCI images and keeps each as one EROFS file.
//!
//! The store owns one directory of the node. A pull resolves the name at its registry, downloads
//! the layers into a staging directory while it checks every digest, merges them into one
//! uncompressed EROFS file as they stream by and only then writes the image down. A process that is
//! killed at any moment leaves complete images and rubbish; the next [`ImageStore::open`] removes
//! the rubbish.
//!
//! Everything that a registry or a layer says is untrusted: sizes are capped, digests are
//! checked, and a layer entry is only ever a name in the EROFS file, never one on the node.
//!
//! Sources: the OCI Image Format Specification 1.1 (manifest, image index, layer, config), the
//! OCI Distribution Specification 1.1, Docker's Image Manifest V2 Schema 2, the kernel's
//! `Documentation/filesystems/erofs.rst`.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod auth;
mod config;
mod digest;
mod download;
mod erofs;
mod error;
mod image;
mod index;
mod integrity;
mod layer;
mod manifest;
mod name;
mod pull;
mod registry;
mod staging;
mod store;

#[cfg(any(fuzzing, test))]
pub mod fuzzing;
#[cfg(test)]
mod tests;

pub use auth::Auth;
pub use config::StoreConfig;
pub use error::ImageError;
pub use image::{
    FsInfo, Image, ImageConfig, LayerProgress, PullPhase, PullProgress, Specification,
};
pub use store::ImageStore;

/// What this crate's functions return.
pub type Result<T, E = ImageError> = std::result::Result<T, E>;
