//! Virtio 1.2 without devices and, but for [`mmio`], without a transport.
//!
//! [`status`] is the one status machine, [`queue`] the split virtqueue that a device owns once it is
//! activated, [`buffers`] a checked descriptor chain, [`iovecs`] one for the kernel's vectored calls, [`notify`] how a device reaches its driver.

pub mod buffers;
pub mod iovecs;
pub mod mmio;
pub mod notify;
pub mod queue;
pub mod status;
#[cfg(test)]
pub(crate) mod testing;

use queue::Queue;
use std::fmt;
use vmm_sys_util::eventfd::EventFd;

/// VIRTIO_F_INDIRECT_DESC (6).
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX (6).
pub const F_EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_VERSION_1 (6).
pub const F_VERSION_1: u64 = 1 << 32;

/// A virtio device behind any transport.
///
/// The methods take `&self`: vCPU threads configure a device while its own thread serves the queues.
pub trait Device: Send + Sync + fmt::Debug {
    /// Device ID (5).
    fn id(&self) -> u32;

    /// Feature bits of the device type; the bits of the queue and the transport are added to them.
    fn features(&self) -> u64;

    /// Largest size of each queue, powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// How many of the queues, counted from the first, a driver with these features sets up; it needs
    /// not touch the rest, and the device is not given them.
    fn queues_in_use(&self, _features: u64) -> usize {
        self.queue_sizes().len()
    }

    /// Reads the configuration space; what lies beyond it reads as zero. `data` comes zeroed.
    fn read_config(&self, offset: usize, data: &mut [u8]);

    /// The driver is ready: the queues are the device's until [`Device::reset`].
    fn activate(&self, queues: Vec<Queue>, features: u64);

    /// Gives up the queues. Nothing touches guest memory for this device afterwards.
    fn reset(&self);

    /// Signalled when the driver notifies any queue, and once after activation.
    fn kick(&self) -> &EventFd;

    /// What is signalled when the driver notifies this queue, for a device that tells its queues apart.
    fn kick_of(&self, _queue: u16) -> &EventFd {
        self.kick()
    }
}

/// Copies the part of `space` at `offset` into `data`.
pub fn copy_config(space: &[u8], offset: usize, data: &mut [u8]) {
    let rest = space.get(offset..).unwrap_or_default();
    for (to, from) in data.iter_mut().zip(rest) {
        *to = *from;
    }
}
