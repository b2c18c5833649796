//! The edge: an OCI runtime specification (JSON, from the daemon) becomes a checked plan.
//!
//! What the agent does not do is refused by name (UNIMPLEMENTED), never ignored, when leaving it out
//! would make the container less confined or different from what was asked: time namespaces,
//! network namespaces of its own, hooks of the runtime, SELinux, AppArmor.
//! `root.path`, `cgroupsPath` and annotations are ignored: the image, the cgroup and the meaning of
//! annotations are the daemon's and the agent's own matter.

mod block_io;
mod devices;
mod direct;
mod hooks;
mod ids;
mod mounts;
mod process;
mod resources;

use crate::cgroup::Setting;
use crate::cgroup::devices::Rule;
use crate::id::quote;
use crate::init::plan::{Container, Device, IdMaps, Process};
use crate::{Error, Result, seccomp};
pub(crate) use devices::device_access;
use ids::id_maps;
use oci_spec::runtime::{Linux, LinuxDeviceType, LinuxNamespaceType, LinuxResources, Spec};
use std::path::{Path, PathBuf};

/// The largest specification in bytes.
pub const MAX_SPEC: usize = 2 * 1024 * 1024;
/// The most entries of any list in it.
const MAX_LIST: usize = 4096;
/// Under this directory of the guest (on the scratch disk) the source of a bind is made when it is
/// not there: empty volumes that last as long as the pod.
pub const VOLUMES: &str = "/run/bulkhead/scratch/volumes";

/// What a specification says, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// Its paths for the root are still empty.
    pub container: Container,
    /// Its first process.
    pub process: Process,
    /// Limits of its cgroup.
    pub settings: Vec<Setting>,
    /// Which devices it may use.
    pub device_rules: Vec<Rule>,
    /// Files of the namespaces to join, in the order of `container.join_namespaces`.
    pub namespace_files: Vec<PathBuf>,
    /// The mappings of its user namespace; empty when it has none.
    pub ids: IdMaps,
}

/// Reads a whole specification.
pub fn parse(json: &[u8]) -> Result<Parsed> {
    let spec: Spec = parse_json(json, "spec")?;
    if !spec.version().starts_with("1.") {
        return Err(Error::Invalid(format!(
            "The spec has ociVersion {}, and the agent knows 1.x",
            quote(spec.version())
        )));
    }
    refuse("vm", spec.vm().is_some())?;
    refuse("solaris", spec.solaris().is_some())?;
    refuse("windows", spec.windows().is_some())?;
    refuse("zos", spec.zos().is_some())?;
    let process = spec
        .process()
        .as_ref()
        .ok_or_else(|| Error::Invalid("The spec has no process".to_owned()))?;
    let mut process = process::convert(process)?;
    let empty = Linux::default();
    let linux = spec.linux().as_ref().unwrap_or(&empty);
    refuse_linux(linux)?;
    process.seccomp = linux.seccomp().as_ref().map(seccomp::compile).transpose()?;
    let mut container = Container {
        hostname: name(spec.hostname(), "hostname")?,
        domainname: name(spec.domainname(), "domainname")?,
        masked: paths(linux.masked_paths(), "maskedPaths")?,
        read_only: paths(linux.readonly_paths(), "readonlyPaths")?,
        devices: devices(linux)?,
        root_read_only: spec
            .root()
            .as_ref()
            .and_then(|root| root.readonly())
            .unwrap_or(false),
        ..Container::default()
    };
    let ids = ids::of_container(linux)?;
    for mount in limited(spec.mounts(), "mounts")? {
        container.mounts.push(mounts::convert(mount, &ids)?);
    }
    container.user_namespaces = ids::all(&ids, &container.mounts)?;
    if let Some(all) = spec.hooks() {
        hooks::convert(all, &mut container)?;
    }
    container.state.oci_version.clone_from(spec.version());
    container.state.annotations = spec
        .annotations()
        .iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let namespace_files = namespaces(linux, &mut container)?;
    let none = LinuxResources::default();
    let (settings, device_rules) = resources::convert(linux.resources().as_ref().unwrap_or(&none))?;
    Ok(Parsed {
        container,
        process,
        settings,
        device_rules,
        namespace_files,
        ids,
    })
}

/// Reads a `process` object.
pub fn parse_process(json: &[u8]) -> Result<Process> {
    process::convert(&parse_json(json, "process")?)
}

/// Reads new limits (`linux.resources`) for a running container. `true`: its memory in use is to be
/// looked at first.
pub fn parse_update(json: &[u8]) -> Result<(Vec<Setting>, bool)> {
    resources::update(&parse_json(json, "resources")?)
}

/// Checks the user string of a request; its meaning is the image's.
pub fn user(text: &str) -> Result<Option<String>> {
    if text.is_empty() {
        return Ok(None);
    }
    if text.len() > 256 || text.contains(['\0', '\n']) {
        return Err(Error::Invalid(format!("User {} is not valid", quote(text))));
    }
    Ok(Some(text.to_owned()))
}

fn parse_json<T: serde::de::DeserializeOwned>(json: &[u8], what: &str) -> Result<T> {
    if json.len() > MAX_SPEC {
        return Err(Error::Invalid(format!(
            "The {what} is larger than {MAX_SPEC} bytes"
        )));
    }
    serde_json::from_slice(json)
        .map_err(|error| Error::Invalid(format!("The {what} is not valid: {error}")))
}

fn refuse_linux(linux: &Linux) -> Result<()> {
    refuse("linux.intelRdt", linux.intel_rdt().is_some())?;
    refuse("linux.memoryPolicy", linux.memory_policy().is_some())?;
    refuse("linux.personality", linux.personality().is_some())?;
    refuse(
        "linux.timeOffsets",
        linux
            .time_offsets()
            .as_ref()
            .is_some_and(|map| !map.is_empty()),
    )?;
    refuse(
        "linux.netDevices",
        linux
            .net_devices()
            .as_ref()
            .is_some_and(|map| !map.is_empty()),
    )?;
    refuse(
        "linux.sysctl",
        linux.sysctl().as_ref().is_some_and(|map| !map.is_empty()),
    )?;
    refuse(
        "linux.mountLabel",
        linux
            .mount_label()
            .as_ref()
            .is_some_and(|label| !label.is_empty()),
    )?;
    let propagation = linux.rootfs_propagation().as_deref().unwrap_or("");
    refuse(
        "linux.rootfsPropagation (other than private)",
        !matches!(
            propagation,
            "" | "private" | "rprivate" | "slave" | "rslave"
        ),
    )
}

/// Refuses what the agent does not do.
fn refuse(what: &str, present: bool) -> Result<()> {
    if present {
        return Err(Error::Unimplemented(format!(
            "The spec has {what}, which the agent does not do"
        )));
    }
    Ok(())
}

/// Sorts the namespaces into those to make and those to join. What is not listed is the pod's.
fn namespaces(linux: &Linux, container: &mut Container) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    // A container always has its own mounts.
    container.new_namespaces = libc::CLONE_NEWNS;
    for namespace in linux.namespaces().as_deref().unwrap_or_default() {
        let path = namespace
            .path()
            .as_ref()
            .filter(|path| !path.as_os_str().is_empty());
        let flag = match (namespace.typ(), path) {
            (LinuxNamespaceType::Mount, None) => continue,
            (LinuxNamespaceType::Cgroup, None) => {
                container.cgroup_namespace = true;
                continue;
            }
            // See `ids`.
            (LinuxNamespaceType::User, None) => continue,
            (LinuxNamespaceType::Pid, _) => libc::CLONE_NEWPID,
            (LinuxNamespaceType::Ipc, _) => libc::CLONE_NEWIPC,
            (LinuxNamespaceType::Uts, _) => libc::CLONE_NEWUTS,
            (LinuxNamespaceType::Network, Some(_)) => libc::CLONE_NEWNET,
            (LinuxNamespaceType::Network, None) => {
                return Err(Error::Unimplemented(
                    "A network namespace of its own is not supported: a container has the pod's"
                        .to_owned(),
                ));
            }
            (kind @ LinuxNamespaceType::Time, _) => {
                return Err(Error::Unimplemented(format!(
                    "A {kind} namespace is not supported"
                )));
            }
            (kind, Some(_)) => {
                return Err(Error::Unimplemented(format!(
                    "Joining a {kind} namespace is not supported"
                )));
            }
        };
        if container.new_namespaces & flag != 0 || container.join_namespaces.contains(&flag) {
            return Err(Error::Invalid(format!(
                "Namespace {} is listed twice",
                namespace.typ()
            )));
        }
        match path {
            Some(path) => {
                absolute(&path.to_string_lossy(), "namespace path")?;
                container.join_namespaces.push(flag);
                files.push(path.clone());
            }
            None => container.new_namespaces |= flag,
        }
    }
    if container.new_namespaces & libc::CLONE_NEWUTS == 0
        && (container.hostname.is_some() || container.domainname.is_some())
    {
        // The pod's: what the specification says is what `Configure` has set, or nobody's wish.
        container.hostname = None;
        container.domainname = None;
    }
    Ok(files)
}

fn devices(linux: &Linux) -> Result<Vec<Device>> {
    limited(linux.devices(), "linux.devices")?
        .iter()
        .map(|device| {
            let path = device_path(&device.path().to_string_lossy())?;
            let number = |number: i64| {
                u32::try_from(number)
                    .map_err(|_| Error::Invalid(format!("Device {path} has no valid number")))
            };
            let kind = match device.typ() {
                LinuxDeviceType::B => libc::S_IFBLK,
                LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
                LinuxDeviceType::P => libc::S_IFIFO,
                LinuxDeviceType::A => {
                    return Err(Error::Invalid(format!(
                        "Device {path} has no type of a node"
                    )));
                }
            };
            Ok(Device {
                major: number(device.major())?,
                minor: number(device.minor())?,
                mode: kind | (device.file_mode().unwrap_or(0o666) & 0o7777),
                uid: device.uid().unwrap_or(0),
                gid: device.gid().unwrap_or(0),
                path,
            })
        })
        .collect()
}

/// Checks where a device's node shall be.
pub(crate) fn device_path(path: &str) -> Result<String> {
    absolute(path, "device path")
}

/// A list, none being an empty one, of bounded length.
fn limited<'a, T>(list: &'a Option<Vec<T>>, what: &str) -> Result<&'a [T]> {
    let list = list.as_deref().unwrap_or_default();
    if list.len() > MAX_LIST {
        return Err(Error::Invalid(format!(
            "The spec has more than {MAX_LIST} {what}"
        )));
    }
    Ok(list)
}

fn paths(list: &Option<Vec<String>>, what: &str) -> Result<Vec<String>> {
    limited(list, what)?
        .iter()
        .map(|path| absolute(path, what))
        .collect()
}

/// Checks a path in the container: absolute, no `..`, no null byte.
fn absolute(path: &str, what: &str) -> Result<String> {
    let up = Path::new(path)
        .components()
        .any(|part| part == std::path::Component::ParentDir);
    if !path.starts_with('/') || up || path.len() >= libc::PATH_MAX as usize || path.contains('\0')
    {
        return Err(Error::Invalid(format!(
            "{} is not a valid {what}",
            quote(path)
        )));
    }
    Ok(path.to_owned())
}

/// Checks a host or domain name.
fn name(text: &Option<String>, what: &str) -> Result<Option<String>> {
    match text.as_deref() {
        None | Some("") => Ok(None),
        Some(text) if hostname_is_valid(text) => Ok(Some(text.to_owned())),
        Some(text) => Err(Error::Invalid(format!(
            "{} is not a valid {what}",
            quote(text)
        ))),
    }
}

/// Whether the kernel takes this host name and tools can print it.
pub fn hostname_is_valid(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
}

#[cfg(test)]
mod tests;
