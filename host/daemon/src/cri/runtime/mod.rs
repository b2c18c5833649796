//! RuntimeService: which function answers which call. The functions are in files by what they are
//! about; each takes the request and gives the answer or a gRPC status.

mod containers;
mod events;
mod exec;
mod metrics;
mod node;
mod pods;
mod stats;

use super::streaming;
use crate::config::Config;
use bulkhead_cri::v1::runtime_service_server::RuntimeService;
use bulkhead_cri::v1::*;
use bulkhead_image::ImageStore;
use bulkhead_sandbox::Sandboxes;
use futures::stream::BoxStream;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The runtime service.
pub(crate) struct RuntimeApi {
    pub(super) config: Arc<Config>,
    pub(super) sandboxes: Sandboxes,
    pub(super) images: ImageStore,
    pub(super) streams: bulkhead_stream::Urls,
}

impl RuntimeApi {
    pub(crate) fn new(
        config: Arc<Config>,
        sandboxes: Sandboxes,
        images: ImageStore,
        streams: bulkhead_stream::Urls,
    ) -> Self {
        Self {
            config,
            sandboxes,
            images,
            streams,
        }
    }
}

/// What a streaming call sends.
pub(super) type Messages<T> = BoxStream<'static, Result<T, Status>>;

pub(super) fn required<T>(value: Option<T>, field: &str) -> Result<T, Status> {
    value.ok_or_else(|| Status::invalid_argument(format!("{field}: must be set")))
}

/// Implements the service by a table: the call, its messages, the function that answers it.
macro_rules! service {
    (
        calls { $($call:ident: $request:ident => $response:ident, $function:path;)* }
        streams { $($stream_call:ident: $stream_request:ident => $stream:ident<$message:ident>, $stream_function:path;)* }
    ) => {
        #[tonic::async_trait]
        impl RuntimeService for RuntimeApi {
            $(
                async fn $call(
                    &self,
                    request: Request<$request>,
                ) -> Result<Response<$response>, Status> {
                    $function(self, request.into_inner()).await.map(Response::new)
                }
            )*
            $(
                type $stream = Messages<$message>;
                async fn $stream_call(
                    &self,
                    request: Request<$stream_request>,
                ) -> Result<Response<Self::$stream>, Status> {
                    $stream_function(self, request.into_inner()).await.map(Response::new)
                }
            )*
        }
    };
}

service! {
    calls {
        version: VersionRequest => VersionResponse, node::version;
        status: StatusRequest => StatusResponse, node::status;
        runtime_config: RuntimeConfigRequest => RuntimeConfigResponse, node::runtime_config;
        update_runtime_config: UpdateRuntimeConfigRequest => UpdateRuntimeConfigResponse,
            node::update_runtime_config;

        run_pod_sandbox: RunPodSandboxRequest => RunPodSandboxResponse, pods::run;
        stop_pod_sandbox: StopPodSandboxRequest => StopPodSandboxResponse, pods::stop;
        remove_pod_sandbox: RemovePodSandboxRequest => RemovePodSandboxResponse, pods::remove;
        pod_sandbox_status: PodSandboxStatusRequest => PodSandboxStatusResponse, pods::status;
        list_pod_sandbox: ListPodSandboxRequest => ListPodSandboxResponse, pods::list;
        update_pod_sandbox_resources: UpdatePodSandboxResourcesRequest
            => UpdatePodSandboxResourcesResponse, pods::update_resources;

        create_container: CreateContainerRequest => CreateContainerResponse, containers::create;
        start_container: StartContainerRequest => StartContainerResponse, containers::start;
        stop_container: StopContainerRequest => StopContainerResponse, containers::stop;
        remove_container: RemoveContainerRequest => RemoveContainerResponse, containers::remove;
        list_containers: ListContainersRequest => ListContainersResponse, containers::list;
        container_status: ContainerStatusRequest => ContainerStatusResponse, containers::status;
        update_container_resources: UpdateContainerResourcesRequest
            => UpdateContainerResourcesResponse, containers::update_resources;
        reopen_container_log: ReopenContainerLogRequest => ReopenContainerLogResponse,
            containers::reopen_log;
        checkpoint_container: CheckpointContainerRequest => CheckpointContainerResponse,
            containers::checkpoint;

        exec_sync: ExecSyncRequest => ExecSyncResponse, exec::sync;
        exec: ExecRequest => ExecResponse, streaming::exec;
        attach: AttachRequest => AttachResponse, streaming::attach;
        port_forward: PortForwardRequest => PortForwardResponse, streaming::port_forward;

        container_stats: ContainerStatsRequest => ContainerStatsResponse, stats::of_container;
        list_container_stats: ListContainerStatsRequest => ListContainerStatsResponse,
            stats::of_containers;
        pod_sandbox_stats: PodSandboxStatsRequest => PodSandboxStatsResponse, stats::of_pod;
        list_pod_sandbox_stats: ListPodSandboxStatsRequest => ListPodSandboxStatsResponse,
            stats::of_pods;
        list_metric_descriptors: ListMetricDescriptorsRequest => ListMetricDescriptorsResponse,
            metrics::descriptors;
        list_pod_sandbox_metrics: ListPodSandboxMetricsRequest => ListPodSandboxMetricsResponse,
            metrics::list;
    }
    streams {
        get_container_events: GetEventsRequest
            => GetContainerEventsStream<ContainerEventResponse>, events::subscribe;
        stream_pod_sandboxes: StreamPodSandboxesRequest
            => StreamPodSandboxesStream<StreamPodSandboxesResponse>, pods::stream;
        stream_containers: StreamContainersRequest
            => StreamContainersStream<StreamContainersResponse>, containers::stream;
        stream_container_stats: StreamContainerStatsRequest
            => StreamContainerStatsStream<StreamContainerStatsResponse>, stats::stream_containers;
        stream_pod_sandbox_stats: StreamPodSandboxStatsRequest
            => StreamPodSandboxStatsStream<StreamPodSandboxStatsResponse>, stats::stream_pods;
        stream_pod_sandbox_metrics: StreamPodSandboxMetricsRequest
            => StreamPodSandboxMetricsStream<StreamPodSandboxMetricsResponse>,
            metrics::stream;
    }
}
