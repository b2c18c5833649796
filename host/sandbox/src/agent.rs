//! The daemon's side of the agent protocol (`proto/agent/agent.proto`).
//!
//! The agent is in the guest, so it is not trusted: every control call has a deadline, and what it
//! answers is only ever used for its own pod.

use crate::error::Kind;
use crate::place::Place;
use crate::record::StreamIds;
use crate::{Result, SandboxError};
use bulkhead_agent_api::agent::{
    ConfigureRequest, ContainerRequest, CreateContainerRequest, CreateContainerResponse, Empty,
    Event, EventsRequest, ExecRequest, ForwardRequest, GrowVolumeRequest, LimitPodRequest,
    ListContainersResponse, ResizeTerminalRequest, SignalRequest, StatsRequest, StatsResponse,
    Stdio, UpdateContainerRequest, UpdateMirrorRequest, VolumeFigures, VolumeRequest,
};
use bulkhead_agent_api::agent_ttrpc::AgentClient;
use bulkhead_agent_api::{CONTROL_PORT, STREAM_PORT};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use ttrpc::asynchronous::{Client, ClientStreamReceiver, transport::Socket};
use ttrpc::{Code, context};

/// The deadline of a control call. None of them waits for a container's program.
const DEADLINE: Duration = Duration::from_secs(60);
/// By how much the protocol's own deadline is later than ours, which says more.
const GRACE: Duration = Duration::from_secs(1);
/// That of statistics of one pod alone.
pub(crate) const STATS_DEADLINE: Duration = Duration::from_secs(10);

/// A connection to a pod's agent; clones share it.
#[derive(Clone)]
pub(crate) struct Agent {
    pod: String,
    client: AgentClient,
    place: Arc<dyn Place>,
}

impl Agent {
    pub(crate) async fn connect(pod: &str, place: Arc<dyn Place>) -> Result<Self> {
        let stream = place.dial(CONTROL_PORT).await?;
        let client = AgentClient::new(Client::new(Socket::new(stream)));
        Ok(Self {
            pod: pod.to_owned(),
            client,
            place,
        })
    }

    /// Waits for a call, but no longer than the place lives.
    async fn call<T>(
        &self,
        doing: &'static str,
        what: String,
        call: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T> {
        tokio::select! {
            biased;
            result = call => result.map_err(|error| refused(doing, what, error)),
            cause = self.place.ended() => {
                Err(SandboxError::PlaceEnded { pod: self.pod.clone(), cause })
            }
        }
    }

    fn pod(&self) -> String {
        format!("pod sandbox {}", self.pod)
    }

    pub(crate) async fn configure(&self, request: &ConfigureRequest) -> Result<()> {
        let call = self.client.configure(deadline(), request);
        self.call("Configuration", self.pod(), call).await.map(drop)
    }

    pub(crate) async fn create_container(
        &self,
        request: &CreateContainerRequest,
    ) -> Result<CreateContainerResponse> {
        let call = self.client.create_container(deadline(), request);
        let made = self.call("Creation", container(&request.container_id), call);
        made.await
    }

    pub(crate) async fn start_container(&self, id: &str) -> Result<()> {
        let request = container_request(id);
        let call = self.client.start_container(deadline(), &request);
        self.call("Start", container(id), call).await.map(drop)
    }

    pub(crate) async fn remove_container(&self, id: &str) -> Result<()> {
        let request = container_request(id);
        let call = self.client.remove_container(deadline(), &request);
        self.call("Removal", container(id), call).await.map(drop)
    }

    /// Has the mirror of a shared volume follow it.
    pub(crate) async fn update_mirror(&self, volume: &str) -> Result<()> {
        let mut request = UpdateMirrorRequest::new();
        request.volume = volume.to_owned();
        let call = self.client.update_mirror(deadline(), &request);
        self.call("Update", self.volume(volume), call)
            .await
            .map(drop)
    }

    /// How full the direct volume on a disk is.
    pub(crate) async fn volume_stats(&self, disk: &str) -> Result<VolumeFigures> {
        let mut request = VolumeRequest::new();
        request.disk = disk.to_owned();
        let context = context::with_duration(STATS_DEADLINE);
        let call = self.client.volume_stats(context, &request);
        self.call("Reading statistics", self.volume(disk), call)
            .await
    }

    /// Grows the direct volume on a disk that has grown to `bytes`.
    pub(crate) async fn grow_volume(&self, disk: &str, bytes: u64) -> Result<VolumeFigures> {
        let mut request = GrowVolumeRequest::new();
        request.disk = disk.to_owned();
        request.size_bytes = bytes;
        let call = self.client.grow_volume(deadline(), &request);
        self.call("Growing", self.volume(disk), call).await
    }

    fn volume(&self, disk: &str) -> String {
        format!("volume {disk} of pod sandbox {}", self.pod)
    }

    pub(crate) async fn update(&self, request: &UpdateContainerRequest) -> Result<()> {
        let call = self.client.update_container(deadline(), request);
        self.call("Update", container(&request.container_id), call)
            .await
            .map(drop)
    }

    pub(crate) async fn stats(
        &self,
        container_ids: Vec<String>,
        limit: Duration,
    ) -> Result<StatsResponse> {
        let mut request = StatsRequest::new();
        request.container_ids = container_ids;
        let call = self
            .client
            .stats(context::with_duration(limit + GRACE), &request);
        let call = self.call("Reading statistics", self.pod(), call);
        match tokio::time::timeout(limit, call).await {
            Ok(result) => result,
            Err(_) => Err(SandboxError::Agent {
                doing: "Reading statistics",
                what: self.pod(),
                kind: Kind::DeadlineExceeded,
                message: format!("the guest did not answer within {limit:?}"),
            }),
        }
    }

    /// Limits the memory of all containers together; 0 is what the guest's size allows.
    pub(crate) async fn limit_memory(&self, bytes: u64) -> Result<()> {
        let mut request = LimitPodRequest::new();
        request.memory_bytes = bytes;
        let call = self.client.limit_pod(deadline(), &request);
        self.call("Limiting the memory", self.pod(), call)
            .await
            .map(drop)
    }

    pub(crate) async fn exec(&self, request: &ExecRequest) -> Result<()> {
        let call = self.client.exec(deadline(), request);
        self.call("Exec", container(&request.container_id), call)
            .await
            .map(drop)
    }

    pub(crate) async fn signal(&self, id: &str, exec: &str, signal: u32, all: bool) -> Result<()> {
        let mut request = SignalRequest::new();
        request.container_id = id.to_owned();
        request.exec_id = exec.to_owned();
        request.signal = signal;
        request.all = all;
        let call = self.client.signal(deadline(), &request);
        self.call("Signal", container(id), call).await.map(drop)
    }

    pub(crate) async fn resize(&self, id: &str, exec: &str, size: (u32, u32)) -> Result<()> {
        let mut request = ResizeTerminalRequest::new();
        request.container_id = id.to_owned();
        request.exec_id = exec.to_owned();
        (request.width, request.height) = size;
        let call = self.client.resize_terminal(deadline(), &request);
        self.call("Resize", container(id), call).await.map(drop)
    }

    pub(crate) async fn forward(&self, port: u16, stream: u64) -> Result<()> {
        let mut request = ForwardRequest::new();
        request.port = port.into();
        request.stream = stream;
        let call = self.client.forward(deadline(), &request);
        self.call("Port-forward", self.pod(), call).await.map(drop)
    }

    pub(crate) async fn list(&self) -> Result<ListContainersResponse> {
        let request = Empty::new();
        let call = self.client.list_containers(deadline(), &request);
        self.call("Listing", self.pod(), call).await
    }

    /// Has the guest unmount its disks and end, within a time.
    pub(crate) async fn shutdown(&self, limit: Duration) -> Result<()> {
        let request = Empty::new();
        let context = context::with_duration(limit);
        let call = self.client.shutdown(context, &request);
        self.call("Shutdown", self.pod(), call).await.map(drop)
    }

    /// Subscribes to the events after a sequence number.
    pub(crate) async fn events(&self, after: u64) -> Result<ClientStreamReceiver<Event>> {
        let mut request = EventsRequest::new();
        request.after = after;
        // A subscription lasts as long as the pod: it has no deadline.
        let call = self.client.events(context::Context::default(), &request);
        self.call("Subscription", self.pod(), call).await
    }

    /// Connects a byte stream.
    pub(crate) async fn stream(&self, id: u64) -> Result<UnixStream> {
        let mut stream = self.place.dial(STREAM_PORT).await?;
        stream
            .write_all(&id.to_le_bytes())
            .await
            .map_err(SandboxError::io(format!(
                "open a stream into {}",
                self.pod()
            )))?;
        Ok(stream)
    }
}

impl StreamIds {
    /// As the protocol has it.
    pub(crate) fn to_stdio(self, size: (u32, u32)) -> Stdio {
        let mut stdio = Stdio::new();
        stdio.stdin = self.stdin;
        stdio.stdout = self.stdout;
        stdio.stderr = self.stderr;
        stdio.terminal = self.terminal;
        (stdio.width, stdio.height) = size;
        stdio
    }
}

fn deadline() -> context::Context {
    context::with_duration(DEADLINE)
}

fn container(id: &str) -> String {
    format!("container {id}")
}

fn container_request(id: &str) -> ContainerRequest {
    let mut request = ContainerRequest::new();
    request.container_id = id.to_owned();
    request
}

fn refused(doing: &'static str, what: String, error: ttrpc::Error) -> SandboxError {
    let (kind, message) = match error {
        ttrpc::Error::RpcStatus(status) => {
            (kind_of(status.code.enum_value_or_default()), status.message)
        }
        other => (
            Kind::Unavailable,
            format!("the connection to the agent failed: {other}"),
        ),
    };
    SandboxError::Agent {
        doing,
        what,
        kind,
        message,
    }
}

fn kind_of(code: Code) -> Kind {
    match code {
        Code::INVALID_ARGUMENT => Kind::InvalidArgument,
        Code::NOT_FOUND => Kind::NotFound,
        Code::ALREADY_EXISTS => Kind::AlreadyExists,
        Code::FAILED_PRECONDITION | Code::PERMISSION_DENIED => Kind::FailedPrecondition,
        Code::RESOURCE_EXHAUSTED => Kind::ResourceExhausted,
        Code::DEADLINE_EXCEEDED => Kind::DeadlineExceeded,
        Code::UNAVAILABLE => Kind::Unavailable,
        Code::UNIMPLEMENTED => Kind::Unimplemented,
        _ => Kind::Internal,
    }
}
