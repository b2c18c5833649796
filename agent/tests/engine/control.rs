//! Changing, pausing and watching a running container.

use crate::support::{Container, Pod1, code, process, run, stream_id};
use bulkhead_agent_api::agent::{
    ContainerRequest, ContainerStats, StatsRequest, Stdio, UpdateContainerRequest,
};
use serde_json::{Value, json};
use std::fs;
use std::time::Duration;
use ttrpc::{Code, context};

async fn update(pod: &Pod1, id: &str, resources: Value) -> ttrpc::Result<()> {
    let mut request = UpdateContainerRequest::new();
    request.container_id = id.to_owned();
    request.resources = resources.to_string().into_bytes();
    let context = context::with_timeout(0);
    pod.client
        .update_container(context, &request)
        .await
        .map(drop)
}

fn named(id: &str) -> ContainerRequest {
    let mut request = ContainerRequest::new();
    request.container_id = id.to_owned();
    request
}

async fn pause(pod: &Pod1, id: &str) -> ttrpc::Result<()> {
    let context = context::with_timeout(60_000_000_000);
    pod.client
        .pause_container(context, &named(id))
        .await
        .map(drop)
}

async fn resume(pod: &Pod1, id: &str) -> ttrpc::Result<()> {
    let context = context::with_timeout(0);
    pod.client
        .resume_container(context, &named(id))
        .await
        .map(drop)
}

async fn stats(pod: &Pod1, id: &str) -> ContainerStats {
    let mut request = StatsRequest::new();
    request.container_ids = vec![id.to_owned()];
    let context = context::with_timeout(0);
    let mut response = pod.client.stats(context, &request).await.unwrap();
    assert_eq!(response.containers.len(), 1);
    response.containers.remove(0)
}

async fn started(pod: &Pod1, container: &Container) {
    pod.create(container).await.unwrap();
    pod.start(&container.id).await.unwrap();
}

#[test]
fn new_limits_are_set_all_or_none() {
    run(|pod| async move {
        let container = Container::sleeper().with(
            "/linux/resources",
            json!({"memory": {"limit": 67_108_864}, "pids": {"limit": 50}, "cpu": {"shares": 1024}}),
        );
        started(&pod, &container).await;
        let id = container.id.as_str();
        let files = [
            "memory.max",
            "memory.low",
            "memory.high",
            "pids.max",
            "cpu.weight",
            "cpu.max",
            "cpuset.cpus",
        ];
        let read =
            || files.map(|file| fs::read_to_string(pod.world.cgroup.join(id).join(file)).unwrap());
        update(
            &pod,
            id,
            json!({
                "memory": {"limit": 134_217_728, "reservation": 4096},
                "cpu": {"shares": 2, "quota": 20000, "period": 50000, "cpus": "0"},
                "pids": {"limit": 60},
                "unified": {"memory.high": "100003840"},
            }),
        )
        .await
        .unwrap();
        let now = read();
        assert_eq!(
            now,
            [
                "134217728\n",
                "4096\n",
                "100003840\n",
                "60\n",
                "1\n",
                "20000 50000\n",
                "0\n"
            ]
        );
        for (wrong, named) in [
            (
                json!({"memory": {"limit": 80_000_000}, "pids": {"limit": 7}, "cpu": {"shares": 512, "quota": 10000, "cpus": "4000"}}),
                "cpuset.cpus",
            ),
            (
                json!({"cpu": {"cpus": "0-1"}, "unified": {"memory.high": "1", "no.such": "1"}}),
                "no.such",
            ),
            (json!({"cpu": {"quota": 30000, "period": 5}}), "cpu.max"),
            (
                json!({"memory": {"limit": 4096, "checkBeforeUpdate": true}}),
                "memory.max",
            ),
            (json!({"memory": {"limit": 4096, "swap": 1}}), "memory.swap"),
            (json!({"unified": {"cgroup.procs": "1"}}), "cgroup.procs"),
            (json!({"unified": {"../x.y": "1"}}), "../x.y"),
        ] {
            let (code, message) = code(update(&pod, id, wrong).await);
            assert_eq!(code, Code::INVALID_ARGUMENT, "{message}");
            assert!(message.contains(named), "{message}");
            assert_eq!(read(), now, "{named}");
        }
        update(&pod, id, json!({"devices": []})).await.unwrap();
        let devices = json!({"devices": [{"allow": true}]});
        assert_eq!(code(update(&pod, id, devices).await).0, Code::UNIMPLEMENTED);
        pod.kill(id, libc::SIGKILL, true).await.unwrap();
        pod.exit(id, "").await;
        let late = update(&pod, id, json!({"pids": {"limit": 1}})).await;
        assert_eq!(code(late).0, Code::FAILED_PRECONDITION);
        pod.remove(id).await.unwrap();
        let gone = update(&pod, id, json!({})).await;
        assert_eq!(code(gone).0, Code::NOT_FOUND);
    });
}

#[test]
fn a_paused_container_does_nothing_until_it_is_resumed() {
    run(|pod| async move {
        let container = Container::shell("trap 'exit 9' TERM; while :; do :; done");
        started(&pod, &container).await;
        let id = container.id.as_str();
        let busy = async || stats(&pod, id).await.cpu.usage_us;
        pause(&pod, id).await.unwrap();
        pause(&pod, id).await.unwrap();
        assert!(pod.state(id).await.unwrap().paused);
        let used = busy().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(busy().await, used);
        let exec = pod.exec(id, "e", process(&["true"]), Stdio::new()).await;
        assert_eq!(code(exec).0, Code::FAILED_PRECONDITION);
        resume(&pod, id).await.unwrap();
        resume(&pod, id).await.unwrap();
        assert!(!pod.state(id).await.unwrap().paused);
        while busy().await <= used {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // A signal waits for the resumption.
        pause(&pod, id).await.unwrap();
        pod.kill(id, libc::SIGTERM, false).await.unwrap();
        resume(&pod, id).await.unwrap();
        assert_eq!(pod.exit(id, "").await.code, 9);
        for result in [pause(&pod, id).await, resume(&pod, id).await] {
            assert_eq!(code(result).0, Code::FAILED_PRECONDITION);
        }
        pod.remove(id).await.unwrap();
    });
}

#[test]
fn a_paused_container_can_be_killed_and_removed() {
    run(|pod| async move {
        for all in [false, true] {
            let container = Container::sleeper();
            started(&pod, &container).await;
            pause(&pod, &container.id).await.unwrap();
            pod.kill(&container.id, libc::SIGKILL, all).await.unwrap();
            assert_eq!(pod.exit(&container.id, "").await.code, 137);
            assert!(!pod.state(&container.id).await.unwrap().paused);
            pod.remove(&container.id).await.unwrap();
        }
        let container = Container::sleeper();
        started(&pod, &container).await;
        pause(&pod, &container.id).await.unwrap();
        pod.remove(&container.id).await.unwrap();
        assert!(!pod.world.cgroup.join(&container.id).exists());
        let created = Container::sleeper();
        pod.create(&created).await.unwrap();
        assert_eq!(
            code(pause(&pod, &created.id).await).0,
            Code::FAILED_PRECONDITION
        );
        pod.remove(&created.id).await.unwrap();
    });
}

#[test]
fn figures_are_the_cgroups_and_the_writable_layers() {
    run(|pod| async move {
        let mut container = Container::shell(
            "dd if=/dev/zero of=/data/big bs=64k count=32 2>/dev/null; sleep 1000 & echo ready; while :; do :; done",
        )
        .with(
            "/linux/resources",
            json!({"memory": {"limit": 134_217_728}, "pids": {"limit": 9}, "cpu": {"quota": 10000, "period": 50000}}),
        );
        container.stdio.stdout = stream_id();
        started(&pod, &container).await;
        let mut stream = pod.stream(container.stdio.stdout).await;
        let mut line = [0; 6];
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut line)
            .await
            .unwrap();
        let one = loop {
            let stats = stats(&pod, &container.id).await;
            // The limit has been felt, and the count is newer than the file.
            if stats.cpu.throttled_periods > 0 && stats.writable_layer.used_bytes > 0 {
                break stats;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        assert_eq!(one.container_id, container.id);
        assert!(
            one.timestamp_ns > one.writable_layer.timestamp_ns
                && one.writable_layer.timestamp_ns > 0
        );
        assert!(
            one.cpu.usage_us > 0 && one.cpu.user_us > 0 && one.cpu.system_us > 0,
            "{one:?}"
        );
        assert!(one.cpu.throttled_us > 0 && one.cpu.periods >= one.cpu.throttled_periods);
        let memory = &one.memory;
        assert!(
            memory.usage_bytes > 0 && memory.rss_bytes > 0 && memory.page_faults > 0,
            "{memory:?}"
        );
        assert!(memory.working_set_bytes <= memory.usage_bytes);
        assert_eq!((memory.limit_bytes, memory.oom_kills), (134_217_728, 0));
        assert_eq!((one.pids, one.pids_limit), (Some(2), 9));
        // The top, /data and the file.
        let layer = &one.writable_layer;
        assert!(
            layer.used_bytes >= 32 * 65536 && layer.inodes == 3 && !layer.incomplete,
            "{layer:?}"
        );
        pod.remove(&container.id).await.unwrap();
        // Of nothing there are none.
        let mut request = StatsRequest::new();
        request.container_ids = vec![container.id.clone()];
        let context = context::with_timeout(0);
        assert!(
            pod.client
                .stats(context, &request)
                .await
                .unwrap()
                .containers
                .is_empty()
        );
    });
}

#[test]
fn reading_figures_does_not_delay_a_kill() {
    run(|pod| async move {
        let container = Container::sleeper();
        started(&pod, &container).await;
        let reading = tokio::spawn({
            let pod = pod.clone();
            async move {
                loop {
                    let context = context::with_timeout(0);
                    pod.client
                        .stats(context, &StatsRequest::new())
                        .await
                        .unwrap();
                }
            }
        });
        pod.kill(&container.id, libc::SIGKILL, true).await.unwrap();
        assert_eq!(pod.exit(&container.id, "").await.code, 137);
        pod.remove(&container.id).await.unwrap();
        assert!(!reading.is_finished());
        reading.abort();
    });
}
