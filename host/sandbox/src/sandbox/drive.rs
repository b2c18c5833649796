//! The task that drives a sandbox.

use super::{Running, Sandbox, boot};
use crate::Result;
use crate::events::Ran;
use crate::record::SandboxState;
use crate::volumes::Parts;
use bulkhead_agent_api::agent::Exit;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long a guest may take to end by itself before its VM is ended.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(10);
/// The same if it has devices of the node to which it must write back what is in its memory.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(120);

/// Drives a sandbox from Starting to Ended. `started` learns whether it became ready; when it hears
/// of a failure, everything that had been made is gone again.
pub(crate) async fn drive(sandbox: Arc<Sandbox>, started: oneshot::Sender<Result<()>>) {
    match boot::start(&sandbox).await {
        Ok(running) => {
            let running = Arc::new(running);
            // Set once, here, before anybody can see Ready.
            let _ = sandbox.running.set(Arc::clone(&running));
            sandbox.enter(SandboxState::Ready).await;
            sandbox.tell_ready();
            let _ = started.send(Ok(()));
            run(&sandbox, &running, 0).await;
        }
        Err(error) => {
            take_down(&sandbox, &error.to_string()).await;
            let _ = started.send(Err(error));
        }
    }
}

/// Drives a sandbox that an earlier daemon left ready, from an event on.
pub(crate) async fn drive_adopted(sandbox: Arc<Sandbox>, running: Arc<Running>, after: u64) {
    let _ = sandbox.running.set(Arc::clone(&running));
    sandbox.state.send_replace(SandboxState::Ready);
    run(&sandbox, &running, after).await;
}

/// From Ready to Ended.
async fn run(sandbox: &Sandbox, running: &Running, after: u64) {
    let pod = sandbox.id();
    let mut events = std::pin::pin!(follow_events(sandbox, running, after));
    let volumes = running.volumes.keep(Parts {
        sandbox,
        place: running.place.as_ref(),
    });
    let cause = tokio::select! {
        never = volumes => match never {},
        cause = running.place.ended() => cause,
        cause = &mut events => boot::ended_just_now(running.place.as_ref()).await.unwrap_or(cause),
        () = sandbox.stop.cancelled() => {
            sandbox.enter(SandboxState::Stopping).await;
            let limit = match running.disks.writes_devices().await {
                true => UNMOUNT_LIMIT,
                false => POWER_OFF_LIMIT,
            };
            // Exits must still be heard while the containers are killed.
            tokio::select! {
                _ = tokio::time::timeout(limit, power_off(sandbox, running, limit)) => {}
                _ = &mut events => {}
            }
            "stopped".to_owned()
        }
    };
    if !sandbox.stop.is_cancelled() {
        tracing::error!(pod, cause, "The pod's VM ended by itself");
    }
    running.place.end().await;
    running.exits.lock().clear();
    take_down(sandbox, &cause).await;
}

/// Kills the containers, so that their last output arrives, and lets the guest end by itself.
async fn power_off(sandbox: &Sandbox, running: &Running, limit: Duration) {
    for container in sandbox.containers() {
        if !matches!(container.state(), crate::ContainerState::Exited(_))
            && running
                .agent
                .signal(container.id(), "", 9, true)
                .await
                .is_ok()
        {
            container.exited().await;
        }
    }
    match running.agent.shutdown(limit).await {
        Ok(()) => drop(running.place.ended().await),
        Err(error) => {
            tracing::warn!(pod = sandbox.id(), %error, "The guest did not shut down by itself");
        }
    }
}

/// Takes the agent's events as long as they come; returns why they ended.
async fn follow_events(sandbox: &Sandbox, running: &Running, after: u64) -> String {
    let mut events = match running.agent.events(after).await {
        Ok(events) => events,
        Err(error) => return error.to_string(),
    };
    loop {
        match events.recv().await {
            Ok(Some(event)) => {
                if let Some(exit) = event.exit.into_option() {
                    on_exit(sandbox, running, exit);
                }
            }
            Ok(None) => return "the agent ended its events".to_owned(),
            Err(error) => return format!("the connection to the agent failed: {error}"),
        }
    }
}

fn on_exit(sandbox: &Sandbox, running: &Running, exit: Exit) {
    if !exit.exec_id.is_empty() {
        running.exits.tell(exit);
        return;
    }
    let container = sandbox.lock_containers().get(&exit.container_id).cloned();
    if let Some(container) = container {
        // In a task of its own: it waits for the log, and other events must not wait with it.
        tokio::spawn(async move { container.on_exit(exit).await });
    }
}

/// Takes down a sandbox that has no driver.
pub(crate) async fn take_down(sandbox: &Sandbox, cause: &str) {
    for container in sandbox.containers() {
        container.on_place_ended(cause).await;
    }
    clean_up(sandbox).await;
    sandbox
        .enter(SandboxState::Ended {
            cause: cause.to_owned(),
        })
        .await;
    let id = sandbox.id();
    sandbox
        .told
        .stopped(Ran::Yes, |kind| sandbox.tell(&id, kind));
}

/// Removes what a pod has on the node besides its record. Succeeds if nothing is there.
async fn clean_up(sandbox: &Sandbox) {
    let (pod, directory) = (sandbox.id(), sandbox.directory());
    if let Err(error) = sandbox.cgroup().destroy().await {
        tracing::error!(pod, %error, "The pod's cgroup is left behind");
    }
    match tokio::fs::remove_dir_all(&directory).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let directory = directory.display();
            tracing::error!(pod, %error, %directory, "The pod's directory is left behind");
        }
        _ => {}
    }
    // Last: the VM, which was in the network namespace, has ended.
    sandbox.services.networks.detach(&pod).await;
    let mut record = sandbox.lock_record();
    record.vmm = None;
    record.ips = Vec::new();
}
