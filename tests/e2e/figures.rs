//! What pods use: statistics and metrics.

use crate::environment::{node_with_image, ready};
use bulkhead_cri::v1;
use bulkhead_tests::Node;
use bulkhead_tests::pod::{self, Pod, container};
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tonic::Code;

async fn stats(node: &Node, id: &str) -> v1::PodSandboxStats {
    let request = v1::PodSandboxStatsRequest {
        pod_sandbox_id: id.to_owned(),
    };
    let response = node.runtime().pod_sandbox_stats(request).await.unwrap();
    response.into_inner().stats.unwrap()
}

async fn metrics(node: &Node) -> Vec<v1::PodSandboxMetrics> {
    let request = v1::ListPodSandboxMetricsRequest {};
    let response = node.runtime().list_pod_sandbox_metrics(request).await;
    response.unwrap().into_inner().pod_metrics
}

#[tokio::test]
async fn a_pod_has_the_hosts_figures_and_its_guests() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let mut config = pod::config(&node, "figures");
    config.linux = Some(v1::LinuxPodSandboxConfig {
        resources: Some(v1::LinuxContainerResources {
            memory_limit_in_bytes: 64 << 20,
            ..Default::default()
        }),
        ..Default::default()
    });
    let pod = Pod::run_config(&node, config, "").await.unwrap();
    let script = "while :; do :; done";
    let busy = pod
        .start(container("busy", &image, &["sh", "-c", script]))
        .await
        .unwrap();
    let first = stats(&node, &pod.id).await.linux.unwrap();
    assert!(first.cpu.unwrap().usage_nano_cores.is_none(), "one sample");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let second = stats(&node, &pod.id).await;
    assert_eq!(second.attributes.unwrap().id, pod.id);
    let linux = second.linux.unwrap();
    let cpu = linux.cpu.unwrap();
    assert!(cpu.usage_core_nano_seconds.unwrap().value > 0 && cpu.timestamp > 0);
    assert!(
        cpu.usage_nano_cores.unwrap().value > 100_000_000,
        "it is busy"
    );
    let memory = linux.memory.unwrap();
    let used = memory.usage_bytes.unwrap().value;
    // The guest's kernel at least, and no more than the limit.
    assert!(used > 16 << 20 && used < 256 << 20, "{used}");
    assert!(memory.available_bytes.unwrap().value > 32 << 20);
    assert!(linux.process.unwrap().process_count.unwrap().value >= 1);
    let one = &linux.containers[0];
    assert_eq!(one.attributes.as_ref().unwrap().id, busy);
    let rate = one.cpu.as_ref().unwrap().usage_nano_cores.unwrap().value;
    assert!(rate > 100_000_000 && rate < 2_000_000_000, "{rate}");
    // Pods that are not ready have none.
    let stop = v1::StopPodSandboxRequest {
        pod_sandbox_id: pod.id.clone(),
    };
    node.runtime().stop_pod_sandbox(stop).await.unwrap();
    let request = v1::PodSandboxStatsRequest {
        pod_sandbox_id: pod.id.clone(),
    };
    let error = node.runtime().pod_sandbox_stats(request).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    let request = v1::ListPodSandboxStatsRequest::default();
    let list = node.runtime().list_pod_sandbox_stats(request).await;
    assert!(list.unwrap().into_inner().stats.is_empty());
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn metrics_fit_their_descriptors_and_lists_stream() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "metrics").await.unwrap();
    let id = pod
        .start(container("app", &image, &["sleep", "1000"]))
        .await
        .unwrap();
    let request = v1::ListMetricDescriptorsRequest {};
    let descriptors = node.runtime().list_metric_descriptors(request).await;
    let descriptors = descriptors.unwrap().into_inner().descriptors;
    let labels: HashMap<_, _> = descriptors
        .into_iter()
        .map(|one| (one.name, one.label_keys))
        .collect();
    let all = metrics(&node).await;
    let [metrics] = all.as_slice() else {
        panic!("{all:?}");
    };
    assert_eq!(metrics.pod_sandbox_id, pod.id);
    let containers = &metrics.container_metrics;
    assert_eq!(containers[0].container_id, id);
    for metric in metrics.metrics.iter().chain(&containers[0].metrics) {
        assert_eq!(metric.label_values.len(), labels[&metric.name].len());
    }
    let find = |metrics: &[v1::Metric], name: &str| {
        let found = metrics.iter().find(|metric| metric.name == name);
        found.unwrap_or_else(|| panic!("no {name}")).clone()
    };
    let value = |name: &str| find(&containers[0].metrics, name).value.unwrap().value;
    assert_eq!(value("container_processes"), 1);
    assert_eq!(value("container_oom_events_total"), 0);
    assert!(value("container_file_descriptors") >= 3);
    assert_eq!(value("container_sockets"), 0);
    assert!(value("container_ulimits_soft") >= 1024);
    assert!(value("container_fs_limit_bytes") > 1 << 30);
    assert!(value("container_fs_inodes_free") > 1000);
    assert!(value("container_memory_working_set_bytes") > 0);
    assert!(value("container_start_time_seconds") > 1_700_000_000);
    value("container_pressure_cpu_waiting_seconds_total");
    let whole = find(&metrics.metrics, "container_memory_usage_bytes");
    assert_eq!(whole.label_values[0], "", "the pod is no container");
    assert!(whole.value.unwrap().value > 8 << 20);

    let mut runtime = node.runtime();
    let request = v1::StreamPodSandboxesRequest::default();
    let mut stream = runtime
        .stream_pod_sandboxes(request)
        .await
        .unwrap()
        .into_inner();
    let page = stream.message().await.unwrap().unwrap();
    assert_eq!(page.pod_sandboxes[0].id, pod.id);
    assert!(stream.message().await.unwrap().is_none());
    let request = v1::StreamContainersRequest::default();
    let mut stream = runtime
        .stream_containers(request)
        .await
        .unwrap()
        .into_inner();
    let page = stream.message().await.unwrap().unwrap();
    assert_eq!(page.containers[0].id, id);
    let request = v1::StreamContainerStatsRequest::default();
    let mut stream = runtime
        .stream_container_stats(request)
        .await
        .unwrap()
        .into_inner();
    let page = stream.message().await.unwrap().unwrap();
    assert_eq!(page.container_stats[0].attributes.as_ref().unwrap().id, id);
    let request = v1::StreamPodSandboxStatsRequest::default();
    let mut stream = runtime
        .stream_pod_sandbox_stats(request)
        .await
        .unwrap()
        .into_inner();
    let page = stream.message().await.unwrap().unwrap();
    assert_eq!(
        page.pod_sandbox_stats[0].attributes.as_ref().unwrap().id,
        pod.id
    );
    let request = v1::StreamPodSandboxMetricsRequest {};
    let mut stream = runtime
        .stream_pod_sandbox_metrics(request)
        .await
        .unwrap()
        .into_inner();
    let page = stream.message().await.unwrap().unwrap();
    assert_eq!(page.pod_sandbox_metrics[0].pod_sandbox_id, pod.id);
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

/// A VMM that is stopped is a guest that hangs.
#[tokio::test]
async fn a_guest_that_hangs_delays_nobody_twice() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let (hung, well) = (
        Pod::run(&node, "hung").await.unwrap(),
        Pod::run(&node, "well").await.unwrap(),
    );
    let mut ids = Vec::new();
    for pod in [&hung, &well] {
        let config = container("app", &image, &["sleep", "1000"]);
        ids.push(pod.start(config).await.unwrap());
    }
    let info = pod::info(&node, &hung.id).await.unwrap();
    let vmm = i32::try_from(info["vmmPid"].as_i64().unwrap()).unwrap();
    let vmm = rustix::process::Pid::from_raw(vmm).unwrap();
    rustix::process::kill_process(vmm, rustix::process::Signal::STOP).unwrap();
    let list = async || {
        let request = v1::ListContainerStatsRequest::default();
        let began = Instant::now();
        let stats = node.runtime().list_container_stats(request).await.unwrap();
        let stats = stats.into_inner().stats.into_iter();
        let ids: Vec<_> = stats.map(|one| one.attributes.unwrap().id).collect();
        (ids, began.elapsed())
    };
    let (found, first) = list().await;
    assert_eq!(found, ids[1..], "the other has its figures");
    assert!(first < Duration::from_secs(8), "{first:?}");
    let (found, second) = list().await;
    assert_eq!(found, ids[1..]);
    assert!(
        second < Duration::from_millis(1500),
        "{second:?} after {first:?}"
    );
    // What the host counts is there all the same.
    let linux = stats(&node, &hung.id).await.linux.unwrap();
    assert!(linux.cpu.is_some() && linux.containers.is_empty());
    rustix::process::kill_process(vmm, rustix::process::Signal::CONT).unwrap();
    let again = async {
        while list().await.0.len() < 2 {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, again)
        .await
        .expect("it is asked again");
    hung.remove().await.unwrap();
    well.remove().await.unwrap();
    node.finish().unwrap();
}
