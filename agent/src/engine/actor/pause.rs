//! Pausing, resuming and changing the limits of a running container.

use super::{Actor, Command, Phase, Reply, answer, lock, log};
use crate::blocking::blocking;
use crate::deadline::Deadline;
use crate::{Error, Result, spec};
use std::sync::Arc;

/// Who waits for a pause, and whether there is one.
#[derive(Default)]
pub(super) struct Pauses {
    frozen: bool,
    /// Of the newest pause. An earlier one's end is no news.
    number: u64,
    waiting: Vec<Reply<()>>,
    /// One change of limits at a time.
    updates: Arc<tokio::sync::Mutex<()>>,
}

impl Pauses {
    pub(super) fn is_paused(&self) -> bool {
        self.frozen
    }

    /// The container has ended.
    pub(super) fn forget(&mut self, result: &Result<()>) {
        self.frozen = false;
        answer(self.waiting.drain(..), result);
    }
}

impl Actor {
    /// Stops the processes; the answer comes when all have stopped.
    pub(super) fn pause(&mut self, deadline: Deadline, reply: Reply<()>) {
        if self.phase != Phase::Running || !self.removers.is_empty() {
            let _ = reply.send(Err(self.does_not_run()));
            return;
        }
        if self.pauses.frozen {
            if lock(&self.snapshot).paused {
                let _ = reply.send(Ok(()));
            } else {
                self.pauses.waiting.push(reply);
            }
            return;
        }
        if let Err(error) = self.cgroup.freeze(true) {
            let _ = reply.send(Err(error));
            return;
        }
        self.pauses.frozen = true;
        self.pauses.number += 1;
        self.pauses.waiting.push(reply);
        let (id, number) = (self.id.clone(), self.pauses.number);
        let (cgroup, commands) = (self.cgroup.clone(), self.commands.clone());
        tokio::spawn(async move {
            let what = || format!("Container {id} has processes that do not stop");
            let stopped = deadline.limit(what, cgroup.frozen(true));
            let result = stopped.await.and_then(|result| result);
            // An actor that is gone has removed the container.
            let _ = commands.send(Command::Paused(number, result)).await;
        });
    }

    /// Everything has stopped, or not in time: then everything goes on.
    pub(super) fn paused(&mut self, number: u64, result: &Result<()>) {
        if !self.pauses.frozen || number != self.pauses.number {
            return;
        }
        match result {
            Ok(()) => lock(&self.snapshot).paused = true,
            Err(_) => {
                log(self.cgroup.freeze(false));
                self.pauses.frozen = false;
            }
        }
        answer(self.pauses.waiting.drain(..), result);
    }

    /// Lets the processes go on; the answer comes when they do.
    pub(super) fn resume(&mut self, reply: Reply<()>) {
        if self.phase != Phase::Running {
            let _ = reply.send(Err(self.does_not_run()));
            return;
        }
        if !self.pauses.frozen {
            let _ = reply.send(Ok(()));
            return;
        }
        if let Err(error) = self.cgroup.freeze(false) {
            let _ = reply.send(Err(error));
            return;
        }
        let error = Err(Error::Precondition(format!(
            "Container {} was resumed while it was being paused",
            self.id
        )));
        self.pauses.forget(&error);
        lock(&self.snapshot).paused = false;
        let cgroup = self.cgroup.clone();
        tokio::spawn(async move {
            let result = cgroup.frozen(false).await;
            // The caller may have given up.
            let _ = reply.send(result);
        });
    }

    /// Sets new limits. Lowering a memory limit makes the kernel look for memory to free, which
    /// takes its time: not here.
    pub(super) fn update(&self, resources: Vec<u8>, reply: Reply<()>) {
        if self.phase == Phase::Exited || !self.removers.is_empty() {
            let _ = reply.send(Err(self.does_not_run()));
            return;
        }
        let (cgroup, turn) = (self.cgroup.clone(), self.pauses.updates.clone());
        tokio::spawn(async move {
            let _turn = turn.lock().await;
            let updated = blocking(move || {
                let (settings, check) = spec::parse_update(&resources)?;
                if check {
                    cgroup.check_memory(&settings)?;
                }
                cgroup.update(&settings)
            });
            // The caller may have given up.
            let _ = reply.send(updated.await);
        });
    }
}
