//! How long the phases of RunPodSandbox took.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Durations in nanoseconds, in the order in which the phases follow one another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phases {
    /// Validation, store, directory, cgroup, scratch disk.
    pub prepare_ns: u64,
    /// Network namespace made, CNI plugins executed.
    #[serde(default)]
    pub network_ns: u64,
    /// From the start of the VMM's process to the guest's first instruction.
    pub vmm_start_ns: u64,
    /// From there to the agent's first instruction.
    pub kernel_ns: u64,
    /// From there until the agent's announcement arrived.
    pub agent_ready_ns: u64,
    /// Scratch disk bound, agent configured.
    pub configure_ns: u64,
    /// Part of `kernel_ns`: the guest's own count (CLOCK_BOOTTIME) at the agent's first instruction.
    #[serde(default)]
    pub guest_boot_ns: u64,
}

impl Phases {
    /// Names for people, with the durations.
    #[must_use]
    pub fn rows(&self) -> [(&'static str, Duration); 6] {
        [
            ("prepare", Duration::from_nanos(self.prepare_ns)),
            ("network", Duration::from_nanos(self.network_ns)),
            ("VMM start", Duration::from_nanos(self.vmm_start_ns)),
            ("kernel", Duration::from_nanos(self.kernel_ns)),
            ("agent ready", Duration::from_nanos(self.agent_ready_ns)),
            ("configure", Duration::from_nanos(self.configure_ns)),
        ]
    }

    /// All phases together.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.rows().iter().map(|(_, duration)| *duration).sum()
    }
}

/// CLOCK_MONOTONIC in nanoseconds, the clock of the VMM's own time stamps.
pub(crate) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // The clock counts from the node's boot, so neither part is negative.
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Nanoseconds since the epoch.
pub(crate) fn wall_clock_ns() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since
        .ok()
        .and_then(|since| i64::try_from(since.as_nanos()).ok())
        .unwrap_or(0)
}
