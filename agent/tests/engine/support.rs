//! One engine for all tests, its clients, and containers of busybox.

use crate::image::make_image;
use async_trait::async_trait;
use bulkhead_agent::deadline::Deadline;
use bulkhead_agent::disk::Disks;
use bulkhead_agent::engine::{Backing, Engine, Image, Paths};
use bulkhead_agent::pod::{Pod, Scratch};
use bulkhead_agent::service::Service;
use bulkhead_agent::streams::server::{Incoming, serve};
use bulkhead_agent::sys::net::listen_unix;
use bulkhead_agent_api::agent::{
    ContainerRequest, ContainerState, CreateContainerRequest, Event, EventsRequest, ExecRequest,
    Exit, SignalRequest, Stdio,
};
use bulkhead_agent_api::agent_ttrpc::AgentClient;
use serde_json::{Value, json};
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use ttrpc::r#async::Client;
use ttrpc::context;

/// Generous: the lab is emulated.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

pub(crate) struct World {
    pub(crate) base: PathBuf,
    pub(crate) cgroup: PathBuf,
    runtime: tokio::runtime::Handle,
}

struct Directories(PathBuf);

#[async_trait]
impl Backing for Directories {
    async fn image(&self, name: &str, deadline: Deadline) -> bulkhead_agent::Result<Arc<Image>> {
        if name == "never" {
            let what = || "Disk never is still empty or missing".to_owned();
            deadline.limit(what, std::future::pending::<()>()).await?;
        }
        Ok(Arc::new(Image::directory(self.0.join("images").join(name))))
    }

    fn scratch(&self) -> bulkhead_agent::Result<PathBuf> {
        Ok(self.0.join("scratch"))
    }
}

/// Runs a test on the engine's runtime, or says why not.
pub(crate) fn run<F: Future<Output = ()> + Send + 'static>(test: impl FnOnce(Pod1) -> F) {
    let Some(world) = world() else {
        return;
    };
    let task = world.runtime.spawn(test(Pod1::new(world)));
    let (sender, receiver) = std::sync::mpsc::channel();
    world.runtime.spawn(async move {
        let result = tokio::time::timeout(PATIENCE, task).await;
        let _ = sender.send(result);
    });
    match receiver.recv().unwrap() {
        Ok(Ok(())) => {}
        Ok(Err(panic)) => {
            let panic = panic.into_panic();
            // The harness has given what the engine's thread printed to the test that started it.
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            eprintln!("{}", text.unwrap_or_default());
            std::panic::resume_unwind(panic)
        }
        Err(_) => panic!("The test takes too long"),
    }
}

pub(crate) fn world() -> Option<&'static World> {
    static WORLD: OnceLock<Option<World>> = OnceLock::new();
    let world = WORLD.get_or_init(|| match unsuitable() {
        None => Some(start()),
        Some(why) => {
            let must = std::env::var_os("BULKHEAD_LAB").is_some_and(|value| value == "1");
            assert!(!must, "This must be a suitable machine, but {why}");
            None
        }
    });
    if world.is_none() {
        // Not by a macro, whose output the test harness would keep back.
        let line = format!("skipped: {}\n", unsuitable().unwrap_or_default());
        std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).unwrap();
    }
    world.as_ref()
}

fn unsuitable() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("tests of the engine need root".to_owned());
    }
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    for controller in ["memory", "pids", "cpu"] {
        if !controllers
            .split_whitespace()
            .any(|name| name == controller)
        {
            return Some(format!(
                "there is no cgroup v2 with controller {controller} on /sys/fs/cgroup"
            ));
        }
    }
    let systems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !systems.contains("\toverlay") {
        return Some("the kernel has no overlayfs loaded".to_owned());
    }
    if !Path::new("/bin/busybox").exists() {
        return Some("/bin/busybox is missing".to_owned());
    }
    None
}

fn start() -> World {
    let base = PathBuf::from(format!("/dev/shm/bulkhead-engine-{}", std::process::id()));
    let _ = fs::remove_dir_all(&base);
    make_image(&base.join("images/busybox"));
    fs::create_dir_all(base.join("scratch")).unwrap();
    let cgroup = PathBuf::from(format!(
        "/sys/fs/cgroup/bulkhead-test-{}",
        std::process::id()
    ));
    let (sender, receiver) = std::sync::mpsc::channel();
    let (inner, cgroups) = (base.clone(), cgroup.clone());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let paths = Paths {
                cgroup: cgroups,
                mount_point: inner.join("mount"),
            };
            let program = fs::File::open(env!("CARGO_BIN_EXE_bulkhead-agent")).unwrap();
            let engine =
                Engine::new(paths, program.into(), Arc::new(Directories(inner.clone()))).unwrap();
            let listen =
                |name: &str| Incoming::new(listen_unix(&inner.join(name)).unwrap()).unwrap();
            tokio::spawn(serve(listen("streams"), engine.hub().clone()));
            let scratch = Arc::new(Scratch::new(Disks::default(), inner.join("unused")));
            let pod = Pod::new(
                inner.join("pod"),
                inner.join("sys"),
                inner.join("shm"),
                scratch,
            );
            let service = Service::new(engine, Arc::new(pod), Arc::default());
            let _server = service.serve(listen("control")).await.unwrap();
            sender.send(tokio::runtime::Handle::current()).unwrap();
            std::future::pending::<()>().await;
        });
    });
    World {
        base,
        cgroup,
        runtime: receiver.recv().unwrap(),
    }
}

/// One test's view of the engine.
#[derive(Clone)]
pub(crate) struct Pod1 {
    pub(crate) world: &'static World,
    pub(crate) client: AgentClient,
}

impl Pod1 {
    fn new(world: &'static World) -> Self {
        let socket = format!("unix://{}/control", world.base.display());
        let _inside = world.runtime.enter();
        let client = world
            .runtime
            .spawn(async move { Client::connect(&socket).await.unwrap() });
        let (sender, receiver) = std::sync::mpsc::channel();
        world.runtime.spawn(async move {
            let _ = sender.send(client.await.unwrap());
        });
        Self {
            world,
            client: AgentClient::new(receiver.recv().unwrap()),
        }
    }

    /// Creates a container and does not start it.
    pub(crate) async fn create(&self, container: &Container) -> ttrpc::Result<u32> {
        let mut request = container.request.clone();
        request.container_id = container.id.clone();
        request.spec = container.spec.to_string().into_bytes();
        request.image_disk = container.image.clone();
        request.stdio = Some(container.stdio.clone()).into();
        request.user = container.user.clone();
        let timeout = i64::try_from(container.timeout.as_nanos()).unwrap();
        let response = self
            .client
            .create_container(context::with_timeout(timeout), &request)
            .await?;
        Ok(response.pid)
    }

    pub(crate) async fn start(&self, id: &str) -> ttrpc::Result<()> {
        self.client
            .start_container(context::with_timeout(0), &name(id))
            .await
            .map(drop)
    }

    pub(crate) async fn remove(&self, id: &str) -> ttrpc::Result<()> {
        self.client
            .remove_container(context::with_timeout(0), &name(id))
            .await
            .map(drop)
    }

    pub(crate) async fn kill(&self, id: &str, signal: i32, all: bool) -> ttrpc::Result<()> {
        self.signal(id, "", signal, all).await
    }

    pub(crate) async fn signal(
        &self,
        id: &str,
        exec_id: &str,
        signal: i32,
        all: bool,
    ) -> ttrpc::Result<()> {
        let mut request = SignalRequest::new();
        request.container_id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.signal = signal as u32;
        request.all = all;
        self.client
            .signal(context::with_timeout(0), &request)
            .await
            .map(drop)
    }

    pub(crate) async fn exec(
        &self,
        id: &str,
        exec_id: &str,
        process: Value,
        stdio: Stdio,
    ) -> ttrpc::Result<u32> {
        let mut request = ExecRequest::new();
        request.container_id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.process = process.to_string().into_bytes();
        request.stdio = Some(stdio).into();
        Ok(self
            .client
            .exec(context::with_timeout(0), &request)
            .await?
            .pid)
    }

    /// Waits for the exit of a process.
    pub(crate) async fn exit(&self, id: &str, exec_id: &str) -> Exit {
        let is_it = |event: &Event| event.exit.container_id == id && event.exit.exec_id == exec_id;
        let mut request = EventsRequest::new();
        request.after = 0;
        let events = self.client.events(context::with_timeout(0), &request).await;
        let mut events = events.unwrap();
        loop {
            let event = events.recv().await.unwrap().unwrap();
            if is_it(&event) {
                return event.exit.unwrap();
            }
        }
    }

    pub(crate) async fn state(&self, id: &str) -> Option<ContainerState> {
        let list = self
            .client
            .list_containers(context::with_timeout(0), &Default::default())
            .await;
        list.unwrap()
            .containers
            .into_iter()
            .find(|container| container.container_id == id)
    }

    /// Connects a stream.
    pub(crate) async fn stream(&self, id: u64) -> UnixStream {
        let mut stream = UnixStream::connect(self.world.base.join("streams"))
            .await
            .unwrap();
        stream.write_all(&id.to_le_bytes()).await.unwrap();
        stream
    }

    /// All that a stream gives.
    pub(crate) async fn read(&self, id: u64) -> String {
        let mut bytes = Vec::new();
        self.stream(id).await.read_to_end(&mut bytes).await.unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Runs a container to its end and removes it: what it wrote to stdout and stderr, and its exit.
    pub(crate) async fn run(&self, mut container: Container) -> (String, Exit) {
        let (out, err) = (stream_id(), stream_id());
        container.stdio.stdout = out;
        if !container.stdio.terminal {
            container.stdio.stderr = err;
        }
        self.create(&container).await.unwrap();
        let reader = tokio::spawn({
            let pod = self.clone();
            let terminal = container.stdio.terminal;
            async move {
                let mut text = pod.read(out).await;
                if !terminal {
                    text += &pod.read(err).await;
                }
                text
            }
        });
        let _ = self.start(&container.id).await;
        let exit = self.exit(&container.id, "").await;
        let text = reader.await.unwrap();
        self.remove(&container.id).await.unwrap();
        (text, exit)
    }

    /// Runs a shell script in a container and expects it to succeed.
    pub(crate) async fn script(&self, script: &str) -> String {
        self.succeed(Container::shell(script)).await
    }

    pub(crate) async fn succeed(&self, container: Container) -> String {
        let (text, exit) = self.run(container).await;
        assert_eq!(exit.code, 0, "{exit:?}\n{text}");
        assert_eq!(exit.stdout_bytes + exit.stderr_bytes, text.len() as u64);
        text
    }
}

/// A container to make.
#[derive(Clone)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) spec: Value,
    pub(crate) image: String,
    pub(crate) stdio: Stdio,
    pub(crate) user: String,
    /// What else is asked for.
    pub(crate) request: CreateContainerRequest,
    pub(crate) timeout: Duration,
}

impl Container {
    pub(crate) fn new(args: &[&str]) -> Self {
        let number = stream_id();
        Self {
            id: format!("c{number}"),
            spec: spec(args),
            image: "busybox".to_owned(),
            stdio: Stdio::new(),
            user: String::new(),
            request: CreateContainerRequest::new(),
            timeout: Duration::ZERO,
        }
    }

    pub(crate) fn shell(script: &str) -> Self {
        Self::new(&["sh", "-c", script])
    }

    /// One that stays.
    pub(crate) fn sleeper() -> Self {
        Self::shell("trap 'exit 7' TERM; while :; do sleep 1 & wait; done")
    }

    pub(crate) fn with(mut self, pointer: &str, value: Value) -> Self {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        self.spec.pointer_mut(parent).unwrap()[key] = value;
        self
    }

    /// With a user namespace as a pod without the host's users has.
    pub(crate) fn in_user_namespace(mut self) -> Self {
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        self.spec["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "user"}));
        self.with("/linux/uidMappings", map.clone())
            .with("/linux/gidMappings", map)
    }

    pub(crate) fn mount(mut self, mount: Value) -> Self {
        self.spec["mounts"].as_array_mut().unwrap().push(mount);
        self
    }
}

pub(crate) fn process(args: &[&str]) -> Value {
    spec(args)["process"].clone()
}

/// A specification as a CRI runtime makes it.
fn spec(args: &[&str]) -> Value {
    let capabilities = [
        "CAP_CHOWN",
        "CAP_KILL",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_NET_BIND_SERVICE",
        "CAP_DAC_OVERRIDE",
    ];
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities}
        },
        "root": {"path": "rootfs"},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "cgroup"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware", "/no/such/path"],
            "readonlyPaths": ["/proc/sys", "/proc/bus"]
        }
    })
}

pub(crate) fn stream_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn name(id: &str) -> ContainerRequest {
    let mut request = ContainerRequest::new();
    request.container_id = id.to_owned();
    request
}

/// The status code of a refusal.
pub(crate) fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (ttrpc::Code, String) {
    match result.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
        error => panic!("{error}"),
    }
}
