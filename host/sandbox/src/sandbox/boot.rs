//! From Starting to Ready: all that a pod has on the node, its VM, and an agent that is configured.

use super::{Exits, Running, Sandbox, configure, network};
use crate::agent::Agent;
use crate::disks::{PodDisks, SCRATCH};
use crate::phases::monotonic_ns;
use crate::place::Place;
use crate::vm::{Feed, Vm, VmRequest};
use crate::volumes::{Mirrors, PodVolumes};
use crate::{Result, SandboxError, limits};
use bulkhead_agent_api::agent::Announcement;
use bulkhead_network::PodNetwork;
use bulkhead_vmm_api::VmmStatus;
use std::sync::Arc;
use std::time::Duration;

/// Makes a pod. What is there when it fails is left to [`super::take_down`].
pub(super) async fn start(sandbox: &Sandbox) -> Result<Running> {
    let began = monotonic_ns();
    let record = sandbox.record();
    let size = configure::size(&record)?;
    let directory = sandbox.directory();
    let cgroup = sandbox.cgroup();
    tokio::fs::create_dir_all(&directory)
        .await
        .map_err(SandboxError::io(format!(
            "make the pod's directory {}",
            directory.display()
        )))?;
    cgroup.create().await?;
    let linux = record.config.linux.clone().unwrap_or_default();
    let (resources, overhead) = (
        linux.resources.unwrap_or_default(),
        linux.overhead.unwrap_or_default(),
    );
    let in_memory = limits::is_in_memory(&directory);
    let limits = limits::of_host(&record, size, [&resources, &overhead], in_memory);
    cgroup.limit(limits).await?;
    let bytes = record.runtime.scratch_mib << 20;
    let scratch = sandbox
        .services
        .scratch
        .make(directory.join("scratch.img"), bytes)
        .await?;
    let prepared = monotonic_ns();
    let network = network::attach(sandbox, &record).await?;
    let spawned = monotonic_ns();
    let (vm, feed) = Vm::start(VmRequest {
        pod: &record.id,
        directory: &directory,
        program: &sandbox.services.config.vmm,
        runtime: &record.runtime,
        cgroup: &cgroup,
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        users: &sandbox.services.users,
        network: network::namespace(network.as_ref())?,
        network_interfaces: network::count(network.as_ref()),
    })
    .await?;
    {
        let mut record = sandbox.lock_record();
        record.vmm = Some(vm.identity());
        record.size = Some(size);
        record.phases.prepare_ns = prepared - began;
        record.phases.network_ns = spawned - prepared;
    }
    sandbox
        .services
        .store
        .put_sandbox(&sandbox.record())
        .await?;
    let vm = Arc::new(vm);
    tokio::select! {
        biased;
        () = sandbox.stop.cancelled() => Err(SandboxError::Stopped { pod: record.id }),
        result = boot(sandbox, &vm, feed, (scratch, network), spawned) => result,
    }
}

/// What a VM whose guest says nothing has done so far, for whoever wonders why.
fn how_far(status: &Result<VmmStatus>) -> String {
    let status = match status {
        Ok(status) if status.vcpus_started_ns == 0 => {
            return "it never entered its guest".to_owned();
        }
        Ok(status) => status,
        Err(error) => return error.to_string(),
    };
    let exits = status.exits.iter().filter(|exit| exit.count > 0);
    let exits: Vec<_> = exits
        .map(|exit| format!("{} {}", exit.reason, exit.count))
        .collect();
    let seconds = monotonic_ns().saturating_sub(status.vcpus_started_ns) / 1_000_000_000;
    format!(
        "it entered its guest {seconds}s ago, has given it {} MiB and left it for: {}",
        status.guest_memory_bytes >> 20,
        exits.join(", "),
    )
}

/// From the VMM's start to a configured agent.
async fn boot(
    sandbox: &Sandbox,
    vm: &Arc<Vm>,
    mut feed: Feed,
    (scratch, network): (std::os::fd::OwnedFd, Option<PodNetwork>),
    spawned: u64,
) -> Result<Running> {
    let record = sandbox.record();
    let limit = Duration::from_secs(record.runtime.boot_timeout_seconds);
    let announced = tokio::select! {
        biased;
        cause = vm.ended() => Err(SandboxError::BootFailed { pod: record.id.clone(), cause }),
        result = tokio::time::timeout(limit, feed.announcement(&record.id)) => match result {
            Ok(Ok(announcement)) => Ok(announcement),
            Ok(Err(error)) => match ended_just_now(vm.as_ref()).await {
                Some(cause) => Err(SandboxError::BootFailed { pod: record.id.clone(), cause }),
                None => Err(error),
            },
            Err(_) => Err(SandboxError::BootTimeout {
                pod: record.id.clone(),
                limit,
                vm: how_far(&vm.status().await),
                console: vm.console().await,
            }),
        },
    }?;
    let ready = monotonic_ns();
    check_version(&record.id, &announced)?;
    let status = vm.status().await?;
    let place: Arc<dyn Place> = Arc::clone(vm) as Arc<dyn Place>;
    let agent = Agent::connect(&record.id, Arc::clone(&place)).await?;
    place.bind_disk(SCRATCH, scratch).await?;
    let mut request = configure::request(&record, network.as_ref(), SCRATCH).await;
    if let Some(network) = &network {
        let vcpus = configure::size(&record)?.vcpus;
        network::bind(sandbox, place.as_ref(), network, vcpus).await?;
        request.interfaces = network::interfaces(network);
    }
    agent.configure(&request).await?;
    {
        let mut record = sandbox.lock_record();
        let in_agent = announced.ready_ns.saturating_sub(announced.init_started_ns);
        let phases = &mut record.phases;
        phases.vmm_start_ns = status.vcpus_started_ns.saturating_sub(spawned);
        phases.kernel_ns = ready
            .saturating_sub(in_agent)
            .saturating_sub(status.vcpus_started_ns);
        phases.guest_boot_ns = announced.init_started_ns;
        phases.agent_ready_ns = in_agent;
        phases.configure_ns = monotonic_ns() - ready;
        record.guest_kernel = announced.kernel_release;
    }
    Ok(Running {
        place,
        agent,
        disks: PodDisks::new(
            &record.id,
            record.runtime.read_only_slots,
            record.runtime.read_write_slots,
        ),
        volumes: PodVolumes::new(&record.id),
        mirrors: Mirrors::default(),
        exits: Exits::default(),
    })
}

/// Why the place has ended, after a connection into it broke: most often both are one event, of
/// which the connection's end is heard first and the process's end tells more.
pub(super) async fn ended_just_now(place: &dyn Place) -> Option<String> {
    tokio::time::timeout(Duration::from_secs(1), place.ended())
        .await
        .ok()
}

fn check_version(pod: &str, announced: &Announcement) -> Result<()> {
    match announced.version {
        bulkhead_agent_api::VERSION => Ok(()),
        version => Err(SandboxError::AgentVersion {
            pod: pod.to_owned(),
            version,
            ours: bulkhead_agent_api::VERSION,
        }),
    }
}
