//! Records for tests.

use bulkhead_cri::v1;
use bulkhead_sandbox::{RuntimeConfig, SandboxRecord, SandboxState};

/// A pod that is ready.
pub(super) fn sandbox(id: &str) -> SandboxRecord {
    SandboxRecord {
        id: id.to_owned(),
        config: v1::PodSandboxConfig::default(),
        handler: "bulkhead".to_owned(),
        runtime: RuntimeConfig::default(),
        created_at: 1,
        state: SandboxState::Ready,
        cgroup: "bulkhead/pod".into(),
        phases: Default::default(),
        guest_kernel: String::new(),
        vmm: None,
    }
}
