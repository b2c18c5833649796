//! How fast a counter of CPU time grows.

use std::sync::{Mutex, PoisonError};

/// The least time between two samples, nanoseconds: less tells chance only.
const LEAST: u64 = 1_000_000_000;

/// The newest sample, and the rate from the one before it.
#[derive(Debug, Default)]
pub(crate) struct Rate {
    newest: Mutex<Option<Sample>>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at_ns: u64,
    used_us: u64,
    nano_cores: Option<u64>,
}

impl Rate {
    /// Takes a sample and tells the rate between the newest two that are at least a second apart;
    /// nothing before there are two. A counter that went back begins anew.
    pub(crate) fn nano_cores(&self, at_ns: u64, used_us: u64) -> Option<u64> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let nano_cores = match *newest {
            Some(last) if at_ns.saturating_sub(last.at_ns) < LEAST => return last.nano_cores,
            Some(last) => used_us.checked_sub(last.used_us).and_then(|used_us| {
                let used_ns = u128::from(used_us) * 1000;
                let passed = u128::from(at_ns - last.at_ns);
                u64::try_from(used_ns * 1_000_000_000 / passed).ok()
            }),
            None => None,
        };
        *newest = Some(Sample {
            at_ns,
            used_us,
            nano_cores,
        });
        nano_cores
    }
}

#[cfg(test)]
mod tests {
    use super::Rate;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn two_samples_make_a_rate() {
        let rate = Rate::default();
        assert_eq!(rate.nano_cores(SECOND, 1_000_000), None);
        assert_eq!(rate.nano_cores(SECOND + 5, 9_000_000), None, "too soon");
        // Three seconds of CPU in two of time.
        assert_eq!(rate.nano_cores(3 * SECOND, 4_000_000), Some(1_500_000_000));
        let soon = rate.nano_cores(3 * SECOND + 7, 4_000_100);
        assert_eq!(soon, Some(1_500_000_000), "the last one holds");
        assert_eq!(rate.nano_cores(5 * SECOND, 4_000_000), Some(0));
        assert_eq!(rate.nano_cores(7 * SECOND, 0), None, "it went back");
        assert_eq!(rate.nano_cores(8 * SECOND, 500_000), Some(500_000_000));
        assert_eq!(rate.nano_cores(10 * SECOND, u64::MAX), None, "nonsense");
    }
}
