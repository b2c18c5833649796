//! From the CRI's container configuration to an OCI runtime specification.
//!
//! What the request asks for and this version does not build is refused by name, never dropped.

mod namespaces;
mod process;
mod refuse;
mod resources;
pub(crate) mod seccomp;
mod security;

use crate::container::ContainerImage;
use crate::volumes::{EmptyDir, Kind, SharedVolume, Volume};
use crate::{Result, SandboxError};
use bulkhead_agent_api::agent::PidNamespace;
use bulkhead_cri::v1;
use oci_spec::runtime::Spec;
use serde_json::{Value, json};
use std::path::Path;

pub(crate) use process::stop_signal;

/// Where the agent keeps the pod's files in the guest.
const POD_FILES: &str = "/run/bulkhead/pod";

/// What the agent is told of a container.
pub(crate) struct ContainerSpec {
    /// The whole specification.
    pub(crate) spec: Spec,
    /// "user[:group]", to be resolved in the image.
    pub(crate) user: String,
    /// Leave out the groups that the image has for the user.
    pub(crate) strict_groups: bool,
    /// Its pid namespace, and the container whose it is with TARGET.
    pub(crate) pid: (PidNamespace, String),
    /// Every device of the guest.
    pub(crate) guest_devices: bool,
}

/// The disk of an image that a container has as a volume.
pub(crate) struct ImageDisk {
    pub(crate) serial: String,
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
    let of_pod = pod
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref());
    let pod_options = of_pod.and_then(|security| security.namespace_options.as_ref());
    let user = match pod_options {
        Some(options) => namespaces::user_mappings(options)?,
        None => None,
    };
    if let Some(options) = &security.namespace_options {
        namespaces::check_same_user(user.as_ref(), options)?;
    }
    let mut namespaces = vec![
        json!({ "type": "pid" }),
        json!({ "type": "mount" }),
        json!({ "type": "cgroup" }),
    ];
    let (uids, gids) = user.unzip();
    if uids.is_some() {
        namespaces.push(json!({ "type": "user" }));
    }
    let document = json!({
        "ociVersion": "1.2.0",
        "root": { "path": "rootfs", "readonly": security.readonly_rootfs },
        "process": process::build(container, pod, image, &security, &resources)?,
        "mounts": mounts(&security, uids.is_some()),
        "annotations": container.annotations,
        "linux": {
            "cgroupsPath": format!("/bulkhead/{id}"),
            "uidMappings": uids,
            "gidMappings": gids,
            "namespaces": namespaces,
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
        strict_groups: security.supplemental_groups_policy()
            == v1::SupplementalGroupsPolicy::Strict,
        pid: namespaces::pid(security.namespace_options.as_ref())?,
        guest_devices: security.privileged,
    })
}

/// Adds the volumes that are images, in the order of the request; one disk for each.
pub(crate) fn add_image_mounts(spec: &mut Spec, mounts: &[v1::Mount], disks: &[ImageDisk]) {
    let mut all = spec.mounts().clone().unwrap_or_default();
    let mounts = mounts.iter().filter(|mount| mount.image.is_some());
    for (mount, disk) in mounts.zip(disks) {
        let mut options = vec![
            "ro".to_owned(),
            "noexec".to_owned(),
            "nosuid".to_owned(),
            "nodev".to_owned(),
        ];
        if !mount.image_sub_path.is_empty() {
            options.push(format!("subpath={}", mount.image_sub_path));
        }
        let mut built = oci_spec::runtime::Mount::default();
        built
            .set_destination(mount.container_path.clone().into())
            .set_typ(Some("image".to_owned()))
            .set_source(Some(disk.serial.clone().into()))
            .set_options(Some(options));
        all.push(built);
    }
    spec.set_mounts(Some(all));
}

/// Adds a container's volumes. What it would have at the same place otherwise goes; a volume inside another comes
/// after it.
pub(crate) fn add_volumes(spec: &mut Spec, volumes: &[Volume], shared: &[SharedVolume]) {
    let mut all = spec.mounts().clone().unwrap_or_default();
    let mut added = Vec::with_capacity(volumes.len());
    for volume in volumes {
        let destination = Path::new(&volume.container_path);
        all.retain(|mount| mount.destination() != destination);
        let name = || {
            let mut named = shared.iter().filter(|one| one.index == volume.index);
            named
                .next()
                .map_or_else(String::new, |one| one.name.clone())
        };
        let mut options: Vec<String> = volume.options.iter().copied().map(Into::into).collect();
        let (kind, source) = match &volume.kind {
            Kind::Shared => ("shared", name()),
            Kind::Mirror => {
                options.push("mirror".to_owned());
                ("shared", name())
            }
            Kind::EmptyDir(volume) => {
                options.extend(empty_dir_options(volume));
                ("empty-dir", volume.name.clone())
            }
            Kind::Direct(direct) => {
                options.extend(direct.mount_options());
                ("direct", direct.serial())
            }
        };
        let mut built = oci_spec::runtime::Mount::default();
        built
            .set_destination(destination.to_owned())
            .set_typ(Some(kind.to_owned()))
            .set_source(Some(source.into()))
            .set_options(Some(options));
        added.push(built);
    }
    added.sort_by_key(|mount| mount.destination().components().count());
    all.extend(added);
    spec.set_mounts(Some(all));
}

fn empty_dir_options(volume: &EmptyDir) -> Vec<String> {
    let EmptyDir { mode, uid, gid, .. } = volume;
    let mut options = vec![
        format!("mode={mode:o}"),
        format!("uid={uid}"),
        format!("gid={gid}"),
    ];
    options.extend(volume.memory.map(|size| format!("memory={size}")));
    let sub_path = volume.sub_path.as_ref();
    options.extend(sub_path.map(|path| format!("subpath={path}")));
    options
}

fn mounts(security: &v1::LinuxContainerSecurityContext, user_namespace: bool) -> Value {
    let kernel = if security.privileged { "rw" } else { "ro" };
    let file = |name: &str| {
        let mut options = vec!["bind", "nosuid", "nodev"];
        if user_namespace {
            // The files are root's, in the container too.
            options.push("idmap");
        }
        json!({
            "destination": format!("/etc/{name}"), "type": "bind",
            "source": format!("{POD_FILES}/{name}"), "options": options,
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
