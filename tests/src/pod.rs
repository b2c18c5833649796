//! Short ways to ask the CRI for things.

use crate::node::Node;
use anyhow::{Context, Result};
use bulkhead_cri::v1;
use bulkhead_cri::v1::image_service_client::ImageServiceClient;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tonic::Status;
use tonic::transport::Channel;

/// A pod's configuration with only what must be there.
#[must_use]
pub fn config(node: &Node, name: &str) -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "test".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        log_directory: node.path().join("logs").join(name).display().to_string(),
        ..Default::default()
    }
}

/// A pod that runs.
pub struct Pod<'a> {
    node: &'a Node,
    config: v1::PodSandboxConfig,
    /// Its id.
    pub id: String,
}

/// How a container ended, and its log.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Its last status.
    pub status: v1::ContainerStatus,
    /// Standard output, from the log.
    pub stdout: String,
    /// Standard error, from the log.
    pub stderr: String,
}

impl<'a> Pod<'a> {
    /// Runs a pod sandbox.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn run(node: &'a Node, name: &str) -> Result<Self, Status> {
        Self::run_config(node, config(node, name), "").await
    }

    /// A pod that runs already, made by `run` with this name.
    #[must_use]
    pub fn found(node: &'a Node, name: &str, id: &str) -> Self {
        Self {
            node,
            config: config(node, name),
            id: id.to_owned(),
        }
    }

    /// Runs a pod sandbox of a configuration with a runtime handler.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn run_config(
        node: &'a Node,
        config: v1::PodSandboxConfig,
        handler: &str,
    ) -> Result<Self, Status> {
        let request = v1::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.to_owned(),
        };
        let id = node
            .runtime()
            .run_pod_sandbox(request)
            .await?
            .into_inner()
            .pod_sandbox_id;
        Ok(Self { node, config, id })
    }

    /// Creates a container.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn create(&self, config: v1::ContainerConfig) -> Result<String, Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        Ok(self
            .node
            .runtime()
            .create_container(request)
            .await?
            .into_inner()
            .container_id)
    }

    /// Creates and starts a container.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn start(&self, config: v1::ContainerConfig) -> Result<String, Status> {
        let id = self.create(config).await?;
        let request = v1::StartContainerRequest {
            container_id: id.clone(),
        };
        self.node.runtime().start_container(request).await?;
        Ok(id)
    }

    /// Runs a shell script in a container to its end.
    ///
    /// # Errors
    /// The daemon's, or the container does not end.
    pub async fn script(&self, image: &str, script: &str) -> Result<Ended> {
        // Each has a log of its own, as each attempt of a kubelet's container has.
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("script-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let config = container(&name, image, &["/bin/sh", "-c", script]);
        let id = self.start(config).await?;
        let ended = wait(self.node, &id).await?;
        let request = v1::RemoveContainerRequest { container_id: id };
        self.node.runtime().remove_container(request).await?;
        Ok(ended)
    }

    /// Stops and removes it.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn remove(self) -> Result<(), Status> {
        let mut runtime = self.node.runtime();
        let stop = v1::StopPodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
        };
        runtime.stop_pod_sandbox(stop).await?;
        let remove = v1::RemovePodSandboxRequest {
            pod_sandbox_id: self.id,
        };
        runtime.remove_pod_sandbox(remove).await?;
        Ok(())
    }
}

/// A container's configuration with a command.
#[must_use]
pub fn container(name: &str, image: &str, command: &[&str]) -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata {
            name: name.to_owned(),
            attempt: 0,
        }),
        image: Some(v1::ImageSpec {
            image: image.to_owned(),
            ..Default::default()
        }),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        log_path: format!("{name}.log"),
        ..Default::default()
    }
}

/// What a pod's verbose status says of how it was started and what runs it.
///
/// # Errors
/// The daemon's.
pub async fn info(node: &Node, id: &str) -> Result<serde_json::Value> {
    let request = v1::PodSandboxStatusRequest {
        pod_sandbox_id: id.to_owned(),
        verbose: true,
    };
    let response = node
        .runtime()
        .pod_sandbox_status(request)
        .await?
        .into_inner();
    let info = response
        .info
        .get("info")
        .context("The status has no info")?;
    Ok(serde_json::from_str(info)?)
}

/// Pulls an image.
///
/// # Errors
/// The daemon's.
pub async fn pull(node: &Node, image: &str) -> Result<String, Status> {
    pull_by(node.images(), image).await
}

/// Has any CRI server pull an image.
///
/// # Errors
/// The server's.
pub async fn pull_by(
    mut images: ImageServiceClient<Channel>,
    image: &str,
) -> Result<String, Status> {
    let image = v1::ImageSpec {
        image: image.to_owned(),
        ..Default::default()
    };
    let request = v1::PullImageRequest {
        image: Some(image),
        ..Default::default()
    };
    Ok(images.pull_image(request).await?.into_inner().image_ref)
}

/// A container's status.
///
/// # Errors
/// The daemon's.
pub async fn status(node: &Node, id: &str) -> Result<v1::ContainerStatus> {
    let request = v1::ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: false,
    };
    let response = node.runtime().container_status(request).await?.into_inner();
    response.status.context("The response has no status")
}

/// Asks until a container has exited, as the kubelet does, and reads its log.
///
/// # Errors
/// The daemon's, or it has not ended after a minute.
pub async fn wait(node: &Node, id: &str) -> Result<Ended> {
    let ended = async {
        loop {
            let status = status(node, id).await?;
            if status.state() == v1::ContainerState::ContainerExited {
                return anyhow::Ok(status);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let limit = Duration::from_secs(60);
    let status = tokio::time::timeout(limit, ended)
        .await
        .context("It does not end")??;
    let log = std::fs::read_to_string(PathBuf::from(&status.log_path)).unwrap_or_default();
    let of = |stream: &str| {
        let lines = log.lines().filter_map(|line| {
            let mut parts = line.splitn(4, ' ').skip(1);
            let fits = parts.next() == Some(stream);
            let ending = if parts.next() == Some("F") { "\n" } else { "" };
            parts
                .next()
                .filter(|_| fits)
                .map(|content| format!("{content}{ending}"))
        });
        lines.collect()
    };
    Ok(Ended {
        stdout: of("stdout"),
        stderr: of("stderr"),
        status,
    })
}

/// Runs a command in a container.
///
/// # Errors
/// The daemon's.
pub async fn exec(
    node: &Node,
    id: &str,
    command: &[&str],
    timeout: i64,
) -> Result<v1::ExecSyncResponse, Status> {
    let request = v1::ExecSyncRequest {
        container_id: id.to_owned(),
        cmd: command.iter().map(|word| (*word).to_owned()).collect(),
        timeout,
    };
    Ok(node.runtime().exec_sync(request).await?.into_inner())
}
