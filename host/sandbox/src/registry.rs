//! The node's pods: finding, making and removing them.

use crate::config::{NodeConfig, RuntimeConfig};
use crate::container::{Container, ContainerImage};
use crate::events::{Events, PodEvent};
use crate::id::{find, new_id, new_stream_id};
use crate::names::{self, Names};
use crate::phases::wall_clock_ns;
use crate::record::{
    ContainerRecord, ContainerState, ImageVolume, SandboxRecord, SandboxState, StreamIds,
};
use crate::sandbox::{self, Running, Sandbox, Services};
use crate::scratch::ScratchMaker;
use crate::store::{Store, blocking};
use crate::vm::Users;
use crate::volumes::{self, Follower, Kind, Parts, SharedVolume, Volume, Watches};
use crate::{Result, SandboxError, block, cgroup, restore, spec};
use bulkhead_agent_api::agent::CreateContainerRequest;
use bulkhead_cri::v1;
use bulkhead_network::{Mode, Networks};
use bulkhead_vmm_api::DiskSlot;
use ipnet::IpNet;
use oci_spec::runtime::Spec;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{broadcast, oneshot};

/// The node's set of pods; clones share it.
#[derive(Clone)]
pub struct Sandboxes {
    pub(crate) services: Arc<Services>,
    pub(crate) names: Names,
    pod_cidrs: Arc<Mutex<Vec<IpNet>>>,
    sandboxes: Arc<Mutex<BTreeMap<String, Arc<Sandbox>>>>,
    containers: Arc<Mutex<BTreeMap<String, Arc<Container>>>>,
}

impl Sandboxes {
    /// Opens the node's state and takes up what an earlier daemon left: pods that live are adopted,
    /// what belongs to nothing is removed.
    ///
    /// # Errors
    /// The directories or the state store cannot be used.
    pub async fn open(config: NodeConfig) -> Result<Self> {
        for directory in [config.root.clone(), config.state.join("pods")] {
            tokio::fs::create_dir_all(&directory)
                .await
                .map_err(SandboxError::io(format!("make {}", directory.display())))?;
        }
        let path = config.root.join("state.redb");
        let store = blocking(move || Store::open(&path)).await?;
        let network = config.network.settings(&config.root, &config.state);
        let networks = blocking(move || Ok(Networks::open(network)?)).await?;
        let scratch = ScratchMaker::new(&config.root);
        let users = Users::new(config.vmm_users);
        let maker = scratch.clone();
        blocking(move || maker.clean()).await?;
        let cidrs = store.clone();
        let cidrs = blocking(move || cidrs.pod_cidrs()).await?;
        let sandboxes = Self {
            pod_cidrs: Arc::new(Mutex::new(cidrs)),
            services: Arc::new(Services {
                config,
                store,
                scratch,
                users,
                events: Events::default(),
                networks,
                watches: Watches::new()?,
            }),
            names: Names::default(),
            sandboxes: Arc::default(),
            containers: Arc::default(),
        };
        restore::restore(&sandboxes).await?;
        Ok(sandboxes)
    }

    /// The networks that pods have addresses of, as the kubelet has told them last; they outlive the
    /// daemon.
    #[must_use]
    pub fn pod_cidrs(&self) -> Vec<IpNet> {
        lock(&self.pod_cidrs).clone()
    }

    /// Sets the networks that pods have addresses of.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn set_pod_cidrs(&self, cidrs: Vec<IpNet>) -> Result<()> {
        self.services.store.put_pod_cidrs(&cidrs).await?;
        *lock(&self.pod_cidrs) = cidrs;
        Ok(())
    }

    /// Finds a pod sandbox by its id or a unique beginning of it.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`], [`SandboxError::Ambiguous`].
    pub fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>> {
        find(&lock(&self.sandboxes), "pod sandbox", id).cloned()
    }

    /// Whether a pod could have a network now.
    ///
    /// # Errors
    /// Why not.
    pub async fn network_status(&self) -> Result<()> {
        match self.services.config.network.mode {
            Mode::None => Ok(()),
            Mode::Cni => Ok(self.services.networks.status().await?),
        }
    }

    /// Every pod sandbox.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        lock(&self.sandboxes).values().cloned().collect()
    }

    /// What happens to pods and containers from now on. A subscriber that lags more than
    /// [`crate::BACKLOG`] events behind loses the oldest, and learns how many.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Arc<PodEvent>> {
        self.services.events.subscribe()
    }

    /// Finds a container by its id or a unique beginning of it.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`], [`SandboxError::Ambiguous`].
    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        find(&lock(&self.containers), "container", id).cloned()
    }

    /// Every container.
    #[must_use]
    pub fn containers(&self) -> Vec<Arc<Container>> {
        lock(&self.containers).values().cloned().collect()
    }

    /// Makes a pod sandbox and waits until it is ready. If that fails, or the caller goes away
    /// (drops the future), everything that had been made is removed again.
    ///
    /// # Errors
    /// A wrong field, a name that is taken, a node that cannot run VMs, a VM that does not come up.
    pub async fn run(
        &self,
        config: v1::PodSandboxConfig,
        handler: String,
        runtime: RuntimeConfig,
    ) -> Result<Arc<Sandbox>> {
        let name = names::of_sandbox(&config)?;
        spec::check_sandbox(&config)?;
        let id = new_id()?;
        let linux = config.linux.clone().unwrap_or_default();
        let parent = &self.services.config.cgroup_parent;
        let record = SandboxRecord {
            cgroup: cgroup::path_of(&id, &linux.cgroup_parent, parent)?,
            id: id.clone(),
            config,
            handler,
            runtime,
            created_at: wall_clock_ns(),
            state: SandboxState::Starting,
            phases: Default::default(),
            guest_kernel: String::new(),
            ips: Vec::new(),
            vmm: None,
            file_daemon: None,
            size: None,
            resources: None,
            block_volumes: Vec::new(),
        };
        self.names.reserve("pod sandbox", &name, &id)?;
        if let Err(error) = self.services.store.put_sandbox(&record).await {
            self.names.release(&name, &id);
            return Err(error);
        }
        let sandbox = self.insert_sandbox(record);
        let (answer, result) = oneshot::channel();
        tokio::spawn(self.clone().supervise_start(Arc::clone(&sandbox), answer));
        result
            .await
            .unwrap_or(Err(SandboxError::Stopped { pod: id }))
    }

    /// In a task of its own, so that a caller who goes away does not leave half a pod behind.
    async fn supervise_start(
        self,
        sandbox: Arc<Sandbox>,
        mut answer: oneshot::Sender<Result<Arc<Sandbox>>>,
    ) {
        let (sender, started) = oneshot::channel();
        tokio::spawn(sandbox::drive(Arc::clone(&sandbox), sender));
        let stopped = || Err(SandboxError::Stopped { pod: sandbox.id() });
        let result = tokio::select! {
            result = started => result.unwrap_or_else(|_| stopped()),
            () = answer.closed() => stopped(),
        };
        let result = match result {
            Ok(()) => answer.send(Ok(Arc::clone(&sandbox))).map_err(|_| None),
            Err(error) => Err(Some((answer, error))),
        };
        let Err(failed) = result else {
            return;
        };
        sandbox.stop().await;
        if let Err(error) = self.forget_sandbox(&sandbox).await {
            tracing::error!(pod = sandbox.id(), %error, "The record of a failed pod is left behind");
        }
        if let Some((answer, error)) = failed {
            // The caller may have gone; then nobody needs to know.
            let _ = answer.send(Err(error));
        }
    }

    /// Stops a pod sandbox; one that is unknown is as good as stopped.
    ///
    /// # Errors
    /// [`SandboxError::Ambiguous`].
    pub async fn stop_sandbox(&self, id: &str) -> Result<()> {
        match self.sandbox(id) {
            Ok(sandbox) => sandbox.stop().await,
            Err(SandboxError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Removes a pod sandbox with its containers, stopping it first; one that is unknown is as good
    /// as removed.
    ///
    /// # Errors
    /// [`SandboxError::Ambiguous`], or the store's.
    pub async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let sandbox = match self.sandbox(id) {
            Ok(sandbox) => sandbox,
            Err(SandboxError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        sandbox.stop().await;
        for container in sandbox.containers() {
            self.forget_container(&container).await?;
        }
        self.forget_sandbox(&sandbox).await
    }

    /// Makes a container in a ready pod. If that fails, or the caller goes away, everything that
    /// had been made is removed again. `disk` is the image's, opened read-only; `volumes` are the ids
    /// and disks of the images in `config.mounts`, in the same order.
    ///
    /// # Errors
    /// A wrong field, a name that is taken, a pod that is not ready, the agent's refusal.
    pub async fn create_container(
        &self,
        sandbox_id: &str,
        config: v1::ContainerConfig,
        image: ContainerImage,
        disk: OwnedFd,
        volumes: Vec<(String, OwnedFd)>,
    ) -> Result<Arc<Container>> {
        let sandbox = self.sandbox(sandbox_id)?;
        let running = sandbox.running()?;
        let id = new_id()?;
        let name = names::of_container(&config, &sandbox.id())?;
        let mut built = spec::build(&id, &config, &sandbox.record().config, &image)?;
        let profiles = &self.services.config.seccomp_profiles;
        let unset = sandbox.record().runtime.seccomp_default;
        spec::seccomp::apply(&mut built.spec, &config, unset, profiles).await?;
        let stop_signal = spec::stop_signal(&image.stop_signal)?;
        let kubelet = &self.services.config.kubelet;
        let (shared, mounted_devices) = volumes::open(kubelet, &config.mounts).await?;
        let devices = [config.devices.clone(), mounted_devices].concat();
        let devices = block::open(devices).await?;
        let mut request = CreateContainerRequest::new();
        request.container_id = id.clone();
        request.user = built.user.clone();
        request.strict_groups = built.strict_groups;
        request.guest_devices = built.guest_devices;
        let (mode, target) = built.pid;
        request.pid_namespace = mode.into();
        if !target.is_empty() {
            // It may be named by the beginning of its id, and must be of this pod.
            request.pid_target = find(&containers_by_id(&sandbox), "container", &target)?
                .id()
                .to_owned();
        }
        let record = ContainerRecord {
            log_path: log_path(&sandbox.record().config.log_directory, &config.log_path),
            sandbox_id: sandbox.id(),
            image_id: image.id,
            image_ref: image.reference,
            created_at: wall_clock_ns(),
            state: ContainerState::Created,
            streams: streams(&config)?,
            stop_signal,
            process: built.spec.process().clone().unwrap_or_default(),
            user: built.user,
            strict_groups: built.strict_groups,
            image_slot: 0,
            pid: 0,
            identity: None,
            image_volumes: Vec::new(),
            shared_volumes: Vec::new(),
            id: id.clone(),
            config,
        };
        request.stdio = Some(record.streams.to_stdio((0, 0))).into();
        self.names.reserve("container", &name, &id)?;
        let (answer, result) = oneshot::channel();
        let this = self.clone();
        // In a task of its own, so that a caller who goes away does not leave half a container.
        tokio::spawn(async move {
            let made = this
                .make_container(
                    &sandbox,
                    &running,
                    (record, built.spec, request),
                    ContainerDisks {
                        image: disk,
                        volumes,
                        devices,
                        shared,
                    },
                )
                .await;
            if made.is_err() {
                this.names.release(&name, &id);
            }
            if let Err(Ok(container)) = answer.send(made)
                && let Err(error) = this.forget_container(&container).await
            {
                tracing::error!(container = id, %error, "A container nobody waits for is left behind");
            }
        });
        let abandoned = SandboxError::NotFound {
            what: "pod sandbox",
            id: sandbox_id.to_owned(),
        };
        result.await.unwrap_or(Err(abandoned))
    }

    async fn make_container(
        &self,
        sandbox: &Arc<Sandbox>,
        running: &Running,
        (mut record, mut spec, mut request): (ContainerRecord, Spec, CreateContainerRequest),
        mut disks: ContainerDisks,
    ) -> Result<Arc<Container>> {
        let id = record.id.clone();
        let made = async {
            if !disks.devices.is_empty() {
                let place = running.place.as_ref();
                request.block_devices = block::bind(place, &running.disks, disks.devices).await?;
                sandbox.remember_devices(&running.disks).await?;
            }
            let place = running.place.as_ref();
            if volumes::bind_direct(place, &running.disks, &mut disks.shared).await? {
                sandbox.remember_devices(&running.disks).await?;
            }
            let (serial, volumes) =
                take_images(running, &mut record, disks.image, disks.volumes).await?;
            request.image_disk = serial;
            spec::add_image_mounts(&mut spec, &record.config.mounts, &volumes);
            let (followers, shared) = self.share(sandbox, running, &id, &disks.shared).await?;
            spec::add_volumes(&mut spec, &disks.shared, &shared);
            record.shared_volumes = shared;
            request.spec = serde_json::to_vec(&spec).map_err(|source| SandboxError::Spec {
                container: record.id.clone(),
                source,
            })?;
            let spec = request.spec.clone();
            self.services.store.put_new_container(&record, spec).await?;
            let container = Container::new(Arc::clone(sandbox), record);
            // Known to the pod before the agent can have events of it.
            sandbox.add_container(&container);
            let created = running.agent.create_container(&request).await?;
            container.set_process(created.pid, created.identity.into_option());
            container.connect_streams(running).await?;
            for (name, follower) in followers {
                let agent = running.agent.clone();
                running.mirrors.keep(container.id(), name, follower, agent);
            }
            Ok(container)
        };
        match made.await {
            Ok(container) => {
                lock(&self.containers).insert(id, Arc::clone(&container));
                container.tell_created();
                Ok(container)
            }
            Err(error) => {
                sandbox.forget_container(&id);
                let undone = async {
                    running.agent.remove_container(&id).await?;
                    running.volumes.detach(&id).await?;
                    running.disks.give_back(running.place.as_ref(), &id).await
                };
                if let Err(error) = undone.await {
                    tracing::warn!(container = id, %error, "A failed container is left in its guest");
                }
                self.services.store.delete_container(&id).await?;
                Err(error)
            }
        }
    }

    /// Makes a container's shared volumes available to its guest. Answers those that its mirrors are to follow, and what
    /// all of them are called.
    async fn share(
        &self,
        sandbox: &Arc<Sandbox>,
        running: &Running,
        container: &str,
        volumes: &[Volume],
    ) -> Result<(Vec<(String, Follower)>, Vec<SharedVolume>)> {
        if volumes.iter().all(Volume::is_local) {
            return Ok(Default::default());
        }
        // From before the first copy, so that no change is missed.
        let mirrored = volumes
            .iter()
            .filter(|one| matches!(one.kind, Kind::Mirror));
        let followers = mirrored.map(|one| {
            let follower = self.services.watches.follow(one.place())?;
            Ok((volumes::name(container, one.index), follower))
        });
        let followers = followers.collect::<Result<_>>()?;
        let parts = Parts {
            sandbox,
            place: running.place.as_ref(),
        };
        let shared = running.volumes.attach(parts, container, volumes).await?;
        Ok((followers, shared))
    }

    /// Removes a container, killing it first; one that is unknown is as good as removed.
    ///
    /// # Errors
    /// [`SandboxError::Ambiguous`], those of the agent and of the store.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        match self.container(id) {
            Ok(container) => self.forget_container(&container).await,
            Err(SandboxError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn forget_container(&self, container: &Container) -> Result<()> {
        container.remove().await?;
        let record = container.record();
        lock(&self.containers).remove(&record.id);
        if let Ok(name) = names::of_container(&record.config, &record.sandbox_id) {
            self.names.release(&name, &record.id);
        }
        Ok(())
    }

    pub(crate) async fn forget_sandbox(&self, sandbox: &Sandbox) -> Result<()> {
        let record = sandbox.record();
        self.services.store.delete_sandbox(&record.id).await?;
        lock(&self.sandboxes).remove(&record.id);
        if let Ok(name) = names::of_sandbox(&record.config) {
            self.names.release(&name, &record.id);
        }
        sandbox.tell_deleted();
        Ok(())
    }

    pub(crate) fn insert_sandbox(&self, record: SandboxRecord) -> Arc<Sandbox> {
        let id = record.id.clone();
        let sandbox = Sandbox::new(Arc::clone(&self.services), record);
        lock(&self.sandboxes).insert(id, Arc::clone(&sandbox));
        sandbox
    }

    pub(crate) fn insert_container(&self, container: &Arc<Container>) {
        container.sandbox.add_container(container);
        lock(&self.containers).insert(container.id().to_owned(), Arc::clone(container));
    }
}

/// What a container has behind slots, opened.
struct ContainerDisks {
    image: OwnedFd,
    /// The ids and disks of the images that it has as volumes.
    volumes: Vec<(String, OwnedFd)>,
    devices: Vec<block::Volume>,
    /// What it shares with the node.
    shared: Vec<Volume>,
}

/// Binds a container's image and those of its volumes, and tells the serials.
async fn take_images(
    running: &Running,
    record: &mut ContainerRecord,
    disk: OwnedFd,
    volumes: Vec<(String, OwnedFd)>,
) -> Result<(String, Vec<spec::ImageDisk>)> {
    let take = async |id: &str, image_id: &str, disk| {
        let place = running.place.as_ref();
        running.disks.take_image(place, id, image_id, disk).await
    };
    let root = take(&record.id, &record.image_id, disk).await?;
    if let DiskSlot::ReadOnly(index) = root {
        record.image_slot = index;
    }
    let mut disks = Vec::new();
    for (image_id, disk) in volumes {
        let slot = take(&record.id, &image_id, disk).await?;
        disks.push(spec::ImageDisk {
            serial: slot.serial(),
        });
        if let DiskSlot::ReadOnly(slot) = slot {
            record.image_volumes.push(ImageVolume { image_id, slot });
        }
    }
    Ok((root.serial(), disks))
}

fn containers_by_id(sandbox: &Sandbox) -> BTreeMap<String, Arc<Container>> {
    let containers = sandbox.containers().into_iter();
    containers
        .map(|container| (container.id().to_owned(), container))
        .collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The container's log below the pod's log directory; empty if either is.
fn log_path(directory: &str, path: &str) -> PathBuf {
    match directory.is_empty() || path.is_empty() {
        true => PathBuf::new(),
        false => Path::new(directory).join(path),
    }
}

fn streams(config: &v1::ContainerConfig) -> Result<StreamIds> {
    Ok(StreamIds {
        stdin: if config.stdin { new_stream_id()? } else { 0 },
        stdout: new_stream_id()?,
        stderr: if config.tty { 0 } else { new_stream_id()? },
        terminal: config.tty,
    })
}
