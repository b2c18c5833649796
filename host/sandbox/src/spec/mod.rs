//! From the CRI's container configuration to an OCI runtime specification.
//!
//! What the request asks for and this version does not build is refused by name, never dropped.

mod process;
mod refuse;
mod resources;
pub(crate) mod seccomp;
mod security;

use crate::container::ContainerImage;
use crate::{Result, SandboxError};
use bulkhead_cri::v1;
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

pub(crate) use process::stop_signal;

/// Where the agent keeps the pod's files in the guest.
const POD_FILES: &str = "/run/bulkhead/pod";

/// What the agent is told of a container.
pub(crate) struct ContainerSpec {
    /// The whole specification.
    pub(crate) spec: Spec,
    /// "user[:group]", to be resolved in the image.
    pub(crate) user: String,
}

pub(crate) use resources::{
    check as check_resources, merge as merge_resources, oci as oci_resources,
};

/// Refuses what a pod may not ask for, or what is not built.
pub(crate) use refuse::sandbox as check_sandbox;

/// Makes the specification of a container.
pub(crate) fn build(
    id: &str,
    container: &v1::ContainerConfig,
    pod: &v1::PodSandboxConfig,
    image: &ContainerImage,
) -> Result<ContainerSpec> {
    refuse::container(container)?;
    let linux = container.linux.clone().unwrap_or_default();
    let security = linux.security_context.clone().unwrap_or_default();
    let resources = linux.resources.unwrap_or_default();
    resources::check("config.linux.resources", &resources)?;
    let mut limits = resources::oci(&resources);
    limits["devices"] = security::device_rules(&security);
    let document = json!({
        "ociVersion": "1.2.0",
        "root": { "path": "rootfs", "readonly": security.readonly_rootfs },
        "process": process::build(container, pod, image, &security, &resources)?,
        "mounts": mounts(&security),
        "annotations": container.annotations,
        "linux": {
            "cgroupsPath": format!("/bulkhead/{id}"),
            "namespaces": [
                { "type": "pid" }, { "type": "mount" }, { "type": "cgroup" },
            ],
            "resources": limits,
            "maskedPaths": security::masked_paths(&security),
            "readonlyPaths": security::readonly_paths(&security),
        },
    });
    let spec = serde_json::from_value(document).map_err(|source| SandboxError::Spec {
        container: id.to_owned(),
        source,
    })?;
    Ok(ContainerSpec {
        spec,
        user: process::user(&security, image)?,
    })
}

fn mounts(security: &v1::LinuxContainerSecurityContext) -> Value {
    let kernel = if security.privileged { "rw" } else { "ro" };
    let file = |name: &str| {
        json!({
            "destination": format!("/etc/{name}"), "type": "bind",
            "source": format!("{POD_FILES}/{name}"), "options": ["bind", "nosuid", "nodev"],
        })
    };
    json!([
        { "destination": "/proc", "type": "proc", "source": "proc",
          "options": ["nosuid", "noexec", "nodev"] },
        { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
          "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
        { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
          "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
        { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
          "options": ["nosuid", "noexec", "nodev"] },
        { "destination": "/sys", "type": "sysfs", "source": "sysfs",
          "options": ["nosuid", "noexec", "nodev", kernel] },
        { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
          "options": ["nosuid", "noexec", "nodev", "relatime", kernel] },
        { "destination": "/dev/shm", "type": "bind", "source": "/dev/shm",
          "options": ["bind", "nosuid", "noexec", "nodev"] },
        file("hostname"), file("hosts"), file("resolv.conf"),
    ])
}

#[cfg(test)]
mod tests;
