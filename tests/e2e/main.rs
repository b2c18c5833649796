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
mod direct_volumes;
mod environment;
mod events;
mod figures;
mod file_systems;
mod images;
mod isolation;
mod kubelet_volumes;
mod limits;
mod model;
mod mounts;
mod network;
mod network_kinds;
mod pods;
mod resources;
mod restart;
mod runtime;
mod shared_volumes;
mod soak;
mod streaming;
mod volume_attacks;
mod watchdog;
