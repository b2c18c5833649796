//! RuntimeService.

use super::{convert, filter, image_status, sandbox_status, stats};
use crate::config::Config;
use bulkhead_cri::v1::runtime_service_server::RuntimeService;
use bulkhead_cri::v1::*;
use bulkhead_image::{Image, ImageError, ImageStore};
use bulkhead_sandbox::{ContainerImage, ContainerRecord, SandboxRecord, Sandboxes, figures, kvm};
use serde_json::json;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::Pending;
use tonic::{Request, Response, Status};

/// The version of the kubelet's runtime API, which has been this since the CRI began.
const KUBELET_API: &str = "0.1.0";

/// The runtime service.
pub(crate) struct RuntimeApi {
    config: Arc<Config>,
    sandboxes: Sandboxes,
    images: ImageStore,
}

impl RuntimeApi {
    pub(crate) fn new(config: Arc<Config>, sandboxes: Sandboxes, images: ImageStore) -> Self {
        Self {
            config,
            sandboxes,
            images,
        }
    }

    fn container_figures(
        &self,
        record: ContainerRecord,
        figures: &figures::ContainerStats,
    ) -> ContainerStats {
        // Where the pod's scratch disk is.
        let pods = self.config.state.join("pods");
        let mountpoint = pods.join(&record.sandbox_id).display().to_string();
        stats::container(record, figures, mountpoint)
    }

    /// The id and the disk of an image that a container has as a volume.
    async fn volume(&self, spec: &ImageSpec) -> Result<(String, OwnedFd), Status> {
        let found = self.images.get(&spec.image).await.map_err(image_status)?;
        let image = found.ok_or_else(|| {
            image_status(ImageError::NotFound {
                image: format!("{} (config.mounts) on this node", spec.image),
            })
        })?;
        let disk = self.images.open_disk(&image.id).await;
        Ok((image.id, disk.map_err(image_status)?))
    }
}

type Answer<T> = Result<Response<T>, Status>;
/// Of a streaming call that is not built: there is no stream.
type NoStream<T> = Pending<Result<T, Status>>;

fn not_built<T>(call: &str) -> Answer<T> {
    Err(Status::unimplemented(format!(
        "{call} is not supported yet"
    )))
}

fn required<T>(value: Option<T>, field: &str) -> Result<T, Status> {
    value.ok_or_else(|| Status::invalid_argument(format!("{field}: must be set")))
}

fn container_image(image: Image, config: &ContainerConfig) -> ContainerImage {
    let stop_signal = match config.stop_signal() {
        Signal::RuntimeDefault => image.config.stop_signal.unwrap_or_default(),
        signal => signal.as_str_name().to_owned(),
    };
    ContainerImage {
        reference: image
            .repo_digests
            .into_iter()
            .next()
            .unwrap_or_else(|| image.id.clone()),
        id: image.id,
        entrypoint: image.config.entrypoint,
        cmd: image.config.cmd,
        env: image.config.env,
        working_dir: image.config.working_dir,
        user: image.config.user,
        stop_signal,
    }
}

/// What `verbose` adds to a pod's status: how it was started and what runs it.
fn sandbox_info(record: &SandboxRecord) -> String {
    let phases: Vec<_> = record
        .phases
        .rows()
        .into_iter()
        .map(|(name, duration)| json!({ "phase": name, "seconds": duration.as_secs_f64() }))
        .collect();
    json!({
        "state": record.state,
        "runtime": record.runtime,
        "guestKernel": record.guest_kernel,
        "cgroup": record.cgroup,
        "vmmPid": record.vmm.as_ref().map(|vmm| vmm.pid),
        "guestBootNs": record.phases.guest_boot_ns,
        "phases": phases,
    })
    .to_string()
}

#[tonic::async_trait]
impl RuntimeService for RuntimeApi {
    type GetContainerEventsStream = NoStream<ContainerEventResponse>;
    type StreamPodSandboxesStream = NoStream<StreamPodSandboxesResponse>;
    type StreamContainersStream = NoStream<StreamContainersResponse>;
    type StreamContainerStatsStream = NoStream<StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = NoStream<StreamPodSandboxStatsResponse>;
    type StreamPodSandboxMetricsStream = NoStream<StreamPodSandboxMetricsResponse>;

    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        Ok(Response::new(VersionResponse {
            version: KUBELET_API.to_owned(),
            runtime_name: "bulkhead".to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: "v1".to_owned(),
        }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Answer<StatusResponse> {
        let runtime = match kvm::open() {
            Ok(_) => (true, String::new(), String::new()),
            Err(error) => (false, "NodeUnfit".to_owned(), error.to_string()),
        };
        let network = match self.sandboxes.network_status().await {
            Ok(()) => (true, String::new(), String::new()),
            Err(error) => (false, "NetworkPluginNotReady".to_owned(), error.to_string()),
        };
        let conditions = [("RuntimeReady", runtime), ("NetworkReady", network)]
            .map(|(name, (status, reason, message))| RuntimeCondition {
                r#type: name.to_owned(),
                status,
                reason,
                message,
            })
            .into();
        let features = RuntimeHandlerFeatures {
            user_namespaces: true,
            ..Default::default()
        };
        let handlers = self.config.runtimes.keys().map(|name| RuntimeHandler {
            name: name.clone(),
            features: Some(features),
        });
        Ok(Response::new(StatusResponse {
            status: Some(RuntimeStatus { conditions }),
            info: HashMap::new(),
            runtime_handlers: handlers.collect(),
            features: Some(RuntimeFeatures {
                supplemental_groups_policy: true,
                ..Default::default()
            }),
        }))
    }

    async fn runtime_config(
        &self,
        _: Request<RuntimeConfigRequest>,
    ) -> Answer<RuntimeConfigResponse> {
        let cgroup_driver = CgroupDriver::Cgroupfs.into();
        let linux = Some(LinuxRuntimeConfiguration { cgroup_driver });
        Ok(Response::new(RuntimeConfigResponse { linux }))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<RunPodSandboxRequest>,
    ) -> Answer<RunPodSandboxResponse> {
        let request = request.into_inner();
        let config = required(request.config, "config")?;
        let handler = match request.runtime_handler.is_empty() {
            true => self.config.default_runtime.clone(),
            false => request.runtime_handler,
        };
        let Some(runtime) = self.config.runtimes.get(&handler) else {
            let known: Vec<_> = self.config.runtimes.keys().map(String::as_str).collect();
            return Err(Status::invalid_argument(format!(
                "runtime_handler: there is no handler {handler:?}; the configuration has {}",
                known.join(", ")
            )));
        };
        let made = self.sandboxes.run(config, handler, runtime.clone()).await;
        let pod_sandbox_id = made.map_err(sandbox_status)?.id();
        Ok(Response::new(RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Answer<StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.sandboxes
            .stop_sandbox(&id)
            .await
            .map_err(sandbox_status)?;
        Ok(Response::new(StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Answer<RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.sandboxes
            .remove_sandbox(&id)
            .await
            .map_err(sandbox_status)?;
        Ok(Response::new(RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Answer<PodSandboxStatusResponse> {
        let request = request.into_inner();
        let sandbox = self
            .sandboxes
            .sandbox(&request.pod_sandbox_id)
            .map_err(sandbox_status)?;
        let containers = sandbox.containers();
        let record = sandbox.record();
        let mut info = HashMap::new();
        if request.verbose {
            info.insert("info".to_owned(), sandbox_info(&record));
        }
        Ok(Response::new(PodSandboxStatusResponse {
            status: Some(convert::sandbox_status(record)),
            info,
            containers_statuses: containers
                .iter()
                .map(|container| convert::container_status(container.record()))
                .collect(),
            timestamp: 0,
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Answer<ListPodSandboxResponse> {
        let wanted = request.into_inner().filter;
        let all = self.sandboxes.sandboxes().into_iter();
        let items = all
            .map(|sandbox| convert::sandbox(sandbox.record()))
            .filter(|pod| filter::sandbox(pod, wanted.as_ref()))
            .collect();
        Ok(Response::new(ListPodSandboxResponse { items }))
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        let request = request.into_inner();
        let config = required(request.config, "config")?;
        let spec = required(config.image.clone(), "config.image")?;
        let found = self.images.get(&spec.image).await.map_err(image_status)?;
        let image = found.ok_or_else(|| {
            image_status(ImageError::NotFound {
                image: format!("{} on this node", spec.image),
            })
        })?;
        let disk = self
            .images
            .open_disk(&image.id)
            .await
            .map_err(image_status)?;
        let mut volumes = Vec::new();
        for spec in config
            .mounts
            .iter()
            .filter_map(|mount| mount.image.as_ref())
        {
            volumes.push(self.volume(spec).await?);
        }
        let image = container_image(image, &config);
        let sandbox = &request.pod_sandbox_id;
        let made = self
            .sandboxes
            .create_container(sandbox, config, image, disk, volumes)
            .await;
        let container_id = made.map_err(sandbox_status)?.id().to_owned();
        Ok(Response::new(CreateContainerResponse { container_id }))
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Answer<StartContainerResponse> {
        let id = request.into_inner().container_id;
        let container = self.sandboxes.container(&id).map_err(sandbox_status)?;
        container.start().await.map_err(sandbox_status)?;
        Ok(Response::new(StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<StopContainerRequest>,
    ) -> Answer<StopContainerResponse> {
        let request = request.into_inner();
        // A negative time-out means none at all, as for containerd.
        let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
        let container = match self.sandboxes.container(&request.container_id) {
            Ok(container) => container,
            Err(bulkhead_sandbox::SandboxError::NotFound { .. }) => {
                return Ok(Response::new(StopContainerResponse {}));
            }
            Err(error) => return Err(sandbox_status(error)),
        };
        container.stop(grace).await.map_err(sandbox_status)?;
        Ok(Response::new(StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Answer<RemoveContainerResponse> {
        let id = request.into_inner().container_id;
        self.sandboxes
            .remove_container(&id)
            .await
            .map_err(sandbox_status)?;
        Ok(Response::new(RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        let wanted = request.into_inner().filter;
        let all = self.sandboxes.containers().into_iter();
        let containers = all
            .map(|container| convert::container(container.record()))
            .filter(|container| filter::container(container, wanted.as_ref()))
            .collect();
        Ok(Response::new(ListContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Answer<ContainerStatusResponse> {
        let request = request.into_inner();
        let container = self
            .sandboxes
            .container(&request.container_id)
            .map_err(sandbox_status)?;
        let record = container.record();
        let mut info = HashMap::new();
        if request.verbose {
            let process = json!({ "sandboxID": record.sandbox_id, "process": record.process });
            info.insert("info".to_owned(), process.to_string());
        }
        let status = Some(convert::container_status(record));
        Ok(Response::new(ContainerStatusResponse { status, info }))
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        let request = request.into_inner();
        let limit = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
        let container = self
            .sandboxes
            .container(&request.container_id)
            .map_err(sandbox_status)?;
        let output = container
            .exec_sync(request.cmd, limit)
            .await
            .map_err(sandbox_status)?;
        Ok(Response::new(ExecSyncResponse {
            stdout: output.stdout,
            stderr: output.stderr,
            exit_code: output.code,
        }))
    }

    // What follows is not built yet.

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        not_built("GetContainerEvents")
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let container = self
            .sandboxes
            .container(&request.container_id)
            .map_err(sandbox_status)?;
        container
            .update_resources(required(request.linux, "linux")?)
            .await
            .map_err(sandbox_status)?;
        Ok(Response::new(UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        _: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        not_built("ReopenContainerLog")
    }

    async fn exec(&self, _: Request<ExecRequest>) -> Answer<ExecResponse> {
        not_built("Exec")
    }

    async fn attach(&self, _: Request<AttachRequest>) -> Answer<AttachResponse> {
        not_built("Attach")
    }

    async fn port_forward(&self, _: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        not_built("PortForward")
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Answer<ContainerStatsResponse> {
        let id = request.into_inner().container_id;
        let container = self.sandboxes.container(&id).map_err(sandbox_status)?;
        let (record, figures) = container.stats().await.map_err(sandbox_status)?;
        let stats = Some(self.container_figures(record, &figures));
        Ok(Response::new(ContainerStatsResponse { stats }))
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        let wanted = request.into_inner().filter.map(|filter| ContainerFilter {
            id: filter.id,
            pod_sandbox_id: filter.pod_sandbox_id,
            label_selector: filter.label_selector,
            state: None,
        });
        let all = self.sandboxes.containers().into_iter();
        let containers = all
            .filter(|one| filter::container(&convert::container(one.record()), wanted.as_ref()))
            .collect();
        let figures = self.sandboxes.stats(containers).await;
        let stats = figures
            .into_iter()
            .map(|(record, figures)| self.container_figures(record, &figures))
            .collect();
        Ok(Response::new(ListContainerStatsResponse { stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        _: Request<PodSandboxStatsRequest>,
    ) -> Answer<PodSandboxStatsResponse> {
        not_built("PodSandboxStats")
    }

    async fn list_pod_sandbox_stats(
        &self,
        _: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        not_built("ListPodSandboxStats")
    }

    async fn update_runtime_config(
        &self,
        _: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        not_built("UpdateRuntimeConfig")
    }

    async fn checkpoint_container(
        &self,
        _: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        not_built("CheckpointContainer")
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        not_built("ListMetricDescriptors")
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        not_built("ListPodSandboxMetrics")
    }

    async fn update_pod_sandbox_resources(
        &self,
        _: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        not_built("UpdatePodSandboxResources")
    }

    async fn stream_pod_sandboxes(
        &self,
        _: Request<StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        not_built("StreamPodSandboxes")
    }

    async fn stream_containers(
        &self,
        _: Request<StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        not_built("StreamContainers")
    }

    async fn stream_container_stats(
        &self,
        _: Request<StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        not_built("StreamContainerStats")
    }

    async fn stream_pod_sandbox_stats(
        &self,
        _: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        not_built("StreamPodSandboxStats")
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        not_built("StreamPodSandboxMetrics")
    }
}
