//! The limit on what all downloads together take from the network.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Lets so many bytes through in a second. Who takes some waits until the time that they need at
/// this rate has passed; nothing is saved up while nobody downloads.
pub(crate) struct Limiter {
    bytes_per_second: u64,
    /// When the bytes that have been taken so far are paid for.
    free: Mutex<Option<Instant>>,
}

impl Limiter {
    /// Zero is no limit.
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            free: Mutex::new(None),
        }
    }

    pub(crate) async fn take(&self, bytes: u64) {
        if self.bytes_per_second == 0 {
            return;
        }
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let until = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let until = free.map_or(now, |free| free.max(now)) + cost;
            *free = Some(until);
            until
        };
        tokio::time::sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::Limiter;
    use std::time::Duration;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn two_downloads_share_the_rate() {
        let limiter = Limiter::new(1000);
        let start = Instant::now();
        let download = || async {
            for _ in 0..10 {
                limiter.take(100).await;
            }
        };
        tokio::join!(download(), download());
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(1999), "{took:?}");
        assert!(took <= Duration::from_millis(2100), "{took:?}");
        Limiter::new(0).take(u64::MAX).await;
        assert_eq!(start.elapsed(), took);
    }
}
