//! The ttrpc service `bulkhead.agent.v1.Agent`: checks each request, hands it to the engine or the
//! pod, and turns errors into statuses. Nothing is decided here.

use crate::deadline::Deadline;
use crate::engine::{BlockDevice, CreateSpec, Engine, ExecSpec, PidNamespace, StdioSpec};
use crate::id::Id;
use crate::pod::Pod;
use crate::streams::Forwards;
use crate::sys::fd::Fd;
use crate::{Error, engine};
use async_trait::async_trait;
use bulkhead_agent_api::agent::{
    ConfigureRequest, ContainerRequest, CreateContainerRequest, CreateContainerResponse, Empty,
    Event, EventsRequest, ExecRequest, ExecResponse, ForwardRequest, GrowVolumeRequest,
    LimitPodRequest, ListContainersResponse, ResizeTerminalRequest, SignalRequest, StatsRequest,
    StatsResponse, UpdateContainerRequest, UpdateMirrorRequest, VolumeFigures, VolumeRequest,
};
use bulkhead_agent_api::{agent as api, agent_ttrpc};
use futures_core::Stream;
use std::io;
use std::sync::Arc;
use tokio::sync::Notify;
use ttrpc::r#async::{Server, ServerStreamSender, TtrpcContext};
use ttrpc::asynchronous::transport::Listener;

/// The service.
pub struct Service {
    engine: Engine,
    pod: Arc<Pod>,
    forwards: Forwards,
    shutdown: Arc<Notify>,
}

impl Service {
    /// `shutdown` is notified when the guest is to end, after everything has been unmounted.
    pub fn new(engine: Engine, pod: Arc<Pod>, shutdown: Arc<Notify>) -> Self {
        Self {
            forwards: Forwards::new(engine.hub().clone()),
            engine,
            pod,
            shutdown,
        }
    }

    /// Serves on these connections until the server is dropped.
    pub async fn serve(
        self,
        incoming: impl Stream<Item = io::Result<Fd>> + Send + 'static,
    ) -> ttrpc::Result<Server> {
        let mut server = Server::new()
            .add_listener(Listener::new(incoming))
            .register_service(agent_ttrpc::create_agent(Arc::new(self)));
        server.start().await?;
        Ok(server)
    }
}

type Answer<T> = ttrpc::Result<T>;

fn container(id: &str) -> Answer<Id> {
    Id::parse("Container", id).map_err(rpc)
}

fn exec(id: &str) -> Answer<Option<Id>> {
    if id.is_empty() {
        return Ok(None);
    }
    Id::parse("Exec", id).map(Some).map_err(rpc)
}

fn block(device: api::BlockDevice) -> BlockDevice {
    BlockDevice {
        disk: device.disk,
        path: device.path,
        access: device.access,
        mode: device.mode,
        uid: device.uid,
        gid: device.gid,
    }
}

fn pid_namespace(request: &CreateContainerRequest) -> crate::Result<PidNamespace> {
    match request.pid_namespace.enum_value() {
        Ok(api::PidNamespace::SPEC_PID) => Ok(PidNamespace::Spec),
        Ok(api::PidNamespace::POD_PID) => Ok(PidNamespace::Pod),
        Ok(api::PidNamespace::TARGET_PID) => {
            Id::parse("Container", &request.pid_target).map(PidNamespace::Of)
        }
        Err(number) => Err(Error::Unimplemented(format!(
            "There is no pid namespace of kind {number}"
        ))),
    }
}

fn rpc(error: Error) -> ttrpc::Error {
    tracing::debug!("Refused: {}", error.chain());
    error.to_rpc()
}

fn deadline(context: &TtrpcContext) -> Deadline {
    Deadline::from_timeout_ns(context.timeout_nano)
}

#[async_trait]
impl agent_ttrpc::Agent for Service {
    async fn configure(&self, context: &TtrpcContext, request: ConfigureRequest) -> Answer<Empty> {
        self.pod
            .configure(&request, deadline(context))
            .await
            .map_err(rpc)?;
        Ok(Empty::new())
    }

    async fn create_container(
        &self,
        context: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> Answer<CreateContainerResponse> {
        let spec = CreateSpec {
            id: container(&request.container_id)?,
            stdio: StdioSpec::parse(request.stdio.get_or_default()).map_err(rpc)?,
            pid: pid_namespace(&request).map_err(rpc)?,
            spec: request.spec,
            image_disk: request.image_disk,
            user: request.user,
            strict_groups: request.strict_groups,
            guest_devices: request.guest_devices,
            block_devices: request.block_devices.into_iter().map(block).collect(),
        };
        let mut response = CreateContainerResponse::new();
        let created = self.engine.create(spec, deadline(context)).await;
        let created = created.map_err(rpc)?;
        response.pid = created.pid;
        response.identity = created.identity_message().into();
        Ok(response)
    }

    async fn start_container(&self, _: &TtrpcContext, request: ContainerRequest) -> Answer<Empty> {
        self.engine
            .start(&container(&request.container_id)?)
            .await
            .map_err(rpc)?;
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecRequest) -> Answer<ExecResponse> {
        let id = container(&request.container_id)?;
        let spec = ExecSpec {
            exec_id: Id::parse("Exec", &request.exec_id).map_err(rpc)?,
            stdio: StdioSpec::parse(request.stdio.get_or_default()).map_err(rpc)?,
            process: request.process,
            user: request.user,
            strict_groups: request.strict_groups,
        };
        let mut response = ExecResponse::new();
        response.pid = self.engine.exec(&id, spec).await.map_err(rpc)?;
        Ok(response)
    }

    async fn signal(&self, _: &TtrpcContext, request: SignalRequest) -> Answer<Empty> {
        let id = container(&request.container_id)?;
        let exec_id = exec(&request.exec_id)?;
        self.engine
            .signal(&id, exec_id, request.signal, request.all)
            .await
            .map_err(rpc)?;
        Ok(Empty::new())
    }

    async fn resize_terminal(
        &self,
        _: &TtrpcContext,
        request: ResizeTerminalRequest,
    ) -> Answer<Empty> {
        let id = container(&request.container_id)?;
        let exec_id = exec(&request.exec_id)?;
        let size = engine::terminal_size(request.width, request.height).map_err(rpc)?;
        self.engine.resize(&id, exec_id, size).await.map_err(rpc)?;
        Ok(Empty::new())
    }

    async fn forward(&self, context: &TtrpcContext, request: ForwardRequest) -> Answer<Empty> {
        let ForwardRequest { port, stream, .. } = request;
        let opened = self.forwards.open(port, stream, deadline(context));
        opened.await.map_err(rpc)?;
        Ok(Empty::new())
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> Answer<Empty> {
        self.engine
            .update(&container(&request.container_id)?, request.resources)
            .await
            .map_err(rpc)?;
        Ok(Empty::new())
    }

    async fn limit_pod(&self, _: &TtrpcContext, request: LimitPodRequest) -> Answer<Empty> {
        let limited = self.engine.limit_memory(request.memory_bytes).await;
        limited.map_err(rpc)?;
        Ok(Empty::new())
    }

    async fn pause_container(
        &self,
        context: &TtrpcContext,
        request: ContainerRequest,
    ) -> Answer<Empty> {
        self.engine
            .pause(&container(&request.container_id)?, deadline(context))
            .await
            .map_err(rpc)?;
        Ok(Empty::new())
    }

    async fn resume_container(&self, _: &TtrpcContext, request: ContainerRequest) -> Answer<Empty> {
        self.engine
            .resume(&container(&request.container_id)?)
            .await
            .map_err(rpc)?;
        Ok(Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> Answer<StatsResponse> {
        let ids = request.container_ids.iter().map(|id| container(id));
        let ids = ids.collect::<Answer<Vec<_>>>()?;
        let mut response = StatsResponse::new();
        response.containers = self.engine.stats(&ids).await.map_err(rpc)?;
        response.interfaces = crate::pod::interfaces();
        Ok(response)
    }

    async fn update_mirror(&self, _: &TtrpcContext, request: UpdateMirrorRequest) -> Answer<Empty> {
        let updated = self.engine.update_mirror(request.volume).await;
        updated.map_err(rpc)?;
        Ok(Empty::new())
    }

    async fn volume_stats(
        &self,
        _: &TtrpcContext,
        request: VolumeRequest,
    ) -> Answer<VolumeFigures> {
        self.engine.volume_figures(&request.disk).map_err(rpc)
    }

    async fn grow_volume(
        &self,
        context: &TtrpcContext,
        request: GrowVolumeRequest,
    ) -> Answer<VolumeFigures> {
        let GrowVolumeRequest {
            disk, size_bytes, ..
        } = &request;
        let grown = self
            .engine
            .grow_volume(disk, *size_bytes, deadline(context));
        grown.await.map_err(rpc)
    }

    async fn remove_container(&self, _: &TtrpcContext, request: ContainerRequest) -> Answer<Empty> {
        self.engine
            .remove(&container(&request.container_id)?)
            .await
            .map_err(rpc)?;
        Ok(Empty::new())
    }

    async fn list_containers(&self, _: &TtrpcContext, _: Empty) -> Answer<ListContainersResponse> {
        let mut response = ListContainersResponse::new();
        (response.containers, response.last_event) = self.engine.list();
        Ok(response)
    }

    async fn events(
        &self,
        _: &TtrpcContext,
        request: EventsRequest,
        sender: ServerStreamSender<Event>,
    ) -> Answer<()> {
        let events = self.engine.events().clone();
        let mut after = request.after;
        loop {
            for event in events.after(after).map_err(rpc)? {
                after = event.sequence;
                sender.send(&event).await?;
            }
            events.wait(after).await;
        }
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> Answer<Empty> {
        self.engine.remove_all().await;
        self.engine.unmount_volumes().await;
        let unmounted = self.pod.scratch().unmount();
        rustix::fs::sync();
        // A disk that is still busy is synced: the guest ends in any case.
        if let Err(error) = unmounted {
            tracing::warn!("{}", error.chain());
        }
        self.shutdown.notify_one();
        Ok(Empty::new())
    }
}
