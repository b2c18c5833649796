//! Which failures are worth another try, and when.

use crate::ImageError;
use crate::error::chain;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::{Duration, SystemTime};

/// How often the hosts of a registry are tried, if a failure may pass.
const MAX_ROUNDS: u32 = 5;
/// The same for a host that takes no connection: it may be about to start, or it is not there.
const MAX_CONNECTS: u32 = 2;
/// The longest pause, and the longest that a registry can ask for: beyond that the caller is better
/// off with an error.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Whether the same request may succeed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    Never,
    /// The host could not be connected to.
    Connect,
    /// After a pause.
    Later,
    /// The host says when.
    After(Duration),
}

/// Why a request failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: ImageError,
    pub(crate) again: Again,
}

impl Failure {
    pub(crate) fn never(error: ImageError) -> Self {
        Self {
            error,
            again: Again::Never,
        }
    }
}

/// What a status and its headers say about another try.
pub(crate) fn again(status: u16, headers: &HeaderMap) -> Again {
    if !matches!(status, 408 | 429 | 500 | 502 | 503 | 504) {
        return Again::Never;
    }
    let header = headers
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok());
    match header.and_then(|text| retry_after(text, SystemTime::now())) {
        None => Again::Later,
        Some(pause) if pause > MAX_PAUSE => Again::Never,
        Some(pause) => Again::After(pause),
    }
}

/// `Retry-After`: seconds or a date (RFC 9110, 10.2.3).
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text.trim()).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[derive(Debug)]
struct Candidate {
    /// In the list of the registry's hosts.
    host: usize,
    connects: u32,
    /// Not tried any more.
    out: bool,
    error: Option<ImageError>,
}

/// The order in which a registry's hosts are tried: all of them once, then, after a pause, those
/// again whose failure may pass.
#[derive(Debug)]
pub(crate) struct Rounds {
    candidates: Vec<Candidate>,
    /// Position of the next candidate.
    next: usize,
    /// Of the one that was given out last.
    current: usize,
    round: u32,
    pause: Duration,
    asked_pause: Duration,
}

impl Rounds {
    /// For these hosts of the registry's list.
    pub(crate) fn new(hosts: impl IntoIterator<Item = usize>, pause: Duration) -> Self {
        let candidate = |host| Candidate {
            host,
            connects: 0,
            out: false,
            error: None,
        };
        Self {
            candidates: hosts.into_iter().map(candidate).collect(),
            next: 0,
            current: 0,
            round: 0,
            pause,
            asked_pause: Duration::ZERO,
        }
    }

    /// The next host, when it is time; nothing when there is no hope left.
    pub(crate) async fn next(&mut self) -> Option<usize> {
        loop {
            while let Some(candidate) = self.candidates.get(self.next) {
                self.current = self.next;
                self.next += 1;
                if !candidate.out {
                    return Some(candidate.host);
                }
            }
            self.round += 1;
            if self.round >= MAX_ROUNDS || self.candidates.iter().all(|candidate| candidate.out) {
                return None;
            }
            tokio::time::sleep(self.pause_before_next()).await;
            self.next = 0;
        }
    }

    fn pause_before_next(&mut self) -> Duration {
        let own = self
            .pause
            .saturating_mul(1 << (self.round.clamp(1, 16) - 1));
        let asked = std::mem::take(&mut self.asked_pause);
        // Many nodes that were cut off together must not come back together.
        let jitter = RandomState::new().build_hasher().finish() % 256;
        let jitter = own.saturating_mul(jitter as u32) / 1024;
        own.saturating_add(jitter).min(MAX_PAUSE).max(asked)
    }

    /// The host that was given out last failed.
    pub(crate) fn failed(&mut self, failure: Failure) {
        if let Again::After(pause) = failure.again {
            self.asked_pause = self.asked_pause.max(pause);
        }
        if let Some(candidate) = self.candidates.get_mut(self.current) {
            candidate.connects += u32::from(failure.again == Again::Connect);
            candidate.out = failure.again == Again::Never || candidate.connects >= MAX_CONNECTS;
            tracing::info!(error = %chain(&failure.error), again = ?failure.again, "A request failed");
            candidate.error = Some(failure.error);
        }
    }

    /// The host that was given out last failed after it had sent much: most likely it goes on, so
    /// it is the next one again, and that counts as a first try.
    pub(crate) fn interrupted(&mut self, failure: Failure) {
        self.failed(failure);
        self.next = self.candidates.len();
        self.round = 0;
    }

    /// Everything that is known once more: the hosts, the pauses and the number of tries.
    pub(crate) fn restart(&mut self) {
        self.round = 0;
        self.next = 0;
    }

    /// The error that says most, with the others: that of the last host, which is the registry
    /// itself, unless only another host answered at all.
    pub(crate) fn into_error(self) -> Option<ImageError> {
        let candidates = self.candidates.into_iter();
        let mut errors: Vec<ImageError> = candidates.filter_map(|c| c.error).collect();
        let silent = |error: &ImageError| matches!(error, ImageError::RegistryUnreachable { .. });
        let weak =
            |error: &ImageError| silent(error) || matches!(error, ImageError::NotFound { .. });
        let last = errors.pop()?;
        let error = match errors.iter().rposition(|error| !weak(error)) {
            Some(at) if silent(&last) => {
                errors.push(last);
                errors.remove(at)
            }
            _ => last,
        };
        if errors.is_empty() {
            return Some(error);
        }
        let others: Vec<String> = errors.iter().map(|error| chain(error)).collect();
        Some(ImageError::NoHost {
            error: Box::new(error),
            others: others.join("; "),
        })
    }
}

#[cfg(test)]
mod tests;
