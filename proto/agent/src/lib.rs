//! The protocol between the daemon and the agent in the guest, generated from `agent.proto`,
//! which documents it.

#[allow(missing_docs, unreachable_pub, unsafe_code, clippy::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
}

pub mod cgroup;

pub use generated::{agent, agent_ttrpc};

/// The version of the protocol that `agent.proto` describes.
pub const VERSION: u32 = 1;
/// Port on the host (CID 2) where the agent announces itself.
pub const ANNOUNCE_PORT: u32 = 1024;
/// Port in the guest where the agent serves control.
pub const CONTROL_PORT: u32 = 1025;
/// Port in the guest where the agent takes byte streams.
pub const STREAM_PORT: u32 = 1026;
/// The longest announcement in bytes.
pub const MAX_ANNOUNCEMENT: u32 = 64 * 1024;
