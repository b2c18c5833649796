//! The metrics that a kubelet passes on in the place of cAdvisor's (KEP-2371).

use super::{Messages, RuntimeApi};
use crate::cri::{metrics, paging};
use bulkhead_cri::v1::*;
use tonic::Status;

pub(super) async fn descriptors(
    _: &RuntimeApi,
    _: ListMetricDescriptorsRequest,
) -> Result<ListMetricDescriptorsResponse, Status> {
    let descriptors = metrics::descriptors();
    Ok(ListMetricDescriptorsResponse { descriptors })
}

async fn pods(api: &RuntimeApi) -> Vec<PodSandboxMetrics> {
    let figures = api.sandboxes.pod_figures(api.sandboxes.sandboxes()).await;
    figures.iter().map(metrics::pod).collect()
}

pub(super) async fn list(
    api: &RuntimeApi,
    _: ListPodSandboxMetricsRequest,
) -> Result<ListPodSandboxMetricsResponse, Status> {
    let pod_metrics = pods(api).await;
    Ok(ListPodSandboxMetricsResponse { pod_metrics })
}

pub(super) async fn stream(
    api: &RuntimeApi,
    _: StreamPodSandboxMetricsRequest,
) -> Result<Messages<StreamPodSandboxMetricsResponse>, Status> {
    let wrap = |pod_sandbox_metrics| StreamPodSandboxMetricsResponse {
        pod_sandbox_metrics,
    };
    Ok(paging::pages(pods(api).await, wrap))
}
