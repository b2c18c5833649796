//! Limits of running containers, what they use, and what happens when they use too much.

use crate::environment::{node_with_image, ready};
use bulkhead_cri::v1;
use bulkhead_tests::Node;
use bulkhead_tests::pod::{self, Pod, container, exec, wait};
use std::time::Duration;
use tonic::{Code, Status};

async fn update(node: &Node, id: &str, linux: v1::LinuxContainerResources) -> Result<(), Status> {
    let request = v1::UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(linux),
        ..Default::default()
    };
    node.runtime()
        .update_container_resources(request)
        .await
        .map(drop)
}

async fn seen(node: &Node, id: &str) -> String {
    let script = "cd /sys/fs/cgroup; cat cpu.max cpu.weight memory.max memory.high";
    let output = exec(node, id, &["sh", "-c", script], 10).await.unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn limits_change_while_a_container_runs() {
    if !ready() {
        return;
    }
    let (mut node, image) = node_with_image().await;
    let (pod_id, id) = {
        let pod = Pod::run(&node, "update").await.unwrap();
        let mut config = container("updated", &image, &["sleep", "1000"]);
        config.linux = Some(v1::LinuxContainerConfig {
            resources: Some(v1::LinuxContainerResources {
                cpu_quota: 50_000,
                cpu_period: 100_000,
                cpu_shares: 1024,
                memory_limit_in_bytes: 64 << 20,
                // As a kubelet sends them.
                unified: [("memory.oom.group", "1"), ("memory.swap.max", "0")]
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into(),
                hugepage_limits: vec![v1::HugepageLimit {
                    page_size: "1GB".into(),
                    limit: 0,
                }],
                ..Default::default()
            }),
            ..Default::default()
        });
        (pod.id.clone(), pod.start(config).await.unwrap())
    };
    assert_eq!(seen(&node, &id).await, "50000 100000\n100\n67108864\nmax\n");
    let new = v1::LinuxContainerResources {
        cpu_quota: 20_000,
        memory_limit_in_bytes: 96 << 20,
        unified: [("memory.high".to_owned(), "50331648".to_owned())].into(),
        ..Default::default()
    };
    update(&node, &id, new).await.unwrap();
    let now = "20000 100000\n100\n100663296\n50331648\n";
    assert_eq!(seen(&node, &id).await, now);
    let changed = |change: fn(&mut v1::LinuxContainerResources)| {
        let mut resources = v1::LinuxContainerResources {
            cpu_quota: 70_000,
            memory_limit_in_bytes: 80 << 20,
            ..Default::default()
        };
        change(&mut resources);
        resources
    };
    for (wrong, named) in [
        (changed(|r| r.cpu_period = 7), "linux: cpu_period"),
        (
            changed(|r| r.cpuset_cpus = "a".into()),
            "linux: cpuset_cpus",
        ),
        (
            changed(|r| r.memory_limit_in_bytes = -1),
            "linux: memory_limit_in_bytes",
        ),
        // Only the guest's kernel knows.
        (changed(|r| r.cpuset_cpus = "31".into()), "cpuset.cpus"),
        (
            changed(|r| _ = r.unified.insert("no.such".into(), "1".into())),
            "no.such",
        ),
    ] {
        let error = update(&node, &id, wrong).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains(named), "{error}");
        assert_eq!(seen(&node, &id).await, now, "{named}");
    }
    let missing = update(&node, "none", Default::default()).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound, "{missing}");
    // What holds is remembered.
    node.kill_and_restart().await.unwrap();
    let status = pod::status(&node, &id).await.unwrap();
    let resources = status.resources.unwrap().linux.unwrap();
    assert_eq!((resources.cpu_quota, resources.cpu_shares), (20_000, 1024));
    assert_eq!(resources.memory_limit_in_bytes, 96 << 20);
    assert_eq!(resources.unified["memory.high"], "50331648");
    let stop = v1::StopPodSandboxRequest {
        pod_sandbox_id: pod_id.clone(),
    };
    node.runtime().stop_pod_sandbox(stop).await.unwrap();
    update(&node, &id, changed(|_| ())).await.unwrap();
    let remove = v1::RemovePodSandboxRequest {
        pod_sandbox_id: pod_id,
    };
    node.runtime().remove_pod_sandbox(remove).await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn running_containers_have_figures() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "figures").await.unwrap();
    let script = "dd if=/dev/zero of=/file bs=64k count=16; while :; do :; done";
    let mut config = container("busy", &image, &["sh", "-c", script]);
    config.labels = [("app".to_owned(), "busy".to_owned())].into();
    config.linux = Some(v1::LinuxContainerConfig {
        resources: Some(v1::LinuxContainerResources {
            memory_limit_in_bytes: 64 << 20,
            ..Default::default()
        }),
        ..Default::default()
    });
    let busy = pod.start(config).await.unwrap();
    let idle = pod
        .start(container("idle", &image, &["sleep", "1000"]))
        .await
        .unwrap();
    let created = pod
        .create(container("created", &image, &["true"]))
        .await
        .unwrap();
    let of = async |id: &str| {
        let request = v1::ContainerStatsRequest {
            container_id: id.to_owned(),
        };
        let response = node.runtime().container_stats(request).await;
        response.map(|response| response.into_inner().stats.unwrap())
    };
    let written = async {
        loop {
            let stats = of(&busy).await.unwrap();
            // Known at once, when it is written.
            if stats
                .writable_layer
                .as_ref()
                .unwrap()
                .used_bytes
                .unwrap()
                .value
                >= 1 << 20
            {
                return stats;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let stats = tokio::time::timeout(Duration::from_secs(90), written)
        .await
        .unwrap();
    assert_eq!(stats.attributes.unwrap().labels["app"], "busy");
    let (cpu, memory) = (stats.cpu.unwrap(), stats.memory.unwrap());
    assert!(cpu.usage_core_nano_seconds.unwrap().value > 0 && cpu.timestamp > 0);
    assert!(
        cpu.psi.unwrap().some.is_some(),
        "the guest has pressure files"
    );
    let working_set = memory.working_set_bytes.unwrap().value;
    assert!(working_set > 0 && working_set <= memory.usage_bytes.unwrap().value);
    assert_eq!(
        memory.available_bytes.unwrap().value,
        (64 << 20) - working_set
    );
    assert!(memory.page_faults.unwrap().value > 0);
    let list = async |filter: v1::ContainerStatsFilter| {
        let request = v1::ListContainerStatsRequest {
            filter: Some(filter),
        };
        let response = node.runtime().list_container_stats(request).await.unwrap();
        let stats = response.into_inner().stats;
        let mut ids: Vec<_> = stats
            .into_iter()
            .map(|one| one.attributes.unwrap().id)
            .collect();
        ids.sort();
        ids
    };
    let mut both = vec![busy.clone(), idle.clone()];
    both.sort();
    assert_eq!(list(Default::default()).await, both, "those that run");
    let filter = v1::ContainerStatsFilter {
        label_selector: [("app".to_owned(), "busy".to_owned())].into(),
        ..Default::default()
    };
    assert_eq!(list(filter).await, [busy]);
    let error = of(&created).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn a_container_without_a_limit_cannot_take_the_pod_along() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let mut config = pod::config(&node, "full");
    config.linux = Some(v1::LinuxPodSandboxConfig {
        resources: Some(v1::LinuxContainerResources {
            memory_limit_in_bytes: 32 << 20,
            ..Default::default()
        }),
        ..Default::default()
    });
    let pod = Pod::run_config(&node, config, "").await.unwrap();
    let witness = pod
        .start(container("witness", &image, &["sleep", "1000"]))
        .await
        .unwrap();
    for round in 0..2 {
        let name = format!("eater-{round}");
        let script = "x=$(cat /dev/zero | tr '\\0' x)";
        let id = pod
            .start(container(&name, &image, &["sh", "-c", script]))
            .await
            .unwrap();
        let ended = wait(&node, &id).await.unwrap();
        assert_eq!(ended.status.reason, "OOMKilled", "{ended:?}");
        assert_eq!(ended.status.exit_code, 137, "{ended:?}");
    }
    let output = exec(&node, &witness, &["echo", "here"], 10).await.unwrap();
    assert_eq!(output.stdout, b"here\n");
    pod.remove().await.unwrap();
    node.finish().unwrap();
}
