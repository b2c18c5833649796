//! The protocol between the daemon and a pod's VMM: how the VMM is started, how it is controlled,
//! and what its exit status means.
//!
//! The daemon starts `bulkhead-vmm` with a [`VmmConfig`] as JSON on its standard input. Every file
//! reaches the VMM as an open descriptor, by number in that document; it never opens a path.
//!
//! Control is a `SOCK_SEQPACKET` Unix socket: one [`Request`] a packet, answered by one [`Reply`],
//! both JSON of at most [`MAX_PACKET`] bytes; descriptors travel beside a packet as `SCM_RIGHTS`.
//! The daemon keeps the listening socket's path, so that a daemon started later finds the VMM again.
//!
//! The vsock socket follows Firecracker's convention for connections into the guest: connect, send
//! `CONNECT port\n`, read `OK port\n`, and the connection is the guest's.

pub mod bounce;
mod config;
mod exit;
mod message;
mod rate;
pub mod wire;

pub use config::{
    DiskSlot, GUEST_CMDLINE, MAX_INTERFACES, MAX_QUEUE_PAIRS, VOLUMES_TAG, VmmConfig, queue_pairs,
};
pub use exit::ExitReason;
pub use message::{
    DeviceCounters, ExitCount, GuestConnection, MAX_PACKET, PROTOCOL_VERSION, Reply, Request,
    VmState, VmmStatus,
};
pub use rate::{NetworkLimits, Rate, RateLimits};
