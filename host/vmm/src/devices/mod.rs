//! The devices of the machine. None knows the transport that it is seen through.

pub mod balloon;
pub mod blk;
pub mod counters;
pub mod fs;
pub mod net;
pub mod rng;
pub mod serial;
pub mod vsock;
