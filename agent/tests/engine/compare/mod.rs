//! The engine beside runc and crun: the same specification under each, on the same kernel, and
//! what the process then sees of itself (`tests/probe`).
//!
//! `docs/runc-differences.md` has a row for each difference from runc. One that is not there fails,
//! and so does a row that no longer differs.

mod facts;
mod page;
mod peer;
mod specs;

use crate::support::{Container, run, stream_id};
use bulkhead_agent_api::agent::Stdio;
use facts::Facts;
use page::{Difference, Found};
use peer::Peer;
use specs::Case;

#[test]
fn a_process_sees_what_it_would_see_under_runc() {
    run(|pod| async move {
        let mut found = Found::new();
        let cases = specs::all();
        for case in &cases {
            let ours = ours(&pod, case).await;
            let [runc, crun] = [Peer::Runc, Peer::Crun].map(|peer| {
                let (base, case) = (pod.world.base.clone(), case.clone());
                tokio::task::spawn_blocking(move || peer.look(&base, &case))
            });
            // One after the other: each makes and removes a root and a cgroup.
            let runc = runc.await.unwrap();
            let crun = crun.await.unwrap();
            for (name, ours, theirs) in ours.differences(&runc) {
                let crun = crun.get(&name);
                let difference = Difference {
                    runc: theirs,
                    crun,
                    ours,
                };
                let specs = found.entry((name, difference)).or_default();
                specs.push(case.name.to_owned());
            }
        }
        let names: Vec<&str> = cases.iter().map(|case| case.name).collect();
        page::check(&found, &names);
    });
}

/// What the probe finds under the engine.
async fn ours(pod: &crate::support::Pod1, case: &Case) -> Facts {
    let mut container = Container::new(&["/bin/probe"]);
    container.spec = case.spec.clone();
    let terminal = case.terminal();
    let id = container.id.clone();
    let text = match &case.exec {
        None => {
            container.stdio = stdio(terminal);
            pod.create(&container).await.unwrap();
            pod.start(&id).await.unwrap();
            pod.read(container.stdio.stdout).await
        }
        Some(process) => {
            pod.create(&container).await.unwrap();
            pod.start(&id).await.unwrap();
            let stdio = stdio(terminal);
            pod.exec(&id, "probe", process.clone(), stdio.clone())
                .await
                .unwrap();
            pod.read(stdio.stdout).await
        }
    };
    pod.remove(&id).await.unwrap();
    let parent = pod.world.cgroup.file_name().unwrap().to_string_lossy();
    Facts::parse(&text, &id, &parent)
}

fn stdio(terminal: bool) -> Stdio {
    let mut stdio = Stdio::new();
    stdio.stdin = stream_id();
    stdio.stdout = stream_id();
    if terminal {
        stdio.terminal = true;
        (stdio.width, stdio.height) = specs::SIZE;
    } else {
        stdio.stderr = stream_id();
    }
    stdio
}
