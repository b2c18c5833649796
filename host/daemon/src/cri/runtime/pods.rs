//! Pod sandboxes.

use super::{Messages, RuntimeApi, required};
use crate::cri::{convert, filter, paging, sandbox_status};
use crate::heap;
use bulkhead_cri::v1::*;
use bulkhead_sandbox::SandboxRecord;
use serde_json::json;
use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};
use tonic::Status;

pub(super) async fn run(
    api: &RuntimeApi,
    request: RunPodSandboxRequest,
) -> Result<RunPodSandboxResponse, Status> {
    let config = required(request.config, "config")?;
    let handler = match request.runtime_handler.is_empty() {
        true => api.config.default_runtime.clone(),
        false => request.runtime_handler,
    };
    let Some(runtime) = api.config.runtimes.get(&handler) else {
        let known: Vec<_> = api.config.runtimes.keys().map(String::as_str).collect();
        return Err(Status::invalid_argument(format!(
            "runtime_handler: there is no handler {handler:?}; the configuration has {}",
            known.join(", ")
        )));
    };
    let made = api.sandboxes.run(config, handler, runtime.clone()).await;
    let pod_sandbox_id = made.map_err(sandbox_status)?.id();
    Ok(RunPodSandboxResponse { pod_sandbox_id })
}

pub(super) async fn stop(
    api: &RuntimeApi,
    request: StopPodSandboxRequest,
) -> Result<StopPodSandboxResponse, Status> {
    let stopped = api.sandboxes.stop_sandbox(&request.pod_sandbox_id).await;
    stopped.map_err(sandbox_status)?;
    Ok(StopPodSandboxResponse {})
}

pub(super) async fn remove(
    api: &RuntimeApi,
    request: RemovePodSandboxRequest,
) -> Result<RemovePodSandboxResponse, Status> {
    let removed = api.sandboxes.remove_sandbox(&request.pod_sandbox_id).await;
    removed.map_err(sandbox_status)?;
    heap::pod_gone();
    Ok(RemovePodSandboxResponse {})
}

/// What `verbose` adds to a pod's status: how it was started, what runs it, and what that holds.
fn info(record: &SandboxRecord) -> String {
    // None that has ended.
    let file_daemon = record.file_daemon.as_ref();
    let file_daemon = file_daemon.and_then(|daemon| daemon.gauges().ok());
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
        "vm": record.size,
        "resources": record.resources,
        "vmmPid": record.vmm.as_ref().map(|vmm| vmm.pid),
        "fileDaemon": file_daemon,
        "guestBootNs": record.phases.guest_boot_ns,
        "phases": phases,
    })
    .to_string()
}

/// Nanoseconds since the epoch.
fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(i64::MAX)
}

pub(super) async fn status(
    api: &RuntimeApi,
    request: PodSandboxStatusRequest,
) -> Result<PodSandboxStatusResponse, Status> {
    let found = api.sandboxes.sandbox(&request.pod_sandbox_id);
    let sandbox = found.map_err(sandbox_status)?;
    let containers = sandbox.containers();
    let record = sandbox.record();
    let mut verbose = HashMap::new();
    if request.verbose {
        let of = record.clone();
        let info = tokio::task::spawn_blocking(move || info(&of)).await;
        let info = info.map_err(|error| Status::internal(error.to_string()))?;
        verbose.insert("info".to_owned(), info);
    }
    Ok(PodSandboxStatusResponse {
        status: Some(convert::sandbox_status(record)),
        info: verbose,
        containers_statuses: containers
            .iter()
            .map(|container| convert::container_status(container.record()))
            .collect(),
        timestamp: now_ns(),
    })
}

fn matching(api: &RuntimeApi, wanted: Option<&PodSandboxFilter>) -> Vec<PodSandbox> {
    let all = api.sandboxes.sandboxes().into_iter();
    all.map(|sandbox| convert::sandbox(&sandbox))
        .filter(|pod| filter::sandbox(pod, wanted))
        .collect()
}

pub(super) async fn list(
    api: &RuntimeApi,
    request: ListPodSandboxRequest,
) -> Result<ListPodSandboxResponse, Status> {
    let items = matching(api, request.filter.as_ref());
    Ok(ListPodSandboxResponse { items })
}

pub(super) async fn stream(
    api: &RuntimeApi,
    request: StreamPodSandboxesRequest,
) -> Result<Messages<StreamPodSandboxesResponse>, Status> {
    let items = matching(api, request.filter.as_ref());
    let wrap = |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes };
    Ok(paging::pages(items, wrap))
}

pub(super) async fn update_resources(
    api: &RuntimeApi,
    request: UpdatePodSandboxResourcesRequest,
) -> Result<UpdatePodSandboxResourcesResponse, Status> {
    let found = api.sandboxes.sandbox(&request.pod_sandbox_id);
    let sandbox = found.map_err(sandbox_status)?;
    let resources = request.resources.unwrap_or_default();
    let overhead = request.overhead.unwrap_or_default();
    let updated = sandbox.update_resources(resources, overhead).await;
    updated.map_err(sandbox_status)?;
    Ok(UpdatePodSandboxResourcesResponse {})
}
