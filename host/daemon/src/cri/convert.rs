//! From what is remembered to the CRI's messages.

use bulkhead_cri::v1;
use bulkhead_image::Image;
use bulkhead_sandbox::{
    Container, ContainerRecord, ContainerState, ExitRecord, Sandbox, SandboxRecord, SandboxState,
};
use std::net::IpAddr;

fn sandbox_state(state: &SandboxState) -> i32 {
    match state {
        SandboxState::Ready => v1::PodSandboxState::SandboxReady.into(),
        _ => v1::PodSandboxState::SandboxNotready.into(),
    }
}

pub(super) fn sandbox(sandbox: &Sandbox) -> v1::PodSandbox {
    sandbox.read(|record, state| v1::PodSandbox {
        state: sandbox_state(state),
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.handler.clone(),
    })
}

pub(super) fn sandbox_status(record: SandboxRecord) -> v1::PodSandboxStatus {
    let linux = record.config.linux.unwrap_or_default();
    let options = linux
        .security_context
        .and_then(|security| security.namespace_options);
    v1::PodSandboxStatus {
        state: sandbox_state(&record.state),
        id: record.id,
        metadata: record.config.metadata,
        created_at: record.created_at,
        network: Some(network(&record.ips)),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace { options }),
        }),
        labels: record.config.labels,
        annotations: record.config.annotations,
        runtime_handler: record.handler,
    }
}

fn network(ips: &[IpAddr]) -> v1::PodSandboxNetworkStatus {
    let mut ips = ips.iter().map(IpAddr::to_string);
    v1::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
    }
}

fn container_state(state: &ContainerState) -> i32 {
    match state {
        ContainerState::Created => v1::ContainerState::ContainerCreated.into(),
        ContainerState::Running { .. } => v1::ContainerState::ContainerRunning.into(),
        ContainerState::Exited(_) => v1::ContainerState::ContainerExited.into(),
    }
}

pub(super) fn container(container: &Container) -> v1::Container {
    let record = container.made();
    v1::Container {
        state: container_state(&container.state()),
        id: record.id.clone(),
        pod_sandbox_id: record.sandbox_id.clone(),
        metadata: record.config.metadata.clone(),
        image: record.config.image.clone(),
        image_ref: record.image_ref.clone(),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        image_id: record.image_id.clone(),
    }
}

pub(super) fn container_status(record: ContainerRecord) -> v1::ContainerStatus {
    let exit = match &record.state {
        ContainerState::Created => ExitRecord::default(),
        ContainerState::Running { started_at } => ExitRecord {
            started_at: *started_at,
            ..ExitRecord::default()
        },
        ContainerState::Exited(exit) => exit.clone(),
    };
    let resources = record.config.linux.and_then(|linux| linux.resources);
    v1::ContainerStatus {
        state: container_state(&record.state),
        id: record.id,
        metadata: record.config.metadata,
        created_at: record.created_at,
        started_at: exit.started_at,
        finished_at: exit.finished_at,
        exit_code: exit.code,
        image: record.config.image,
        image_ref: record.image_ref,
        reason: exit.reason,
        message: exit.message,
        labels: record.config.labels,
        annotations: record.config.annotations,
        mounts: record.config.mounts,
        log_path: record.log_path.display().to_string(),
        resources: Some(v1::ContainerResources {
            linux: resources,
            windows: None,
        }),
        image_id: record.image_id,
        user: record.identity.map(|identity| v1::ContainerUser {
            linux: Some(v1::LinuxContainerUser {
                uid: identity.uid.into(),
                gid: identity.gid.into(),
                supplemental_groups: identity.groups.into_iter().map(Into::into).collect(),
            }),
        }),
        stop_signal: record.config.stop_signal,
    }
}

pub(super) fn image(image: Image) -> v1::Image {
    // The CRI has the user either as a number or as a name, without the group.
    let user = image.config.user.split(':').next().unwrap_or_default();
    let uid = user.parse().ok().map(|value| v1::Int64Value { value });
    let username = if uid.is_none() {
        user.to_owned()
    } else {
        String::new()
    };
    v1::Image {
        spec: Some(v1::ImageSpec {
            image: image.id.clone(),
            ..Default::default()
        }),
        id: image.id,
        repo_tags: image.repo_tags,
        repo_digests: image.repo_digests,
        size: image.size,
        uid,
        username,
        pinned: image.pinned,
    }
}
