//! End-to-end tests: a real daemon, real VMs, a real registry.
//!
//! They need root, cgroup v2 and a `/dev/kvm` backed by hardware. `make test` runs them where that
//! is, entering the lab if need be; elsewhere they say why they are skipped. After each, the checker
//! asserts that nothing is left on the node.

mod bad_guest;
mod bad_input;
mod bad_node;
mod block_volumes;
mod cage;
mod cli;
mod confinement;
mod containers;
mod environment;
mod events;
mod figures;
mod images;
mod isolation;
mod limits;
mod model;
mod network;
mod pods;
mod resources;
mod restart;
mod runtime;
mod soak;
mod streaming;
mod watchdog;
