//! A pod sandbox and the one task that drives it.
//!
//! ```text
//!              agent configured
//!   Starting --------------------> Ready
//!      |                            |  \
//!      | failed, stopped            |   \ stop asked for
//!      v                            |    v
//!    Ended <------------------------+  Stopping
//!      ^        the place ended by itself  |
//!      +-----------------------------------+
//! ```
//!
//! Only the driver ([`drive()`]) moves the state. Others ask it to stop ([`Sandbox::stop`]) and watch.
//! Ended means that nothing of the pod is left on the node but its record: the VMM's process, its
//! cgroup and its directory are gone.

use crate::agent::Agent;
use crate::cgroup::PodCgroup;
use crate::config::NodeConfig;
use crate::container::Container;
use crate::disks::PodDisks;
use crate::events::{Events, Ran, Told};
use crate::place::Place;
use crate::record::{FileDaemonRecord, SandboxRecord, SandboxState};
use crate::scratch::ScratchMaker;
use crate::stats::{Rate, Silence};
use crate::store::Store;
use crate::vm::Users;
use crate::volumes::{Mirrors, PodVolumes, Watches};
use crate::{Result, SandboxError};
use bulkhead_agent_api::agent::Exit;
use bulkhead_cri::v1::LinuxContainerResources;
use bulkhead_network::Networks;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

mod boot;
mod configure;
mod drive;
mod network;

pub(crate) use drive::{drive, drive_adopted, take_down};

/// What all sandboxes of the node share.
pub(crate) struct Services {
    pub(crate) config: NodeConfig,
    pub(crate) store: Store,
    pub(crate) scratch: ScratchMaker,
    pub(crate) users: Users,
    pub(crate) events: Events,
    pub(crate) networks: Networks,
    pub(crate) watches: Watches,
}

/// A pod sandbox.
pub struct Sandbox {
    pub(crate) services: Arc<Services>,
    record: Mutex<SandboxRecord>,
    /// Held while the record goes to the store, so that the newest is the last.
    storing: tokio::sync::Mutex<()>,
    /// Held by the one who changes its limits.
    pub(crate) updates: tokio::sync::Mutex<()>,
    state: watch::Sender<SandboxState>,
    stop: CancellationToken,
    running: OnceLock<Arc<Running>>,
    containers: Mutex<BTreeMap<String, Arc<Container>>>,
    told: Told,
    pub(crate) rate: Rate,
    pub(crate) silence: Silence,
}

/// What a sandbox has from Ready on.
pub(crate) struct Running {
    pub(crate) place: Arc<dyn Place>,
    pub(crate) agent: Agent,
    pub(crate) disks: PodDisks,
    pub(crate) volumes: PodVolumes,
    pub(crate) mirrors: Mirrors,
    pub(crate) exits: Exits,
}

/// Who waits for the end of which exec.
#[derive(Default)]
pub(crate) struct Exits {
    waiting: Mutex<HashMap<String, oneshot::Sender<Exit>>>,
}

impl Exits {
    /// Must be called before the process is started, so that its end cannot be missed.
    pub(crate) fn expect(&self, exec_id: &str) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        self.lock().insert(exec_id.to_owned(), sender);
        receiver
    }

    pub(crate) fn forget(&self, exec_id: &str) {
        self.lock().remove(exec_id);
    }

    fn tell(&self, exit: Exit) {
        if let Some(sender) = self.lock().remove(&exit.exec_id) {
            // Nobody may be interested any more.
            let _ = sender.send(exit);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, oneshot::Sender<Exit>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sandbox {
    pub(crate) fn new(services: Arc<Services>, record: SandboxRecord) -> Arc<Self> {
        let told = match &record.state {
            SandboxState::Starting => Told::default(),
            SandboxState::Ended { .. } => Told::already(true, true),
            SandboxState::Ready | SandboxState::Stopping => Told::already(true, false),
        };
        Arc::new(Self {
            services,
            told,
            rate: Rate::default(),
            silence: Silence::default(),
            state: watch::Sender::new(record.state.clone()),
            record: Mutex::new(record),
            storing: tokio::sync::Mutex::default(),
            updates: tokio::sync::Mutex::default(),
            stop: CancellationToken::new(),
            running: OnceLock::new(),
            containers: Mutex::default(),
        })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> String {
        self.lock_record().id.clone()
    }

    /// What is remembered of it, with its present state.
    #[must_use]
    pub fn record(&self) -> SandboxRecord {
        SandboxRecord {
            state: self.state.borrow().clone(),
            ..self.lock_record().clone()
        }
    }

    /// Reads what is remembered of it and its present state without a copy. The record is locked meanwhile.
    pub fn read<T>(&self, read: impl FnOnce(&SandboxRecord, &SandboxState) -> T) -> T {
        let state = self.state.borrow().clone();
        read(&self.lock_record(), &state)
    }

    /// Its containers.
    #[must_use]
    pub fn containers(&self) -> Vec<Arc<Container>> {
        self.lock_containers().values().cloned().collect()
    }

    pub(crate) fn add_container(&self, container: &Arc<Container>) {
        self.lock_containers()
            .insert(container.id().to_owned(), Arc::clone(container));
    }

    pub(crate) fn forget_container(&self, id: &str) {
        self.lock_containers().remove(id);
    }

    /// The way to the agent, while the sandbox is ready.
    pub(crate) fn running(&self) -> Result<Arc<Running>> {
        let state = self.state.borrow().clone();
        match (state, self.running.get()) {
            (SandboxState::Ready, Some(running)) => Ok(Arc::clone(running)),
            (state, _) => Err(SandboxError::WrongState {
                what: "Pod sandbox",
                id: self.id(),
                state: match &state {
                    SandboxState::Ended { cause } => format!("{} ({cause})", state.word()),
                    _ => state.word().to_owned(),
                },
                needed: "it must be ready for this",
            }),
        }
    }

    /// Takes the sandbox down and waits until nothing of it is left. Any number of callers may do
    /// so, at any time.
    pub async fn stop(&self) {
        self.stop.cancel();
        let mut state = self.state.subscribe();
        // The driver holds a reference to the sender, so this cannot fail before it is Ended.
        let _ = state
            .wait_for(|state| matches!(state, SandboxState::Ended { .. }))
            .await;
    }

    /// Takes the sandbox down, and does not wait for it.
    pub(crate) fn ask_to_stop(&self) {
        self.stop.cancel();
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self.services.config.state.join("pods").join(self.id())
    }

    /// It is ready, for the first time.
    fn tell_ready(&self) {
        let id = self.id();
        self.told.created(|kind| self.tell(&id, kind));
        self.told.started(|kind| self.tell(&id, kind));
    }

    /// It has been removed.
    pub(crate) fn tell_deleted(&self) {
        let id = self.id();
        self.told.deleted(Ran::Yes, |kind| self.tell(&id, kind));
    }

    pub(crate) fn cgroup(&self) -> PodCgroup {
        PodCgroup::at(&self.lock_record().cgroup)
    }

    /// Remembers which devices of the node its slots have.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn remember_devices(&self, disks: &PodDisks) -> Result<()> {
        let _turn = self.storing.lock().await;
        let record = {
            let devices = disks.devices().await;
            self.lock_record().block_volumes = devices;
            self.record()
        };
        match record.state {
            // The record may be gone already.
            SandboxState::Ended { .. } => Ok(()),
            _ => self.services.store.put_sandbox(&record).await,
        }
    }

    /// Puts the file daemon into the store.
    pub(crate) async fn remember_file_daemon(
        &self,
        daemon: Option<FileDaemonRecord>,
    ) -> Result<()> {
        let _turn = self.storing.lock().await;
        self.lock_record().file_daemon = daemon;
        let record = self.record();
        match record.state {
            SandboxState::Ended { .. } => Ok(()),
            _ => self.services.store.put_sandbox(&record).await,
        }
    }

    /// Limits that have been set, those of the store.
    pub(crate) async fn remember_resources(&self, new: LinuxContainerResources) -> Result<()> {
        let _turn = self.storing.lock().await;
        let record = SandboxRecord {
            resources: Some(new.clone()),
            ..self.record()
        };
        if !matches!(record.state, SandboxState::Ended { .. }) {
            self.services.store.put_sandbox(&record).await?;
        }
        self.lock_record().resources = Some(new);
        Ok(())
    }

    /// Intent first: the store knows before anybody else does.
    async fn enter(&self, state: SandboxState) {
        let _turn = self.storing.lock().await;
        let record = SandboxRecord {
            state: state.clone(),
            ..self.lock_record().clone()
        };
        if let Err(error) = self.services.store.put_sandbox(&record).await {
            tracing::error!(pod = record.id, %error, "The pod's state could not be stored");
        }
        self.state.send_replace(state);
    }

    fn lock_record(&self) -> std::sync::MutexGuard<'_, SandboxRecord> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_containers(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Container>>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
