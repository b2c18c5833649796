//! Where an agent runs: the seam between a sandbox and the virtual machine under it.
//!
//! A sandbox knows its place only by this trait: a way to reach the agent, disks that can be bound,
//! and an end. A caged process on the host could be another kind of place.

use crate::Result;
use async_trait::async_trait;
use bulkhead_vmm_api::{DiskSlot, NetworkLimits};
use std::os::fd::OwnedFd;
use tokio::net::UnixStream;

/// Where an agent runs.
#[async_trait]
pub(crate) trait Place: Send + Sync {
    /// Connects to a port of the agent's.
    async fn dial(&self, port: u32) -> Result<UnixStream>;

    /// Puts a raw disk image behind a slot; the agent finds it by the slot's serial.
    async fn bind_disk(&self, slot: DiskSlot, disk: OwnedFd) -> Result<()>;

    /// Empties a slot; the image is no longer used when this returns.
    async fn unbind_disk(&self, slot: DiskSlot) -> Result<()>;

    /// Takes over what has been added to a slot's file or device; tells its size in bytes.
    async fn measure_disk(&self, slot: DiskSlot) -> Result<u64>;

    /// Puts a tap, by its queues, behind the network interface of this number.
    async fn bind_tap(
        &self,
        interface: u8,
        queues: Vec<OwnedFd>,
        limits: NetworkLimits,
    ) -> Result<()>;

    /// Has a file daemon serve the shared volumes; the descriptors are those of
    /// [`Request::BindFileDaemon`](bulkhead_vmm_api::Request::BindFileDaemon).
    async fn bind_file_daemon(&self, fds: Vec<OwnedFd>) -> Result<()>;

    /// Waits until the place has ended, and says why. May be awaited often and dropped at any time.
    async fn ended(&self) -> String;

    /// Ends it at once, whatever runs in it, and waits until its processes are gone.
    async fn end(&self);
}
