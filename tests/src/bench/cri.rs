//! The CRI's cheap calls, with much known, and the daemon's memory: Bulkhead beside containerd.

use super::figures::{Figures, Samples, table};
use super::peer::Containerd;
use super::servers::pod_config;
use crate::node::{Node, Options};
use crate::pod::{Pod, container, pull, pull_by};
use crate::registry::Registry;
use crate::setting;
use crate::soak::held;
use crate::streaming::spdy::{Command, Event};
use anyhow::{Context, Result, bail, ensure};
use bulkhead_cri::v1;
use bulkhead_cri::v1::image_service_client::ImageServiceClient;
use bulkhead_cri::v1::runtime_service_client::RuntimeServiceClient;
use redb::{Database, ReadableTable, TableDefinition};
use serde_json::Value;
use std::path::Path;
use std::time::Instant;
use tonic::transport::Channel;

/// Containers that are known while calls are measured.
const KNOWN: usize = 1000;
const CALLS: usize = 200;
const EXECS: usize = 15;
const STREAMS: usize = 5;
const STREAMED: usize = 32 << 20;
const PODS: [usize; 2] = [10, 50];

/// Measures and prints. BULKHEAD_BENCH_PODS limits how many pods run at once for the memory.
///
/// # Errors
/// A call failed.
pub async fn run(registry: &Registry) -> Result<String> {
    let (calls, mut memory) = (calls(registry).await?, Vec::new());
    let most = setting("BULKHEAD_BENCH_PODS", PODS[1])?;
    memory.push(["KiB of its own", "Bulkhead"].map(str::to_owned).to_vec());
    let node = Node::start().await?;
    let mut pods = Vec::new();
    let pid = node.pid().context("The daemon is gone")?;
    memory.push(vec!["idle".to_owned(), held(pid)?.memory_kib.to_string()]);
    for count in PODS.map(|count| count.min(most)) {
        while pods.len() < count {
            let name = format!("memory-{}", pods.len());
            let mut config = crate::pod::config(&node, &name);
            config.linux = Some(v1::LinuxPodSandboxConfig {
                resources: Some(v1::LinuxContainerResources {
                    memory_limit_in_bytes: 16 << 20,
                    ..Default::default()
                }),
                ..Default::default()
            });
            pods.push(Pod::run_config(&node, config, "").await?);
        }
        let kib = held(pid)?.memory_kib.to_string();
        memory.push(vec![format!("{count} pods"), kib]);
    }
    for pod in pods {
        pod.remove().await?;
    }
    node.finish()?;
    Ok(format!(
        "{calls}\n{}",
        table("Memory of the daemon", &memory)
    ))
}

async fn calls(registry: &Registry) -> Result<String> {
    let containerd = Containerd::start(registry).await?;
    let image = registry.demo_image();
    // Before the node, which takes what is there then for the machine's own.
    let other = with_containers(&containerd, &image).await?;
    let mut node = Node::start_with(Options::default()).await?;
    pull(&node, &image).await?;
    let pod = Pod::run(&node, "cri").await?;
    let own = pod
        .start(container("sleeper", &image, &["sleep", "1000000"]))
        .await?;
    pod.create(container("exited", &image, &["true"])).await?;
    let extinct = Pod::run(&node, "extinct").await?;
    let model = extinct
        .create(container("model", &image, &["true"]))
        .await?;
    let stop = v1::StopPodSandboxRequest {
        pod_sandbox_id: extinct.id.clone(),
    };
    node.runtime().stop_pod_sandbox(stop).await?;
    let pod = pod.id.clone();
    let extinct = extinct.id.clone();
    // Records without VMs: copies of a container whose pod has ended.
    node.stop()?;
    copy_records(&node.path().join("root/state.redb"), &model)?;
    node.restart().await?;

    let mut rows = vec![
        [
            "ms, median (least to most)",
            "Bulkhead",
            "containerd with runc",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    let subjects = [(node.channel(), own), (containerd.channel.clone(), other)];
    let mut samples = vec![[Samples::default(), Samples::default()]; 4];
    // In turn, so that neither has the quieter machine.
    for round in 0..=CALLS {
        for (index, (channel, id)) in subjects.iter().enumerate() {
            let mut runtime = RuntimeServiceClient::new(channel.clone());
            let began = Instant::now();
            runtime.status(v1::StatusRequest { verbose: false }).await?;
            let status = began.elapsed();
            let began = Instant::now();
            let request = v1::ListContainersRequest::default();
            let list = runtime.list_containers(request).await?.into_inner();
            let listing = began.elapsed();
            ensure!(list.containers.len() >= KNOWN, "{}", list.containers.len());
            let began = Instant::now();
            let request = v1::ContainerStatusRequest {
                container_id: id.clone(),
                verbose: false,
            };
            runtime.container_status(request).await?;
            let of_one = began.elapsed();
            if round > 0 {
                for (samples, took) in samples.iter_mut().zip([status, listing, of_one]) {
                    samples[index].add(took);
                }
            }
            if round % (CALLS / EXECS) == 0 && round > 0 {
                let began = Instant::now();
                let request = v1::ExecSyncRequest {
                    container_id: id.clone(),
                    cmd: vec!["true".to_owned()],
                    timeout: 60,
                };
                runtime.exec_sync(request).await?;
                samples[3][index].add(began.elapsed());
            }
        }
    }
    let names = [
        "Status",
        "ListContainers, 1,000 known",
        "ContainerStatus",
        "ExecSync of `true`",
    ];
    for (name, [ours, theirs]) in names.into_iter().zip(&samples) {
        rows.push(vec![name.to_owned(), ours.text(), theirs.text()]);
    }
    let mut rates = [Figures::default(), Figures::default()];
    for _ in 0..STREAMS {
        for (rate, (channel, id)) in rates.iter_mut().zip(&subjects) {
            rate.add(stream(channel, id).await?);
        }
    }
    let [ours, theirs] = rates.map(|rate| rate.text(1.0));
    let name = format!("exec, {} MiB of output, MB/s", STREAMED >> 20);
    rows.push(vec![name, ours, theirs]);
    let own = held(node.pid().context("The daemon is gone")?)?.memory_kib;
    let peer = held(containerd.pid())?.memory_kib;
    rows.push(vec![
        "KiB of its own, with all that".to_owned(),
        own.to_string(),
        peer.to_string(),
    ]);
    for pod_sandbox_id in [pod, extinct] {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id };
        node.runtime().remove_pod_sandbox(request).await?;
    }
    node.finish()?;
    Ok(table(&format!("CRI calls, {CALLS} of each in turn"), &rows))
}

/// Reads so much output of a command through the streaming server; answers MB/s.
async fn stream(channel: &Channel, container: &str) -> Result<f64> {
    // Blocks, so that it is the stream that is measured and not who fills it.
    let script = format!(
        "dd if=/dev/zero bs=64k count={} 2>/dev/null",
        STREAMED >> 16
    );
    let request = v1::ExecRequest {
        container_id: container.to_owned(),
        cmd: ["sh", "-c", &script].map(str::to_owned).to_vec(),
        stdout: true,
        ..Default::default()
    };
    let url = RuntimeServiceClient::new(channel.clone())
        .exec(request)
        .await?
        .into_inner()
        .url;
    let began = Instant::now();
    let mut session = Command::connect(&url, &["stdout"]).await?;
    let (mut count, mut said) = (0, String::new());
    while count < STREAMED {
        match session.reader.next().await? {
            Some(Event::Data(id, bytes)) if id == session.stdout => count += bytes.len(),
            Some(Event::Data(_, bytes)) => said += &String::from_utf8_lossy(&bytes),
            None => bail!("{url} ended after {count} bytes: {said}"),
            Some(_) => {}
        }
    }
    Ok(STREAMED as f64 / 1e6 / began.elapsed().as_secs_f64())
}

/// Copies a container's record until there are [`KNOWN`] more.
fn copy_records(store: &Path, id: &str) -> Result<()> {
    const CONTAINERS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("containers");
    let database = Database::open(store)?;
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(CONTAINERS)?;
        let bytes = table
            .get(id)?
            .context("The record is not there")?
            .value()
            .to_vec();
        let mut record: Value = serde_json::from_slice(&bytes)?;
        for number in 0..KNOWN {
            let id = format!("{number:064x}");
            record["id"] = id.clone().into();
            record["config"]["metadata"]["name"] = format!("copy-{number}").into();
            table.insert(id.as_str(), serde_json::to_vec(&record)?.as_slice())?;
        }
    }
    transaction.commit()?;
    Ok(())
}

/// A running container in containerd, and as many created ones as we have records.
async fn with_containers(containerd: &Containerd, image: &str) -> Result<String> {
    pull_by(ImageServiceClient::new(containerd.channel.clone()), image).await?;
    let mut runtime: RuntimeServiceClient<Channel> =
        RuntimeServiceClient::new(containerd.channel.clone());
    let config = pod_config(containerd.path(), "cri", v1::NamespaceMode::Node);
    let request = v1::RunPodSandboxRequest {
        config: Some(config.clone()),
        ..Default::default()
    };
    let pod = runtime
        .run_pod_sandbox(request)
        .await?
        .into_inner()
        .pod_sandbox_id;
    let mut running = String::new();
    for number in 0..=KNOWN {
        let name = format!("c{number}");
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.clone(),
            config: Some(container(&name, image, &["sleep", "1000000"])),
            sandbox_config: Some(config.clone()),
        };
        let made = runtime
            .create_container(request)
            .await?
            .into_inner()
            .container_id;
        if number == 0 {
            let request = v1::StartContainerRequest {
                container_id: made.clone(),
            };
            runtime.start_container(request).await?;
            running = made;
        }
    }
    Ok(running)
}
