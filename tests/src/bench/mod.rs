//! What `make bench` measures. Nothing here is a test: no time is asserted.

pub mod blk;
pub mod boot;
pub mod cri;
pub mod engine;
mod entry;
pub mod figures;
pub mod file_daemon;
pub mod images;
pub mod machine;
pub mod memory;
pub mod net;
mod peer;
pub mod pods;
pub mod pods_network;
pub mod proofs;
mod servers;
mod usage;
pub mod vmm;
mod vms;
pub mod volumes;
pub mod vsock;
