//! The VMM's process: started with exactly the descriptors it needs, held by a pidfd, and its exit
//! told to everybody who waits.

use crate::cgroup::PodCgroup;
use crate::record::VmmIdentity;
use crate::{Result, SandboxError};
use bulkhead_vmm_api::{ExitReason, VmmConfig};
use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal,
    waitid,
};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// The first descriptor number that the VMM inherits besides its standard streams.
const FIRST_FD: RawFd = 3;
/// What a seccomp filter kills with, signal(7).
const SIGSYS: i32 = 31;
/// How much of the VMM's last words is shown.
const LOG_TAIL: u64 = 4096;

/// Descriptors for the VMM, numbered in the order in which they are added.
#[derive(Default)]
pub(crate) struct Inherited {
    files: Vec<FdMapping>,
}

impl Inherited {
    /// Adds a descriptor and tells its number in the VMM.
    pub(crate) fn add(&mut self, fd: OwnedFd) -> RawFd {
        let child_fd =
            FIRST_FD + RawFd::try_from(self.files.len()).unwrap_or(RawFd::MAX - FIRST_FD);
        self.files.push(FdMapping {
            parent_fd: fd,
            child_fd,
        });
        child_fd
    }

    /// Has a command's process inherit them, and nothing else besides its standard streams.
    pub(crate) fn give_to(self, command: &mut Command) -> io::Result<()> {
        command
            .fd_mappings(self.files)
            .map(drop)
            .map_err(|_| io::Error::other("Two descriptors have the same number"))
    }
}

/// A VMM that waits for its configuration. Dropped, it is killed.
pub(crate) struct Launched {
    child: Option<Child>,
}

/// Starts the VMM's program; it does nothing until [`Launched::begin`].
pub(crate) fn spawn(program: &Path, files: Inherited, log: File) -> Result<Launched> {
    let failed = || SandboxError::io(format!("start the VMM {}", program.display()));
    let mut command = Command::new(program);
    command
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(log);
    files.give_to(&mut command).map_err(failed())?;
    let child = command.spawn().map_err(failed())?;
    Ok(Launched { child: Some(child) })
}

impl Launched {
    /// Puts the VMM into its cgroup and gives it its configuration.
    pub(crate) async fn begin(
        mut self,
        pod: &str,
        config: &VmmConfig,
        cgroup: &PodCgroup,
        directory: &Path,
    ) -> Result<Process> {
        let failed = || {
            SandboxError::io(format!(
                "hand the VMM of pod sandbox {pod} its configuration"
            ))
        };
        let Some(child) = self.child.as_mut() else {
            return Err(failed()(io::Error::other("It was begun already")));
        };
        let pid = i32::try_from(child.id()).map_err(|error| failed()(io::Error::other(error)))?;
        cgroup.add(pid).await?;
        let identity = VmmIdentity {
            pid,
            start_ticks: start_ticks(pid).map_err(failed())?,
            user: config.uid,
        };
        // The child has not been waited for, so its number cannot belong to another process.
        let pidfd = open_pidfd(pid).map_err(failed())?;
        let text = serde_json::to_vec(config).map_err(|error| failed()(error.into()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // Smaller than a pipe's buffer, so this does not block.
            stdin.write_all(&text).map_err(failed())?;
        }
        let process = Process::watch(pod, identity, pidfd, directory, cgroup)?;
        self.child = None;
        Ok(process)
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; then there is nothing to kill, only to reap.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A running VMM.
pub(crate) struct Process {
    pub(crate) identity: VmmIdentity,
    pidfd: Arc<AsyncFd<OwnedFd>>,
    cause: watch::Receiver<Option<String>>,
}

impl Process {
    /// Takes over a VMM that another daemon started, if the process is still the same.
    pub(crate) fn adopt(
        pod: &str,
        identity: &VmmIdentity,
        directory: &Path,
        cgroup: &PodCgroup,
    ) -> Result<Self> {
        let find = || -> io::Result<OwnedFd> {
            let pidfd = open_pidfd(identity.pid)?;
            // Compared after the pidfd is open: from then on it means one process for ever.
            match start_ticks(identity.pid)? == identity.start_ticks {
                true => Ok(pidfd),
                false => Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    "Its process is gone",
                )),
            }
        };
        let pidfd = find().map_err(SandboxError::io(format!(
            "find the VMM of pod sandbox {pod} again"
        )))?;
        Self::watch(pod, identity.clone(), pidfd, directory, cgroup)
    }

    fn watch(
        pod: &str,
        identity: VmmIdentity,
        pidfd: OwnedFd,
        directory: &Path,
        cgroup: &PodCgroup,
    ) -> Result<Self> {
        let pidfd = super::watched::watch(pidfd).map_err(SandboxError::io("watch a pidfd"))?;
        let pidfd = Arc::new(pidfd);
        let (sender, cause) = watch::channel(None);
        tokio::spawn(tell_exit(
            pod.to_owned(),
            Arc::clone(&pidfd),
            directory.join("vmm.log"),
            cgroup.clone(),
            sender,
        ));
        Ok(Self {
            identity,
            pidfd,
            cause,
        })
    }

    /// Waits until the process has ended, and says why.
    pub(crate) async fn ended(&self) -> String {
        let mut cause = self.cause.clone();
        match cause.wait_for(Option::is_some).await {
            Ok(value) => value.clone().unwrap_or_default(),
            Err(_) => "it is no longer watched".to_owned(),
        }
    }

    /// Kills the process. One that has ended stays as it is.
    pub(crate) fn kill(&self) {
        if let Err(error) = pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL) {
            tracing::debug!(pid = self.identity.pid, %error, "The VMM could not be killed");
        }
    }
}

async fn tell_exit(
    pod: String,
    pidfd: Arc<AsyncFd<OwnedFd>>,
    log: PathBuf,
    cgroup: PodCgroup,
    sender: watch::Sender<Option<String>>,
) {
    // A pidfd becomes readable when its process ends.
    if let Err(error) = pidfd.readable().await {
        tracing::error!(pod, %error, "The VMM cannot be watched");
        return;
    }
    let status = waitid(
        WaitId::PidFd(pidfd.get_ref().as_fd()),
        WaitIdOptions::EXITED,
    );
    let mut cause = match status {
        Ok(Some(status)) => describe(&status, cgroup.oom_kills().await),
        // Not a child of this daemon's.
        _ => "it ended; its exit status went to an earlier daemon".to_owned(),
    };
    let ordinary = [
        ExitReason::GuestPowerOff.to_string(),
        ExitReason::Killed.to_string(),
        ExitReason::ShutDown.to_string(),
    ];
    if !ordinary.contains(&cause) {
        let words = last_words(&log).unwrap_or_default();
        if !words.is_empty() {
            cause = format!("{cause}; its last words: {words}");
        }
    }
    sender.send_replace(Some(cause));
}

fn describe(status: &WaitIdStatus, oom_kills: u64) -> String {
    if let Some(code) = status.exit_status() {
        return match ExitReason::from_status(code) {
            Some(reason) => reason.to_string(),
            None => format!("the VMM exited with the unknown status {code}"),
        };
    }
    match status.terminating_signal() {
        Some(SIGSYS) => {
            "the VMM made a system call that its seccomp filter forbids and was killed; a guest \
                         may be attacking it, or Bulkhead has a bug"
                .to_owned()
        }
        Some(9) if oom_kills > 0 => {
            "the host's OOM killer ended the VMM: the pod's cgroup reached its memory limit"
                .to_owned()
        }
        Some(signal) => format!("the VMM was ended by signal {signal}"),
        None => "the VMM ended".to_owned(),
    }
}

fn last_words(path: &Path) -> io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

pub(crate) fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("0 is not a process"))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Field 22 of `/proc/PID/stat` (proc_pid_stat(5)); the fields after the command's name, which may
/// itself have spaces and parentheses, begin with the third.
pub(crate) fn start_ticks(pid: i32) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = text
        .rsplit_once(')')
        .map(|(_, rest)| rest)
        .unwrap_or_default();
    let field = rest.split_whitespace().nth(22 - 3);
    field
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::other("Unknown format"))
}
