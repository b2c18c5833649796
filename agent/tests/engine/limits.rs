use crate::support::{Container, code, run};
use serde_json::json;
use ttrpc::Code;

#[test]
fn resources_are_files_of_the_containers_cgroup() {
    run(|pod| async move {
        let container =
            Container::shell("cd /sys/fs/cgroup; cat memory.max pids.max cpu.max cpu.weight").with(
                "/linux/resources",
                json!({
                    "memory": {"limit": 67_108_864},
                    "pids": {"limit": 50},
                    "cpu": {"quota": 50000, "period": 100_000, "shares": 2048}
                }),
            );
        assert_eq!(
            pod.succeed(container).await,
            "67108864\n50\n50000 100000\n174\n"
        );
        let container =
            Container::shell("true").with("/linux/resources", json!({"cpu": {"cpus": "4000"}}));
        let (code, message) = code(pod.create(&container).await);
        assert_eq!(code, Code::INVALID_ARGUMENT);
        assert!(message.contains("cpuset.cpus"), "{message}");
        assert!(!pod.world.cgroup.join(&container.id).exists());
    });
}

#[test]
fn an_oom_kill_is_told() {
    run(|pod| async move {
        let container = Container::new(&["sh", "-c", "x=a; while :; do x=$x$x; done"]).with(
            "/linux/resources",
            json!({"memory": {"limit": 16_777_216, "swap": 16_777_216}}),
        );
        let (_, exit) = pod.run(container).await;
        assert!(exit.oom_killed, "{exit:?}");
        assert_eq!((exit.code, exit.signal), (137, 9));
    });
}

#[test]
fn the_number_of_processes_is_limited() {
    run(|pod| async move {
        let container = Container::shell("for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; echo done")
            .with("/linux/resources", json!({"pids": {"limit": 4}}));
        let (text, exit) = pod.run(container).await;
        assert!(
            exit.code != 0 || text.contains("can't fork"),
            "{exit:?} {text}"
        );
    });
}

#[test]
fn a_fork_bomb_can_be_removed() {
    run(|pod| async move {
        let container = Container::shell("f() { f | f & }; f; sleep 1000")
            .with("/linux/resources", json!({"pids": {"limit": 200}}));
        pod.create(&container).await.unwrap();
        pod.start(&container.id).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        pod.kill(&container.id, libc::SIGTERM, true).await.unwrap();
        pod.remove(&container.id).await.unwrap();
        assert!(!pod.world.cgroup.join(&container.id).exists());
    });
}

#[test]
fn memory_that_is_used_up_ends_the_container_as_a_whole() {
    run(|pod| async move {
        let with = |unified: serde_json::Value| {
            Container::shell("(x=a; while :; do x=$x$x; done); echo survived").with(
                "/linux/resources",
                json!({"memory": {"limit": 16_777_216, "swap": 16_777_216}, "unified": unified}),
            )
        };
        let (text, exit) = pod.run(with(json!({}))).await;
        assert!(exit.oom_killed, "{exit:?}");
        assert_eq!((exit.code, text.contains("survived")), (137, false));
        // Unless the specification wants it otherwise.
        let (text, exit) = pod.run(with(json!({"memory.oom.group": "0"}))).await;
        assert!(
            exit.oom_killed && text.contains("survived"),
            "{exit:?} {text}"
        );
        assert_eq!(exit.code, 0);
    });
}

#[test]
fn every_other_limit_is_a_file_too() {
    run(|pod| async move {
        let files = "memory.low memory.swap.max memory.high cpu.idle cpu.max.burst hugetlb.2MB.max io.weight cpuset.cpus memory.oom.group";
        let container = Container::shell(&format!("cd /sys/fs/cgroup; cat {files}")).with(
            "/linux/resources",
            json!({
                "memory": {"limit": 67_108_864, "swap": 67_112_960, "reservation": 8192},
                "cpu": {"idle": 1, "shares": 512, "quota": 50000, "burst": 1000, "cpus": "0"},
                // A limit of nothing on a size that the machine has not holds anyway.
                "hugepageLimits": [{"pageSize": "2MB", "limit": 4_194_304}, {"pageSize": "3MB", "limit": 0}],
                "unified": {"memory.high": "50003968"},
                "blockIO": {"weight": 10},
            }),
        );
        let text = pod.succeed(container).await;
        assert_eq!(
            text,
            "8192\n4096\n50003968\n1\n1000\n4194304\ndefault 1\n0\n1\n"
        );
        for (resources, named) in [
            (json!({"unified": {"no.such": "1"}}), "no.such"),
            (json!({"memory": {"swappiness": 10}}), "swappiness"),
            (json!({"cpu": {"realtimeRuntime": 10}}), "realtimeRuntime"),
            (
                json!({"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]}),
                "hugetlb.3MB.max",
            ),
        ] {
            let container = Container::shell("true").with("/linux/resources", resources);
            let (_, message) = code(pod.create(&container).await);
            assert!(message.contains(named), "{message}");
            assert!(!pod.world.cgroup.join(&container.id).exists());
        }
    });
}
