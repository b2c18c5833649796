//! What the agent has must not grow with what it has done. Run alone in its process
//! (`scripts/test-guest`): what is counted is the process's.

use crate::support::{Container, process, run};
use bulkhead_agent_api::agent::{EventsRequest, Stdio};
use std::fs;
use std::path::Path;
use ttrpc::context;

const WARM: usize = 40;
const MANY: usize = 200;
/// The allocator's slack and the remembered events.
const SLACK_KIB: u64 = 512;

#[derive(Debug)]
struct Usage {
    descriptors: usize,
    threads: usize,
    cgroups: usize,
    children: usize,
    resident_kib: u64,
}

impl Usage {
    fn now(cgroup: &Path) -> Self {
        let count = |path: &str| fs::read_dir(path).unwrap().count();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        let is_directory = |entry: &fs::DirEntry| entry.path().is_dir();
        Self {
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            cgroups: fs::read_dir(cgroup)
                .unwrap()
                .flatten()
                .filter(is_directory)
                .count(),
            children: children(),
            resident_kib: resident.trim().trim_end_matches(" kB").parse().unwrap(),
        }
    }
}

/// Children of this process, zombies too.
fn children() -> usize {
    fs::read_dir("/proc/self/task")
        .unwrap()
        .flatten()
        .map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default())
        .map(|list| list.split_whitespace().count())
        .sum()
}

#[test]
#[ignore = "counts what the process has; scripts/test-guest runs it alone"]
fn hundreds_of_execs_leave_nothing() {
    run(|pod| async move {
        let container = Container::sleeper();
        let id = container.id.as_str();
        pod.create(&container).await.unwrap();
        pod.start(id).await.unwrap();
        let cgroup = pod.world.cgroup.join(id);
        let mut before = None;
        let all = EventsRequest::new();
        let events = pod.client.events(context::with_timeout(0), &all).await;
        let mut events = events.unwrap();
        for n in 0..WARM + MANY {
            if n == WARM {
                before = Some(Usage::now(&cgroup));
            }
            let name = format!("n{n}");
            // Every third fails, every fifth has a terminal.
            let program = if n % 3 == 0 { "no-such" } else { "true" };
            let mut stdio = Stdio::new();
            (stdio.terminal, stdio.width, stdio.height) = (n % 5 == 0, 80, 25);
            let started = pod.exec(id, &name, process(&[program]), stdio).await;
            assert_eq!(started.is_ok(), n % 3 != 0, "{started:?}");
            if started.is_ok() {
                let event = events.recv().await.unwrap().unwrap();
                assert_eq!(event.exit.exec_id, name);
            }
        }
        let (before, after) = (before.unwrap(), Usage::now(&cgroup));
        println!("{before:?}\n{after:?}");
        assert!(
            after.descriptors <= before.descriptors + 1,
            "{before:?} {after:?}"
        );
        assert!(after.threads <= before.threads, "{before:?} {after:?}");
        // The last one's process may be on its way out.
        assert!(after.cgroups <= 1, "{before:?} {after:?}");
        assert!(after.children <= before.children, "{before:?} {after:?}");
        assert!(
            after.resident_kib <= before.resident_kib + SLACK_KIB,
            "{before:?} {after:?}"
        );
        pod.remove(id).await.unwrap();
    });
}
