//! What a daemon does with the pods that an earlier one left.
//!
//! A pod that was ready and whose VMM lives is adopted: its containers go on and notice nothing.
//! Whatever else is remembered is taken down, and what nobody remembers is removed.

use crate::agent::Agent;
use crate::cgroup::PodCgroup;
use crate::container::Container;
use crate::disks::PodDisks;
use crate::place::Place;
use crate::record::{BlockVolume, ContainerState, SandboxState};
use crate::registry::Sandboxes;
use crate::sandbox::{self, Exits, Running, Sandbox};
use crate::store::blocking;
use crate::vm::Vm;
use crate::volumes::{Mirrors, PodVolumes};
use crate::{Result, SandboxError, names};
use bulkhead_agent_api::agent::ListContainersResponse;
use std::collections::HashSet;
use std::sync::Arc;

pub(crate) async fn restore(all: &Sandboxes) -> Result<()> {
    let store = all.services.store.clone();
    let (sandboxes, containers) =
        blocking(move || Ok((store.sandboxes()?, store.containers()?))).await?;
    for record in sandboxes {
        if let Ok(name) = names::of_sandbox(&record.config) {
            all.names.reserve("pod sandbox", &name, &record.id)?;
        }
        all.insert_sandbox(record);
    }
    for record in containers {
        let Ok(sandbox) = all.sandbox(&record.sandbox_id) else {
            all.services.store.delete_container(&record.id).await?;
            continue;
        };
        if let Ok(name) = names::of_container(&record.config, &record.sandbox_id) {
            all.names.reserve("container", &name, &record.id)?;
        }
        all.insert_container(&Container::restored(sandbox, record));
    }
    remove_unknown_directories(all).await?;
    let mut tasks = tokio::task::JoinSet::new();
    for sandbox in all.sandboxes() {
        tasks.spawn(restore_one(all.clone(), sandbox));
    }
    tasks.join_all().await;
    let living = all.sandboxes().into_iter().map(|sandbox| sandbox.record());
    let living = living.filter(|record| !matches!(record.state, SandboxState::Ended { .. }));
    let living = living.map(|record| record.id).collect();
    Ok(all.services.networks.recover(living).await?)
}

async fn restore_one(all: Sandboxes, sandbox: Arc<Sandbox>) {
    let record = sandbox.record();
    let pod = record.id;
    match record.state {
        SandboxState::Ended { .. } => {}
        // With its VM what its guest has not written back would be lost.
        SandboxState::Stopping if !BlockVolume::any_is_written(&record.block_volumes) => {
            sandbox::take_down(&sandbox, "stopped").await;
        }
        state @ (SandboxState::Ready | SandboxState::Stopping) => match adopt(&sandbox).await {
            Ok((running, last_event)) => {
                tracing::info!(pod, "Found the pod running");
                if state == SandboxState::Stopping {
                    sandbox.ask_to_stop();
                }
                tokio::spawn(sandbox::drive_adopted(
                    sandbox,
                    Arc::new(running),
                    last_event,
                ));
            }
            Err(error) => {
                tracing::warn!(pod, %error, "The pod has ended while no daemon ran");
                sandbox::take_down(&sandbox, &error.to_string()).await;
            }
        },
        // Whoever asked for it has had no answer and will ask again.
        SandboxState::Starting => {
            sandbox::take_down(&sandbox, "the daemon ended while it started").await;
            if let Err(error) = all.forget_sandbox(&sandbox).await {
                tracing::error!(pod, %error, "The record of a half-made pod is left behind");
            }
        }
    }
}

async fn adopt(sandbox: &Arc<Sandbox>) -> Result<(Running, u64)> {
    let record = sandbox.record();
    let Some(identity) = &record.vmm else {
        return Err(SandboxError::NotFound {
            what: "VMM of pod sandbox",
            id: record.id,
        });
    };
    let cgroup = PodCgroup::at(&record.cgroup);
    let users = &sandbox.services.users;
    let directory = sandbox.directory();
    let runtime = &record.runtime;
    let vm = Vm::adopt(&record.id, &directory, identity, runtime, &cgroup, users).await?;
    let place: Arc<dyn Place> = Arc::new(vm);
    let agent = Agent::connect(&record.id, Arc::clone(&place)).await?;
    let disks = PodDisks::new(
        &record.id,
        record.runtime.read_only_slots,
        record.runtime.read_write_slots,
    );
    disks.adopt_devices(&record.block_volumes).await;
    let running = Running {
        place,
        agent,
        disks,
        volumes: PodVolumes::adopt(&record.id, record.file_daemon.as_ref()),
        mirrors: Mirrors::default(),
        exits: Exits::default(),
    };
    let listed = running.agent.list().await?;
    for container in sandbox.containers() {
        let record = container.record();
        running
            .disks
            .adopt_image(record.image_slot, &record.id, &record.image_id)
            .await;
        for volume in &record.image_volumes {
            let disks = &running.disks;
            disks
                .adopt_image(volume.slot, &record.id, &volume.image_id)
                .await;
        }
        let shared = &record.shared_volumes;
        running.volumes.adopt_container(&record.id, shared);
        adopt_container(&container, &running, &listed).await?;
        let (watches, agent) = (&sandbox.services.watches, &running.agent);
        let mounts = &record.config.mounts;
        let mirrors = &running.mirrors;
        mirrors.adopt(&record.id, mounts, watches, agent).await?;
    }
    remove_unknown_containers(sandbox, &running, &listed).await?;
    running.disks.empty_unknown(running.place.as_ref()).await?;
    Ok((running, listed.last_event))
}

async fn adopt_container(
    container: &Container,
    running: &Running,
    listed: &ListContainersResponse,
) -> Result<()> {
    if matches!(container.state(), ContainerState::Exited(_)) {
        return Ok(());
    }
    let found = listed
        .containers
        .iter()
        .find(|state| state.container_id == container.id());
    let Some(found) = found else {
        container
            .on_place_ended("the container is gone from its guest")
            .await;
        return Ok(());
    };
    container.set_process(found.pid, found.identity.clone().into_option());
    container.connect_streams(running).await?;
    if let Some(exit) = found.exit.clone().into_option() {
        container.on_exit(exit).await;
    }
    Ok(())
}

/// Containers that the earlier daemon was still making when it ended.
async fn remove_unknown_containers(
    sandbox: &Sandbox,
    running: &Running,
    listed: &ListContainersResponse,
) -> Result<()> {
    let known: HashSet<String> = sandbox
        .containers()
        .iter()
        .map(|container| container.id().to_owned())
        .collect();
    for state in &listed.containers {
        if !known.contains(&state.container_id) {
            running.agent.remove_container(&state.container_id).await?;
        }
    }
    Ok(())
}

async fn remove_unknown_directories(all: &Sandboxes) -> Result<()> {
    let known: HashSet<String> = all.sandboxes().iter().map(|sandbox| sandbox.id()).collect();
    let directory = all.services.config.state.join("pods");
    let failed = || SandboxError::io(format!("clean {}", directory.display()));
    let mut entries = tokio::fs::read_dir(&directory).await.map_err(failed())?;
    while let Some(entry) = entries.next_entry().await.map_err(failed())? {
        if !entry
            .file_name()
            .to_str()
            .is_some_and(|name| known.contains(name))
        {
            tokio::fs::remove_dir_all(entry.path())
                .await
                .map_err(failed())?;
        }
    }
    Ok(())
}
