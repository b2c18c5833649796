//! The pod's cgroup on the host: everything that runs for the pod on the host is in it, so killing
//! it (`cgroup.kill`) is what ends a pod for certain.
//!
//! cgroup v2 only: kernel documentation, admin-guide/cgroup-v2.

use crate::limits::HostLimits;
use crate::store::blocking;
use crate::{Result, SandboxError};
use bulkhead_agent_api::agent::ContainerStats;
use bulkhead_agent_api::cgroup::figures;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek};
use std::path::{Component, Path, PathBuf};

/// Where cgroup v2 is mounted.
const MOUNT: &str = "/sys/fs/cgroup";
/// What limits and figures of a pod need.
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "io", "pids"];

/// A pod's cgroup.
#[derive(Debug, Clone)]
pub(crate) struct PodCgroup {
    path: PathBuf,
}

impl PodCgroup {
    /// The cgroup at a path beneath the mount, whether it exists or not.
    pub(crate) fn at(relative: &Path) -> Self {
        Self {
            path: Path::new(MOUNT).join(relative.strip_prefix("/").unwrap_or(relative)),
        }
    }

    /// Makes it, with its parents.
    pub(crate) async fn create(&self) -> Result<()> {
        let path = self.path.clone();
        blocking(move || {
            if !Path::new(MOUNT).join("cgroup.controllers").exists() {
                return Err(SandboxError::NodeUnfit {
                    problem: format!(
                        "cgroup v2 is not mounted at {MOUNT}; boot with systemd.unified_cgroup_hierarchy=1"
                    ),
                });
            }
            fs::create_dir_all(&path)
                .map_err(SandboxError::io(format!("make the cgroup {}", path.display())))?;
            enable_controllers(&path);
            Ok(())
        })
        .await
    }

    /// Sets limits.
    pub(crate) async fn limit(&self, limits: HostLimits) -> Result<()> {
        let path = self.path.clone();
        blocking(move || {
            for (file, value) in limits.files {
                let file = path.join(file);
                if !file.exists() {
                    return Err(SandboxError::NodeUnfit {
                        problem: format!(
                            "the pod has a limit but its cgroup has no {}; enable the cpu and memory controllers of cgroup v2 for it",
                            file.display()
                        ),
                    });
                }
                let doing = format!("set {} to {value}", file.display());
                fs::write(&file, value).map_err(SandboxError::io(doing))?;
            }
            Ok(())
        })
        .await
    }

    /// Moves a process into it.
    pub(crate) async fn add(&self, pid: i32) -> Result<()> {
        let path = self.path.join("cgroup.procs");
        blocking(move || {
            fs::write(&path, pid.to_string()).map_err(SandboxError::io(format!(
                "move a process into {}",
                path.display()
            )))
        })
        .await
    }

    /// Kills what is in it, waits until the kernel says that it is empty, and removes it.
    /// Succeeds if there is none.
    pub(crate) async fn destroy(&self) -> Result<()> {
        let path = self.path.clone();
        blocking(move || destroy(&path)).await
    }

    /// Its figures. What its controllers do not count is absent.
    pub(crate) async fn figures(&self) -> ContainerStats {
        let path = self.path.clone();
        let read = move |file: &str| fs::read_to_string(path.join(file)).ok();
        let figures = blocking(move || Ok(figures(read))).await;
        figures.unwrap_or_default()
    }

    /// How often the host's OOM killer has struck in it.
    pub(crate) async fn oom_kills(&self) -> u64 {
        let text = tokio::fs::read_to_string(self.path.join("memory.events")).await;
        let text = text.unwrap_or_default();
        let value = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        value
            .and_then(|value| value.trim().parse().ok())
            .unwrap_or(0)
    }
}

/// Lets a cgroup use the controllers of limits and figures, which its parents must hand down. One
/// that cannot is left out: a limit that needs it fails by name, figures are absent.
fn enable_controllers(path: &Path) {
    let above: Vec<&Path> = path
        .ancestors()
        .skip(1)
        .take_while(|parent| parent.starts_with(MOUNT))
        .collect();
    for parent in above.into_iter().rev() {
        let control = parent.join("cgroup.subtree_control");
        let enabled = fs::read_to_string(&control).unwrap_or_default();
        for controller in CONTROLLERS {
            if enabled.split_whitespace().any(|one| one == controller) {
                continue;
            }
            if let Err(error) = fs::write(&control, format!("+{controller}")) {
                tracing::debug!(controller, %error, parent = %parent.display(), "A controller is not handed down");
            }
        }
    }
}

fn destroy(path: &Path) -> Result<()> {
    let failed = |doing: &str| SandboxError::io(format!("{doing} the cgroup {}", path.display()));
    match fs::write(path.join("cgroup.kill"), "1") {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        result => result.map_err(failed("kill"))?,
    }
    wait_until_empty(path).map_err(failed("empty"))?;
    remove(path).map_err(failed("remove"))
}

/// Removes it with the cgroups below, which whoever ran in it may have made.
fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {}
        result => return result,
    }
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// `cgroup.events` raises POLLPRI whenever `populated` changes.
fn wait_until_empty(path: &Path) -> std::io::Result<()> {
    let mut events = File::open(path.join("cgroup.events"))?;
    loop {
        let mut text = String::new();
        events.rewind()?;
        events.read_to_string(&mut text)?;
        if text.lines().any(|line| line == "populated 0") {
            return Ok(());
        }
        poll(&mut [PollFd::new(&events, PollFlags::PRI)], None)?;
    }
}

/// The cgroup of a pod: under the parent that the request names, or under the node's.
pub(crate) fn path_of(id: &str, requested_parent: &str, default_parent: &Path) -> Result<PathBuf> {
    let invalid = |problem: &str| SandboxError::InvalidField {
        field: "config.linux.cgroup_parent",
        problem: problem.to_owned(),
    };
    let parent = if requested_parent.is_empty() {
        default_parent
    } else {
        Path::new(requested_parent)
    };
    if requested_parent.ends_with(".slice") {
        return Err(invalid(
            "is a systemd slice; set the kubelet's cgroupDriver to cgroupfs, the driver in use here",
        ));
    }
    if parent
        .components()
        .any(|part| matches!(part, Component::ParentDir))
    {
        return Err(invalid("must not contain '..'"));
    }
    let parent = parent.strip_prefix("/").unwrap_or(parent);
    Ok(parent.join(format!("bulkhead-{id}")))
}

#[cfg(test)]
mod tests {
    use super::path_of;
    use std::path::Path;

    #[test]
    fn the_parent_of_the_request_wins_and_cannot_leave_the_mount() {
        let default = Path::new("/bulkhead");
        let of = |parent: &str| path_of("id", parent, default);
        assert_eq!(of("").unwrap(), Path::new("bulkhead/bulkhead-id"));
        assert_eq!(
            of("/kubepods/x").unwrap(),
            Path::new("kubepods/x/bulkhead-id")
        );
        assert!(of("/kubepods/../../etc").is_err());
        assert!(
            of("kubepods-burstable.slice")
                .unwrap_err()
                .to_string()
                .contains("cgroupfs")
        );
    }
}
