//! Keeps the mirrors of volumes in a guest at what the volumes have.

use super::follow::{Follower, Watches};
use super::tree;
use crate::agent::Agent;
use crate::error::Kind;
use crate::{Result, SandboxError};
use bulkhead_cri::v1;
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;

/// Between two attempts to bring a mirror up to date, at first and at most.
const PAUSE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// The mirrors of a pod's containers. Dropped, they are left as they are.
#[derive(Default)]
pub(crate) struct Mirrors(Mutex<HashMap<String, JoinSet<()>>>);

impl Mirrors {
    /// Has a container's mirror follow its volume.
    pub(crate) fn keep(&self, container: &str, name: String, follower: Follower, agent: Agent) {
        let mut all = self.lock();
        let tasks = all.entry(container.to_owned()).or_default();
        tasks.spawn(keep(container.to_owned(), name, follower, agent));
    }

    /// Has the mirrors of a container that an earlier daemon made follow their volumes again, from what is there
    /// now. A volume that is gone leaves its mirror as it is.
    ///
    /// # Errors
    /// The node has no inotify watch left.
    pub(crate) async fn adopt(
        &self,
        container: &str,
        mounts: &[v1::Mount],
        watches: &Watches,
        agent: &Agent,
    ) -> Result<()> {
        for (index, place) in tree::find_mirrored(mounts).await? {
            let mut follower = watches.follow(place.as_fd())?;
            follower.look();
            self.keep(
                container,
                super::name(container, index),
                follower,
                agent.clone(),
            );
        }
        Ok(())
    }

    /// The container is gone.
    pub(crate) fn leave(&self, container: &str) {
        self.lock().remove(container);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, JoinSet<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn keep(container: String, name: String, mut follower: Follower, agent: Agent) {
    while follower.changed().await {
        let [mut pause, longest] = PAUSE;
        loop {
            match agent.update_mirror(&name).await {
                Ok(()) => break,
                Err(SandboxError::PlaceEnded { .. }) => return,
                Err(error) if error.kind() == Kind::NotFound => return,
                Err(error) => {
                    tracing::warn!(container, %error, "A change of a volume does not reach its container yet");
                }
            }
            // A newer change is as good a reason to try again as time.
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                there = follower.changed() => if !there { return },
            }
            pause = longest.min(2 * pause);
        }
    }
}
