//! Figures.

use super::{Messages, RuntimeApi, not_built};
use crate::cri::{convert, filter, sandbox_status, stats};
use bulkhead_cri::v1::*;
use bulkhead_sandbox::{ContainerRecord, figures};
use tonic::Status;

fn figures_of(
    api: &RuntimeApi,
    record: ContainerRecord,
    figures: &figures::ContainerStats,
) -> ContainerStats {
    // Where the pod's scratch disk is.
    let pods = api.config.state.join("pods");
    let mountpoint = pods.join(&record.sandbox_id).display().to_string();
    stats::container(record, figures, mountpoint)
}

pub(super) async fn of_container(
    api: &RuntimeApi,
    request: ContainerStatsRequest,
) -> Result<ContainerStatsResponse, Status> {
    let found = api.sandboxes.container(&request.container_id);
    let container = found.map_err(sandbox_status)?;
    let (record, figures) = container.stats().await.map_err(sandbox_status)?;
    let stats = Some(figures_of(api, record, &figures));
    Ok(ContainerStatsResponse { stats })
}

pub(super) async fn of_containers(
    api: &RuntimeApi,
    request: ListContainerStatsRequest,
) -> Result<ListContainerStatsResponse, Status> {
    let wanted = request.filter.map(|filter| ContainerFilter {
        id: filter.id,
        pod_sandbox_id: filter.pod_sandbox_id,
        label_selector: filter.label_selector,
        state: None,
    });
    let all = api.sandboxes.containers().into_iter();
    let containers = all
        .filter(|one| filter::container(&convert::container(one.record()), wanted.as_ref()))
        .collect();
    let figures = api.sandboxes.stats(containers).await;
    let stats = figures
        .into_iter()
        .map(|(record, figures)| figures_of(api, record, &figures))
        .collect();
    Ok(ListContainerStatsResponse { stats })
}

pub(super) async fn stream_containers(
    _: &RuntimeApi,
    _: StreamContainerStatsRequest,
) -> Result<Messages<StreamContainerStatsResponse>, Status> {
    not_built("StreamContainerStats")
}

pub(super) async fn of_pod(
    _: &RuntimeApi,
    _: PodSandboxStatsRequest,
) -> Result<PodSandboxStatsResponse, Status> {
    not_built("PodSandboxStats")
}

pub(super) async fn of_pods(
    _: &RuntimeApi,
    _: ListPodSandboxStatsRequest,
) -> Result<ListPodSandboxStatsResponse, Status> {
    not_built("ListPodSandboxStats")
}

pub(super) async fn stream_pods(
    _: &RuntimeApi,
    _: StreamPodSandboxStatsRequest,
) -> Result<Messages<StreamPodSandboxStatsResponse>, Status> {
    not_built("StreamPodSandboxStats")
}

pub(super) async fn metric_descriptors(
    _: &RuntimeApi,
    _: ListMetricDescriptorsRequest,
) -> Result<ListMetricDescriptorsResponse, Status> {
    not_built("ListMetricDescriptors")
}

pub(super) async fn metrics(
    _: &RuntimeApi,
    _: ListPodSandboxMetricsRequest,
) -> Result<ListPodSandboxMetricsResponse, Status> {
    not_built("ListPodSandboxMetrics")
}

pub(super) async fn stream_metrics(
    _: &RuntimeApi,
    _: StreamPodSandboxMetricsRequest,
) -> Result<Messages<StreamPodSandboxMetricsResponse>, Status> {
    not_built("StreamPodSandboxMetrics")
}
