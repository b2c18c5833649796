use crate::support::{Container, code, process, run, stream_id};
use bulkhead_agent_api::agent::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use ttrpc::Code;

fn output() -> Stdio {
    let mut stdio = Stdio::new();
    stdio.stdout = stream_id();
    stdio
}

#[test]
fn an_exec_runs_inside_the_container() {
    run(|pod| async move {
        let container = Container::sleeper();
        let id = container.id.as_str();
        pod.create(&container).await.unwrap();
        assert_eq!(
            code(pod.exec(id, "early", process(&["true"]), output()).await).0,
            Code::FAILED_PRECONDITION
        );
        pod.start(id).await.unwrap();
        let stdio = output();
        let script = "hostname; cat /proc/1/comm; cat /proc/self/cgroup; echo $$ > /tmp/pid; ls /proc/self/fd; exit 5";
        pod.exec(id, "e1", process(&["sh", "-c", script]), stdio.clone())
            .await
            .unwrap();
        let exit = pod.exit(id, "e1").await;
        assert_eq!((exit.code, exit.signal), (5, 0));
        let text = pod.read(stdio.stdout).await;
        assert_eq!(exit.stdout_bytes, text.len() as u64);
        // Of descriptors there are stdio and the directory that ls reads.
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[2], "0::/", "{text}");
        assert_eq!(
            [&lines[..2], &lines[3..]].concat(),
            ["box", "sh", "0", "1", "2", "3"]
        );
        // Ended ones can be signalled, unknown ones not.
        pod.signal(id, "e1", libc::SIGKILL, false).await.unwrap();
        assert_eq!(
            code(pod.signal(id, "e2", libc::SIGKILL, false).await).0,
            Code::NOT_FOUND
        );
        // The container sees an exec that is killed go.
        pod.exec(id, "e3", process(&["sleep", "1000"]), Stdio::new())
            .await
            .unwrap();
        assert_eq!(
            code(pod.exec(id, "e3", process(&["true"]), Stdio::new()).await).0,
            Code::ALREADY_EXISTS
        );
        pod.signal(id, "e3", libc::SIGKILL, false).await.unwrap();
        let exit = pod.exit(id, "e3").await;
        assert_eq!((exit.code, exit.signal), (137, 9));
        // The end of the container is the end of its execs.
        pod.exec(id, "e4", process(&["sleep", "1000"]), Stdio::new())
            .await
            .unwrap();
        pod.kill(id, libc::SIGKILL, false).await.unwrap();
        assert_eq!(pod.exit(id, "e4").await.code, 137);
        assert_eq!(pod.exit(id, "").await.code, 137);
        assert_eq!(
            code(pod.exec(id, "late", process(&["true"]), Stdio::new()).await).0,
            Code::FAILED_PRECONDITION
        );
        pod.remove(id).await.unwrap();
    });
}

#[test]
fn an_exec_that_cannot_run_is_an_error() {
    run(|pod| async move {
        let container = Container::sleeper();
        let id = container.id.as_str();
        pod.create(&container).await.unwrap();
        pod.start(id).await.unwrap();
        let stdio = output();
        let (code1, message) = code(
            pod.exec(id, "e", process(&["no-such"]), stdio.clone())
                .await,
        );
        assert_eq!(code1, Code::NOT_FOUND, "{message}");
        assert_eq!(pod.read(stdio.stdout).await, "");
        let denied = pod
            .exec(id, "e", process(&["/data/not-executable"]), Stdio::new())
            .await;
        assert_eq!(code(denied).0, Code::PERMISSION_DENIED);
        let mut bad = process(&["true"]);
        bad["cwd"] = "relative".into();
        assert_eq!(
            code(pod.exec(id, "e", bad, Stdio::new()).await).0,
            Code::INVALID_ARGUMENT
        );
        pod.remove(id).await.unwrap();
    });
}

#[test]
fn a_grandchild_that_keeps_the_pipe_does_not_hold_the_exit_back() {
    run(|pod| async move {
        let container = Container::sleeper();
        let id = container.id.as_str();
        pod.create(&container).await.unwrap();
        pod.start(id).await.unwrap();
        let stdio = output();
        let begin = Instant::now();
        pod.exec(
            id,
            "e",
            process(&["sh", "-c", "echo here; sleep 1000 &"]),
            stdio.clone(),
        )
        .await
        .unwrap();
        let exit = pod.exit(id, "e").await;
        assert!(begin.elapsed() < Duration::from_secs(60));
        assert_eq!((exit.code, exit.stdout_bytes), (0, 5));
        assert_eq!(pod.read(stdio.stdout).await, "here\n");
        pod.remove(id).await.unwrap();
    });
}

#[test]
fn the_end_of_stdin_arrives() {
    run(|pod| async move {
        let container = Container::sleeper();
        let id = container.id.as_str();
        pod.create(&container).await.unwrap();
        pod.start(id).await.unwrap();
        for half_close in [true, false] {
            let mut stdio = output();
            stdio.stdin = stream_id();
            let name = format!("cat-{half_close}");
            pod.exec(id, &name, process(&["cat"]), stdio.clone())
                .await
                .unwrap();
            let mut stdin = pod.stream(stdio.stdin).await;
            stdin.write_all(b"through").await.unwrap();
            if half_close {
                stdin.shutdown().await.unwrap();
                assert_eq!(pod.exit(id, &name).await.code, 0);
            }
            drop(stdin);
            assert_eq!(pod.exit(id, &name).await.code, 0);
            assert_eq!(pod.read(stdio.stdout).await, "through");
        }
        pod.remove(id).await.unwrap();
    });
}

#[test]
fn many_short_execs_lose_nothing() {
    run(|pod| async move {
        let container = Container::sleeper();
        let id = container.id.clone();
        pod.create(&container).await.unwrap();
        pod.start(&id).await.unwrap();
        let mut tasks = Vec::new();
        for n in 0..20 {
            let (pod, id) = (pod.clone(), id.clone());
            tasks.push(tokio::spawn(async move {
                let (stdio, name) = (output(), format!("n{n}"));
                pod.exec(&id, &name, process(&["echo", &name]), stdio.clone())
                    .await
                    .unwrap();
                assert_eq!(pod.read(stdio.stdout).await, format!("{name}\n"));
                assert_eq!(pod.exit(&id, &name).await.code, 0);
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        pod.remove(&id).await.unwrap();
    });
}

#[test]
fn an_exec_joins_a_container_that_divides_its_cgroup() {
    run(|pod| async move {
        let script = "cd /sys/fs/cgroup; mkdir inner; echo 1 > inner/cgroup.procs; echo +pids > cgroup.subtree_control; \
                      echo divided; while :; do sleep 1; done";
        let mut container = Container::shell(script);
        for mount in container.spec["mounts"].as_array_mut().unwrap() {
            if mount["type"] == "cgroup" {
                mount["options"] = serde_json::json!([]);
            }
        }
        container.stdio.stdout = stream_id();
        let id = container.id.as_str();
        pod.create(&container).await.unwrap();
        let mut stdout = pod.stream(container.stdio.stdout).await;
        pod.start(id).await.unwrap();
        let mut text = [0; 8];
        stdout.read_exact(&mut text).await.unwrap();
        let stdio = output();
        let process = process(&["cat", "/proc/self/cgroup"]);
        pod.exec(id, "e", process, stdio.clone()).await.unwrap();
        let text = pod.read(stdio.stdout).await;
        assert_eq!(text, "0::/\n");
        pod.remove(id).await.unwrap();
        assert!(!pod.world.cgroup.join(id).exists());
    });
}

#[test]
fn a_killed_exec_takes_everything_along_that_it_has_made() {
    run(|pod| async move {
        let container = Container::sleeper();
        let id = container.id.as_str();
        pod.create(&container).await.unwrap();
        pod.start(id).await.unwrap();
        // A child in a session of its own, and its child, whose parent is gone.
        let script =
            "setsid sh -c 'sleep 1111 & sleep 2222 & exit' & echo made; trap '' TERM; sleep 3333";
        let stdio = output();
        pod.exec(id, "tree", process(&["sh", "-c", script]), stdio.clone())
            .await
            .unwrap();
        let mut stdout = pod.stream(stdio.stdout).await;
        let mut text = [0; 5];
        stdout.read_exact(&mut text).await.unwrap();
        wait_for(&pod, id, 3).await;
        pod.signal(id, "tree", libc::SIGKILL, true).await.unwrap();
        assert_eq!(pod.exit(id, "tree").await.code, 137);
        wait_for(&pod, id, 0).await;
        // The container itself goes on.
        let stdio = output();
        pod.exec(id, "after", process(&["echo", "alive"]), stdio.clone())
            .await
            .unwrap();
        assert_eq!(pod.read(stdio.stdout).await, "alive\n");
        pod.remove(id).await.unwrap();
    });
}

/// Waits until so many of the sleeps with a number of four equal digits are in the container.
async fn wait_for(pod: &crate::support::Pod1, id: &str, count: usize) {
    loop {
        let stdio = output();
        let script = "ps -o args | grep -c 'sleep \\([123]\\)\\1\\1\\1$'";
        pod.exec(id, "count", process(&["sh", "-c", script]), stdio.clone())
            .await
            .unwrap();
        let text = pod.read(stdio.stdout).await;
        pod.exit(id, "count").await;
        if text.trim() == count.to_string() {
            return;
        }
    }
}
