//! A container of a pod.
//!
//! ```text
//!             start              exit event, log complete
//!   Created ---------> Running ---------------------------> Exited
//!      |                                                      ^
//!      +---- start refused, killed, or the place has ended ---+
//! ```
//!
//! [`Container::start`] alone moves to Running; the pod's driver, which receives the agent's events,
//! alone moves to Exited.

use crate::events::{Ran, Told};
use crate::io::{ContainerIo, Pump};
use crate::phases::wall_clock_ns;
use crate::record::{ContainerRecord, ContainerState, ExitRecord, Identity};
use crate::sandbox::{Running, Sandbox};
use crate::stats::Rate;
use crate::{Result, SandboxError};
use bulkhead_agent_api::agent::{self, Exit};
use bulkhead_cri::v1::LinuxContainerResources;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// SIGKILL.
const KILL: u32 = 9;
/// Why a container ended whose program could not be run.
const START_ERROR: &str = "StartError";

/// What a container needs to know of its image.
#[derive(Debug, Clone, Default)]
pub struct ContainerImage {
    /// Digest of the image's configuration.
    pub id: String,
    /// By which it can be pulled again.
    pub reference: String,
    /// The image's entrypoint.
    pub entrypoint: Vec<String>,
    /// The image's default arguments.
    pub cmd: Vec<String>,
    /// The image's variables, `NAME=value`.
    pub env: Vec<String>,
    /// The image's working directory, empty for none.
    pub working_dir: String,
    /// The image's user, `user[:group]`, empty for root.
    pub user: String,
    /// The image's stop signal, empty for SIGTERM.
    pub stop_signal: String,
}

/// A container of a pod.
pub struct Container {
    pub(crate) sandbox: Arc<Sandbox>,
    record: ContainerRecord,
    state: watch::Sender<ContainerState>,
    started_at: AtomicI64,
    pid: AtomicU32,
    /// Set once: it does not change.
    identity: OnceLock<Identity>,
    pub(crate) io: Arc<ContainerIo>,
    pump: Mutex<Option<JoinHandle<()>>>,
    /// What holds now; the record has what it was made with.
    resources: Mutex<Option<LinuxContainerResources>>,
    told: Told,
    pub(crate) rate: Rate,
    /// Held by the one who brings it to its end, so that a second waits for the first.
    ending: tokio::sync::Mutex<()>,
    /// Held by the one who changes its limits.
    pub(crate) updates: tokio::sync::Mutex<()>,
    /// Held by the one who removes it.
    removal: tokio::sync::Mutex<()>,
    /// Once true, the store is not written again.
    removed: tokio::sync::Mutex<bool>,
}

impl Container {
    /// One that is being made.
    pub(crate) fn new(sandbox: Arc<Sandbox>, record: ContainerRecord) -> Arc<Self> {
        Self::with(sandbox, record, Told::default())
    }

    /// One that an earlier daemon left.
    pub(crate) fn restored(sandbox: Arc<Sandbox>, record: ContainerRecord) -> Arc<Self> {
        let told = match &record.state {
            ContainerState::Created => Told::already(false, false),
            ContainerState::Running { .. } => Told::already(true, false),
            ContainerState::Exited(_) => Told::already(true, true),
        };
        Self::with(sandbox, record, told)
    }

    fn with(sandbox: Arc<Sandbox>, record: ContainerRecord, told: Told) -> Arc<Self> {
        let started_at = match &record.state {
            ContainerState::Running { started_at } => *started_at,
            _ => 0,
        };
        Arc::new(Self {
            sandbox,
            told,
            rate: Rate::default(),
            ending: tokio::sync::Mutex::default(),
            state: watch::Sender::new(record.state.clone()),
            started_at: AtomicI64::new(started_at),
            pid: AtomicU32::new(record.pid),
            identity: record
                .identity
                .clone()
                .map(OnceLock::from)
                .unwrap_or_default(),
            resources: Mutex::new(
                record
                    .config
                    .linux
                    .as_ref()
                    .and_then(|linux| linux.resources.clone()),
            ),
            updates: tokio::sync::Mutex::default(),
            record,
            io: Arc::default(),
            pump: Mutex::default(),
            removal: tokio::sync::Mutex::default(),
            removed: tokio::sync::Mutex::default(),
        })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// What is remembered of it, with its present state.
    #[must_use]
    pub fn record(&self) -> ContainerRecord {
        let mut record = ContainerRecord {
            state: self.state(),
            pid: self.pid.load(Ordering::Acquire),
            identity: self.identity.get().cloned(),
            ..self.record.clone()
        };
        if let Some(resources) = self.resources() {
            let linux = record.config.linux.get_or_insert_default();
            linux.resources = Some(resources);
        }
        record
    }

    /// What it was made as, without a copy: what changes later is not in it.
    #[must_use]
    pub fn made(&self) -> &ContainerRecord {
        &self.record
    }

    /// Its limits as they are now.
    pub(crate) fn resources(&self) -> Option<LinuxContainerResources> {
        let resources = self.resources.lock();
        resources.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_resources(&self, new: LinuxContainerResources) {
        let resources = self.resources.lock();
        *resources.unwrap_or_else(PoisonError::into_inner) = Some(new);
    }

    /// Takes what the agent tells of its first process.
    pub(crate) fn set_process(&self, pid: u32, identity: Option<agent::Identity>) {
        self.pid.store(pid, Ordering::Release);
        if let Some(identity) = identity {
            // One that is known already is the same.
            let _ = self.identity.set(Identity::from_agent(identity));
        }
    }

    /// Its OCI specification as JSON, as the agent got it.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn spec(&self) -> Result<Option<Vec<u8>>> {
        self.sandbox.services.store.spec(self.id()).await
    }

    /// Where it is in its life.
    #[must_use]
    pub fn state(&self) -> ContainerState {
        self.state.borrow().clone()
    }

    /// Connects the output streams, which go to the log, and the input stream.
    pub(crate) async fn connect_streams(&self, running: &Running) -> Result<()> {
        let ids = self.record.streams;
        let path = &self.record.log_path;
        self.io
            .log
            .open(path)
            .await
            .map_err(SandboxError::io(format!("open the log {}", path.display())))?;
        if ids.stdin != 0 {
            self.io
                .set_stdin(running.agent.stream(ids.stdin).await?)
                .await;
        }
        let mut outputs = [None, None];
        for (output, id) in outputs.iter_mut().zip([ids.stdout, ids.stderr]) {
            if id != 0 {
                *output = Some(running.agent.stream(id).await?);
            }
        }
        let pump = Pump {
            container: self.record.id.clone(),
            io: Arc::clone(&self.io),
        };
        let [stdout, stderr] = outputs;
        let task = pump.spawn(stdout, stderr);
        *self.pump.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        Ok(())
    }

    /// Lets the container's program run.
    ///
    /// # Errors
    /// [`SandboxError::WrongState`] unless it is created; the agent's refusal, NOT_FOUND if the
    /// program is not in the image: then the container has exited with status 128.
    pub async fn start(&self) -> Result<()> {
        let running = self.sandbox.running()?;
        if self.state() != ContainerState::Created {
            return Err(self.wrong_state("only a created container can be started"));
        }
        let now = wall_clock_ns();
        self.started_at.store(now, Ordering::Release);
        running.agent.start_container(self.id()).await?;
        self.state.send_if_modified(|state| {
            // It may have exited already.
            let created = *state == ContainerState::Created;
            if created {
                *state = ContainerState::Running { started_at: now };
            }
            created
        });
        self.told.started(|kind| self.tell(kind));
        self.store().await
    }

    /// Goes on writing the log to a new file at its path, after somebody has moved the old one away.
    /// No line is lost or comes twice.
    ///
    /// # Errors
    /// [`SandboxError::WrongState`] unless it runs; the file cannot be opened.
    pub async fn reopen_log(&self) -> Result<()> {
        if !matches!(self.state(), ContainerState::Running { .. }) {
            return Err(self.wrong_state("only the log of a running container can be reopened"));
        }
        let path = &self.record.log_path;
        let opened = self.io.log.open(path).await;
        opened.map_err(SandboxError::io(format!(
            "reopen the log {}",
            path.display()
        )))
    }

    /// Stops the container: its stop signal, `grace` to end by itself, then SIGKILL. Returns when
    /// it has exited and its log is complete. Any number of callers may do so at once.
    ///
    /// # Errors
    /// Those of the agent.
    pub async fn stop(&self, grace: Duration) -> Result<()> {
        if let ContainerState::Running { .. } = self.state()
            && !grace.is_zero()
        {
            self.signal("", self.record.stop_signal, false).await?;
            if tokio::time::timeout(grace, self.exited()).await.is_ok() {
                return Ok(());
            }
            tracing::info!(
                container = self.id(),
                ?grace,
                "Killing what did not stop in time"
            );
        }
        self.kill().await
    }

    /// Kills every process of the container and waits until it has exited.
    ///
    /// # Errors
    /// Those of the agent.
    pub async fn kill(&self) -> Result<()> {
        if !matches!(self.state(), ContainerState::Exited(_)) {
            self.signal("", KILL, true).await?;
            self.exited().await;
        }
        Ok(())
    }

    pub(crate) async fn signal(&self, exec: &str, signal: u32, all: bool) -> Result<()> {
        let Ok(running) = self.sandbox.running() else {
            // The driver is about to mark it exited, for its place has ended.
            return Ok(());
        };
        match running.agent.signal(self.id(), exec, signal, all).await {
            Err(SandboxError::PlaceEnded { .. }) => Ok(()),
            result => result,
        }
    }

    /// Checks that its streams can be joined.
    ///
    /// # Errors
    /// [`SandboxError::WrongState`] unless it runs.
    pub fn check_running(&self, needed: &'static str) -> Result<()> {
        match self.state() {
            ContainerState::Running { .. } => Ok(()),
            _ => Err(self.wrong_state(needed)),
        }
    }

    /// Sets the size of the terminal, in characters.
    ///
    /// # Errors
    /// Those of the agent.
    pub async fn resize(&self, width: u32, height: u32) -> Result<()> {
        self.sandbox
            .running()?
            .agent
            .resize(self.id(), "", (width, height))
            .await
    }

    /// Waits until it has exited, and tells how.
    pub async fn exited(&self) -> ExitRecord {
        let mut state = self.state.subscribe();
        let exited = state
            .wait_for(|state| matches!(state, ContainerState::Exited(_)))
            .await;
        match exited.as_deref() {
            Ok(ContainerState::Exited(exit)) => exit.clone(),
            _ => ExitRecord::default(),
        }
    }

    /// Watches its output from now on, to its end.
    #[must_use]
    pub fn watch_output(&self) -> crate::Viewer {
        self.io.watch()
    }

    /// Writes to its standard input; what comes after the end is dropped.
    pub async fn write_stdin(&self, bytes: &[u8]) {
        self.io.write_stdin(bytes).await;
    }

    /// Ends its standard input.
    pub async fn close_stdin(&self) {
        self.io.close_stdin().await;
    }

    /// The driver's part: the agent says that it has exited. Becomes visible when the log is
    /// complete.
    pub(crate) async fn on_exit(&self, exit: Exit) {
        let code = i32::try_from(exit.code).unwrap_or(255);
        let (reason, message) = match (exit.error.is_empty(), exit.oom_killed, code) {
            (false, _, _) => (START_ERROR, exit.error),
            (true, true, _) => ("OOMKilled", String::new()),
            (true, false, 0) => ("Completed", String::new()),
            (true, false, _) => ("Error", String::new()),
        };
        let finished_at = i64::try_from(exit.finished_ns).unwrap_or_else(|_| wall_clock_ns());
        self.finish(code, reason, message, finished_at).await;
    }

    /// The driver's part: the pod's place has ended, and the container with it.
    pub(crate) async fn on_place_ended(&self, cause: &str) {
        let message = format!("The pod's VM has ended: {cause}");
        self.finish(137, "SandboxEnded", message, wall_clock_ns())
            .await;
    }

    fn tell(&self, kind: crate::EventKind) {
        self.sandbox.tell(self.id(), kind);
    }

    /// It can be used from now on.
    pub(crate) fn tell_created(&self) {
        self.told.created(|kind| self.tell(kind));
    }

    /// Whether its program was started, by what is known at its end.
    fn ran(&self) -> Ran {
        let refused = match self.state() {
            ContainerState::Exited(exit) => exit.reason == START_ERROR,
            _ => false,
        };
        match self.started_at.load(Ordering::Acquire) != 0 && !refused {
            true => Ran::Yes,
            false => Ran::No,
        }
    }

    async fn finish(&self, code: i32, reason: &str, message: String, finished_at: i64) {
        let _turn = self.ending.lock().await;
        let pump = self
            .pump
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(pump) = pump
            && let Err(error) = pump.await
        {
            tracing::error!(container = self.id(), %error, "The task that writes the log failed");
        }
        let started_at = match reason {
            START_ERROR => 0,
            _ => self.started_at.load(Ordering::Acquire),
        };
        let exit = ExitRecord {
            started_at,
            finished_at: within_life(finished_at, started_at.max(self.record.created_at)),
            code,
            reason: reason.to_owned(),
            message,
        };
        let changed = self.state.send_if_modified(|state| {
            let first = !matches!(state, ContainerState::Exited(_));
            if first {
                *state = ContainerState::Exited(exit);
            }
            first
        });
        if !changed {
            return;
        }
        if let Err(error) = self.store().await {
            tracing::error!(container = self.id(), %error, "The exit could not be stored");
        }
        self.told.stopped(self.ran(), |kind| self.tell(kind));
    }

    /// Writes the present state to the store, unless the container has been removed.
    pub(crate) async fn store(&self) -> Result<()> {
        let removed = self.removed.lock().await;
        match *removed {
            true => Ok(()),
            false => {
                self.sandbox
                    .services
                    .store
                    .put_container(&self.record())
                    .await
            }
        }
    }

    /// Kills it, removes what it has in the guest and its record. The second of two callers waits
    /// for the first and finds nothing to do.
    pub(crate) async fn remove(&self) -> Result<()> {
        let _turn = self.removal.lock().await;
        if *self.removed.lock().await {
            return Ok(());
        }
        if let Ok(running) = self.sandbox.running() {
            self.kill().await?;
            let gone = async {
                running.agent.remove_container(self.id()).await?;
                running.mirrors.leave(self.id());
                running.volumes.detach(self.id()).await?;
                let place = running.place.as_ref();
                running.disks.give_back(place, self.id()).await
            };
            match gone.await {
                // With its place everything of it in the guest is gone.
                Err(SandboxError::PlaceEnded { .. }) => {}
                result => result?,
            }
        }
        let mut removed = self.removed.lock().await;
        self.sandbox
            .services
            .store
            .delete_container(self.id())
            .await?;
        *removed = true;
        self.sandbox.forget_container(self.id());
        self.told.deleted(self.ran(), |kind| self.tell(kind));
        Ok(())
    }

    pub(crate) fn wrong_state(&self, needed: &'static str) -> SandboxError {
        let state = match self.state() {
            ContainerState::Created => "created",
            ContainerState::Running { .. } => "running",
            ContainerState::Exited(_) => "exited",
        };
        SandboxError::WrongState {
            what: "Container",
            id: self.id().to_owned(),
            state: state.to_owned(),
            needed,
        }
    }
}

/// The guest's clock is its own: an end is neither before its beginning nor in the future.
fn within_life(finished_at: i64, least: i64) -> i64 {
    finished_at.min(wall_clock_ns()).max(least)
}

impl std::fmt::Debug for Container {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Container")
            .field("record", &self.record())
            .finish_non_exhaustive()
    }
}
