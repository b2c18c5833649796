//! Racing attackers: what a path leads to changes while the runtime uses it.

use crate::support::{Container, process, run, stream_id};
use bulkhead_agent_api::agent::Stdio;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// How many containers meet the race.
const ROUNDS: usize = 5;

/// Exchanges two names as fast as it can until it is dropped.
struct Flipper {
    stop: Arc<AtomicBool>,
    flips: Arc<AtomicU32>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Flipper {
    fn start(a: PathBuf, b: PathBuf) -> Self {
        let (stop, flips) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU32::new(0)),
        );
        let (stopped, count) = (stop.clone(), flips.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).unwrap();
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self {
            stop,
            flips,
            thread: Some(thread),
        }
    }

    fn end(mut self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        self.flips.load(Ordering::Relaxed)
    }
}

/// CVE-2021-30465: a volume that two containers share, in which one changes a directory into a
/// link while something is mounted below it for the other.
#[test]
fn a_mount_below_a_volume_that_changes_stays_inside() {
    run(|pod| async move {
        for (name, target) in [
            ("up", "../../../../../../../.."),
            ("magic", "/proc/self/root"),
            ("absolute", "/etc"),
        ] {
            let volume = pod.world.base.join(format!("race-{name}"));
            fs::create_dir_all(volume.join("sub")).unwrap();
            symlink(target, volume.join("link")).unwrap();
            let flipper = Flipper::start(volume.join("sub"), volume.join("link"));
            let mut made = 0;
            for _ in 0..ROUNDS {
                let container = Container::shell("true")
                    .mount(json!({"destination": "/v", "type": "bind", "source": volume, "options": ["rbind"]}))
                    .mount(json!({"destination": "/v/sub/bulkhead-race", "type": "tmpfs", "source": "race"}));
                if pod.create(&container).await.is_ok() {
                    made += 1;
                    pod.remove(&container.id).await.unwrap();
                }
            }
            let flips = flipper.end();
            assert!(flips as usize > ROUNDS, "{flips}");
            // The magic link may always have been met; the others can be mounted on.
            assert!(made > 0 || name == "magic", "{name}");
            for place in ["/", "/etc", "/dev/shm"] {
                assert!(
                    !Path::new(place).join("bulkhead-race").exists(),
                    "{name}: {place}"
                );
            }
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!mounts.contains("bulkhead-race"), "{mounts}");
        }
    });
}

/// The working directory of an exec, in a volume where it changes into a link of procfs.
#[test]
fn a_working_directory_that_changes_is_inside_or_refused() {
    run(|pod| async move {
        let volume = pod.world.base.join("race-cwd");
        fs::create_dir_all(volume.join("work")).unwrap();
        symlink("/proc/self/fd/5", volume.join("link")).unwrap();
        let container = Container::sleeper().mount(
            json!({"destination": "/v", "type": "bind", "source": volume, "options": ["rbind"]}),
        );
        let id = container.id.clone();
        pod.create(&container).await.unwrap();
        pod.start(&id).await.unwrap();
        let flipper = Flipper::start(volume.join("work"), volume.join("link"));
        let mut inside = 0;
        for round in 0..ROUNDS {
            let mut stdio = Stdio::new();
            stdio.stdout = stream_id();
            let mut pwd = process(&["pwd", "-P"]);
            pwd["cwd"] = json!("/v/work");
            if pod
                .exec(&id, &format!("e{round}"), pwd, stdio.clone())
                .await
                .is_ok()
            {
                let text = pod.read(stdio.stdout).await;
                assert!(text.starts_with("/v/"), "{text}");
                inside += 1;
            }
        }
        flipper.end();
        assert!(inside > 0);
        pod.remove(&id).await.unwrap();
    });
}

/// Namespaces are joined by a descriptor of the process: when it has ended there is nothing to
/// join, never something that has its number by now.
#[test]
fn an_exec_that_meets_the_end_of_its_container_joins_nothing_else() {
    run(|pod| async move {
        for round in 0..ROUNDS {
            let container = Container::shell("sleep 1000 & wait");
            let id = container.id.clone();
            pod.create(&container).await.unwrap();
            pod.start(&id).await.unwrap();
            let mut stdio = Stdio::new();
            stdio.stdout = stream_id();
            let exec = tokio::spawn({
                let (pod, id, stdio) = (pod.clone(), id.clone(), stdio.clone());
                async move { pod.exec(&id, "e", process(&["hostname"]), stdio).await }
            });
            if round % 2 == 0 {
                tokio::task::yield_now().await;
            }
            pod.kill(&id, libc::SIGKILL, false).await.unwrap();
            let ran = exec.await.unwrap().is_ok();
            if ran {
                let text = pod.read(stdio.stdout).await;
                assert!(matches!(text.as_str(), "box\n" | ""), "{text}");
            }
            pod.exit(&id, "").await;
            pod.remove(&id).await.unwrap();
            assert!(!pod.world.cgroup.join(&id).exists());
        }
    });
}
