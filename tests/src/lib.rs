//! What the end-to-end tests, the demo and the benchmarks share: a node with a real daemon, a real
//! registry, and a checker of what is left behind.
//!
//! All of it needs root and a `/dev/kvm` backed by hardware; `tests/lab/run` gives both anywhere.

pub mod artifacts;
pub mod bench;
pub mod device;
pub mod disk;
pub mod leaks;
pub mod node;
pub mod pod;
pub mod registry;
mod setting;
pub mod soak;
pub mod streaming;

pub use leaks::Snapshot;
pub use node::Node;
pub use registry::Registry;
pub use setting::setting;
