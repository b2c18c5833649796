//! The Container Network Interface: what a runtime has to do by its specification
//! (<https://www.cni.dev/docs/spec/>, versions 1.1.0, 1.0.0, 0.4.0, 0.3.1 and 0.3.0).
//!
//! A [`NetworkList`] is a configuration from the node's directories. [`Cni`] executes its plugins one after
//! another, each with the result of the one before; DEL goes the other way. What was added is remembered in
//! the [`cache`], so that it can be taken away with the configuration and the result that it had, whatever
//! has become of the node's configuration.

pub mod cache;
pub mod capability;
pub mod config;
pub(crate) mod exec;
pub mod result;
mod runtime;
pub mod version;

pub use cache::{Attachment, Cache};
pub use capability::{Bandwidth, Dns, PortMapping, RuntimeSettings};
pub use config::{NetworkList, Plugin};
pub use result::{CniResult, IpConfig};
pub use runtime::Cni;
pub use version::Version;

#[cfg(test)]
mod tests;
