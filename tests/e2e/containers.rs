//! What a container sees and how it ends.

use crate::environment::{node_with_image, process_node_with_image, ready};
use bulkhead_cri::v1;
use bulkhead_tests::Node;
use bulkhead_tests::pod::{self, Pod, container, exec, wait};
use std::collections::BTreeSet;
use std::time::Instant;
use tonic::Code;

#[tokio::test]
async fn a_container_has_what_its_configuration_says() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "seen").await.unwrap();
    let script = "pwd; id -u; id -g; echo $GREETING; cat /proc/1/comm; touch /written && echo rw;\
        mount | grep -c ' / type overlay'; echo err >&2";
    let mut config = container("seen", &image, &["/bin/sh", "-c", script]);
    config.working_dir = "/tmp".into();
    config.envs = vec![v1::KeyValue {
        key: "GREETING".into(),
        value: "hello world".into(),
    }];
    let id = pod.start(config).await.unwrap();
    let ended = wait(&node, &id).await.unwrap();
    assert_eq!(
        ended.stdout, "/tmp\n0\n0\nhello world\nsh\nrw\n1\n",
        "{ended:?}"
    );
    assert_eq!(
        (ended.stderr.as_str(), ended.status.reason.as_str()),
        ("err\n", "Completed")
    );
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn users_and_capabilities_are_as_asked() {
    if ready() {
        users(node_with_image().await).await;
    }
}

#[tokio::test]
async fn users_and_capabilities_of_processes_are_as_asked() {
    if ready() {
        users(process_node_with_image().await).await;
    }
}

async fn users((node, image): (Node, String)) {
    let pod = Pod::run(&node, "user").await.unwrap();
    let run = async |security: v1::LinuxContainerSecurityContext, name: &str| {
        let script =
            "id -G; id -u; id -g; grep CapEff /proc/self/status; touch /x 2>/dev/null && echo rw";
        let mut config = container(name, &image, &["/bin/sh", "-c", script]);
        config.linux = Some(v1::LinuxContainerConfig {
            security_context: Some(security),
            ..Default::default()
        });
        let id = pod.start(config).await.unwrap();
        let ended = wait(&node, &id).await.unwrap();
        let (groups, seen) = ended.stdout.split_once('\n').expect("It prints lines");
        let numbers = |text: &str| {
            text.split_whitespace()
                .map(|n| n.parse().unwrap())
                .collect()
        };
        let groups: BTreeSet<i64> = numbers(groups);
        let ids: Vec<i64> = seen.lines().take(2).map(|id| id.parse().unwrap()).collect();
        // The status says the same.
        let user = ended.status.user.clone().and_then(|user| user.linux);
        let user = user.unwrap_or_default();
        assert_eq!([user.uid, user.gid], *ids, "{ended:?}");
        let told: BTreeSet<i64> = user.supplemental_groups.into_iter().collect();
        assert_eq!(told, groups, "{ended:?}");
        seen.to_owned()
    };
    let security = v1::LinuxContainerSecurityContext {
        run_as_user: Some(v1::Int64Value { value: 1234 }),
        run_as_group: Some(v1::Int64Value { value: 2345 }),
        supplemental_groups: vec![2345, 77],
        readonly_rootfs: true,
        ..Default::default()
    };
    assert_eq!(
        run(security, "numbers").await,
        "1234\n2345\nCapEff:\t0000000000000000\n"
    );
    let security = v1::LinuxContainerSecurityContext {
        capabilities: Some(v1::Capability {
            drop_capabilities: vec!["ALL".into()],
            add_capabilities: vec!["NET_BIND_SERVICE".into()],
            ..Default::default()
        }),
        ..Default::default()
    };
    let seen = run(security, "capabilities").await;
    assert!(
        seen.starts_with("0\n0\nCapEff:\t0000000000000400\n"),
        "{seen}"
    );
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn containers_of_a_pod_share_its_image_and_not_their_files() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "two").await.unwrap();
    let first = pod
        .start(container("one", &image, &["sleep", "1000"]))
        .await
        .unwrap();
    let second = pod
        .start(container("other", &image, &["sleep", "1000"]))
        .await
        .unwrap();
    exec(&node, &first, &["touch", "/only-here"], 10)
        .await
        .unwrap();
    let seen = exec(&node, &second, &["ls", "/only-here"], 10)
        .await
        .unwrap();
    assert_ne!(seen.exit_code, 0);
    let processes = exec(&node, &second, &["ps"], 10).await.unwrap();
    let processes = String::from_utf8(processes.stdout).unwrap();
    assert_eq!(processes.matches("sleep 1000").count(), 1, "{processes}");
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn the_log_of_a_short_container_is_whole() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "short").await.unwrap();
    for round in 0..10 {
        let script = format!("seq 1 {}; printf end", 100 + round);
        let ended = pod.script(&image, &script).await.unwrap();
        let mut expected: Vec<String> = (1..=100 + round).map(|line| line.to_string()).collect();
        expected.push("end".into());
        assert_eq!(
            ended.stdout.lines().collect::<Vec<_>>(),
            expected,
            "round {round}"
        );
    }
    let ended = pod
        .script(&image, "head -c 3000000 /dev/zero | tr '\\0' x; echo")
        .await
        .unwrap();
    assert_eq!(ended.stdout.trim_end().len(), 3_000_000);
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

#[tokio::test]
async fn exec_sync_gives_output_code_and_deadline() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "exec").await.unwrap();
    let id = pod
        .start(container("target", &image, &["sleep", "1000"]))
        .await
        .unwrap();
    let output = exec(
        &node,
        &id,
        &["sh", "-c", "echo out; echo err >&2; exit 3"],
        10,
    )
    .await
    .unwrap();
    assert_eq!(
        (output.stdout, output.stderr),
        (b"out\n".to_vec(), b"err\n".to_vec())
    );
    assert_eq!(output.exit_code, 3);
    // With a time-out, and when the client goes away, the whole tree of it dies.
    let tree = "trap '' TERM; (setsid sleep 1000 &); setsid sleep 1000 & echo $$; sleep 1000";
    let late = exec(&node, &id, &["sh", "-c", tree], 1).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    assert_eq!(sleepers(&node, &id).await, 1, "the late ones are dead");
    let command = ["sh", "-c", tree];
    let abandoned = exec(&node, &id, &command, 0);
    let begun = async { while sleepers(&node, &id).await < 4 {} };
    tokio::select! {
        result = abandoned => panic!("{result:?}"),
        () = begun => {}
    }
    while sleepers(&node, &id).await > 1 {}
    let missing = exec(&node, &id, &["no-such-program"], 10)
        .await
        .unwrap_err();
    assert_eq!(missing.code(), Code::NotFound, "{missing}");
    assert!(missing.message().contains("no-such-program"), "{missing}");
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

/// How many processes of a container sleep.
async fn sleepers(node: &bulkhead_tests::Node, id: &str) -> usize {
    let processes = exec(node, id, &["ps"], 10).await.unwrap().stdout;
    let processes = String::from_utf8(processes).unwrap();
    let is_one = |line: &&str| line.trim_end().ends_with("sleep 1000") && !line.contains("sh -c");
    processes.lines().filter(is_one).count()
}

#[tokio::test]
async fn a_container_is_stopped_by_its_signal_or_killed() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "stop").await.unwrap();
    let stop = async |id: &str, timeout: i64| {
        let request = v1::StopContainerRequest {
            container_id: id.to_owned(),
            timeout,
        };
        node.runtime().stop_container(request).await.unwrap();
        pod::status(&node, id).await.unwrap()
    };
    let script = "trap 'echo stopped; exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    let polite = pod
        .start(container("polite", &image, &["sh", "-c", script]))
        .await
        .unwrap();
    wait_for_log(&node, &polite, "ready").await;
    let status = stop(&polite, 30).await;
    assert_eq!(status.exit_code, 5, "{status:?}");
    let script = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    let stubborn = pod
        .start(container("stubborn", &image, &["sh", "-c", script]))
        .await
        .unwrap();
    wait_for_log(&node, &stubborn, "ready").await;
    let began = Instant::now();
    let status = stop(&stubborn, 1).await;
    assert_eq!(status.exit_code, 137, "{status:?}");
    assert!(
        began.elapsed().as_millis() >= 1000,
        "the grace period is given"
    );
    assert_eq!(
        stop(&stubborn, 1).await.exit_code,
        137,
        "stopping again changes nothing"
    );
    pod.remove().await.unwrap();
    node.finish().unwrap();
}

async fn wait_for_log(node: &bulkhead_tests::Node, id: &str, text: &str) {
    let path = pod::status(node, id).await.unwrap().log_path;
    let appears = async {
        while !std::fs::read_to_string(&path)
            .unwrap_or_default()
            .contains(text)
        {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), appears)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_container_that_eats_its_memory_is_oom_killed() {
    if !ready() {
        return;
    }
    let (node, image) = node_with_image().await;
    let pod = Pod::run(&node, "oom").await.unwrap();
    let mut config = container(
        "eater",
        &image,
        &["sh", "-c", "x=$(cat /dev/zero | tr '\\0' x)"],
    );
    config.linux = Some(v1::LinuxContainerConfig {
        resources: Some(v1::LinuxContainerResources {
            memory_limit_in_bytes: 20 << 20,
            ..Default::default()
        }),
        ..Default::default()
    });
    let id = pod.start(config).await.unwrap();
    let ended = wait(&node, &id).await.unwrap();
    assert_eq!(ended.status.reason, "OOMKilled", "{ended:?}");
    assert_eq!(ended.status.exit_code, 137, "{ended:?}");
    pod.remove().await.unwrap();
    node.finish().unwrap();
}
