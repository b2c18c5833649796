//! Figures of pods and containers.

use super::{Messages, RuntimeApi};
use crate::cri::{convert, filter, paging, sandbox_status, stats};
use bulkhead_cri::v1::*;
use bulkhead_sandbox::figures::{ContainerFigures, PodFigures};
use tonic::Status;

/// Where a pod's scratch disk is.
fn mountpoint(api: &RuntimeApi, pod: &str) -> String {
    let pods = api.config.state.join("pods");
    pods.join(pod).display().to_string()
}

fn container(api: &RuntimeApi, figures: ContainerFigures) -> ContainerStats {
    let mountpoint = mountpoint(api, &figures.record.sandbox_id);
    stats::container(figures, mountpoint)
}

fn pod(api: &RuntimeApi, figures: PodFigures) -> PodSandboxStats {
    let mountpoint = mountpoint(api, &figures.record.id);
    stats::pod(figures, &mountpoint)
}

pub(super) async fn of_container(
    api: &RuntimeApi,
    request: ContainerStatsRequest,
) -> Result<ContainerStatsResponse, Status> {
    let found = api.sandboxes.container(&request.container_id);
    let figures = found.map_err(sandbox_status)?.figures().await;
    let stats = Some(container(api, figures.map_err(sandbox_status)?));
    Ok(ContainerStatsResponse { stats })
}

async fn containers(api: &RuntimeApi, wanted: Option<ContainerStatsFilter>) -> Vec<ContainerStats> {
    let wanted = wanted.map(|filter| ContainerFilter {
        id: filter.id,
        pod_sandbox_id: filter.pod_sandbox_id,
        label_selector: filter.label_selector,
        state: None,
    });
    let all = api.sandboxes.containers().into_iter();
    let matching = all
        .filter(|one| filter::container(&convert::container(one), wanted.as_ref()))
        .collect();
    let figures = api.sandboxes.container_figures(matching).await;
    figures.into_iter().map(|one| container(api, one)).collect()
}

pub(super) async fn of_containers(
    api: &RuntimeApi,
    request: ListContainerStatsRequest,
) -> Result<ListContainerStatsResponse, Status> {
    let stats = containers(api, request.filter).await;
    Ok(ListContainerStatsResponse { stats })
}

pub(super) async fn stream_containers(
    api: &RuntimeApi,
    request: StreamContainerStatsRequest,
) -> Result<Messages<StreamContainerStatsResponse>, Status> {
    let stats = containers(api, request.filter).await;
    let wrap = |container_stats| StreamContainerStatsResponse { container_stats };
    Ok(paging::pages(stats, wrap))
}

pub(super) async fn of_pod(
    api: &RuntimeApi,
    request: PodSandboxStatsRequest,
) -> Result<PodSandboxStatsResponse, Status> {
    let found = api.sandboxes.sandbox(&request.pod_sandbox_id);
    let figures = found.map_err(sandbox_status)?.figures().await;
    let stats = Some(pod(api, figures.map_err(sandbox_status)?));
    Ok(PodSandboxStatsResponse { stats })
}

async fn pods(api: &RuntimeApi, wanted: Option<PodSandboxStatsFilter>) -> Vec<PodSandboxStats> {
    let wanted = wanted.map(|filter| PodSandboxFilter {
        id: filter.id,
        label_selector: filter.label_selector,
        state: None,
    });
    let all = api.sandboxes.sandboxes().into_iter();
    let matching = all
        .filter(|one| filter::sandbox(&convert::sandbox(one), wanted.as_ref()))
        .collect();
    let figures = api.sandboxes.pod_figures(matching).await;
    figures.into_iter().map(|one| pod(api, one)).collect()
}

pub(super) async fn of_pods(
    api: &RuntimeApi,
    request: ListPodSandboxStatsRequest,
) -> Result<ListPodSandboxStatsResponse, Status> {
    let stats = pods(api, request.filter).await;
    Ok(ListPodSandboxStatsResponse { stats })
}

pub(super) async fn stream_pods(
    api: &RuntimeApi,
    request: StreamPodSandboxStatsRequest,
) -> Result<Messages<StreamPodSandboxStatsResponse>, Status> {
    let stats = pods(api, request.filter).await;
    let wrap = |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats };
    Ok(paging::pages(stats, wrap))
}
