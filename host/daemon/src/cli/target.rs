//! Which pod or container a word means: an id, the beginning of one, or a pod's name.

use super::refused;
use anyhow::{Context, Result, bail};
use bulkhead_cri::v1;
use bulkhead_cri::v1::runtime_service_client::RuntimeServiceClient;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use tonic::transport::Channel;

/// On a pod that `bulkhead run` made: where its logs are. They go with the pod; the logs of other
/// pods belong to their kubelet.
pub(super) const LOG_DIRECTORY: &str = "bulkhead.io/log-directory";

type Runtime = RuntimeServiceClient<Channel>;

pub(super) async fn pods(runtime: &mut Runtime) -> Result<Vec<v1::PodSandbox>> {
    let listed = runtime
        .list_pod_sandbox(v1::ListPodSandboxRequest { filter: None })
        .await;
    Ok(listed.map_err(refused)?.into_inner().items)
}

pub(super) async fn containers(runtime: &mut Runtime) -> Result<Vec<v1::Container>> {
    let listed = runtime
        .list_containers(v1::ListContainersRequest { filter: None })
        .await;
    Ok(listed.map_err(refused)?.into_inner().containers)
}

pub(super) fn name(pod: &v1::PodSandbox) -> &str {
    pod.metadata.as_ref().map_or("", |metadata| &metadata.name)
}

/// The log directory of a pod that `bulkhead run` made.
pub(super) fn log_directory(pod: &v1::PodSandbox) -> Option<&Path> {
    pod.annotations.get(LOG_DIRECTORY).map(Path::new)
}

fn is_meant(pod: &v1::PodSandbox, word: &str) -> bool {
    name(pod) == word || pod.id.starts_with(word)
}

/// The one pod that a word means, or whose container it means.
pub(super) async fn pod(runtime: &mut Runtime, word: &str) -> Result<v1::PodSandbox> {
    let all = pods(runtime).await?;
    let owners = containers(runtime)
        .await?
        .into_iter()
        .filter(|one| one.id.starts_with(word));
    let owners: Vec<String> = owners.map(|container| container.pod_sandbox_id).collect();
    let found = all
        .into_iter()
        .filter(|pod| is_meant(pod, word) || owners.contains(&pod.id));
    only("pod or container", word, found.collect())
}

/// The one container that a word means, or the only one of the pod that it means.
pub(super) async fn container(runtime: &mut Runtime, word: &str) -> Result<v1::Container> {
    let of: Vec<String> = pods(runtime)
        .await?
        .into_iter()
        .filter(|pod| is_meant(pod, word))
        .map(|pod| pod.id)
        .collect();
    let all = containers(runtime).await?.into_iter();
    let found = all.filter(|one| one.id.starts_with(word) || of.contains(&one.pod_sandbox_id));
    only("container", word, found.collect())
}

fn only<T>(what: &str, word: &str, found: Vec<T>) -> Result<T> {
    let count = found.len();
    match found.into_iter().next() {
        Some(one) if count == 1 && !word.is_empty() => Ok(one),
        Some(_) => bail!("{word:?} means more than one {what}; `bulkhead ps` shows their ids"),
        None => bail!("There is no {what} {word:?}; `bulkhead ps` shows all"),
    }
}

/// Where a container's log is, if it has one.
pub(super) async fn log_path(runtime: &mut Runtime, id: &str) -> Result<Option<PathBuf>> {
    let request = v1::ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: false,
    };
    let status = runtime
        .container_status(request)
        .await
        .map_err(refused)?
        .into_inner()
        .status;
    let path = status
        .map(|status| status.log_path)
        .filter(|path| !path.is_empty());
    Ok(path.map(PathBuf::from))
}

/// Stops and removes a pod, and then its logs, which are the caller's, not the daemon's.
pub(super) async fn remove_pod(
    runtime: &mut Runtime,
    id: &str,
    log_directory: Option<&Path>,
) -> Result<()> {
    let request = v1::StopPodSandboxRequest {
        pod_sandbox_id: id.to_owned(),
    };
    runtime.stop_pod_sandbox(request).await.map_err(refused)?;
    let request = v1::RemovePodSandboxRequest {
        pod_sandbox_id: id.to_owned(),
    };
    runtime.remove_pod_sandbox(request).await.map_err(refused)?;
    let Some(directory) = log_directory else {
        return Ok(());
    };
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("Cannot remove the log {}", directory.display()))
        }
        _ => Ok(()),
    }
}
