//! The events of the agent: numbered from 1, the newest kept in a ring for subscribers that come
//! (back) later.

use crate::{Error, Result};
use bulkhead_agent_api::agent::{Event, Exit};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// How many events the ring holds.
pub const RING: usize = 1024;

/// All events, past and to come.
#[derive(Debug)]
pub struct Events {
    ring: Mutex<Ring>,
    /// The newest sequence number, for those who wait.
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    last: u64,
    events: VecDeque<Event>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            ring: Mutex::default(),
            newest: watch::Sender::new(0),
        }
    }
}

impl Events {
    /// Adds an event and wakes the subscribers. Returns its sequence number.
    pub fn push(&self, exit: Exit) -> u64 {
        let mut ring = self.ring();
        ring.last += 1;
        let sequence = ring.last;
        if ring.events.len() == RING {
            ring.events.pop_front();
        }
        let mut event = Event::new();
        event.sequence = sequence;
        event.exit = Some(exit).into();
        ring.events.push_back(event);
        drop(ring);
        self.newest.send_replace(sequence);
        sequence
    }

    /// The newest sequence number, 0 before the first event.
    pub fn last(&self) -> u64 {
        self.ring().last
    }

    /// The events after `after`, oldest first; empty when there is none yet.
    pub fn after(&self, after: u64) -> Result<Vec<Event>> {
        let ring = self.ring();
        let oldest = ring.last - ring.events.len() as u64;
        if after < oldest || after > ring.last {
            return Err(Error::OutOfRange(format!(
                "Events after {after} are not held: the ring has {} to {}",
                oldest + 1,
                ring.last
            )));
        }
        let skip = usize::try_from(after - oldest).unwrap_or(usize::MAX);
        Ok(ring.events.iter().skip(skip).cloned().collect())
    }

    /// Waits until there is an event after `after`.
    pub async fn wait(&self, after: u64) {
        // The sender lives as long as self: there is no other error.
        let _ = self
            .newest
            .subscribe()
            .wait_for(|newest| *newest > after)
            .await;
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "events/tests.rs"]
mod tests;
