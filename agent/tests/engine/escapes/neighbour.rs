//! Hostile containers that another process enters or shares something with.

use super::{image, of};
use crate::support::{Container, code, process, run, stream_id};
use bulkhead_agent_api::agent::Stdio;
use serde_json::json;
use std::fs;
use ttrpc::Code;

/// A process that joins a container has more rights than the container until it has become its
/// program: nobody in there may get hold of it before.
#[test]
fn a_joining_process_cannot_be_grabbed() {
    run(|pod| async move {
        let mut container = Container::new(&["/bin/probe", "attack"]);
        container.stdio.stdout = stream_id();
        let id = container.id.clone();
        pod.create(&container).await.unwrap();
        pod.start(&id).await.unwrap();
        let reader = tokio::spawn({
            let (pod, stream) = (pod.clone(), container.stdio.stdout);
            async move { pod.read(stream).await }
        });
        for number in 0..20 {
            let exec = format!("e{number}");
            let program = process(&["sleep", "0.1"]);
            pod.exec(&id, &exec, program, Stdio::new()).await.unwrap();
            pod.exit(&id, &exec).await;
        }
        let stop = process(&["touch", "/tmp/stop"]);
        pod.exec(&id, "stop", stop, Stdio::new()).await.unwrap();
        let text = reader.await.unwrap();
        pod.remove(&id).await.unwrap();
        let mut lines = text.lines();
        let processes = lines.next().unwrap().strip_prefix("processes ").unwrap();
        assert!(processes.parse::<u32>().unwrap() > 10, "{text}");
        for line in lines {
            let (what, of) = line.split_once(' ').unwrap();
            let harmless = match what {
                // What an exec has become is the container's own.
                "exe" | "trace" | "write" => matches!(of, "/bin/busybox" | "/bin/probe" | ""),
                "no" => of.contains("/bin/busybox"),
                "root" | "cwd" => of == "the container's",
                "environ" => matches!(of, "PATH=/bin" | ""),
                "fd" => {
                    let (number, kind) = of.split_once(' ').unwrap();
                    // The program's loader opens its libraries.
                    kind.starts_with("/lib/")
                        || number.parse::<u32>().unwrap() <= 2
                            && matches!(kind, "pipe" | "/dev/null")
                }
                _ => false,
            };
            assert!(harmless, "{line} in\n{text}");
        }
    });
}

/// The agent read `cap_last_cap` where the container's /proc said so; here /proc is the
/// container's altogether.
#[test]
fn an_exec_believes_nothing_of_the_containers_proc() {
    run(|pod| async move {
        let fake = pod.world.base.join("fake-proc");
        fs::create_dir_all(fake.join("sys/kernel")).unwrap();
        fs::create_dir_all(fake.join("self/ns")).unwrap();
        fs::write(fake.join("sys/kernel/cap_last_cap"), "3\n").unwrap();
        fs::write(fake.join("self/oom_score_adj"), "").unwrap();
        let mut container = Container::sleeper();
        for mount in container.spec["mounts"].as_array_mut().unwrap() {
            if mount["destination"] == "/proc" {
                *mount = json!({"destination": "/proc", "type": "bind", "source": fake, "options": ["bind"]});
            }
        }
        container.spec["linux"]["maskedPaths"] = json!([]);
        container.spec["linux"]["readonlyPaths"] = json!([]);
        let real = json!({"destination": "/real", "type": "proc", "source": "proc"});
        let container = container.mount(real);
        let id = container.id.clone();
        pod.create(&container).await.unwrap();
        pod.start(&id).await.unwrap();
        let mut stdio = Stdio::new();
        stdio.stdout = stream_id();
        let mut process = process(&["grep", "-E", "^Cap(Bnd|Eff|Amb)", "/real/self/status"]);
        process["capabilities"] =
            json!({"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]});
        process["oomScoreAdj"] = json!(300);
        pod.exec(&id, "e", process, stdio.clone()).await.unwrap();
        let text = pod.read(stdio.stdout).await;
        let kill = format!("{:016x}", 1 << 5);
        assert_eq!(
            text,
            format!("CapEff:\t{kill}\nCapBnd:\t{kill}\nCapAmb:\t{:016x}\n", 0)
        );
        assert_eq!(
            fs::read_to_string(fake.join("self/oom_score_adj")).unwrap(),
            ""
        );
        pod.remove(&id).await.unwrap();
    });
}

/// A privileged container may do to its own root what it likes: whoever enters it is told that
/// there is no terminal, instead of talking to something else.
#[test]
fn an_exec_takes_no_terminal_from_a_replaced_devpts() {
    run(|pod| async move {
        let script = "umount /dev/pts; mkdir -p /dev/pts; ln -sf /dev/null /dev/pts/ptmx; rm /dev/ptmx; ln -s /dev/zero /dev/ptmx; \
                      rm -f /etc/passwd; mkfifo /etc/passwd; echo done; while :; do sleep 1; done";
        let mut container = of("busybox", script);
        let admin = json!(["CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_DAC_OVERRIDE"]);
        for set in ["bounding", "effective", "permitted"] {
            container.spec["process"]["capabilities"][set] = admin.clone();
        }
        container.stdio.stdout = stream_id();
        let id = container.id.clone();
        pod.create(&container).await.unwrap();
        pod.start(&id).await.unwrap();
        let mut stdout = pod.stream(container.stdio.stdout).await;
        let mut line = [0; 5];
        tokio::io::AsyncReadExt::read_exact(&mut stdout, &mut line)
            .await
            .unwrap();
        let mut stdio = Stdio::new();
        (stdio.stdout, stdio.terminal, stdio.width, stdio.height) = (stream_id(), true, 80, 24);
        let mut shell = process(&["sh"]);
        shell["terminal"] = json!(true);
        let (status, message) = code(pod.exec(&id, "t", shell, stdio).await);
        assert_eq!(status, Code::INVALID_ARGUMENT, "{message}");
        // Nor does the pipe in the place of /etc/passwd hold it up.
        let (status, message) = code(pod.exec(&id, "p", process(&["true"]), Stdio::new()).await);
        assert_eq!(status, Code::INVALID_ARGUMENT, "{message}");
        pod.remove(&id).await.unwrap();
    });
}

/// Libraries and loaders of the container are none of the process that enters it.
#[test]
fn a_joining_process_loads_nothing_from_the_container() {
    run(|pod| async move {
        let root = image(&pod, "loader");
        fs::write(root.join("etc/ld.so.preload"), "/data/evil.so\n").unwrap();
        fs::write(root.join("data/evil.so"), "not a library").unwrap();
        let container = of(
            "loader",
            "trap 'exit 7' TERM; while :; do sleep 1 & wait; done",
        );
        let id = container.id.clone();
        pod.create(&container).await.unwrap();
        pod.start(&id).await.unwrap();
        let mut stdio = Stdio::new();
        (stdio.stdout, stdio.stderr) = (stream_id(), stream_id());
        let mut process = process(&["echo", "here"]);
        process["env"] = json!([
            "PATH=/bin",
            "LD_PRELOAD=/data/evil.so",
            "LD_AUDIT=/data/evil.so"
        ]);
        pod.exec(&id, "e", process, stdio.clone()).await.unwrap();
        assert_eq!(pod.read(stdio.stdout).await, "here\n");
        // The loader complains once for each of the two, in the program alone.
        let complaints = pod.read(stdio.stderr).await;
        assert_eq!(
            complaints.matches("LD_PRELOAD cannot be preloaded").count(),
            1,
            "{complaints}"
        );
        assert_eq!(
            complaints
                .matches("/etc/ld.so.preload cannot be preloaded")
                .count(),
            1,
            "{complaints}"
        );
        pod.remove(&id).await.unwrap();
    });
}
