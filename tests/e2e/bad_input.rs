//! Requests that cannot be fulfilled: one clear error each, the right code, nothing left behind.

use crate::environment::{node_with_image, ready, registry};
use bulkhead_cri::v1;
use bulkhead_tests::pod::{self, Pod, container, pull, wait};
use bulkhead_tests::{Node, Registry, artifacts};
use tonic::Code;

#[tokio::test]
async fn an_unknown_runtime_handler_is_refused_by_name() {
    if !ready() {
        return;
    }
    let node = Node::start().await.unwrap();
    let config = pod::config(&node, "handler");
    let error = Pod::run_config(&node, config, "kata").await.err().unwrap();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(
        error.message().contains("\"kata\"") && error.message().contains("bulkhead"),
        "{error}"
    );
    node.finish().unwrap();
}

#[tokio::test]
async fn wrong_fields_are_named() {
    if !ready() {
        return;
    }
    let node = Node::start().await.unwrap();
    let mut no_name = pod::config(&node, "x");
    no_name.metadata.as_mut().unwrap().name.clear();
    let mut host_network = pod::config(&node, "x");
    let options = v1::NamespaceOption {
        network: v1::NamespaceMode::Node.into(),
        pid: v1::NamespaceMode::Container.into(),
        ..Default::default()
    };
    host_network.linux = Some(v1::LinuxPodSandboxConfig {
        security_context: Some(v1::LinuxSandboxSecurityContext {
            namespace_options: Some(options),
            ..Default::default()
        }),
        ..Default::default()
    });
    let mut sysctl = pod::config(&node, "x");
    sysctl.linux = Some(v1::LinuxPodSandboxConfig {
        sysctls: [("net.no.such".to_owned(), "1".to_owned())].into(),
        ..Default::default()
    });
    for (config, field) in [
        (no_name, "config.metadata.name"),
        (host_network, "namespace_options"),
        (sysctl, "net.no.such"),
    ] {
        let error = Pod::run_config(&node, config, "").await.err().unwrap();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains(field), "{error}");
    }
    node.finish().unwrap();
}

#[tokio::test]
async fn an_image_that_does_not_exist_is_not_found() {
    if !ready() {
        return;
    }
    let (node, _) = node_with_image().await;
    let missing = format!("{}/nothing:1", registry().host());
    let error = pull(&node, &missing).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    assert!(error.message().contains(&missing), "{error}");
    let pod = Pod::run(&node, "missing").await.unwrap();
    let error = pod
        .create(container("x", &missing, &["true"]))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    let unreachable = pull(&node, "127.0.0.1:1/x:1").await.unwrap_err();
    assert_eq!(unreachable.code(), Code::Unavailable, "{unreachable}");
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn a_layer_that_is_not_what_its_digest_says_is_refused() {
    if !ready() {
        return;
    }
    let registry = Registry::start().unwrap();
    let layout = artifacts::artifact("demo-image");
    let read = |path: &std::path::Path| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    let index = read(&layout.join("index.json"));
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    let manifest = read(
        &layout
            .join("blobs/sha256")
            .join(digest.trim_start_matches("sha256:")),
    );
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    let blob = registry.blob(layer);
    let mut bytes = std::fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    let node = Node::start().await.unwrap();
    let error = pull(&node, &registry.demo_image()).await.unwrap_err();
    assert_eq!(error.code(), Code::DataLoss, "{error}");
    assert!(error.message().contains(layer), "{error}");
    let images = node
        .images()
        .list_images(v1::ListImagesRequest::default())
        .await
        .unwrap();
    assert!(images.into_inner().images.is_empty());
    node.finish().unwrap();
}

#[tokio::test]
async fn a_command_that_does_not_exist_is_told_at_start() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "command").await.unwrap();
    let id = pod
        .create(container("x", &image, &["no-such-program"]))
        .await
        .unwrap();
    let request = v1::StartContainerRequest {
        container_id: id.clone(),
    };
    let error = node.runtime().start_container(request).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    assert!(error.message().contains("no-such-program"), "{error}");
    let ended = wait(&node, &id).await.unwrap();
    assert_eq!(
        (ended.status.exit_code, ended.status.reason.as_str()),
        (128, "StartError")
    );
    let mut config = container("y", &image, &["true"]);
    config.command = vec!["/etc/passwd".into()];
    let id = pod.create(config).await.unwrap();
    let request = v1::StartContainerRequest { container_id: id };
    let error = node.runtime().start_container(request).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn a_name_in_use_is_refused_and_free_again_after_removal() {
    if !ready() {
        return;
    }
    let node = Node::start().await.unwrap();
    let pod = Pod::run(&node, "twice").await.unwrap();
    let error = Pod::run(&node, "twice").await.err().unwrap();
    assert_eq!(error.code(), Code::AlreadyExists, "{error}");
    assert!(error.message().contains(&pod.id), "{error}");
    pod.remove().await.unwrap();
    Pod::run(&node, "twice")
        .await
        .unwrap()
        .remove()
        .await
        .unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn what_is_unknown_is_stopped_and_removed_already() {
    if !ready() {
        return;
    }
    let node = Node::start().await.unwrap();
    let mut runtime = node.runtime();
    let id = "0123456789abcdef".to_owned();
    let stop = v1::StopPodSandboxRequest {
        pod_sandbox_id: id.clone(),
    };
    runtime.stop_pod_sandbox(stop).await.unwrap();
    let remove = v1::RemovePodSandboxRequest {
        pod_sandbox_id: id.clone(),
    };
    runtime.remove_pod_sandbox(remove).await.unwrap();
    let stop = v1::StopContainerRequest {
        container_id: id.clone(),
        timeout: 0,
    };
    runtime.stop_container(stop).await.unwrap();
    let remove = v1::RemoveContainerRequest {
        container_id: id.clone(),
    };
    runtime.remove_container(remove).await.unwrap();
    let image = Some(v1::ImageSpec {
        image: "no/such:image".into(),
        ..Default::default()
    });
    node.images()
        .remove_image(v1::RemoveImageRequest { image })
        .await
        .unwrap();
    let status = v1::PodSandboxStatusRequest {
        pod_sandbox_id: id.clone(),
        verbose: false,
    };
    assert_eq!(
        runtime.pod_sandbox_status(status).await.unwrap_err().code(),
        Code::NotFound
    );
    let stats = v1::PodSandboxStatsRequest { pod_sandbox_id: id };
    assert_eq!(
        runtime.pod_sandbox_stats(stats).await.unwrap_err().code(),
        Code::NotFound
    );
    node.finish().unwrap();
}
