//! `Configure`: what makes a guest into a certain pod. Every step says what it wants, not what to
//! change, so the same request again changes nothing.

mod direct;
mod empty_dir;
mod ext4;
mod fs_group;
mod interfaces;
mod mirror;
mod network;
mod scratch;
mod sysctl;

pub use direct::{DirectVolumes, FILE_SYSTEMS, mount_options};
pub use empty_dir::EmptyDirs;
pub use ext4::Geometry;
pub use interfaces::interfaces;
pub use mirror::Mirror;
pub use scratch::{Project, Scratch};
pub use sysctl::path as sysctl_path;

use crate::deadline::Deadline;
use crate::error::Context;
use crate::{Error, Result, id, spec};
use bulkhead_agent_api::agent::{ConfigureRequest, File};
use rustix::mount::MountFlags;
use rustix::time::{ClockId, Timespec};
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The most files of a pod.
const MAX_FILES: usize = 64;
/// The largest file of a pod, and the longest value of a sysctl.
const MAX_FILE: usize = 1024 * 1024;

/// The pod that this guest is.
#[derive(Debug)]
pub struct Pod {
    /// Where its files are: `/run/bulkhead/pod`.
    files: PathBuf,
    /// `/proc/sys`.
    sysctls: PathBuf,
    /// `/dev/shm`.
    shm: PathBuf,
    scratch: Arc<Scratch>,
    /// Whether the clock is the pod's to set.
    own_clock: bool,
    /// One `Configure` at a time.
    busy: tokio::sync::Mutex<()>,
}

impl Pod {
    /// For these directories.
    pub fn new(files: PathBuf, sysctls: PathBuf, shm: PathBuf, scratch: Arc<Scratch>) -> Self {
        Self {
            files,
            sysctls,
            shm,
            scratch,
            own_clock: true,
            busy: tokio::sync::Mutex::default(),
        }
    }

    /// For an agent that is not in a guest: the clock is everybody's there, and left alone.
    #[must_use]
    pub fn without_clock(self) -> Self {
        Self {
            own_clock: false,
            ..self
        }
    }

    /// Does all that the request says. Everything is checked before anything is changed.
    pub async fn configure(&self, request: &ConfigureRequest, deadline: Deadline) -> Result<()> {
        let sysctls = check(request)?;
        let interfaces = network::parse(&request.interfaces)?;
        let _one = self.busy.lock().await;
        if request.time_ns != 0 && self.own_clock {
            step_clock(request.time_ns)?;
        }
        if !request.hostname.is_empty() {
            rustix::system::sethostname(request.hostname.as_bytes())
                .context(|| "Cannot set the host name")?;
        }
        // Before the sysctls, which may be those of an interface.
        network::configure(&interfaces, &self.sysctls)?;
        for (name, path, value) in sysctls {
            sysctl::write(&self.sysctls.join(path), value).map_err(|error| {
                Error::Invalid(format!("The kernel refuses sysctl {name}: {error}"))
            })?;
        }
        if request.shm_size != 0 {
            limit_shm(&self.shm, request.shm_size)?;
        }
        for file in &request.files {
            write_file(&self.files, file)?;
        }
        if !request.scratch_disk.is_empty() {
            self.scratch.mount(&request.scratch_disk, deadline).await?;
        }
        Ok(())
    }

    /// The pod's scratch space.
    pub fn scratch(&self) -> &Arc<Scratch> {
        &self.scratch
    }
}

/// Checks a request; returns the sysctls with their paths.
pub(crate) fn check(request: &ConfigureRequest) -> Result<Vec<(&str, PathBuf, &str)>> {
    let name = &request.hostname;
    if !name.is_empty() && !spec::hostname_is_valid(name) {
        return Err(Error::Invalid(format!(
            "{} is not a valid hostname",
            id::quote(name)
        )));
    }
    if request.files.len() > MAX_FILES {
        return Err(Error::Invalid(format!(
            "There are more than {MAX_FILES} files"
        )));
    }
    for file in &request.files {
        if !id::check(&file.name) {
            return Err(Error::Invalid(format!(
                "{} is not a plain file name",
                id::quote(&file.name)
            )));
        }
        if file.content.len() > MAX_FILE {
            return Err(Error::Invalid(format!(
                "File {} is larger than {MAX_FILE} bytes",
                file.name
            )));
        }
    }
    let mut sysctls = Vec::new();
    for (name, value) in &request.sysctls {
        let path = sysctl::path(name)
            .ok_or_else(|| Error::Invalid(format!("{} is not a valid sysctl", id::quote(name))))?;
        if value.len() > MAX_FILE || value.contains('\0') {
            return Err(Error::Invalid(format!(
                "Sysctl {name} has an invalid value"
            )));
        }
        sysctls.push((name.as_str(), path, value.as_str()));
    }
    // A map has no order; the same request does the same.
    sysctls.sort_unstable();
    Ok(sysctls)
}

fn step_clock(time_ns: u64) -> Result<()> {
    let time = Timespec {
        tv_sec: i64::try_from(time_ns / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(time_ns % 1_000_000_000).unwrap_or(0),
    };
    rustix::time::clock_settime(ClockId::Realtime, time).context(|| "Cannot set the clock")
}

fn limit_shm(shm: &Path, bytes: u64) -> Result<()> {
    let what = || "Cannot set the size of /dev/shm";
    let options = CString::new(format!("size={bytes}")).context(what)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount_remount(shm, flags, options.as_c_str()).context(what)
}

/// Writes a file in place: containers may have bound it.
fn write_file(directory: &Path, file: &File) -> Result<()> {
    let path = directory.join(&file.name);
    let what = || format!("Cannot write {}", path.display());
    fs::create_dir_all(directory).context(what)?;
    let mode = match file.mode & 0o7777 {
        0 => 0o644,
        mode => mode,
    };
    if !fs::read(&path).is_ok_and(|content| content == file.content) {
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(mode);
        let mut open = options.open(&path).context(what)?;
        std::io::Write::write_all(&mut open, &file.content).context(what)?;
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).context(what)
}

#[cfg(test)]
mod tests;
