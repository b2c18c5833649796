//! Rate limits of the interface, one for each direction, which all pairs of queues share.

use crate::rate::Limiter;
use crate::sync::lock;
use bulkhead_vmm_api::{NetworkLimits, RateLimits};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The limit of one direction.
#[derive(Debug, Default)]
pub(super) struct Limit(Option<Mutex<Limiter>>);

impl Limit {
    fn new(limits: &RateLimits) -> Self {
        let limiter = Limiter::new(limits, Instant::now());
        Self((!limiter.is_unlimited()).then(|| Mutex::new(limiter)))
    }

    /// How long the next packet has to wait. How long it is shows only when it has been moved, so the
    /// buckets may be left in debt; then the next one waits until it is repaid.
    pub(super) fn wait(&self) -> Option<Duration> {
        lock(self.0.as_ref()?).wait(0, Instant::now())
    }

    /// A packet of this many bytes was moved.
    pub(super) fn spend(&self, bytes: usize) {
        if let Some(limiter) = &self.0 {
            lock(limiter).spend(1, bytes as u64);
        }
    }
}

/// The limits of both directions.
#[derive(Debug, Default)]
pub(super) struct Limits {
    pub(super) ingress: Limit,
    pub(super) egress: Limit,
}

impl Limits {
    pub(super) fn new(limits: &NetworkLimits) -> Self {
        Self {
            ingress: Limit::new(&limits.ingress),
            egress: Limit::new(&limits.egress),
        }
    }
}

/// How far a direction has come within a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing is left to do.
    Idle,
    /// There may be more.
    More,
    /// The next packet has to wait this long.
    Wait(Duration),
}
