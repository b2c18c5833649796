//! Shared volumes: files and directories of the node that a container sees while the node uses them too
//! (`config.mounts`).
//!
//! The pod's file daemon, `bulkhead-fs`, is started with the pod's first volume. Each volume is a mount below the
//! root of its mount namespace, made from a detached copy of the mount that the path meant when the container was
//! created ([`tree`]); nothing is resolved by path a second time. The VMM relays between the guest and the daemon
//! (`bulkhead_vmm_api::bounce`).

mod copy;
mod direct;
mod follow;
mod front_end;
mod gauges;
mod ids;
mod keep;
mod kubelet;
mod mirrors;
mod process;
mod shares;
mod tree;

use crate::place::Place;
use crate::record::FileDaemonRecord;
use crate::sandbox::Sandbox;
use crate::store::blocking;
use crate::{Result, SandboxError};
use process::FileDaemon;
use shares::Shares;
use std::sync::PoisonError;
use tokio::sync::{Mutex, Notify};

pub use gauges::FileDaemonGauges;

pub(crate) use direct::{Device as DirectDevice, bind as bind_direct};
pub(crate) use follow::{Follower, Watches};
pub(crate) use kubelet::EmptyDir;
pub(crate) use mirrors::Mirrors;
pub(crate) use shares::SharedVolume;
pub(crate) use tree::{Kind, Volume, open};

/// What a file daemon is started for.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) sandbox: &'a Sandbox,
    pub(crate) place: &'a dyn Place,
}

/// The shared volumes of a pod.
pub(crate) struct PodVolumes {
    pod: String,
    state: Mutex<State>,
    /// Changed only while `state` is locked.
    shares: std::sync::Mutex<Shares>,
    /// The pod's first file daemon has been started.
    begun: Notify,
}

/// A pod's file daemon.
enum State {
    /// There was none yet.
    None,
    /// The last one, which may have ended.
    Last(FileDaemon),
    /// It has ended, and its mount namespace with it; why.
    Lost(String),
}

impl PodVolumes {
    /// None yet.
    pub(crate) fn new(pod: &str) -> Self {
        Self::with(pod, State::None)
    }

    /// Those of a pod whose file daemon, if it has one, an earlier daemon started. If that has ended since, the
    /// volumes are lost, and the pod lives without them.
    pub(crate) fn adopt(pod: &str, record: Option<&FileDaemonRecord>) -> Self {
        let state = match record.map(|record| FileDaemon::find(pod, record)) {
            None => State::None,
            Some(Ok(daemon)) => State::Last(daemon),
            Some(Err(error)) => {
                let cause = format!("it ended while no bulkhead ran: {error}");
                tracing::warn!(pod, cause, "The pod has lost its shared volumes");
                State::Lost(cause)
            }
        };
        Self::with(pod, state)
    }

    fn with(pod: &str, state: State) -> Self {
        Self {
            pod: pod.to_owned(),
            state: Mutex::new(state),
            shares: std::sync::Mutex::default(),
            begun: Notify::new(),
        }
    }

    /// A container that an earlier daemon made has these volumes.
    pub(crate) fn adopt_container(&self, container: &str, volumes: &[SharedVolume]) {
        for volume in volumes {
            self.shares().join(container, volume);
        }
    }

    /// Makes a container's volumes available to the guest, and answers by which names. The lock is held meanwhile: the
    /// second volume must not find a daemon that is half there.
    pub(crate) async fn attach(
        &self,
        parts: Parts<'_>,
        container: &str,
        volumes: &[Volume],
    ) -> Result<Vec<SharedVolume>> {
        let mut state = self.state.lock().await;
        if matches!(*state, State::None) {
            *state = State::Last(self.begin(parts).await?);
            self.begun.notify_one();
        }
        let daemon = self.serving(&state)?;
        let mut attached = Vec::new();
        for volume in volumes.iter().filter(|volume| !volume.is_local()) {
            let place = volume.shared_place.as_deref();
            let there = place.and_then(|place| self.shares().of_place(place));
            let shared = SharedVolume {
                index: volume.index,
                name: match &there {
                    Some(name) => name.clone(),
                    None => name(container, volume.index),
                },
                place: volume.shared_place.clone(),
            };
            if there.is_none() {
                let (namespace, tree) = (daemon.namespace()?, volume.tree()?);
                let (at, directory) = (shared.name.clone(), volume.is_directory);
                let done = blocking(move || Ok(tree::attach(namespace, tree, &at, directory)));
                done.await?.map_err(SandboxError::io(format!(
                    "hand {} to pod sandbox {}",
                    volume.host_path, self.pod
                )))?;
            }
            self.shares().join(container, &shared);
            attached.push(shared);
        }
        Ok(attached)
    }

    /// Takes a container's volumes away again but those that others have too; what is not there is left alone. Of a
    /// file daemon that has ended as well, so that the next one does not get them.
    pub(crate) async fn detach(&self, container: &str) -> Result<()> {
        let state = self.state.lock().await;
        if let State::Last(daemon) = &*state {
            let names = self.shares().only_of(container);
            for at in names {
                let namespace = daemon.namespace()?;
                let detached = blocking(move || Ok(tree::detach(namespace, &at)));
                detached.await?.map_err(SandboxError::io(format!(
                    "take a volume of container {container} away"
                )))?;
            }
        }
        self.shares().leave(container);
        Ok(())
    }

    fn shares(&self) -> std::sync::MutexGuard<'_, Shares> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the pod's first file daemon.
    async fn begin(&self, parts: Parts<'_>) -> Result<FileDaemon> {
        let (daemon, fds) = FileDaemon::start(&self.pod, parts, 1).await?;
        // Remembered first. A daemon that is started now finds one that serves, or one that is ending because
        // nobody has its connection.
        let sandbox = parts.sandbox;
        sandbox.remember_file_daemon(Some(daemon.record())).await?;
        match parts.place.bind_file_daemon(fds).await {
            Ok(()) => Ok(daemon),
            Err(error) => {
                sandbox.remember_file_daemon(None).await?;
                Err(error)
            }
        }
    }

    /// The file daemon, if it serves.
    fn serving<'a>(&self, state: &'a State) -> Result<&'a FileDaemon> {
        let pod = || self.pod.clone();
        match state {
            State::Last(daemon) => match daemon.ended() {
                None => Ok(daemon),
                Some(cause) => Err(SandboxError::FileDaemonEnded { pod: pod(), cause }),
            },
            State::Lost(cause) => Err(SandboxError::FileDaemonLost {
                pod: pod(),
                cause: cause.clone(),
            }),
            State::None => Err(SandboxError::NotFound {
                what: "file daemon of pod sandbox",
                id: pod(),
            }),
        }
    }
}

/// What a volume that no other container has is called below the daemon's root, and in the guest: at most 20 bytes.
pub(crate) fn name(container: &str, index: usize) -> String {
    let start: String = container.chars().take(12).collect();
    format!("{start}-{index}")
}

#[cfg(test)]
mod tests;
