//! Pods of CRI servers, ours or another, in which the guest's program of the VMM's tests runs.

use crate::artifacts::artifact;
use crate::pod::{container, pull_by};
use anyhow::{Context, Result, ensure};
use bulkhead_cri::v1;
use bulkhead_cri::v1::image_service_client::ImageServiceClient;
use bulkhead_cri::v1::runtime_service_client::RuntimeServiceClient;
use std::path::Path;
use tonic::transport::Channel;

/// A pod of a CRI server's with a container that sleeps.
pub(super) struct Pod {
    runtime: RuntimeServiceClient<Channel>,
    pub(super) id: String,
    container: String,
}

/// A CRI server.
pub(super) struct Server<'a> {
    pub(super) channel: Channel,
    pub(super) logs: &'a Path,
    pub(super) image: &'a str,
    pub(super) handler: &'static str,
    pub(super) network: v1::NamespaceMode,
}

/// A pod of this name, whose logs are below a directory.
pub(super) fn pod_config(
    logs: &Path,
    name: &str,
    network: v1::NamespaceMode,
) -> v1::PodSandboxConfig {
    let options = v1::NamespaceOption {
        network: network.into(),
        pid: v1::NamespaceMode::Container.into(),
        ..Default::default()
    };
    v1::PodSandboxConfig {
        log_directory: logs.join("logs").join(name).display().to_string(),
        metadata: Some(v1::PodSandboxMetadata {
            uid: format!("uid-{name}"),
            name: name.to_owned(),
            namespace: "bench".to_owned(),
            attempt: 0,
        }),
        linux: Some(v1::LinuxPodSandboxConfig {
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

impl Server<'_> {
    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
    }

    fn config(&self, name: &str) -> v1::PodSandboxConfig {
        pod_config(self.logs, name, self.network)
    }

    pub(super) async fn pull(&self) -> Result<()> {
        let images = ImageServiceClient::new(self.channel.clone());
        pull_by(images, self.image).await?;
        Ok(())
    }

    pub(super) async fn run_pod(&self, name: &str) -> Result<Pod> {
        let request = v1::RunPodSandboxRequest {
            config: Some(self.config(name)),
            runtime_handler: self.handler.to_owned(),
        };
        let mut runtime = self.runtime();
        let id = runtime.run_pod_sandbox(request).await?.into_inner();
        Ok(Pod {
            runtime,
            id: id.pod_sandbox_id,
            container: String::new(),
        })
    }

    /// Starts a container with volumes. The program comes from the node, as one more.
    pub(super) async fn with_container(
        &self,
        mut pod: Pod,
        mut mounts: Vec<v1::Mount>,
    ) -> Result<Pod> {
        let mut config = container("sleeper", self.image, &["sleep", "1000000"]);
        let program = artifact("bench/init");
        let directory = program.parent().context("No directory")?;
        mounts.push(v1::Mount {
            host_path: directory.display().to_string(),
            container_path: "/bench".to_owned(),
            readonly: true,
            ..Default::default()
        });
        config.mounts = mounts;
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config("container")),
        };
        let made = pod.runtime.create_container(request).await?.into_inner();
        pod.container = made.container_id;
        let request = v1::StartContainerRequest {
            container_id: pod.container.clone(),
        };
        pod.runtime.start_container(request).await?;
        Ok(pod)
    }
}

impl Pod {
    /// What the program says when it is told to do something.
    pub(super) async fn exec(&mut self, command: &str) -> Result<String> {
        let words = ["/bench/init"].into_iter().chain(command.split(' '));
        self.run(&words.collect::<Vec<_>>()).await
    }

    /// What a program of the image says.
    pub(super) async fn run(&mut self, words: &[&str]) -> Result<String> {
        let request = v1::ExecSyncRequest {
            container_id: self.container.clone(),
            cmd: words.iter().map(|word| (*word).to_owned()).collect(),
            timeout: 600,
        };
        let answer = self.runtime.exec_sync(request).await?.into_inner();
        let said = String::from_utf8_lossy(&answer.stderr);
        ensure!(answer.exit_code == 0, "{words:?} failed: {said}");
        Ok(String::from_utf8(answer.stdout)?.trim().to_owned())
    }

    pub(super) async fn remove(mut self) -> Result<()> {
        let request = v1::StopPodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
        };
        self.runtime.stop_pod_sandbox(request).await?;
        let request = v1::RemovePodSandboxRequest {
            pod_sandbox_id: self.id,
        };
        self.runtime.remove_pod_sandbox(request).await?;
        Ok(())
    }
}
