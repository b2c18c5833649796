//! Latency of the CRI's calls: Bulkhead beside containerd with runc.

use super::figures::{Samples, table};
use super::peer::Containerd;
use super::servers::pod_config;
use crate::node::Node;
use crate::pod::{container, pull_by};
use crate::registry::Registry;
use anyhow::Result;
use bulkhead_cri::v1;
use bulkhead_cri::v1::image_service_client::ImageServiceClient;
use bulkhead_cri::v1::runtime_service_client::RuntimeServiceClient;
use std::path::Path;
use std::time::Instant;
use tonic::transport::Channel;

const RUNS: usize = 7;
const CALLS: [&str; 5] = [
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "ExecSync",
    "stop and remove",
];

/// A CRI server under measurement.
struct Subject<'a> {
    channel: Channel,
    logs: &'a Path,
    network: v1::NamespaceMode,
    calls: [Samples; 5],
}

/// Measures and prints.
///
/// # Errors
/// A call failed.
pub async fn run(node: &Node, registry: &Registry) -> Result<String> {
    let containerd = Containerd::start(registry).await?;
    let image = registry.demo_image();
    let mut ours = Subject {
        channel: node.channel(),
        logs: node.path(),
        network: v1::NamespaceMode::Pod,
        calls: Default::default(),
    };
    // On the node's network, so that neither waits for CNI.
    let mut peer = Subject {
        channel: containerd.channel.clone(),
        logs: containerd.path(),
        network: v1::NamespaceMode::Node,
        calls: Default::default(),
    };
    for subject in [&ours, &peer] {
        pull_by(ImageServiceClient::new(subject.channel.clone()), &image).await?;
    }
    // The first run of each fills caches and is not counted.
    for round in 0..=RUNS {
        for subject in [&mut ours, &mut peer] {
            subject.round(round, &image).await?;
        }
    }
    let mut rows = vec![
        [
            "ms, median (least to most)",
            "Bulkhead",
            "containerd with runc",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for ((call, own), other) in CALLS.iter().zip(&ours.calls).zip(&peer.calls) {
        rows.push(vec![(*call).to_owned(), own.text(), other.text()]);
    }
    Ok(table(&format!("Pods, {RUNS} runs in turn, no CNI"), &rows))
}

impl Subject<'_> {
    async fn round(&mut self, round: usize, image: &str) -> Result<()> {
        let mut runtime = RuntimeServiceClient::new(self.channel.clone());
        let config = self.pod(round);
        let began = Instant::now();
        let request = v1::RunPodSandboxRequest {
            config: Some(config.clone()),
            ..Default::default()
        };
        let pod_sandbox_id = runtime
            .run_pod_sandbox(request)
            .await?
            .into_inner()
            .pod_sandbox_id;
        let ran = Instant::now();
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod_sandbox_id.clone(),
            config: Some(container("sleeper", image, &["sleep", "1000000"])),
            sandbox_config: Some(config),
        };
        let container_id = runtime
            .create_container(request)
            .await?
            .into_inner()
            .container_id;
        let created = Instant::now();
        let request = v1::StartContainerRequest {
            container_id: container_id.clone(),
        };
        runtime.start_container(request).await?;
        let started = Instant::now();
        let cmd = vec!["true".to_owned()];
        runtime
            .exec_sync(v1::ExecSyncRequest {
                container_id,
                cmd,
                timeout: 60,
            })
            .await?;
        let executed = Instant::now();
        let request = v1::StopPodSandboxRequest {
            pod_sandbox_id: pod_sandbox_id.clone(),
        };
        runtime.stop_pod_sandbox(request).await?;
        runtime
            .remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id })
            .await?;
        let removed = Instant::now();
        if round > 0 {
            let times = [began, ran, created, started, executed, removed];
            for (samples, pair) in self.calls.iter_mut().zip(times.windows(2)) {
                samples.add(pair[1] - pair[0]);
            }
        }
        Ok(())
    }

    fn pod(&self, round: usize) -> v1::PodSandboxConfig {
        pod_config(self.logs, &format!("bench-{round}"), self.network)
    }
}
