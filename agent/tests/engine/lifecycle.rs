use crate::support::{Container, code, run, stream_id};
use bulkhead_agent_api::agent::{ContainerPhase, EventsRequest};
use serde_json::json;
use std::time::Duration;
use ttrpc::{Code, context};

#[test]
fn a_container_runs_to_its_end_and_leaves_nothing() {
    run(|pod| async move {
        let mut container = Container::shell("echo out; echo err >&2; exit 3");
        (container.stdio.stdout, container.stdio.stderr) = (stream_id(), stream_id());
        let (id, stdio) = (container.id.clone(), container.stdio.clone());
        let pid = pod.create(&container).await.unwrap();
        let state = pod.state(&id).await.unwrap();
        assert_eq!(
            (state.phase, state.pid),
            (ContainerPhase::CREATED.into(), pid)
        );
        assert_eq!(state.stdio.stdout, stdio.stdout);
        assert!(pod.world.cgroup.join(&id).exists());
        assert_eq!(code(pod.create(&container).await).0, Code::ALREADY_EXISTS);
        pod.start(&id).await.unwrap();
        let exit = pod.exit(&id, "").await;
        assert_eq!((exit.code, exit.signal, exit.oom_killed), (3, 0, false));
        assert_eq!((exit.stdout_bytes, exit.stderr_bytes), (4, 4));
        assert!(exit.finished_ns > 0 && exit.error.is_empty());
        // Nobody was connected until now.
        assert_eq!(pod.read(stdio.stdout).await, "out\n");
        assert_eq!(pod.read(stdio.stderr).await, "err\n");
        let state = pod.state(&id).await.unwrap();
        assert_eq!(state.phase, ContainerPhase::EXITED.into());
        assert_eq!(state.exit.code, 3);
        assert_eq!(code(pod.start(&id).await).0, Code::FAILED_PRECONDITION);
        pod.kill(&id, libc::SIGKILL, false).await.unwrap();
        pod.remove(&id).await.unwrap();
        pod.remove(&id).await.unwrap();
        assert!(pod.state(&id).await.is_none());
        assert!(!pod.world.cgroup.join(&id).exists());
        assert!(!pod.world.base.join("scratch").join(&id).exists());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        for place in ["mount", "scratch"] {
            let place = pod.world.base.join(place);
            assert!(!mounts.contains(place.to_str().unwrap()), "{mounts}");
        }
        assert_eq!(code(pod.start(&id).await).0, Code::NOT_FOUND);
        // The name is free again.
        container.stdio = Default::default();
        pod.create(&container).await.unwrap();
        pod.remove(&id).await.unwrap();
        assert_eq!(pod.exit(&id, "").await.code, 3);
    });
}

#[test]
fn signals_end_a_container_or_reach_its_handler() {
    run(|pod| async move {
        for (signal, code, number) in [(libc::SIGTERM, 7, 0), (libc::SIGKILL, 137, 9)] {
            let container = Container::sleeper();
            let id = &container.id;
            pod.create(&container).await.unwrap();
            pod.start(id).await.unwrap();
            tokio::time::sleep(Duration::from_secs(2)).await;
            pod.kill(id, signal, false).await.unwrap();
            let exit = pod.exit(id, "").await;
            assert_eq!((exit.code, exit.signal), (code, number));
            pod.remove(id).await.unwrap();
        }
    });
}

#[test]
fn a_created_container_can_be_killed_and_removed() {
    run(|pod| async move {
        let container = Container::sleeper();
        pod.create(&container).await.unwrap();
        pod.kill(&container.id, libc::SIGKILL, true).await.unwrap();
        let exit = pod.exit(&container.id, "").await;
        assert_eq!((exit.code, exit.signal), (137, 9));
        assert_eq!(
            code(pod.start(&container.id).await).0,
            Code::FAILED_PRECONDITION
        );
        pod.remove(&container.id).await.unwrap();
        let container = Container::sleeper();
        pod.create(&container).await.unwrap();
        pod.start(&container.id).await.unwrap();
        pod.remove(&container.id).await.unwrap();
        assert!(pod.state(&container.id).await.is_none());
    });
}

#[test]
fn a_program_that_cannot_run_is_an_error_and_an_exit() {
    run(|pod| async move {
        for (program, expected, text) in [
            (
                "no-such-program",
                Code::NOT_FOUND,
                "\"no-such-program\" is not in the image's PATH",
            ),
            (
                "/no/such/program",
                Code::NOT_FOUND,
                "\"/no/such/program\" is not in the image",
            ),
            (
                "/data/not-executable",
                Code::PERMISSION_DENIED,
                "may not execute",
            ),
            ("/data/no-interpreter", Code::NOT_FOUND, "interpreter"),
        ] {
            let container = Container::new(&[program]);
            pod.create(&container).await.unwrap();
            let (code, message) = code(pod.start(&container.id).await);
            assert_eq!(code, expected, "{message}");
            assert!(message.contains(text), "{message}");
            let exit = pod.exit(&container.id, "").await;
            assert_eq!((exit.code, exit.signal), (128, 0));
            assert_eq!(exit.error, message);
            pod.remove(&container.id).await.unwrap();
        }
    });
}

#[test]
fn waiting_for_an_image_ends_with_the_deadline_or_the_removal() {
    run(|pod| async move {
        let mut container = Container::sleeper();
        container.image = "never".to_owned();
        container.timeout = Duration::from_secs(2);
        let (code, message) = code(pod.create(&container).await);
        assert_eq!(code, Code::DEADLINE_EXCEEDED);
        assert!(message.contains("never"), "{message}");
        container.timeout = Duration::ZERO;
        let create = tokio::spawn({
            let (pod, container) = (pod.clone(), container.clone());
            async move { pod.create(&container).await }
        });
        tokio::time::sleep(Duration::from_millis(500)).await;
        pod.remove(&container.id).await.unwrap();
        assert!(create.await.unwrap().is_err());
        container.image = "busybox".to_owned();
        pod.create(&container).await.unwrap();
        pod.remove(&container.id).await.unwrap();
    });
}

#[test]
fn a_failed_creation_leaves_nothing_and_says_why() {
    run(|pod| async move {
        let source = serde_json::json!({"destination": "/v", "type": "bind", "source": "/no/such/source", "options": ["bind"]});
        let container = Container::sleeper().mount(source);
        let (code1, message) = code(pod.create(&container).await);
        assert_eq!(code1, Code::NOT_FOUND);
        assert!(message.contains("/no/such/source"), "{message}");
        assert!(!pod.world.cgroup.join(&container.id).exists());
        assert!(pod.state(&container.id).await.is_none());
        let mut container = Container::sleeper();
        container.id = "../up".to_owned();
        assert_eq!(code(pod.create(&container).await).0, Code::INVALID_ARGUMENT);
        let mut container = Container::sleeper();
        container.user = "nobody-here".to_owned();
        let (code1, message) = code(pod.create(&container).await);
        assert_eq!(code1, Code::NOT_FOUND);
        assert!(message.contains("nobody-here"), "{message}");
    });
}

#[test]
fn events_are_replayed_from_where_the_caller_was() {
    run(|pod| async move {
        let container = Container::new(&["true"]);
        pod.create(&container).await.unwrap();
        pod.start(&container.id).await.unwrap();
        pod.exit(&container.id, "").await;
        let list = pod
            .client
            .list_containers(context::with_timeout(0), &Default::default())
            .await
            .unwrap();
        assert!(list.last_event > 0);
        let mut request = EventsRequest::new();
        request.after = list.last_event - 1;
        let mut events = pod
            .client
            .events(context::with_timeout(0), &request)
            .await
            .unwrap();
        assert_eq!(
            events.recv().await.unwrap().unwrap().sequence,
            list.last_event
        );
        request.after = u64::MAX;
        let mut events = pod
            .client
            .events(context::with_timeout(0), &request)
            .await
            .unwrap();
        assert_eq!(code(events.recv().await).0, Code::OUT_OF_RANGE);
        pod.remove(&container.id).await.unwrap();
    });
}

#[test]
fn whatever_step_of_a_creation_fails_nothing_is_left() {
    run(|pod| async move {
        let tmpfs = |option: &str| json!({"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": [option]});
        let plain = Container::sleeper;
        let mut target = plain();
        target.request.pid_namespace = bulkhead_agent_api::agent::PidNamespace::TARGET_PID.into();
        target.request.pid_target = "nobody".to_owned();
        let cases = [
            ("the pid namespace", target),
            ("the user namespace", plain().in_user_namespace().with(
                "/linux/uidMappings",
                json!([{"containerID": 0, "hostID": 5, "size": 5}, {"containerID": 1, "hostID": 50, "size": 5}]),
            )),
            ("the cgroup", plain().with("/linux/resources", json!({"unified": {"no.such": "1"}}))),
            ("a namespace file", plain().with("/linux/namespaces", json!([{"type": "ipc", "path": "/proc/self/ns/net"}]))),
            ("an image volume", plain().mount(json!({"destination": "/v", "type": "image", "source": "busybox", "options": ["subpath=none"]}))),
            ("a file system", plain().mount(tmpfs("no-such-option"))),
            ("a target", plain().mount(json!({"destination": "/etc/passwd/x", "type": "tmpfs", "source": "tmpfs"}))),
            ("a device", plain().with("/linux/devices", json!([{"path": "/etc/passwd", "type": "c", "major": 1, "minor": 3}]))),
            ("a hook", plain().with("/hooks", json!({"createContainer": [{"path": "/bin/false"}]}))),
            ("the working directory", plain().with("/process/cwd", json!("/etc/passwd"))),
            ("a limit", plain().with("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 1, "hard": u64::MAX}]))),
        ];
        for (step, container) in cases {
            let failed = pod.create(&container).await;
            assert!(failed.is_err(), "{step} does not fail");
            let id = &container.id;
            assert!(pod.state(id).await.is_none(), "{step}");
            assert!(!pod.world.cgroup.join(id).exists(), "{step}");
            assert!(!pod.world.base.join("scratch").join(id).exists(), "{step}");
            let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            let mount_point = pod.world.base.join("mount");
            assert!(
                !mounts.contains(mount_point.to_str().unwrap()),
                "{step}: {mounts}"
            );
            // The name and the streams are free again.
            let mut again = plain();
            again.id.clone_from(id);
            pod.create(&again).await.unwrap();
            pod.remove(id).await.unwrap();
        }
    });
}

#[test]
fn a_container_that_ignores_signals_and_hides_its_children_can_be_killed() {
    run(|pod| async move {
        let mut container = Container::shell(
            "trap '' TERM INT HUP; setsid sh -c 'setsid sleep 1000 & setsid sleep 1000 & exit' & echo up; while :; do sleep 1; done",
        );
        container.request.pid_namespace = bulkhead_agent_api::agent::PidNamespace::POD_PID.into();
        container.stdio.stdout = stream_id();
        let id = &container.id;
        pod.create(&container).await.unwrap();
        pod.start(id).await.unwrap();
        let mut stdout = pod.stream(container.stdio.stdout).await;
        let mut text = [0; 3];
        tokio::io::AsyncReadExt::read_exact(&mut stdout, &mut text)
            .await
            .unwrap();
        pod.kill(id, libc::SIGTERM, false).await.unwrap();
        assert_eq!(
            pod.state(id).await.unwrap().phase,
            ContainerPhase::RUNNING.into()
        );
        pod.kill(id, libc::SIGKILL, true).await.unwrap();
        assert_eq!(pod.exit(id, "").await.code, 137);
        // The exit is told when all of it is gone, in a shared pid namespace too.
        let events = std::fs::read_to_string(pod.world.cgroup.join(id).join("cgroup.events"));
        assert!(events.unwrap().contains("populated 0"));
        pod.remove(id).await.unwrap();
    });
}
