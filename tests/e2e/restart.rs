//! A daemon that is killed and started again.

use crate::environment::{node_with_image, ready};
use bulkhead_cri::v1;
use bulkhead_tests::pod::{self, Pod, container, exec, wait};

#[tokio::test]
async fn running_pods_notice_nothing() {
    if !ready() {
        return;
    }
    let (mut node, image) = node_with_image().await;
    let script = "i=0; while [ $i -lt 100000 ]; do echo line $i; i=$((i+1)); sleep 0.05; done";
    let (pod_id, id) = {
        let pod = Pod::run(&node, "kept").await.unwrap();
        let id = pod
            .start(container("counts", &image, &["sh", "-c", script]))
            .await
            .unwrap();
        (pod.id, id)
    };
    let before = pod::status(&node, &id).await.unwrap();
    node.kill_and_restart().await.unwrap();
    let status = pod::status(&node, &id).await.unwrap();
    assert!(before.user.is_some(), "{before:?}");
    assert_eq!(status.user, before.user);
    assert_eq!(
        status.state(),
        v1::ContainerState::ContainerRunning,
        "{}",
        node.log()
    );
    let output = exec(&node, &id, &["echo", "still here"], 10).await.unwrap();
    assert_eq!(output.stdout, b"still here\n");
    let stop = v1::StopContainerRequest {
        container_id: id.clone(),
        timeout: 0,
    };
    node.runtime().stop_container(stop).await.unwrap();
    let ended = wait(&node, &id).await.unwrap();
    assert_eq!(ended.status.exit_code, 137);
    let stop = v1::StopPodSandboxRequest {
        pod_sandbox_id: pod_id.clone(),
    };
    node.runtime().stop_pod_sandbox(stop).await.unwrap();
    let remove = v1::RemovePodSandboxRequest {
        pod_sandbox_id: pod_id,
    };
    node.runtime().remove_pod_sandbox(remove).await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn a_pod_whose_vm_ended_meanwhile_is_listed_as_not_ready() {
    if !ready() {
        return;
    }
    let (mut node, image) = node_with_image().await;
    let (pod_id, id) = {
        let pod = Pod::run(&node, "lost").await.unwrap();
        let id = pod
            .start(container("sleeper", &image, &["sleep", "1000"]))
            .await
            .unwrap();
        (pod.id, id)
    };
    let info = pod::info(&node, &pod_id).await.unwrap();
    let cgroup = info["cgroup"].as_str().unwrap().to_owned();
    let kill = std::path::Path::new("/sys/fs/cgroup")
        .join(cgroup)
        .join("cgroup.kill");
    std::fs::write(kill, "1").unwrap();
    node.kill_and_restart().await.unwrap();
    let ended = wait(&node, &id).await.unwrap();
    assert_ne!(ended.status.exit_code, 0);
    let listed = node
        .runtime()
        .list_pod_sandbox(v1::ListPodSandboxRequest::default())
        .await
        .unwrap();
    let listed = listed.into_inner().items;
    assert_eq!(listed[0].state(), v1::PodSandboxState::SandboxNotready);
    let remove = v1::RemovePodSandboxRequest {
        pod_sandbox_id: pod_id,
    };
    node.runtime().remove_pod_sandbox(remove).await.unwrap();
    node.finish().unwrap();
}
