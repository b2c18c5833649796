//! Requests, replies, and what they carry.

use crate::config::DiskSlot;
use crate::rate::NetworkLimits;
use serde::{Deserialize, Serialize};

/// The version of this protocol.
pub const PROTOCOL_VERSION: u32 = 1;

/// The longest packet in bytes, either way. A longer one ends the connection.
pub const MAX_PACKET: usize = 64 * 1024;

/// Everything that a VMM can be asked. The whole control interface is this enum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "action", deny_unknown_fields)]
pub enum Request {
    /// Puts a raw disk image behind a slot. One descriptor: the file, opened read-only for a
    /// read-only slot. The capacity is the file's size, which must be a multiple of 512 bytes.
    /// The guest sees a configuration change. Answered by [`Reply::Done`] or [`Reply::Error`].
    BindDisk {
        /// An empty slot.
        slot: DiskSlot,
    },
    /// Empties a slot: no request is in flight on the file when this is answered.
    UnbindDisk {
        /// A bound slot; emptying an empty one succeeds.
        slot: DiskSlot,
    },
    /// Puts a tap behind the network interface and brings the link up. The descriptors are the tap's
    /// queues (IFF_TAP, IFF_VNET_HDR, IFF_NO_PI): one, or with IFF_MULTI_QUEUE as many as the interface
    /// has pairs of queues, see [`queue_pairs`](crate::queue_pairs), or fewer.
    BindTap {
        /// How fast packets may go.
        #[serde(default, skip_serializing_if = "NetworkLimits::is_none")]
        limits: NetworkLimits,
    },
    /// Asks for [`Reply::Status`].
    Status,
    /// Asks for [`Reply::Console`]: the newest bytes of the serial console.
    Console {
        /// How many bytes at the most; capped by the ring's size and the packet's.
        max_bytes: u32,
    },
    /// Turns this connection into the feed of connections that the guest opens. Answered by
    /// [`Reply::Done`]; from then on the VMM sends a [`GuestConnection`] with one descriptor (a
    /// connected stream socket) for each. A newer feed takes the place of an older one. Without a
    /// feed the guest's connections are reset.
    AcceptGuestConnections,
    /// Ends the VMM at once with [`ExitReason::Killed`](crate::ExitReason::Killed).
    Kill,
}

/// Answers to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "reply", deny_unknown_fields)]
pub enum Reply {
    /// It is done.
    Done,
    /// It was refused and nothing has changed.
    Error {
        /// What happened, a sentence.
        message: String,
    },
    /// Answer to [`Request::Status`].
    Status(VmmStatus),
    /// Answer to [`Request::Console`]; bytes that are not UTF-8 are replaced.
    Console {
        /// The newest part of the console.
        text: String,
    },
}

/// How a VMM is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmStatus {
    /// [`PROTOCOL_VERSION`] of the VMM.
    pub version: u32,
    /// CLOCK_MONOTONIC of the host in nanoseconds when `main` was entered.
    pub main_ns: u64,
    /// CLOCK_MONOTONIC of the host in nanoseconds when the first vCPU entered the guest.
    pub vcpus_started_ns: u64,
    /// Per device.
    pub devices: Vec<DeviceCounters>,
}

/// What one device has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceCounters {
    /// `ro0`, `rw0`, `vsock`, `rng`, `balloon`, `net`, `console`.
    pub device: String,
    /// Requests or packets that were served.
    pub requests: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Requests that were refused or failed.
    pub errors: u64,
}

/// A connection that the guest opened, on the feed. One descriptor comes with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestConnection {
    /// The host port that the guest dialled.
    pub port: u32,
}
