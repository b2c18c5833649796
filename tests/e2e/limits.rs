//! Limits of whole pods, and what they are within.

use crate::environment::{demo_image, node_with_image, ready};
use bulkhead_cri::v1;
use bulkhead_tests::Node;
use bulkhead_tests::node::Options;
use bulkhead_tests::pod::{self, Pod, container, exec};
use std::time::Instant;
use tonic::{Code, Status};

fn resources(quota: i64, memory_mib: i64) -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        cpu_quota: quota,
        cpu_period: if quota == 0 { 0 } else { 100_000 },
        memory_limit_in_bytes: memory_mib << 20,
        ..Default::default()
    }
}

async fn resize(node: &Node, id: &str, new: v1::LinuxContainerResources) -> Result<(), Status> {
    let request = v1::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: id.to_owned(),
        resources: Some(new),
        overhead: None,
    };
    let response = node.runtime().update_pod_sandbox_resources(request).await;
    response.map(drop)
}

#[tokio::test]
async fn a_pods_limits_change_within_its_vm_and_not_beyond() {
    if !ready() {
        return;
    }
    let (mut node, image) = node_with_image().await;
    let mut config = pod::config(&node, "limits");
    config.linux = Some(v1::LinuxPodSandboxConfig {
        resources: Some(resources(100_000, 96)),
        ..Default::default()
    });
    let (pod_id, id) = {
        let pod = Pod::run_config(&node, config, "").await.unwrap();
        let app = container("app", &image, &["sleep", "1000"]);
        (pod.id.clone(), pod.start(app).await.unwrap())
    };
    let info = pod::info(&node, &pod_id).await.unwrap();
    let cgroup = format!("/sys/fs/cgroup/{}", info["cgroup"].as_str().unwrap());
    let host = |file: &str| {
        let text = std::fs::read_to_string(format!("{cgroup}/{file}")).unwrap();
        text.trim().to_owned()
    };
    assert_eq!(host("cpu.max"), "100000 100000");
    let memory = host("memory.max");
    let vm = info["vm"]["memory_mib"].as_u64().unwrap();
    assert!(
        memory.parse::<u64>().unwrap() >= (vm + 64) << 20,
        "{memory}"
    );

    // What is in use cannot be taken away.
    let fill = ["dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=60"];
    let filled = exec(&node, &id, &fill, 60).await.unwrap();
    assert_eq!(filled.exit_code, 0, "{filled:?}");
    let error = resize(&node, &pod_id, resources(50_000, 48))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("bytes of memory"), "{error}");
    assert_eq!(host("cpu.max"), "100000 100000", "all or nothing");
    exec(&node, &id, &["rm", "/dev/shm/x"], 60).await.unwrap();
    resize(&node, &pod_id, resources(50_000, 48)).await.unwrap();
    assert_eq!(host("cpu.max"), "50000 100000");
    assert_eq!(host("memory.max"), memory, "the VM keeps its memory");

    for (new, named) in [
        (resources(0, 97), "memory_limit_in_bytes"),
        (resources(100_001, 0), "cpu_quota"),
    ] {
        let error = resize(&node, &pod_id, new.clone()).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        assert!(error.message().contains(named), "{error}");
        let request = v1::UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(new),
            ..Default::default()
        };
        let error = node.runtime().update_container_resources(request).await;
        let error = error.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        assert!(error.message().contains(named), "{error}");
    }
    let error = resize(&node, &pod_id, resources(5, 0)).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    // The booted size is remembered.
    node.kill_and_restart().await.unwrap();
    resize(&node, &pod_id, resources(100_000, 96))
        .await
        .unwrap();
    assert_eq!(host("cpu.max"), "100000 100000");
    let error = resize(&node, &pod_id, resources(0, 97)).await.unwrap_err();
    assert!(error.message().contains("100663296"), "{error}");
    // The guest keeps the lower limit.
    resize(&node, &pod_id, resources(0, 48)).await.unwrap();
    let result = exec(&node, &id, &fill, 60).await;
    assert!(!result.is_ok_and(|output| output.exit_code == 0));
    let remove = v1::RemovePodSandboxRequest {
        pod_sandbox_id: pod_id,
    };
    node.runtime().remove_pod_sandbox(remove).await.unwrap();
    node.finish().unwrap();
}

/// A VM whose memory is all in use, and whose disk is written, stays below its cgroup's limit.
#[tokio::test]
async fn a_vm_that_uses_all_it_has_is_not_killed() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let mut config = pod::config(&node, "full");
    config.linux = Some(v1::LinuxPodSandboxConfig {
        resources: Some(resources(0, 64)),
        ..Default::default()
    });
    let pod = Pod::run_config(&node, config, "").await.unwrap();
    let app = container("app", &image, &["sleep", "1000"]);
    let app = pod.start(app).await.unwrap();
    // More than all the guest's memory into its disk, then all of it into processes.
    let script = "dd if=/dev/zero of=/big bs=1M count=200 && cat /big >/dev/null && echo written";
    let written = exec(&node, &app, &["sh", "-c", script], 120).await.unwrap();
    assert_eq!(written.stdout, b"written\n", "{written:?}");
    let script = "x=$(cat /dev/zero | tr '\\0' x)";
    exec(&node, &app, &["sh", "-c", script], 120).await.unwrap();
    let info = pod::info(&node, &pod.id).await.unwrap();
    let cgroup = format!("/sys/fs/cgroup/{}", info["cgroup"].as_str().unwrap());
    let events = std::fs::read_to_string(format!("{cgroup}/memory.events")).unwrap();
    assert!(events.contains("oom_kill 0"), "{events}");
    // The guest's own OOM killer may have ended the container; the VM goes on.
    let alive = pod.script(&image, "echo here").await.unwrap();
    assert_eq!(alive.stdout, "here\n");
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

/// What a pod writes takes as long as the limit of its disks says, at least.
#[tokio::test]
async fn a_pods_disks_are_as_slow_as_their_limit() {
    const MIB_A_SECOND: u64 = 2;
    const MIB: u64 = 8;
    if !ready() {
        return;
    }
    let configure = Box::new(|config: &mut toml::Table| {
        let runtime = config["runtimes"]["bulkhead"].as_table_mut().unwrap();
        let limit = toml::Value::Integer(MIB_A_SECOND as i64);
        runtime.insert("disk_max_mib_per_second".to_owned(), limit);
    });
    let options = Options {
        configure: Some(configure),
        ..Default::default()
    };
    let node = Node::start_with(options).await.unwrap();
    let image = demo_image();
    pod::pull(&node, &image).await.unwrap();
    let pod = Pod::run(&node, "slow").await.unwrap();
    let app = container("app", &image, &["sleep", "1000"]);
    let app = pod.start(app).await.unwrap();
    let script = format!("dd if=/dev/zero of=/big bs=1M count={MIB} oflag=direct && echo written");
    let began = Instant::now();
    let written = exec(&node, &app, &["sh", "-c", &script], 120)
        .await
        .unwrap();
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!(written.stdout, b"written\n", "{written:?}");
    // What a second allows may pass at once after a pause.
    let least = (MIB - MIB_A_SECOND) / MIB_A_SECOND;
    assert!(seconds >= least as f64, "{seconds} s");
    pod.remove().await.unwrap();
    node.finish().unwrap();
}
