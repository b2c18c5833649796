//! The one place where children are waited for.
//!
//! A thread waits for any child. It looks first (`WNOWAIT`) and reaps under the lock that also
//! covers a spawn, so a child is in the table before it can be reaped, and its pid is its own
//! until then. Children that nobody asked for (orphans of containers, when the agent is PID 1 or a
//! subreaper) are reaped and forgotten.

use crate::Result;
use crate::error::Context;
pub use crate::sys::process::Status;
use crate::sys::process::{reap, wait_for_any};
use crate::sys::spawn::{Spawn, Spawned};
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Where the end of one process is told.
pub type ExitReceiver = oneshot::Receiver<Status>;

/// Waits for all children of this process. There must be one only, and nobody else may wait.
#[derive(Debug, Clone)]
pub struct Reaper(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    table: Mutex<HashMap<i32, oneshot::Sender<Status>>>,
    /// Signalled when there is a child again.
    spawned: Condvar,
}

impl Reaper {
    /// Starts the thread.
    pub fn start() -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let reaper = Self(shared.clone());
        std::thread::Builder::new()
            .name("reaper".to_owned())
            .stack_size(64 * 1024)
            .spawn(move || shared.run())
            .context(|| "Cannot start the reaper thread")?;
        Ok(reaper)
    }

    /// Makes a child, whose end will be told.
    pub fn spawn(&self, spawn: &Spawn<'_>) -> std::io::Result<(Spawned, ExitReceiver)> {
        let (sender, receiver) = oneshot::channel();
        let mut table = self.0.table();
        let spawned = spawn.run()?;
        table.insert(spawned.pid.as_raw_nonzero().get(), sender);
        drop(table);
        self.0.spawned.notify_one();
        Ok((spawned, receiver))
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, HashMap<i32, oneshot::Sender<Status>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        loop {
            match wait_for_any() {
                Ok(pid) => self.reap(pid),
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {
                    // No children: then no orphans either, until there is a child again. Whether
                    // there is one is asked once more under the lock that a spawn holds.
                    let table = self.table();
                    if table.is_empty() {
                        drop(self.spawned.wait(table));
                    }
                }
                // An interruption.
                Err(_) => {}
            }
        }
    }

    fn reap(&self, pid: libc::pid_t) {
        let mut table = self.table();
        let status = reap(pid);
        let sender = table.remove(&pid);
        drop(table);
        if let (Ok(status), Some(sender)) = (status, sender) {
            // Nobody may want to know any more.
            let _ = sender.send(status);
        }
    }
}
