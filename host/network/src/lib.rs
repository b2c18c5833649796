//! The networks of pods, on the host's side.
//!
//! A pod has a network namespace on the host, pinned below the daemon's state directory ([`netns`]). CNI
//! plugins make what they make in it ([`cni`]), as for an ordinary container. What they have made is read
//! ([`interface`]) and given to the guest word for word; packets go between it and the VM's tap ([`tap`])
//! by redirection at both ends ([`redirect`]), through a filter that lets nothing out that is not the
//! pod's own ([`filter`]). [`Networks`] does all that for a pod and undoes it, as often as it takes.
//!
//! Source: the CNI specification, version 1.1.0 and earlier.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

pub mod cni;
mod error;
pub mod filter;
pub mod interface;
pub mod netns;
mod pod;
mod redirect;
mod settings;
pub mod tap;

pub use error::NetworkError;
pub use pod::{Networks, PodNetwork, PodRequest, Settings};
pub use settings::{IpPreference, Mode, NetworkConfig};

/// The result of this crate's functions.
pub type Result<T, E = NetworkError> = std::result::Result<T, E>;
