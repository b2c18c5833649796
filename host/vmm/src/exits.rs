//! How often a virtual CPU left the guest, and why.

use bulkhead_vmm_api::ExitCount;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why KVM_RUN returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Exit {
    /// The guest read a device's memory.
    MmioRead,
    /// The guest wrote a device's memory.
    MmioWrite,
    /// The guest read a port.
    PortRead,
    /// The guest wrote a port.
    PortWrite,
    /// A signal came for the thread, or KVM had something to do first.
    Interrupted,
    /// Anything else.
    Other,
}

const NAMES: [&str; 6] = [
    "mmio-read",
    "mmio-write",
    "port-read",
    "port-write",
    "interrupted",
    "other",
];

/// One virtual CPU's exits to this process. What KVM deals with itself (page faults, halts, timers,
/// notifications) does not come here.
#[derive(Debug, Default)]
pub struct Exits([AtomicU64; NAMES.len()]);

impl Exits {
    /// Counts one.
    pub fn count(&self, exit: Exit) {
        if let Some(counter) = self.0.get(exit as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The sums over several CPUs.
    #[must_use]
    pub fn sum(cpus: &[Self]) -> Vec<ExitCount> {
        let sum = |index: usize| {
            cpus.iter()
                .filter_map(|exits| exits.0.get(index))
                .map(|counter| counter.load(Ordering::Relaxed))
                .sum()
        };
        NAMES
            .iter()
            .enumerate()
            .map(|(index, name)| ExitCount {
                reason: (*name).to_owned(),
                count: sum(index),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Exit, Exits};

    #[test]
    fn exits_are_summed_by_reason() {
        let cpus = [Exits::default(), Exits::default()];
        cpus[0].count(Exit::MmioRead);
        cpus[1].count(Exit::MmioRead);
        cpus[1].count(Exit::Other);
        let sums: Vec<_> = Exits::sum(&cpus)
            .into_iter()
            .map(|count| (count.reason, count.count))
            .filter(|(_, count)| *count > 0)
            .collect();
        assert_eq!(sums, [("mmio-read".to_owned(), 2), ("other".to_owned(), 1)]);
    }
}
