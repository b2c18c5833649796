//! The caller's deadline, carried into the work that a call starts.
//!
//! The ttrpc server drops a handler when its time is up. Work that goes on without the handler
//! (an actor's) gets the deadline in this form and ends a little earlier, so that the answer can
//! say what it was waiting for.

use crate::{Error, Result};
use std::future::Future;
use std::time::Duration;
use tokio::time::Instant;

/// A point in time, or never.
#[derive(Debug, Clone, Copy, Default)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// No deadline.
    pub const NEVER: Self = Self(None);

    /// From a ttrpc time-out in nanoseconds; 0 or less is never.
    pub fn from_timeout_ns(timeout: i64) -> Self {
        let Ok(timeout @ 1..) = u64::try_from(timeout) else {
            return Self::NEVER;
        };
        let timeout = Duration::from_nanos(timeout);
        let margin = (timeout / 10).min(Duration::from_millis(200));
        Self(Instant::now().checked_add(timeout.saturating_sub(margin)))
    }

    /// This long from now.
    pub fn after(duration: Duration) -> Self {
        Self(Instant::now().checked_add(duration))
    }

    /// Waits for `work`; when the time is up first, `what` says what was waited for.
    pub async fn limit<T>(
        self,
        what: impl FnOnce() -> String,
        work: impl Future<Output = T>,
    ) -> Result<T> {
        match self.0 {
            None => Ok(work.await),
            Some(at) => tokio::time::timeout_at(at, work)
                .await
                .map_err(|_| Error::Deadline(what())),
        }
    }
}
