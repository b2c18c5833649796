//! One cgroup (version 2) for each container, under one for all of them.

mod descriptors;
pub mod devices;
mod freeze;
mod stats;
mod update;

use crate::error::Context;
use crate::{Error, Result};
use bulkhead_agent_api::cgroup::field;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A value for a file of a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The file, as `memory.max`.
    pub file: String,
    /// What is written to it.
    pub value: String,
    /// Whether it may be missing.
    pub optional: bool,
}

/// Makes the directory that holds the containers' cgroups, with every controller for them.
pub fn prepare(parent: &Path) -> Result<()> {
    let above = parent.parent().unwrap_or(Path::new("/"));
    enable_controllers(above)?;
    match fs::create_dir(parent) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).context(|| format!("Cannot make cgroup {}", parent.display()));
        }
        _ => {}
    }
    enable_controllers(parent)
}

/// Limits the memory of a cgroup to what is available now but `reserve` bytes; returns that limit.
pub fn reserve_memory(cgroup: &Path, reserve: u64) -> Result<u64> {
    let what = || "Cannot read /proc/meminfo".to_owned();
    let text = fs::read_to_string("/proc/meminfo").context(what)?;
    let available = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .ok_or_else(|| Error::Internal("/proc/meminfo has no MemAvailable".to_owned()))?;
    let limit = (available * 1024).saturating_sub(reserve);
    set_memory(cgroup, limit)?;
    Ok(limit)
}

/// Limits the memory of a cgroup, unless more is in use that the kernel would kill for.
pub fn limit_memory(cgroup: &Path, limit: u64) -> Result<()> {
    let read = |file: &str| fs::read_to_string(cgroup.join(file)).unwrap_or_default();
    let used: u64 = read("memory.current").trim().parse().unwrap_or(0);
    let cache = field(&read("memory.stat"), "inactive_file");
    if used.saturating_sub(cache) > limit {
        return Err(Error::Precondition(format!(
            "The containers use {used} bytes of memory, more than the new limit of {limit}"
        )));
    }
    set_memory(cgroup, limit)
}

fn set_memory(cgroup: &Path, limit: u64) -> Result<()> {
    let value = match limit {
        u64::MAX => "max".to_owned(),
        limit => limit.to_string(),
    };
    fs::write(cgroup.join("memory.max"), value)
        .context(|| format!("Cannot limit the memory of {}", cgroup.display()))
}

/// Lets the children of a cgroup use every controller that it has. A controller that the kernel
/// refuses is left out: a limit that needs it fails by name later.
fn enable_controllers(cgroup: &Path) -> Result<()> {
    let file = cgroup.join("cgroup.controllers");
    let all = fs::read_to_string(&file).context(|| format!("Cannot read {}", file.display()))?;
    let control = cgroup.join("cgroup.subtree_control");
    let list: Vec<String> = all
        .split_whitespace()
        .map(|name| format!("+{name}"))
        .collect();
    if fs::write(&control, list.join(" ")).is_err() {
        for one in list {
            if let Err(error) = fs::write(&control, &one) {
                tracing::warn!(
                    "Controller {one} is not available in {}: {error}",
                    cgroup.display()
                );
            }
        }
    }
    Ok(())
}

/// The cgroup of one container.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: OwnedFd,
}

impl Cgroup {
    /// Makes it and sets its limits. What was made is removed again when a limit is refused.
    pub fn create(parent: &Path, name: &str, settings: &[Setting]) -> Result<Self> {
        let path = parent.join(name);
        fs::create_dir(&path).context(|| format!("Cannot make cgroup {name}"))?;
        let cgroup = open(&path).map(|directory| Self {
            path: path.clone(),
            directory,
        });
        let result = cgroup
            .context(|| format!("Cannot open cgroup {name}"))
            .and_then(|cgroup| {
                settings
                    .iter()
                    .try_for_each(|setting| cgroup.set(setting))?;
                Ok(cgroup)
            });
        if result.is_err() {
            // The first error is the one to tell.
            let _ = fs::remove_dir(&path);
        }
        result
    }

    fn set(&self, setting: &Setting) -> Result<()> {
        match self.write(&setting.file, &setting.value) {
            Ok(()) => Ok(()),
            Err(error) if setting.optional && error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(refused(setting, &error)),
        }
    }

    /// Writes a file that is there: to make one in a cgroup is refused, which hides that it is not.
    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.directory, file, flags, Mode::empty())?;
        // In one piece: each write is a whole value.
        rustix::io::write(&file, value.as_bytes())?;
        Ok(())
    }

    /// Lets its processes use these devices and no others.
    pub fn restrict_devices(&self, rules: &[devices::Rule]) -> Result<()> {
        match devices::program(rules) {
            None => Ok(()),
            Some(program) => crate::sys::bpf::attach_device_program(&self.directory, &program)
                .context(|| format!("Cannot restrict the devices of {}", self.path.display())),
        }
    }

    /// Its directory, for a clone into it.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// One below it without limits of its own, for a process that is to be killed with all that it
    /// makes. The container may turn controllers on for the cgroups below: a process may be here then,
    /// but not beside them.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::create(&self.path, name, &[])
    }

    /// Kills everything in it and below, at once.
    pub fn kill(&self) -> Result<()> {
        match fs::write(self.path.join("cgroup.kill"), "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.context(|| format!("Cannot kill cgroup {}", self.path.display())),
        }
    }

    /// Sends a signal to everything in it and below. Processes that come while this goes on may be
    /// missed, as with any signal but [`Self::kill`].
    pub fn signal(&self, signal: u32) -> Result<()> {
        let mut before = Vec::new();
        pids(&self.path, &mut before);
        let open: Vec<_> = before
            .into_iter()
            .filter_map(|pid| Some((pid, pidfd_open(pid, PidfdFlags::empty()).ok()?)))
            .collect();
        // A number that is still here now was this cgroup's when its pidfd was made, or the pidfd
        // is of a process that has ended.
        let mut after = Vec::new();
        pids(&self.path, &mut after);
        for (_, pidfd) in open.iter().filter(|(pid, _)| after.contains(pid)) {
            match crate::sys::process::signal(pidfd, signal) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                result => {
                    result.context(|| format!("Cannot signal cgroup {}", self.path.display()))?
                }
            }
        }
        Ok(())
    }

    /// How many of its processes an OOM killer has killed.
    pub fn oom_kills(&self) -> u64 {
        fs::read_to_string(self.path.join("memory.events"))
            .map_or(0, |text| field(&text, "oom_kill"))
    }

    /// Waits until no process is left in it.
    pub async fn empty(&self) -> Result<()> {
        self.event("populated", 0).await.map(drop)
    }

    /// Removes it with the cgroups that the container made in it. They must be empty.
    pub fn remove(&self) -> Result<()> {
        remove_tree(&self.path).context(|| format!("Cannot remove cgroup {}", self.path.display()))
    }
}

fn refused(setting: &Setting, error: &io::Error) -> Error {
    Error::Invalid(format!(
        "The kernel refuses {:?} for {}: {error}",
        setting.value, setting.file
    ))
}

/// Adds the processes of a cgroup and of those below it.
fn pids(cgroup: &Path, list: &mut Vec<Pid>) {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    list.extend(
        text.lines()
            .filter_map(|line| line.parse().ok().and_then(Pid::from_raw)),
    );
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids(&entry.path(), list);
        }
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(()) => return Ok(()),
        Err(_) => {}
    }
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

#[cfg(test)]
#[path = "cgroup/tests.rs"]
mod tests;
