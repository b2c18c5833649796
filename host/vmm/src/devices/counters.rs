//! What a device has done, for `Request::Status`.

use bulkhead_vmm_api::DeviceCounters;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters that any thread may raise.
#[derive(Debug, Default)]
pub struct Counters {
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
}

impl Counters {
    /// A request or packet was served, moving this many bytes.
    pub fn served(&self, bytes: u64) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A request was refused or failed.
    pub fn failed(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// Several counters together under a device's name.
    #[must_use]
    pub fn sum<'a>(counters: impl IntoIterator<Item = &'a Self>, device: &str) -> DeviceCounters {
        let mut sum = DeviceCounters {
            device: device.to_owned(),
            ..DeviceCounters::default()
        };
        for one in counters {
            let one = one.named(device);
            sum.requests += one.requests;
            sum.bytes += one.bytes;
            sum.errors += one.errors;
        }
        sum
    }

    /// The counters under a device's name.
    #[must_use]
    pub fn named(&self, device: &str) -> DeviceCounters {
        DeviceCounters {
            device: device.to_owned(),
            requests: self.requests.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            accesses: 0,
        }
    }
}
