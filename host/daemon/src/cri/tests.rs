//! Records for tests.

use bulkhead_cri::v1;
use bulkhead_sandbox::{ContainerRecord, ContainerState, SandboxRecord, SandboxState};

/// A pod that is ready.
pub(super) fn sandbox(id: &str) -> SandboxRecord {
    SandboxRecord {
        id: id.to_owned(),
        handler: "bulkhead".to_owned(),
        created_at: 1,
        state: SandboxState::Ready,
        ..Default::default()
    }
}

/// A container that runs since the second second.
pub(super) fn container(id: &str, pod: &str) -> ContainerRecord {
    let resources = v1::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 1024,
        memory_limit_in_bytes: 64 << 20,
        memory_swap_limit_in_bytes: 64 << 20,
        ..Default::default()
    };
    ContainerRecord {
        id: id.to_owned(),
        sandbox_id: pod.to_owned(),
        config: v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata {
                name: "app".to_owned(),
                attempt: 0,
            }),
            image: Some(v1::ImageSpec {
                image: "sha256:1".to_owned(),
                user_specified_image: "busybox:1".to_owned(),
                ..Default::default()
            }),
            linux: Some(v1::LinuxContainerConfig {
                resources: Some(resources),
                ..Default::default()
            }),
            ..Default::default()
        },
        created_at: 1_000_000_000,
        state: ContainerState::Running {
            started_at: 2_500_000_000,
        },
        ..Default::default()
    }
}
