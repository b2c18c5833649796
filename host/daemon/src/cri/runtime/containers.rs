//! Containers.

use super::{Messages, RuntimeApi, required};
use crate::cri::{convert, filter, image_status, paging, sandbox_status};
use bulkhead_cri::v1::*;
use bulkhead_image::{Image as StoredImage, ImageError};
use bulkhead_sandbox::{ContainerImage, ContainerRecord, SandboxError, SandboxRecord};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tonic::Status;

/// An image that is on the node. `of` says more of where the request has it.
async fn image(api: &RuntimeApi, spec: &ImageSpec, of: &str) -> Result<StoredImage, Status> {
    let found = api.images.get(&spec.image).await.map_err(image_status)?;
    found.ok_or_else(|| {
        image_status(ImageError::NotFound {
            image: format!("{}{of} on this node", spec.image),
        })
    })
}

async fn disk(api: &RuntimeApi, image_id: &str) -> Result<OwnedFd, Status> {
    api.images.open_disk(image_id).await.map_err(image_status)
}

fn described(image: StoredImage, config: &ContainerConfig) -> ContainerImage {
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

pub(super) async fn create(
    api: &RuntimeApi,
    request: CreateContainerRequest,
) -> Result<CreateContainerResponse, Status> {
    let config = required(request.config, "config")?;
    let spec = required(config.image.clone(), "config.image")?;
    let root = image(api, &spec, "").await?;
    let root_disk = disk(api, &root.id).await?;
    let mut volumes = Vec::new();
    for spec in config
        .mounts
        .iter()
        .filter_map(|mount| mount.image.as_ref())
    {
        let volume = image(api, spec, " (config.mounts)").await?;
        let volume_disk = disk(api, &volume.id).await?;
        volumes.push((volume.id, volume_disk));
    }
    let root = described(root, &config);
    let sandbox = &request.pod_sandbox_id;
    let made = api
        .sandboxes
        .create_container(sandbox, config, root, root_disk, volumes)
        .await;
    let container_id = made.map_err(sandbox_status)?.id().to_owned();
    Ok(CreateContainerResponse { container_id })
}

pub(super) async fn start(
    api: &RuntimeApi,
    request: StartContainerRequest,
) -> Result<StartContainerResponse, Status> {
    let found = api.sandboxes.container(&request.container_id);
    let container = found.map_err(sandbox_status)?;
    container.start().await.map_err(sandbox_status)?;
    Ok(StartContainerResponse {})
}

pub(super) async fn stop(
    api: &RuntimeApi,
    request: StopContainerRequest,
) -> Result<StopContainerResponse, Status> {
    // A negative time-out means none at all, as for containerd.
    let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
    match api.sandboxes.container(&request.container_id) {
        Ok(container) => container.stop(grace).await.map_err(sandbox_status)?,
        Err(SandboxError::NotFound { .. }) => {}
        Err(error) => return Err(sandbox_status(error)),
    }
    Ok(StopContainerResponse {})
}

pub(super) async fn remove(
    api: &RuntimeApi,
    request: RemoveContainerRequest,
) -> Result<RemoveContainerResponse, Status> {
    let removed = api.sandboxes.remove_container(&request.container_id).await;
    removed.map_err(sandbox_status)?;
    Ok(RemoveContainerResponse {})
}

fn matching(api: &RuntimeApi, wanted: Option<&ContainerFilter>) -> Vec<Container> {
    let all = api.sandboxes.containers().into_iter();
    all.map(|container| convert::container(&container))
        .filter(|container| filter::container(container, wanted))
        .collect()
}

pub(super) async fn list(
    api: &RuntimeApi,
    request: ListContainersRequest,
) -> Result<ListContainersResponse, Status> {
    let containers = matching(api, request.filter.as_ref());
    Ok(ListContainersResponse { containers })
}

pub(super) async fn stream(
    api: &RuntimeApi,
    request: StreamContainersRequest,
) -> Result<Messages<StreamContainersResponse>, Status> {
    let items = matching(api, request.filter.as_ref());
    let wrap = |containers| StreamContainersResponse { containers };
    Ok(paging::pages(items, wrap))
}

/// What `verbose` adds to a container's status: what runs it and how it was told to.
fn info(record: &ContainerRecord, pod: &SandboxRecord, spec: Option<Value>) -> String {
    json!({
        "sandboxID": record.sandbox_id,
        // In the guest's first pid namespace.
        "pid": record.pid,
        "runtimeHandler": pod.handler,
        "runtimeSpec": spec,
        "vm": { "size": pod.size, "vmmPid": pod.vmm.as_ref().map(|vmm| vmm.pid),
                "guestKernel": pod.guest_kernel },
        "process": record.process,
        "state": record.state,
    })
    .to_string()
}

pub(super) async fn status(
    api: &RuntimeApi,
    request: ContainerStatusRequest,
) -> Result<ContainerStatusResponse, Status> {
    let found = api.sandboxes.container(&request.container_id);
    let container = found.map_err(sandbox_status)?;
    let record = container.record();
    let mut verbose = HashMap::new();
    if request.verbose {
        let pod = api.sandboxes.sandbox(&record.sandbox_id);
        let pod = pod.map_err(sandbox_status)?.record();
        let spec = container.spec().await.map_err(sandbox_status)?;
        let spec = spec.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        verbose.insert("info".to_owned(), info(&record, &pod, spec));
    }
    let status = Some(convert::container_status(record));
    Ok(ContainerStatusResponse {
        status,
        info: verbose,
    })
}

pub(super) async fn update_resources(
    api: &RuntimeApi,
    request: UpdateContainerResourcesRequest,
) -> Result<UpdateContainerResourcesResponse, Status> {
    let found = api.sandboxes.container(&request.container_id);
    let container = found.map_err(sandbox_status)?;
    let update = required(request.linux, "linux")?;
    let updated = container.update_resources(update).await;
    updated.map_err(sandbox_status)?;
    Ok(UpdateContainerResourcesResponse {})
}

pub(super) async fn reopen_log(
    api: &RuntimeApi,
    request: ReopenContainerLogRequest,
) -> Result<ReopenContainerLogResponse, Status> {
    let found = api.sandboxes.container(&request.container_id);
    let reopened = found.map_err(sandbox_status)?.reopen_log().await;
    reopened.map_err(sandbox_status)?;
    Ok(ReopenContainerLogResponse {})
}

pub(super) async fn checkpoint(
    api: &RuntimeApi,
    request: CheckpointContainerRequest,
) -> Result<CheckpointContainerResponse, Status> {
    let found = api.sandboxes.container(&request.container_id);
    found.map_err(sandbox_status)?;
    Err(Status::unimplemented(
        "CheckpointContainer: a container in a virtual machine cannot be checkpointed; the guest's kernel has no checkpoint and restore in userspace",
    ))
}
