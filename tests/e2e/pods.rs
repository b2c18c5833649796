//! The life of a pod.

use crate::environment::{node_with_image, ready};
use bulkhead_cri::v1;
use bulkhead_tests::Node;
use bulkhead_tests::pod::{self, Pod, container, wait};
use tonic::Code;

#[tokio::test]
async fn a_pod_runs_a_container_from_a_real_image() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "first").await.unwrap();
    let mut config = container("hello", &image, &[]);
    config.envs = vec![v1::KeyValue {
        key: "EXIT_CODE".into(),
        value: "7".into(),
    }];
    let id = pod.start(config).await.unwrap();
    let ended = wait(&node, &id).await.unwrap();
    assert_eq!(ended.status.exit_code, 7, "{ended:?}");
    assert_eq!(ended.status.reason, "Error");
    assert!(!ended.stdout.is_empty(), "{ended:?}");
    assert!(ended.status.started_at >= ended.status.created_at);
    assert!(ended.status.finished_at >= ended.status.started_at);
    let release = pod.script(&image, "uname -r").await.unwrap().stdout;
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_ne!(
        release.trim(),
        host.trim(),
        "the pod has a kernel of its own"
    );
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn lists_and_statuses_tell_what_there_is() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let mut config = pod::config(&node, "listed");
    config.labels = [("app".to_owned(), "x".to_owned())].into();
    config.annotations = [("note".to_owned(), "y".to_owned())].into();
    let pod = Pod::run_config(&node, config.clone(), "bulkhead")
        .await
        .unwrap();
    let id = pod
        .create(container("waits", &image, &["sleep", "1000"]))
        .await
        .unwrap();
    let request = v1::PodSandboxStatusRequest {
        pod_sandbox_id: pod.id[..12].into(),
        verbose: true,
    };
    let response = node
        .runtime()
        .pod_sandbox_status(request)
        .await
        .unwrap()
        .into_inner();
    let status = response.status.unwrap();
    assert_eq!(status.state(), v1::PodSandboxState::SandboxReady);
    assert_eq!(
        (status.labels, status.annotations),
        (config.labels, config.annotations)
    );
    assert_eq!(
        (status.metadata, status.runtime_handler),
        (config.metadata, "bulkhead".into())
    );
    assert!(
        response.info["info"].contains("\"kernel\""),
        "{:?}",
        response.info
    );
    let pods = node
        .runtime()
        .list_pod_sandbox(v1::ListPodSandboxRequest::default())
        .await
        .unwrap();
    assert_eq!(pods.into_inner().items.len(), 1);
    let filter = v1::ContainerFilter {
        pod_sandbox_id: pod.id.clone(),
        ..Default::default()
    };
    let request = v1::ListContainersRequest {
        filter: Some(filter),
    };
    let listed = node
        .runtime()
        .list_containers(request)
        .await
        .unwrap()
        .into_inner()
        .containers;
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (&listed[0].id, listed[0].state()),
        (&id, v1::ContainerState::ContainerCreated)
    );
    pod.remove().await.unwrap();
    let request = v1::ContainerStatusRequest {
        container_id: id,
        verbose: false,
    };
    let gone = node.runtime().container_status(request).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound, "a pod's containers go with it");
    node.finish().unwrap();
}

#[tokio::test]
async fn a_pod_with_running_containers_can_be_stopped_and_stopped_again() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "busy").await.unwrap();
    let id = pod
        .start(container("sleeper", &image, &["sleep", "1000"]))
        .await
        .unwrap();
    for _ in 0..2 {
        let request = v1::StopPodSandboxRequest {
            pod_sandbox_id: pod.id.clone(),
        };
        node.runtime().stop_pod_sandbox(request).await.unwrap();
    }
    let status = pod::status(&node, &id).await.unwrap();
    assert_eq!(status.state(), v1::ContainerState::ContainerExited);
    assert_eq!(status.exit_code, 137);
    let refused = pod
        .create(container("late", &image, &["true"]))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn when_the_vmm_dies_the_containers_have_failed_and_the_pod_can_go() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "killed").await.unwrap();
    let id = pod
        .start(container("sleeper", &image, &["sleep", "1000"]))
        .await
        .unwrap();
    let info = pod::info(&node, &pod.id).await.unwrap();
    let pid = i32::try_from(info["vmmPid"].as_i64().unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let ended = wait(&node, &id).await.unwrap();
    assert_ne!(ended.status.exit_code, 0);
    assert_eq!(ended.status.reason, "SandboxEnded");
    assert!(
        ended.status.message.contains("signal 9"),
        "{:?}",
        ended.status.message
    );
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn a_caller_who_goes_away_leaves_nothing() {
    if !ready() {
        return;
    }
    let node = Node::start().await.unwrap();
    let request = v1::RunPodSandboxRequest {
        config: Some(pod::config(&node, "abandoned")),
        ..Default::default()
    };
    let mut request = tonic::Request::new(request);
    // Shorter than any boot: the daemon sees the call cancelled.
    request.set_timeout(std::time::Duration::from_millis(100));
    node.runtime().run_pod_sandbox(request).await.unwrap_err();
    // The name is free again when everything of the first is gone.
    let again = async {
        loop {
            match Pod::run(&node, "abandoned").await {
                Ok(pod) => return pod,
                Err(status) => assert_eq!(status.code(), Code::AlreadyExists, "{status}"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    let limit = std::time::Duration::from_secs(60);
    tokio::time::timeout(limit, again)
        .await
        .unwrap()
        .remove()
        .await
        .unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn the_pods_size_is_what_was_asked_for() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let mut config = pod::config(&node, "sized");
    config.linux = Some(v1::LinuxPodSandboxConfig {
        resources: Some(v1::LinuxContainerResources {
            cpu_quota: 150_000,
            cpu_period: 100_000,
            memory_limit_in_bytes: 128 << 20,
            ..Default::default()
        }),
        sysctls: [(
            "net.ipv4.ip_unprivileged_port_start".to_owned(),
            "80".to_owned(),
        )]
        .into(),
        ..Default::default()
    });
    let pod = Pod::run_config(&node, config, "").await.unwrap();
    let script = "nproc; awk '/MemTotal/ { print $2 }' /proc/meminfo;\
        cat /proc/sys/net/ipv4/ip_unprivileged_port_start; hostname; cat /etc/hostname";
    let ended = pod.script(&image, script).await.unwrap();
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(lines[0], "2", "{ended:?}");
    let kib: u64 = lines[1].parse().unwrap();
    assert!((128 << 10..192 << 10).contains(&kib), "{kib} KiB");
    assert_eq!(lines[2..], ["80", "sized", "sized"]);
    pod.remove().await.unwrap();
    node.finish().unwrap();
}
