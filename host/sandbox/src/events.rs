//! What happens to pods and containers, told to whoever subscribes.
//!
//! Each pod and each container tells its own events in the order of its life, each once: created,
//! started, stopped, deleted ([`Told`]). Nobody who tells waits for a subscriber: what a subscriber
//! has not taken when [`BACKLOG`] newer events have come is lost to it, and it learns that.

use crate::phases::wall_clock_ns;
use crate::record::{ContainerRecord, SandboxRecord};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::broadcast;

/// Events that a subscriber may lag behind.
pub const BACKLOG: usize = 1024;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// It is there.
    Created,
    /// It runs.
    Started,
    /// It has ended.
    Stopped,
    /// It is gone.
    Deleted,
}

/// Something that happened to a pod or one of its containers, and how the pod was then.
#[derive(Debug, Clone)]
pub struct PodEvent {
    /// Whose: a container's id, or the pod sandbox's own.
    pub id: String,
    /// What happened.
    pub kind: EventKind,
    /// When it was told, nanoseconds since the epoch.
    pub at: i64,
    /// The pod.
    pub sandbox: SandboxRecord,
    /// Its containers; one that was deleted is not among them.
    pub containers: Vec<ContainerRecord>,
}

/// The node's events; clones share them.
#[derive(Clone)]
pub(crate) struct Events {
    sender: broadcast::Sender<Arc<PodEvent>>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            sender: broadcast::Sender::new(BACKLOG),
        }
    }
}

impl Events {
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<PodEvent>> {
        self.sender.subscribe()
    }

    /// Tells an event; `pod` is asked for the pod's present state only if somebody listens.
    fn tell(
        &self,
        id: &str,
        kind: EventKind,
        pod: impl FnOnce() -> (SandboxRecord, Vec<ContainerRecord>),
    ) {
        if self.sender.receiver_count() == 0 {
            return;
        }
        let (sandbox, containers) = pod();
        let event = PodEvent {
            id: id.to_owned(),
            kind,
            at: wall_clock_ns(),
            sandbox,
            containers,
        };
        // The last subscriber may have gone meanwhile.
        let _ = self.sender.send(Arc::new(event));
    }
}

/// Which events of a pod or a container have been told. Those who find out that it was created,
/// started, stopped and deleted are different tasks; this puts them in order.
#[derive(Debug, Default)]
pub(crate) struct Told {
    life: Mutex<Life>,
}

#[derive(Debug, Default)]
struct Life {
    created: bool,
    started: bool,
    stopped: bool,
    /// It ended before it was told to be there.
    held: Option<Ran>,
}

/// Whether what has ended had run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ran {
    /// Its program was started.
    Yes,
    /// It never ran.
    No,
}

impl Told {
    /// Of one that an earlier daemon left: what it told is not told again.
    pub(crate) fn already(started: bool, stopped: bool) -> Self {
        let life = Life {
            created: true,
            started,
            stopped,
            held: None,
        };
        Self {
            life: Mutex::new(life),
        }
    }

    /// It is there. `tell` is called for each event that is due, in order, under the lock.
    pub(crate) fn created(&self, mut tell: impl FnMut(EventKind)) {
        let mut life = self.lock();
        if !life.created {
            life.created = true;
            tell(EventKind::Created);
        }
        if let Some(ran) = life.held.take() {
            life.stop(ran, &mut tell);
        }
    }

    pub(crate) fn started(&self, mut tell: impl FnMut(EventKind)) {
        self.lock().start(&mut tell);
    }

    pub(crate) fn stopped(&self, ran: Ran, mut tell: impl FnMut(EventKind)) {
        let mut life = self.lock();
        match life.created {
            true => life.stop(ran, &mut tell),
            false => life.held = Some(ran),
        }
    }

    /// It is gone; one that was never told to be there has no events.
    pub(crate) fn deleted(&self, ran: Ran, mut tell: impl FnMut(EventKind)) {
        let mut life = self.lock();
        if life.created {
            life.stop(ran, &mut tell);
            tell(EventKind::Deleted);
            *life = Life::default();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Life {
    fn start(&mut self, tell: &mut impl FnMut(EventKind)) {
        if self.created && !self.started && !self.stopped {
            self.started = true;
            tell(EventKind::Started);
        }
    }

    fn stop(&mut self, ran: Ran, tell: &mut impl FnMut(EventKind)) {
        if self.stopped {
            return;
        }
        if ran == Ran::Yes {
            self.start(tell);
        }
        self.stopped = true;
        tell(EventKind::Stopped);
    }
}

impl crate::Sandbox {
    /// Tells an event of this pod or of one of its containers.
    pub(crate) fn tell(&self, id: &str, kind: EventKind) {
        self.services.events.tell(id, kind, || {
            let containers = self.containers();
            let records = containers.iter().map(|container| container.record());
            (self.record(), records.collect())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::EventKind::{Created, Deleted, Started, Stopped};
    use super::{EventKind, Ran, Told};

    fn log(tell: impl FnOnce(&Told, &mut Vec<EventKind>)) -> Vec<EventKind> {
        let mut events = Vec::new();
        tell(&Told::default(), &mut events);
        events
    }

    #[test]
    fn whoever_is_first_the_order_is_that_of_a_life() {
        let whole = [Created, Started, Stopped, Deleted];
        let straight = log(|told, events| {
            told.created(|kind| events.push(kind));
            told.started(|kind| events.push(kind));
            told.stopped(Ran::Yes, |kind| events.push(kind));
            told.deleted(Ran::Yes, |kind| events.push(kind));
        });
        assert_eq!(straight, whole);
        let end_first = log(|told, events| {
            told.stopped(Ran::Yes, |kind| events.push(kind));
            assert!(events.is_empty(), "nothing before it is there");
            told.created(|kind| events.push(kind));
            told.started(|kind| events.push(kind));
            told.deleted(Ran::Yes, |kind| events.push(kind));
        });
        assert_eq!(end_first, whole);
        let removed_first = log(|told, events| {
            told.created(|kind| events.push(kind));
            told.deleted(Ran::Yes, |kind| events.push(kind));
            told.started(|kind| events.push(kind));
            told.stopped(Ran::Yes, |kind| events.push(kind));
        });
        assert_eq!(removed_first, whole);
    }

    #[test]
    fn what_never_ran_was_never_started_and_what_was_never_there_has_no_events() {
        let unused = log(|told, events| {
            told.created(|kind| events.push(kind));
            told.stopped(Ran::No, |kind| events.push(kind));
            told.deleted(Ran::No, |kind| events.push(kind));
        });
        assert_eq!(unused, [Created, Stopped, Deleted]);
        let failed = log(|told, events| {
            told.stopped(Ran::No, |kind| events.push(kind));
            told.deleted(Ran::No, |kind| events.push(kind));
        });
        assert_eq!(failed, []);
        let told = Told::already(true, false);
        let mut events = Vec::new();
        told.started(|kind| events.push(kind));
        told.stopped(Ran::Yes, |kind| events.push(kind));
        assert_eq!(events, [Stopped]);
    }
}
