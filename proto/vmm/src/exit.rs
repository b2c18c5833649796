//! Why a VMM ended, as its exit status tells it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a VMM process ended. The number is its exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum ExitReason {
    /// The guest powered itself off.
    GuestPowerOff = 0,
    /// The VMM could not start: bad configuration, no KVM, bad kernel image.
    StartFailed = 10,
    /// The guest asked for a reset. Bulkhead's guests do not reboot, so this too is an end.
    GuestReset = 11,
    /// The guest kernel panicked.
    GuestPanic = 12,
    /// A virtual CPU met a triple fault.
    TripleFault = 13,
    /// KVM reported an error or an exit that the VMM does not know.
    KvmError = 14,
    /// A bug in the VMM.
    Internal = 15,
    /// The daemon asked for it.
    Killed = 16,
    /// The daemon asked for it, and everything that the guest had asked of its disks was done before.
    ShutDown = 17,
}

impl ExitReason {
    /// Every reason.
    pub const ALL: [Self; 9] = [
        Self::GuestPowerOff,
        Self::StartFailed,
        Self::GuestReset,
        Self::GuestPanic,
        Self::TripleFault,
        Self::KvmError,
        Self::Internal,
        Self::Killed,
        Self::ShutDown,
    ];

    /// The exit status that stands for this reason.
    #[must_use]
    pub fn status(self) -> u8 {
        self as u8
    }

    /// Whether the guest ended in a way that its console may explain.
    #[must_use]
    pub fn is_guests_fault(self) -> bool {
        matches!(
            self,
            Self::GuestReset | Self::GuestPanic | Self::TripleFault | Self::KvmError
        )
    }

    /// The reason behind an exit status, if it is one of ours.
    #[must_use]
    pub fn from_status(status: i32) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|reason| i32::from(reason.status()) == status)
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GuestPowerOff => "the guest powered off",
            Self::StartFailed => "the VMM could not start",
            Self::GuestReset => "the guest asked for a reset",
            Self::GuestPanic => "the guest kernel panicked",
            Self::TripleFault => "a virtual CPU met a triple fault",
            Self::KvmError => "KVM reported an error",
            Self::Internal => "internal error in the VMM",
            Self::Killed => "killed by the daemon",
            Self::ShutDown => "shut down by the daemon",
        })
    }
}
