//! The container engine: every container by name, one actor each.
//!
//! ```text
//!   create            start                 the program ends
//! ---------> Created ---------> Running ------------------------> Exited
//!    |          |                                                    |
//!    |          +--- refused to run, or killed before it ran ------->|
//!    +------------------- remove, in any state ----------------------+--> gone
//! ```
//! A container's [`actor`] takes commands one after the other and waits for nothing: whatever takes
//! time runs in a task of its own and sends the actor a message when it is done. So a kill is never
//! behind something else. What a list shows is a snapshot that the actor writes before it tells the
//! event, so that "list, then subscribe after `last_event`" misses nothing.

mod actor;
mod backing;
mod create;
mod devices;
mod launch;
mod namespaces;
mod stdio;
mod supervisor;
mod usage;

pub use backing::{Backing, GuestDisks, Image};
pub use stdio::StdioSpec;
pub(crate) use stdio::terminal_size;

use crate::blocking::blocking;
use crate::cgroup::Cgroup;
use crate::deadline::Deadline;
use crate::error::Context;
use crate::events::Events;
use crate::id::Id;
use crate::init::user::Identity;
use crate::pod::DirectVolumes;
use crate::reaper::Reaper;
use crate::streams::Hub;
use crate::{Error, Result, cgroup, sys};
use actor::Command;
use bulkhead_agent_api::agent::{ContainerState, ContainerStats, VolumeFigures};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::{OnceCell, mpsc, oneshot};
use usage::Usage;

/// The most containers that there can be at a time.
const MAX_CONTAINERS: usize = 1024;
/// Commands that may wait for an actor. It takes them at once; more means that something is broken.
const MAILBOX: usize = 256;

/// Where the engine keeps its things.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The cgroup for all containers, as `/sys/fs/cgroup/bulkhead`.
    pub cgroup: PathBuf,
    /// An empty directory, where each container mounts its root in its own mount namespace.
    pub mount_point: PathBuf,
}

/// What the actors share.
pub struct Shared {
    paths: Paths,
    /// The agent's program, which every process starts as.
    program: OwnedFd,
    reaper: Reaper,
    /// Set when the cgroup for the containers is there.
    cgroup_prepared: OnceCell<()>,
    /// Of the pod.
    namespaces: namespaces::Namespaces,
    /// Numbers the cgroups of execs.
    execs: AtomicU64,
    backing: Arc<dyn Backing>,
    stats_turn: tokio::sync::Mutex<()>,
    /// Memory in bytes that containers can have together, all that there is until it is known.
    spare_memory: AtomicU64,
    /// The streams.
    pub hub: Arc<Hub>,
    /// The events.
    pub events: Arc<Events>,
}

/// The engine.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    containers: Arc<Mutex<HashMap<Id, Entry>>>,
}

impl Shared {
    /// Makes the cgroup for the containers, once.
    async fn prepare_cgroup(&self) -> Result<()> {
        let make = || async {
            let path = self.paths.cgroup.clone();
            blocking(move || cgroup::prepare(&path)).await
        };
        self.cgroup_prepared.get_or_try_init(make).await.map(drop)
    }
}

struct Entry {
    commands: mpsc::Sender<Command>,
    snapshot: Arc<Mutex<ContainerState>>,
    /// Set when the container is there.
    figures: Arc<OnceLock<Figures>>,
}

/// Where a container's figures come from. Reading them has nothing to do with its actor.
#[derive(Clone)]
struct Figures {
    cgroup: Arc<Cgroup>,
    usage: Arc<Usage>,
}

/// The first process of a container, which waits.
#[derive(Debug)]
pub struct Created {
    /// In the first pid namespace.
    pub pid: u32,
    /// Who it is, unless it has too many groups to tell.
    pub identity: Option<Identity>,
}

impl Created {
    /// As a message.
    pub(crate) fn identity_message(&self) -> Option<bulkhead_agent_api::agent::Identity> {
        self.identity.as_ref().map(|identity| {
            let mut message = bulkhead_agent_api::agent::Identity::new();
            message.uid = identity.uid;
            message.gid = identity.gid;
            message.groups = identity.groups.clone();
            message
        })
    }
}

/// A container to create.
#[derive(Debug)]
pub struct CreateSpec {
    /// Its name.
    pub id: Id,
    /// The OCI runtime specification, JSON.
    pub spec: Vec<u8>,
    /// Serial of the disk with the image.
    pub image_disk: String,
    /// Its streams.
    pub stdio: StdioSpec,
    /// `user` or `user:group`, or empty.
    pub user: String,
    /// Whether the groups that the image has for the user are left out.
    pub strict_groups: bool,
    /// Its pid namespace.
    pub pid: PidNamespace,
    /// Whether it gets the guest's device nodes.
    pub guest_devices: bool,
    /// Disks that it sees as devices.
    pub block_devices: Vec<BlockDevice>,
}

/// A disk that a container sees as a device.
#[derive(Debug, Clone)]
pub struct BlockDevice {
    /// Serial of the disk.
    pub disk: String,
    /// The node's path in the container.
    pub path: String,
    /// Letters of "rwm".
    pub access: String,
    /// Permissions of the node.
    pub mode: u32,
    /// Owner of the node.
    pub uid: u32,
    /// Group of the node.
    pub gid: u32,
}

/// Which pid namespace a container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PidNamespace {
    /// What its specification says.
    Spec,
    /// That of the pod.
    Pod,
    /// That of another container.
    Of(Id),
}

/// A process to run in a container.
#[derive(Debug)]
pub struct ExecSpec {
    /// Its name.
    pub exec_id: Id,
    /// The `process` object, JSON.
    pub process: Vec<u8>,
    /// Its streams.
    pub stdio: StdioSpec,
    /// `user` or `user:group`, or empty.
    pub user: String,
    /// Whether the groups that the image has for the user are left out.
    pub strict_groups: bool,
}

impl Engine {
    /// Makes the engine. Needs a tokio runtime.
    pub fn new(paths: Paths, program: OwnedFd, backing: Arc<dyn Backing>) -> Result<Self> {
        std::fs::create_dir_all(&paths.mount_point)
            .context(|| format!("Cannot make {}", paths.mount_point.display()))?;
        Ok(Self {
            shared: Arc::new(Shared {
                paths,
                program,
                reaper: Reaper::start()?,
                cgroup_prepared: OnceCell::new(),
                namespaces: Default::default(),
                execs: AtomicU64::new(0),
                backing,
                stats_turn: tokio::sync::Mutex::default(),
                spare_memory: AtomicU64::new(u64::MAX),
                hub: Arc::default(),
                events: Arc::default(),
            }),
            containers: Arc::default(),
        })
    }

    /// Does ahead what the first container needs: turning controllers on makes the kernel wait for
    /// all CPUs, which is best done while nobody waits for it.
    pub async fn prepare(&self) -> Result<()> {
        self.shared.prepare_cgroup().await
    }

    /// Keeps memory (bytes) back from all containers together, for the agent and the kernel: when
    /// they use up the rest, it is one of them that the kernel ends.
    pub async fn reserve_memory(&self, reserve: u64) -> Result<()> {
        self.shared.prepare_cgroup().await?;
        let spare = cgroup::reserve_memory(&self.shared.paths.cgroup, reserve)?;
        self.shared.spare_memory.store(spare, Ordering::Release);
        Ok(())
    }

    /// Limits the memory of all containers together, in bytes; 0 and more than there is to spare is
    /// all that there is.
    pub async fn limit_memory(&self, bytes: u64) -> Result<()> {
        self.shared.prepare_cgroup().await?;
        let spare = self.shared.spare_memory.load(Ordering::Acquire);
        let limit = match bytes {
            0 => spare,
            bytes => bytes.min(spare),
        };
        cgroup::limit_memory(&self.shared.paths.cgroup, limit)
    }

    /// The streams, for their server.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.shared.hub
    }

    /// The events.
    pub fn events(&self) -> &Arc<Events> {
        &self.shared.events
    }

    /// Prepares a container and tells of its waiting process.
    pub async fn create(&self, spec: CreateSpec, deadline: Deadline) -> Result<Created> {
        let target = match &spec.pid {
            PidNamespace::Of(id) => Some(self.ask(id, Command::Target).await?),
            _ => None,
        };
        let (commands, mailbox) = mpsc::channel(MAILBOX);
        let snapshot = Arc::new(Mutex::new(ContainerState::new()));
        let (reply, answer) = oneshot::channel();
        let figures = Arc::new(OnceLock::new());
        {
            let mut containers = self.containers();
            if containers.contains_key(&spec.id) {
                return Err(Error::Exists(format!(
                    "Container {} exists already",
                    spec.id
                )));
            }
            if containers.len() >= MAX_CONTAINERS {
                return Err(Error::Exhausted(format!(
                    "There are {MAX_CONTAINERS} containers already"
                )));
            }
            let entry = Entry {
                commands: commands.clone(),
                snapshot: snapshot.clone(),
                figures: figures.clone(),
            };
            containers.insert(spec.id.clone(), entry);
        }
        let engine = self.clone();
        tokio::spawn(async move {
            let id = spec.id.clone();
            let start = actor::Start {
                spec,
                target,
                deadline,
                reply,
            };
            let failed = actor::run(
                engine.shared.clone(),
                start,
                commands,
                mailbox,
                snapshot.clone(),
                figures,
            )
            .await;
            engine.free(&id, &snapshot);
            if let Some(actor::Failed(reply, error)) = failed {
                // The caller may have given up.
                let _ = reply.send(Err(error));
            }
        });
        answer.await.unwrap_or_else(|_| Err(lost()))
    }

    /// Lets a container's program run.
    pub async fn start(&self, id: &Id) -> Result<()> {
        self.ask(id, Command::Start).await
    }

    /// Runs one more process. Returns its pid.
    pub async fn exec(&self, id: &Id, spec: ExecSpec) -> Result<u32> {
        self.ask(id, |reply| Command::Exec(Box::new(spec), reply))
            .await
    }

    /// Sends a signal to a process of a container, or to all.
    pub async fn signal(&self, id: &Id, exec_id: Option<Id>, signal: u32, all: bool) -> Result<()> {
        if !(1..=sys::process::MAX_SIGNAL).contains(&signal) {
            return Err(Error::Invalid(format!("There is no signal {signal}")));
        }
        let target = actor::Target {
            exec_id,
            signal,
            all,
        };
        self.ask(id, |reply| Command::Signal(target, reply)).await
    }

    /// Sets new limits (`linux.resources`, JSON): all of them or none.
    pub async fn update(&self, id: &Id, resources: Vec<u8>) -> Result<()> {
        self.ask(id, |reply| Command::Update(resources, reply))
            .await
    }

    /// Stops every process of a container; returns when all have stopped. When they do not before
    /// the deadline, they go on.
    pub async fn pause(&self, id: &Id, deadline: Deadline) -> Result<()> {
        self.ask(id, |reply| Command::Pause(deadline, reply)).await
    }

    /// Lets a paused container go on.
    pub async fn resume(&self, id: &Id) -> Result<()> {
        self.ask(id, Command::Resume).await
    }

    /// Has the mirror of a shared volume follow it.
    pub async fn update_mirror(&self, volume: String) -> Result<()> {
        let backing = Arc::clone(&self.shared.backing);
        blocking(move || backing.update_mirror(&volume)).await
    }

    /// How full a direct volume is, by its disk.
    pub fn volume_figures(&self, disk: &str) -> Result<VolumeFigures> {
        self.direct_volumes(disk)?.figures(disk)
    }

    /// Grows a direct volume to its disk, once that has at least `bytes`, and tells how full it is.
    pub async fn grow_volume(
        &self,
        disk: &str,
        bytes: u64,
        deadline: Deadline,
    ) -> Result<VolumeFigures> {
        let volumes = self.direct_volumes(disk)?;
        volumes.grow(disk, bytes, deadline).await?;
        volumes.figures(disk)
    }

    fn direct_volumes(&self, disk: &str) -> Result<&DirectVolumes> {
        let none = || Error::NotFound(format!("There is no disk {disk} here"));
        self.shared.backing.direct_volumes().ok_or_else(none)
    }

    /// Unmounts the direct volumes, once no container is left.
    pub async fn unmount_volumes(&self) {
        let Some(volumes) = self.shared.backing.direct_volumes().cloned() else {
            return;
        };
        let unmounted = tokio::task::spawn_blocking(move || volumes.unmount_all());
        if let Err(error) = unmounted.await {
            tracing::error!("Unmounting the volumes failed: {error}");
        }
    }

    /// The figures of these containers, of all if none is named. One caller at a time; no actor
    /// notices.
    pub async fn stats(&self, ids: &[Id]) -> Result<Vec<ContainerStats>> {
        let _turn = self.shared.stats_turn.lock().await;
        let mut wanted: Vec<(Id, Figures)> = {
            let containers = self.containers();
            let named = |id: &Id| ids.is_empty() || ids.contains(id);
            containers
                .iter()
                .filter(|(id, _)| named(id))
                .filter_map(|(id, entry)| Some((id.clone(), entry.figures.get()?.clone())))
                .collect()
        };
        wanted.sort_by(|a, b| a.0.as_str().cmp(b.0.as_str()));
        blocking(move || {
            let read = |(id, figures): (Id, Figures)| {
                let mut stats = figures.cgroup.stats();
                stats.container_id = id.to_string();
                stats.timestamp_ns = supervisor::now_ns();
                stats.writable_layer = Some(figures.usage.newest()).into();
                stats
            };
            Ok(wanted.into_iter().map(read).collect())
        })
        .await
    }

    /// Sets the size of a terminal, in columns and rows.
    pub async fn resize(&self, id: &Id, exec_id: Option<Id>, size: (u16, u16)) -> Result<()> {
        self.ask(id, |reply| Command::Resize {
            exec_id,
            size,
            reply,
        })
        .await
    }

    /// Ends a container in whatever state it is and removes all that belongs to it. One that is not
    /// there is removed already.
    pub async fn remove(&self, id: &Id) -> Result<()> {
        let entry = self
            .containers()
            .get(id)
            .map(|entry| (entry.commands.clone(), entry.snapshot.clone()));
        let Some((commands, snapshot)) = entry else {
            return Ok(());
        };
        let (reply, answer) = oneshot::channel();
        if commands.send(Command::Remove(reply)).await.is_ok() {
            // An actor that ends without an answer was removing already.
            answer.await.unwrap_or(Ok(()))?;
        }
        // Until the actor has ended the name is still taken.
        commands.closed().await;
        self.free(id, &snapshot);
        Ok(())
    }

    /// Frees a name, unless it is another container's by now.
    fn free(&self, id: &Id, snapshot: &Arc<Mutex<ContainerState>>) {
        let mut containers = self.containers();
        if containers
            .get(id)
            .is_some_and(|entry| Arc::ptr_eq(&entry.snapshot, snapshot))
        {
            containers.remove(id);
        }
    }

    /// Every container, and the newest event that may already be in the list.
    pub fn list(&self) -> (Vec<ContainerState>, u64) {
        // In this order: an event that comes between the two is in the list and comes again.
        let last = self.shared.events.last();
        let containers = self.containers();
        let mut list: Vec<_> = containers
            .values()
            .map(|entry| actor::lock(&entry.snapshot).clone())
            .filter(|state| !state.container_id.is_empty())
            .collect();
        list.sort_by(|a, b| a.container_id.cmp(&b.container_id));
        (list, last)
    }

    /// Removes every container.
    pub async fn remove_all(&self) {
        let ids: Vec<Id> = self.containers().keys().cloned().collect();
        let removals: Vec<_> = ids
            .into_iter()
            .map(|id| {
                let engine = self.clone();
                tokio::spawn(async move { engine.remove(&id).await })
            })
            .collect();
        for removal in removals {
            if let Ok(Err(error)) = removal.await {
                tracing::warn!("{}", error.chain());
            }
        }
    }

    async fn ask<T>(
        &self,
        id: &Id,
        command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command,
    ) -> Result<T> {
        let commands = self
            .containers()
            .get(id)
            .map(|entry| entry.commands.clone());
        let missing = || Error::NotFound(format!("There is no container {id}"));
        let commands = commands.ok_or_else(missing)?;
        let (reply, answer) = oneshot::channel();
        commands.send(command(reply)).await.map_err(|_| missing())?;
        answer.await.unwrap_or_else(|_| Err(missing()))
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<Id, Entry>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn lost() -> Error {
    Error::Internal("The container's actor ended without an answer".to_owned())
}
