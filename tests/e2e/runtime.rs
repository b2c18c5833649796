//! The calls about the runtime itself, and those that are refused.

use crate::environment::{node_with_image, ready};
use bulkhead_cri::v1;
use bulkhead_tests::pod::{self, Pod, container, exec, wait};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use tonic::Code;

#[tokio::test]
async fn the_runtime_tells_what_it_is() {
    if !ready() {
        return;
    }
    let (mut node, _) = node_with_image().await;
    let socket = std::fs::metadata(node.path().join("bulkhead.sock")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o660);
    assert_eq!((socket.uid(), socket.gid()), (0, 0));
    let request = v1::StatusRequest { verbose: true };
    let status = node.runtime().status(request).await.unwrap().into_inner();
    let conditions = status.status.unwrap().conditions;
    assert!(conditions.iter().all(|one| one.status), "{conditions:?}");
    let names: Vec<_> = status
        .runtime_handlers
        .iter()
        .map(|one| one.name.as_str())
        .collect();
    assert_eq!(names, ["", "bulkhead"]);
    assert!(status.runtime_handlers[0].features.unwrap().user_namespaces);
    assert!(status.info["info"].contains("scratch_mib"));
    let cidr = async |node: &bulkhead_tests::Node, cidr: &str| {
        let network = v1::NetworkConfig {
            pod_cidr: cidr.to_owned(),
        };
        let config = v1::RuntimeConfig {
            network_config: Some(network),
        };
        let request = v1::UpdateRuntimeConfigRequest {
            runtime_config: Some(config),
        };
        node.runtime().update_runtime_config(request).await
    };
    cidr(&node, "10.1.0.0/16,fd00::/64").await.unwrap();
    let error = cidr(&node, "10.1.0.0/40").await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(error.message().contains("pod_cidr"), "{error}");
    node.kill_and_restart().await.unwrap();
    let status = node.runtime().status(request).await.unwrap().into_inner();
    assert!(
        status.info["info"].contains("10.1.0.0/16"),
        "it is remembered"
    );
    // More than a message may have.
    let labels = [("x".to_owned(), "y".repeat(17 << 20))].into();
    let mut config = pod::config(&node, "large");
    config.labels = labels;
    let request = v1::RunPodSandboxRequest {
        config: Some(config),
        runtime_handler: String::new(),
    };
    let error = node.runtime().run_pod_sandbox(request).await.unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange, "{error}");
    node.finish().unwrap();
}

#[tokio::test]
async fn a_missing_kernel_is_a_condition() {
    if !ready() {
        return;
    }
    let options = bulkhead_tests::node::Options {
        configure: Some(Box::new(|config| {
            config["runtimes"]["bulkhead"]["kernel"] = "/no/vmlinux".into();
        })),
        wrapper: None,
    };
    let node = bulkhead_tests::Node::start_with(options).await.unwrap();
    let request = v1::StatusRequest { verbose: false };
    let status = node.runtime().status(request).await.unwrap().into_inner();
    let condition = &status.status.unwrap().conditions[0];
    assert!(
        !condition.status && condition.message.contains("/no/vmlinux"),
        "{condition:?}"
    );
    node.finish().unwrap();
}

#[tokio::test]
async fn logs_are_reopened_and_statuses_are_whole() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "logs").await.unwrap();
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done";
    let id = pod
        .start(container("writer", &image, &["sh", "-c", script]))
        .await
        .unwrap();
    let path = pod::status(&node, &id).await.unwrap().log_path;
    let mut parts = Vec::new();
    let reopen = async || {
        let request = v1::ReopenContainerLogRequest {
            container_id: id.clone(),
        };
        node.runtime().reopen_container_log(request).await
    };
    loop {
        let part = format!("{path}.{}", parts.len());
        std::fs::rename(&path, &part).unwrap();
        parts.push(part);
        if let Err(error) = reopen().await {
            assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
            break;
        }
    }
    assert!(parts.len() > 2, "it was reopened while it wrote");
    wait(&node, &id).await.unwrap();
    let log: String = parts
        .iter()
        .map(|part| std::fs::read_to_string(part).unwrap())
        .collect();
    let lines: Vec<_> = log
        .lines()
        .map(|line| line.splitn(4, ' ').nth(3).unwrap())
        .collect();
    let want: Vec<_> = (0..20000).map(|number| format!("line {number}")).collect();
    assert!(lines == want, "{} lines", lines.len());

    let request = v1::ContainerStatusRequest {
        container_id: id.clone(),
        verbose: true,
    };
    let verbose = node
        .runtime()
        .container_status(request)
        .await
        .unwrap()
        .into_inner();
    let info: serde_json::Value = serde_json::from_str(&verbose.info["info"]).unwrap();
    assert_eq!(info["runtimeSpec"]["process"]["args"][2], script);
    assert!(info["pid"].as_u64().unwrap() > 1);
    assert_eq!(info["vm"]["size"]["vcpus"], 1);
    let status = verbose.status.unwrap();
    assert!(status.created_at <= status.started_at && status.started_at <= status.finished_at);

    // A terminal's log is one stream.
    let mut config = container("terminal", &image, &["sh", "-c", "echo out; echo err >&2"]);
    config.tty = true;
    let terminal = pod.start(config).await.unwrap();
    let ended = wait(&node, &terminal).await.unwrap();
    assert_eq!(
        (ended.stdout.as_str(), ended.stderr.as_str()),
        // The helper's lines are without the terminal's carriage returns.
        ("out\nerr\n", "")
    );

    let request = v1::CheckpointContainerRequest {
        container_id: id,
        ..Default::default()
    };
    let error = node
        .runtime()
        .checkpoint_container(request)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented, "{error}");
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn containers_stop_in_every_way_at_once() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "stops").await.unwrap();
    let stop = async |id: &str, timeout: i64| {
        let request = v1::StopContainerRequest {
            container_id: id.to_owned(),
            timeout,
        };
        node.runtime().stop_container(request).await
    };
    let deaf = ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"];
    for timeout in [0, -1, i64::MIN] {
        let name = format!("deaf-{timeout}");
        let id = pod.start(container(&name, &image, &deaf)).await.unwrap();
        stop(&id, timeout).await.unwrap();
        assert_eq!(pod::status(&node, &id).await.unwrap().exit_code, 137);
    }
    let hears = [
        "sh",
        "-c",
        "trap 'exit 5' TERM; while :; do sleep 0.1; done",
    ];
    let id = pod.start(container("hears", &image, &hears)).await.unwrap();
    // Its trap must be set.
    exec(&node, &id, &["sleep", "1"], 30).await.unwrap();
    let stops = (0..8).map(|_| stop(&id, i64::MAX));
    for result in futures::future::join_all(stops).await {
        result.unwrap();
    }
    assert_eq!(pod::status(&node, &id).await.unwrap().exit_code, 5);
    // Both streams are cut, and fit in one message.
    let id = pod
        .start(container("loud", &image, &["sleep", "1000"]))
        .await
        .unwrap();
    let script = "head -c 9437184 /dev/zero; head -c 9437184 /dev/zero >&2; exit 4";
    let output = exec(&node, &id, &["sh", "-c", script], 100).await.unwrap();
    assert_eq!(output.exit_code, 4);
    assert_eq!(
        (output.stdout.len(), output.stderr.len()),
        ((8 << 20) - 4096, (8 << 20) - 4096)
    );
    let late = exec(&node, &id, &["sleep", "100"], 1).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    pod.remove().await.unwrap();
    node.finish().unwrap();
}
