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
//! Only the driver ([`drive`]) moves the state. Others ask it to stop ([`Sandbox::stop`]) and watch.
//! Ended means that nothing of the pod is left on the node but its record: the VMM's process, its
//! cgroup and its directory are gone.

use crate::agent::Agent;
use crate::cgroup::PodCgroup;
use crate::config::NodeConfig;
use crate::container::Container;
use crate::disks::{PodDisks, SCRATCH};
use crate::events::{Events, Ran, Told};
use crate::phases::monotonic_ns;
use crate::place::Place;
use crate::record::{SandboxRecord, SandboxState};
use crate::scratch::ScratchMaker;
use crate::stats::{Rate, Silence};
use crate::store::Store;
use crate::vm::{Feed, Users, Vm, VmRequest};
use crate::{Result, SandboxError, limits};
use bulkhead_agent_api::agent::{Announcement, Exit};
use bulkhead_cri::v1::LinuxContainerResources;
use bulkhead_network::{Networks, PodNetwork};
use bulkhead_vmm_api::VmmStatus;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

mod configure;
mod network;

/// How long a guest may take to end by itself before its VM is ended.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(10);

/// What all sandboxes of the node share.
pub(crate) struct Services {
    pub(crate) config: NodeConfig,
    pub(crate) store: Store,
    pub(crate) scratch: ScratchMaker,
    pub(crate) users: Users,
    pub(crate) events: Events,
    pub(crate) networks: Networks,
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

/// Drives a sandbox from Starting to Ended. `started` learns whether it became ready; when it hears
/// of a failure, everything that had been made is gone again.
pub(crate) async fn drive(sandbox: Arc<Sandbox>, started: oneshot::Sender<Result<()>>) {
    match start(&sandbox).await {
        Ok(running) => {
            let running = Arc::new(running);
            // Set once, here, before anybody can see Ready.
            let _ = sandbox.running.set(Arc::clone(&running));
            sandbox.enter(SandboxState::Ready).await;
            sandbox.tell_ready();
            let _ = started.send(Ok(()));
            run(&sandbox, &running, 0).await;
        }
        Err(error) => {
            take_down(&sandbox, &error.to_string()).await;
            let _ = started.send(Err(error));
        }
    }
}

/// Drives a sandbox that an earlier daemon left ready, from an event on.
pub(crate) async fn drive_adopted(sandbox: Arc<Sandbox>, running: Arc<Running>, after: u64) {
    let _ = sandbox.running.set(Arc::clone(&running));
    sandbox.state.send_replace(SandboxState::Ready);
    run(&sandbox, &running, after).await;
}

async fn start(sandbox: &Sandbox) -> Result<Running> {
    let began = monotonic_ns();
    let record = sandbox.record();
    let size = configure::size(&record)?;
    let directory = sandbox.directory();
    let cgroup = sandbox.cgroup();
    tokio::fs::create_dir_all(&directory)
        .await
        .map_err(SandboxError::io(format!(
            "make the pod's directory {}",
            directory.display()
        )))?;
    cgroup.create().await?;
    let linux = record.config.linux.clone().unwrap_or_default();
    let (resources, overhead) = (
        linux.resources.unwrap_or_default(),
        linux.overhead.unwrap_or_default(),
    );
    let in_memory = limits::is_in_memory(&directory);
    let limits = limits::of_host(&record, size, [&resources, &overhead], in_memory);
    cgroup.limit(limits).await?;
    let bytes = record.runtime.scratch_mib << 20;
    let scratch = sandbox
        .services
        .scratch
        .make(directory.join("scratch.img"), bytes)
        .await?;
    let prepared = monotonic_ns();
    let network = network::attach(sandbox, &record).await?;
    let spawned = monotonic_ns();
    let (vm, feed) = Vm::start(VmRequest {
        pod: &record.id,
        directory: &directory,
        program: &sandbox.services.config.vmm,
        runtime: &record.runtime,
        cgroup: &cgroup,
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        users: &sandbox.services.users,
        network: network::namespace(network.as_ref())?,
    })
    .await?;
    {
        let mut record = sandbox.lock_record();
        record.vmm = Some(vm.identity());
        record.size = Some(size);
        record.phases.prepare_ns = prepared - began;
        record.phases.network_ns = spawned - prepared;
    }
    sandbox
        .services
        .store
        .put_sandbox(&sandbox.record())
        .await?;
    let vm = Arc::new(vm);
    tokio::select! {
        biased;
        () = sandbox.stop.cancelled() => Err(SandboxError::Stopped { pod: record.id }),
        result = boot(sandbox, &vm, feed, (scratch, network), spawned) => result,
    }
}

/// What a VM whose guest says nothing has done so far, for whoever wonders why.
fn how_far(status: &Result<VmmStatus>) -> String {
    let status = match status {
        Ok(status) if status.vcpus_started_ns == 0 => {
            return "it never entered its guest".to_owned();
        }
        Ok(status) => status,
        Err(error) => return error.to_string(),
    };
    let exits = status.exits.iter().filter(|exit| exit.count > 0);
    let exits: Vec<_> = exits
        .map(|exit| format!("{} {}", exit.reason, exit.count))
        .collect();
    let seconds = monotonic_ns().saturating_sub(status.vcpus_started_ns) / 1_000_000_000;
    format!(
        "it entered its guest {seconds}s ago, has given it {} MiB and left it for: {}",
        status.guest_memory_bytes >> 20,
        exits.join(", "),
    )
}

/// From the VMM's start to a configured agent.
async fn boot(
    sandbox: &Sandbox,
    vm: &Arc<Vm>,
    mut feed: Feed,
    (scratch, network): (std::os::fd::OwnedFd, Option<PodNetwork>),
    spawned: u64,
) -> Result<Running> {
    let record = sandbox.record();
    let limit = Duration::from_secs(record.runtime.boot_timeout_seconds);
    let announced = tokio::select! {
        biased;
        cause = vm.ended() => Err(SandboxError::BootFailed { pod: record.id.clone(), cause }),
        result = tokio::time::timeout(limit, feed.announcement(&record.id)) => match result {
            Ok(Ok(announcement)) => Ok(announcement),
            Ok(Err(error)) => match ended_just_now(vm.as_ref()).await {
                Some(cause) => Err(SandboxError::BootFailed { pod: record.id.clone(), cause }),
                None => Err(error),
            },
            Err(_) => Err(SandboxError::BootTimeout {
                pod: record.id.clone(),
                limit,
                vm: how_far(&vm.status().await),
                console: vm.console().await,
            }),
        },
    }?;
    let ready = monotonic_ns();
    check_version(&record.id, &announced)?;
    let status = vm.status().await?;
    let place: Arc<dyn Place> = Arc::clone(vm) as Arc<dyn Place>;
    let agent = Agent::connect(&record.id, Arc::clone(&place)).await?;
    place.bind_disk(SCRATCH, scratch).await?;
    let mut request = configure::request(&record, network.as_ref(), SCRATCH).await;
    if let Some(network) = &network {
        let vcpus = configure::size(&record)?.vcpus;
        network::bind(sandbox, place.as_ref(), network, vcpus).await?;
        request.interfaces = network::interfaces(network);
    }
    agent.configure(&request).await?;
    {
        let mut record = sandbox.lock_record();
        let in_agent = announced.ready_ns.saturating_sub(announced.init_started_ns);
        let phases = &mut record.phases;
        phases.vmm_start_ns = status.vcpus_started_ns.saturating_sub(spawned);
        phases.kernel_ns = ready
            .saturating_sub(in_agent)
            .saturating_sub(status.vcpus_started_ns);
        phases.guest_boot_ns = announced.init_started_ns;
        phases.agent_ready_ns = in_agent;
        phases.configure_ns = monotonic_ns() - ready;
        record.guest_kernel = announced.kernel_release;
    }
    Ok(Running {
        place,
        agent,
        disks: PodDisks::new(
            &record.id,
            record.runtime.read_only_slots,
            record.runtime.read_write_slots,
        ),
        exits: Exits::default(),
    })
}

/// Why the place has ended, after a connection into it broke: most often both are one event, of
/// which the connection's end is heard first and the process's end tells more.
async fn ended_just_now(place: &dyn Place) -> Option<String> {
    tokio::time::timeout(Duration::from_secs(1), place.ended())
        .await
        .ok()
}

fn check_version(pod: &str, announced: &Announcement) -> Result<()> {
    match announced.version {
        bulkhead_agent_api::VERSION => Ok(()),
        version => Err(SandboxError::AgentVersion {
            pod: pod.to_owned(),
            version,
            ours: bulkhead_agent_api::VERSION,
        }),
    }
}

/// From Ready to Ended.
async fn run(sandbox: &Sandbox, running: &Running, after: u64) {
    let pod = sandbox.id();
    let mut events = std::pin::pin!(follow_events(sandbox, running, after));
    let cause = tokio::select! {
        cause = running.place.ended() => cause,
        cause = &mut events => ended_just_now(running.place.as_ref()).await.unwrap_or(cause),
        () = sandbox.stop.cancelled() => {
            sandbox.enter(SandboxState::Stopping).await;
            // Exits must still be heard while the containers are killed.
            tokio::select! {
                _ = tokio::time::timeout(POWER_OFF_LIMIT, power_off(sandbox, running)) => {}
                _ = &mut events => {}
            }
            "stopped".to_owned()
        }
    };
    if !sandbox.stop.is_cancelled() {
        tracing::error!(pod, cause, "The pod's VM ended by itself");
    }
    running.place.end().await;
    running.exits.lock().clear();
    take_down(sandbox, &cause).await;
}

/// Kills the containers, so that their last output arrives, and lets the guest end by itself.
async fn power_off(sandbox: &Sandbox, running: &Running) {
    for container in sandbox.containers() {
        if !matches!(container.state(), crate::ContainerState::Exited(_))
            && running
                .agent
                .signal(container.id(), "", 9, true)
                .await
                .is_ok()
        {
            container.exited().await;
        }
    }
    match running.agent.shutdown().await {
        Ok(()) => drop(running.place.ended().await),
        Err(error) => {
            tracing::warn!(pod = sandbox.id(), %error, "The guest did not shut down by itself");
        }
    }
}

/// Takes the agent's events as long as they come; returns why they ended.
async fn follow_events(sandbox: &Sandbox, running: &Running, after: u64) -> String {
    let mut events = match running.agent.events(after).await {
        Ok(events) => events,
        Err(error) => return error.to_string(),
    };
    loop {
        match events.recv().await {
            Ok(Some(event)) => {
                if let Some(exit) = event.exit.into_option() {
                    on_exit(sandbox, running, exit);
                }
            }
            Ok(None) => return "the agent ended its events".to_owned(),
            Err(error) => return format!("the connection to the agent failed: {error}"),
        }
    }
}

fn on_exit(sandbox: &Sandbox, running: &Running, exit: Exit) {
    if !exit.exec_id.is_empty() {
        running.exits.tell(exit);
        return;
    }
    let container = sandbox.lock_containers().get(&exit.container_id).cloned();
    if let Some(container) = container {
        // In a task of its own: it waits for the log, and other events must not wait with it.
        tokio::spawn(async move { container.on_exit(exit).await });
    }
}

/// Takes down a sandbox that has no driver.
pub(crate) async fn take_down(sandbox: &Sandbox, cause: &str) {
    for container in sandbox.containers() {
        container.on_place_ended(cause).await;
    }
    clean_up(sandbox).await;
    sandbox
        .enter(SandboxState::Ended {
            cause: cause.to_owned(),
        })
        .await;
    let id = sandbox.id();
    sandbox
        .told
        .stopped(Ran::Yes, |kind| sandbox.tell(&id, kind));
}

/// Removes what a pod has on the node besides its record. Succeeds if nothing is there.
async fn clean_up(sandbox: &Sandbox) {
    let (pod, directory) = (sandbox.id(), sandbox.directory());
    if let Err(error) = sandbox.cgroup().destroy().await {
        tracing::error!(pod, %error, "The pod's cgroup is left behind");
    }
    match tokio::fs::remove_dir_all(&directory).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let directory = directory.display();
            tracing::error!(pod, %error, %directory, "The pod's directory is left behind");
        }
        _ => {}
    }
    // Last: the VM, which was in the network namespace, has ended.
    sandbox.services.networks.detach(&pod).await;
    let mut record = sandbox.lock_record();
    record.vmm = None;
    record.ips = Vec::new();
}
