//! What a VMM is told when it starts.

use serde::{Deserialize, Serialize};
use std::os::fd::RawFd;

/// The kernel command line of every pod's guest, for [`VmmConfig::cmdline`].
///
/// - `console=ttyS0`: the serial console, whose newest part the VMM keeps. Each byte costs an exit,
///   so `quiet` leaves only warnings and worse; a panic is always shown.
/// - `panic=-1`: a panic ends the VM at once.
/// - `reboot=a`: the reset is ACPI's, without trying others first.
/// - `pci=off`: there is no PCI bus to look for.
/// - `swiotlb=noforce`: no 64 MiB of bounce buffers, which virtio devices of this machine never use.
/// - `tsc=reliable`: KVM keeps the clock; no watchdog needs to compare it with another.
/// - `percpu_alloc=page`: per-CPU memory in pages; in 2 MiB units its bookkeeping takes 4 MiB more of
///   a guest with one CPU.
/// - `dummy.numdummies=0`: no interface `dummy0` in the pod that nobody has asked for.
/// - `random.trust_cpu=on`: entropy is there before virtio-rng is.
/// - `sysctl.vm.percpu_pagelist_high_fraction=128`: what a CPU keeps of freed pages for itself is bounded;
///   otherwise it may be an eighth of the guest's memory, which goes back to the host late.
///
/// Nothing in it names a device: those are found through ACPI.
pub const GUEST_CMDLINE: &str = "console=ttyS0 quiet panic=-1 reboot=a pci=off swiotlb=noforce \
     tsc=reliable percpu_alloc=page dummy.numdummies=0 random.trust_cpu=on \
     sysctl.vm.percpu_pagelist_high_fraction=128";

/// The machine and the descriptors that the VMM inherits.
///
/// The descriptors are numbers in the VMM's own table; each must be open and of the kind named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmmConfig {
    /// Number of virtual CPUs, 1 to 32.
    pub vcpus: u8,
    /// Guest memory in MiB, at least 64.
    pub memory_mib: u64,
    /// Guest kernel command line; the same for every pod.
    pub cmdline: String,
    /// `/dev/kvm`.
    pub kvm_fd: RawFd,
    /// The guest kernel, an ELF image, open for reading.
    pub kernel_fd: RawFd,
    /// The initramfs, open for reading.
    pub initrd_fd: RawFd,
    /// Listening `SOCK_SEQPACKET` socket for control.
    pub control_fd: RawFd,
    /// Listening `SOCK_STREAM` socket for connections into the guest.
    pub vsock_fd: RawFd,
    /// Read-only disk slots (serials [`DiskSlot::ReadOnly`] 0 to n-1), all empty at boot.
    pub read_only_slots: u8,
    /// Read-write disk slots (serials [`DiskSlot::ReadWrite`] 0 to n-1), all empty at boot.
    pub read_write_slots: u8,
    /// How many network interfaces the machine has, at most [`MAX_INTERFACES`], their taps bound later.
    pub network_interfaces: u8,
    /// Freshly opened `/dev/vhost-net`, one for each pair of queues of each network interface: the host's
    /// kernel moves their packets then. Without any the VMM does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vhost_net_fds: Vec<RawFd>,
    /// Whether the machine has a device for shared volumes, its file daemon bound later.
    #[serde(default)]
    pub shared_volumes: bool,
    /// The user that the VMM becomes, its own among all processes of the host; not 0.
    pub uid: u32,
    /// The group that the VMM becomes; not 0.
    pub gid: u32,
    /// The pod's network namespace. Without it the VMM makes an empty one for itself.
    pub network_namespace_fd: Option<RawFd>,
}

/// The tag by which a guest mounts the shared volumes (virtio 1.2, 5.11.4), at most 36 bytes.
pub const VOLUMES_TAG: &str = "bulkhead";

/// The most network interfaces that a machine has.
pub const MAX_INTERFACES: u8 = 8;

/// The most pairs of queues that a network interface has.
pub const MAX_QUEUE_PAIRS: usize = 8;

/// How many pairs of queues each network interface of a machine with this many virtual CPUs has: one each,
/// up to [`MAX_QUEUE_PAIRS`].
#[must_use]
pub fn queue_pairs(vcpus: u8) -> usize {
    usize::from(vcpus).clamp(1, MAX_QUEUE_PAIRS)
}

/// A disk slot of the fixed machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskSlot {
    /// For images: the device refuses writes.
    ReadOnly(u8),
    /// For scratch disks and block volumes.
    ReadWrite(u8),
}

impl DiskSlot {
    /// The serial number by which the guest finds the disk (`/sys/block/*/serial`): `ro0`, `rw0`, ...
    #[must_use]
    pub fn serial(self) -> String {
        match self {
            Self::ReadOnly(index) => format!("ro{index}"),
            Self::ReadWrite(index) => format!("rw{index}"),
        }
    }
}
