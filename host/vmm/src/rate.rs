//! Rate limits: token buckets for requests and for bytes, and the timer that wakes a device when it may
//! go on.
//!
//! A bucket of `burst` tokens gains `per_second` of them. A request goes when the bucket holds what it
//! costs, or is full if it costs more than the bucket holds; then the bucket is left in debt, so that the
//! average is kept whatever the sizes. Nothing is rounded: tokens are counted in billionths. All times
//! are the caller's, so that nothing here has to be waited for in tests.

use crate::error::Error;
use bulkhead_vmm_api::{Rate, RateLimits};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Parts of a token: one per nanosecond at one token a second.
const PARTS: i128 = 1_000_000_000;

/// A token bucket.
#[derive(Debug, Clone)]
struct Bucket {
    per_second: i128,
    /// In parts of tokens.
    burst: i128,
    /// In parts of tokens; below zero after a request larger than the bucket.
    level: i128,
    updated: Instant,
}

impl Bucket {
    /// A full bucket. A rate of 0 would stop a device for ever; it is taken as 1.
    fn new(rate: Rate, now: Instant) -> Self {
        let burst = i128::from(rate.burst.max(1)) * PARTS;
        Self {
            per_second: i128::from(rate.per_second.max(1)),
            burst,
            level: burst,
            updated: now,
        }
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.updated);
        let nanoseconds = i128::try_from(elapsed.as_nanos()).unwrap_or(i128::MAX);
        let gained = nanoseconds.saturating_mul(self.per_second);
        self.level = self.level.saturating_add(gained).min(self.burst);
        self.updated = self.updated.max(now);
    }

    /// How long until `tokens` can be spent; nothing when it is now. `refill` was called.
    fn wait(&self, tokens: u64) -> Option<Duration> {
        let needed = i128::from(tokens).saturating_mul(PARTS).min(self.burst);
        let missing = needed.saturating_sub(self.level);
        if missing <= 0 {
            return None;
        }
        // Rounded up, so that the wait is never in vain.
        let nanoseconds = missing.saturating_add(self.per_second - 1) / self.per_second;
        Some(Duration::from_nanos(
            u64::try_from(nanoseconds).unwrap_or(u64::MAX),
        ))
    }

    fn spend(&mut self, tokens: u64) {
        let parts = i128::from(tokens).saturating_mul(PARTS);
        self.level = self.level.saturating_sub(parts);
    }
}

/// The limits of one device, or of one direction of it.
#[derive(Debug, Clone, Default)]
pub struct Limiter {
    ops: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Limiter {
    /// Full buckets. Without limits everything goes at once and costs nothing.
    #[must_use]
    pub fn new(limits: &RateLimits, now: Instant) -> Self {
        let bucket = |rate: Rate| Bucket::new(rate, now);
        Self {
            ops: limits.ops.map(bucket),
            bytes: limits.bytes.map(bucket),
        }
    }

    /// Whether nothing is limited.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        self.ops.is_none() && self.bytes.is_none()
    }

    /// Spends one request of this many bytes.
    ///
    /// # Errors
    /// How long it has to wait. Nothing was spent then.
    pub fn take(&mut self, bytes: u64, now: Instant) -> Result<(), Duration> {
        match self.wait(bytes, now) {
            Some(wait) => Err(wait),
            None => {
                self.spend(1, bytes);
                Ok(())
            }
        }
    }

    /// How long a request of this many bytes has to wait; nothing when it may go now.
    pub fn wait(&mut self, bytes: u64, now: Instant) -> Option<Duration> {
        let mut longest = None;
        for (bucket, cost) in [(&mut self.ops, 1), (&mut self.bytes, bytes)] {
            if let Some(bucket) = bucket {
                bucket.refill(now);
                longest = longest.max(bucket.wait(cost));
            }
        }
        longest
    }

    /// Spends tokens, into debt if need be: for what is known only when it has happened.
    pub fn spend(&mut self, ops: u64, bytes: u64) {
        for (bucket, cost) in [(&mut self.ops, ops), (&mut self.bytes, bytes)] {
            if let Some(bucket) = bucket {
                bucket.spend(cost);
            }
        }
    }
}

/// A timer on a descriptor, readable once its time has come.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn new() -> Result<Self, Error> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        timerfd_create(TimerfdClockId::Monotonic, flags)
            .map(Self)
            .map_err(Error::host("create a timer"))
    }

    /// Sets the timer, once; an earlier setting is replaced.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn set(&self, wait: Duration) -> Result<(), Error> {
        // A time of zero would switch it off.
        let wait = wait.max(Duration::from_nanos(1));
        let time = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(wait.subsec_nanos()),
            },
        };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &time)
            .map(drop)
            .map_err(Error::host("set a timer"))
    }

    /// Makes the descriptor unreadable until the timer is set and over again.
    pub fn clear(&self) {
        // It is non-blocking; there is nothing to read when it is not over.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests;
