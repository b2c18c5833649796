//! Requests, replies, and what they carry.

use crate::config::DiskSlot;
use crate::rate::{NetworkLimits, RateLimits};
use serde::{Deserialize, Serialize};

/// The version of this protocol. A VMM answers an action that it does not know with [`Reply::Error`] and
/// goes on; fields that are added to a reply are empty when an older VMM does not send them.
///
/// - 1: [`Request::BindDisk`], `UnbindDisk`, `BindTap`, `Status`, `Console`, `AcceptGuestConnections`,
///   `Kill`.
/// - 2: `Pause`, `Resume`, `ShutDown`, `RenewGeneration`; [`VmmStatus::state`], `exits`,
///   `guest_memory_bytes`, [`DeviceCounters::accesses`].
/// - 3: `BindFileDaemon`.
/// - 4: [`Request::BindTap`] for several interfaces.
/// - 5: `MeasureDisk`.
pub const PROTOCOL_VERSION: u32 = 5;

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
        /// How fast it may be used.
        #[serde(default, skip_serializing_if = "RateLimits::is_none")]
        limits: RateLimits,
    },
    /// Empties a slot: no request is in flight on the file when this is answered.
    UnbindDisk {
        /// A bound slot; emptying an empty one succeeds.
        slot: DiskSlot,
    },
    /// Takes over the size that a slot's file has now, if it has become larger. The guest sees a configuration
    /// change. Answered by [`Reply::DiskSize`].
    MeasureDisk {
        /// A bound slot.
        slot: DiskSlot,
    },
    /// Puts a tap behind a network interface and brings the link up. The descriptors are the tap's
    /// queues (IFF_TAP, IFF_VNET_HDR, IFF_NO_PI): one, or with IFF_MULTI_QUEUE as many as the interface
    /// has pairs of queues, see [`queue_pairs`](crate::queue_pairs), or fewer.
    BindTap {
        /// Which interface, from 0.
        #[serde(default)]
        interface: u8,
        /// How fast packets may go.
        #[serde(default, skip_serializing_if = "NetworkLimits::is_none")]
        limits: NetworkLimits,
    },
    /// Has a file daemon serve the shared volumes. Descriptors: the memory of [`bounce`](crate::bounce), sealed
    /// against shrinking; the connection to the daemon, by whose end the VMM knows that it has gone; an eventfd for
    /// each queue that tells the daemon; one for each that tells the VMM. Refused while another daemon is there.
    /// Until one is bound, and after it has gone, the guest gets EIO.
    BindFileDaemon,
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
    /// Stops the guest: answered by [`Reply::Done`] when no virtual CPU runs and no device is at work, until
    /// [`Request::Resume`]. What the guest had asked of its disks before is still done, and vhost-net still
    /// fills the buffers that it has. Asking again is answered in the same way.
    Pause,
    /// Lets the guest go on where it was paused; its clocks have gone on meanwhile. Of no effect on a VM that
    /// runs. A [`Request::Pause`] that has not been answered yet is refused then.
    Resume,
    /// Ends the VM in good order: stops the guest as [`Request::Pause`] does, finishes what it had asked of its
    /// disks, lets go of them, answers [`Reply::Done`] and exits with
    /// [`ExitReason::ShutDown`](crate::ExitReason::ShutDown). The guest is not asked: that is its agent's
    /// task, and comes first. There is no way back.
    ShutDown,
    /// Gives the VM a new generation ID, for one that is now another than it was; a guest that knows the device
    /// seeds its random numbers anew.
    RenewGeneration,
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
    /// Answer to [`Request::MeasureDisk`].
    DiskSize {
        /// The disk's capacity.
        bytes: u64,
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
    /// Whether the guest runs.
    #[serde(default)]
    pub state: VmState,
    /// How much of the guest's memory the host holds, in bytes.
    #[serde(default)]
    pub guest_memory_bytes: u64,
    /// How often virtual CPUs left the guest for the VMM, by reason. What KVM deals with itself is not
    /// counted.
    #[serde(default)]
    pub exits: Vec<ExitCount>,
    /// Per device.
    pub devices: Vec<DeviceCounters>,
}

/// Whether a guest runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmState {
    /// It does, or does as soon as the VMM is ready.
    #[default]
    Running,
    /// It shall stop and not everything of it has.
    Pausing,
    /// It stands still.
    Paused,
}

/// Exits of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitCount {
    /// `mmio-read`, `mmio-write`, `port-read`, `port-write`, `interrupted`, `other`.
    pub reason: String,
    /// How often.
    pub count: u64,
}

/// What one device has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceCounters {
    /// `ro0`, `rw0`, `vsock`, `rng`, `balloon`, `net`, `volumes`, `console`; `platform` for the machine's other ports.
    pub device: String,
    /// Requests or packets that were served.
    pub requests: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Requests that were refused or failed.
    pub errors: u64,
    /// Reads and writes of the device's registers and ports that left the guest for the VMM.
    #[serde(default)]
    pub accesses: u64,
}

/// A connection that the guest opened, on the feed. One descriptor comes with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestConnection {
    /// The host port that the guest dialled.
    pub port: u32,
}
