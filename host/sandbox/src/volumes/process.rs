//! The file daemon's process.

use super::{Parts, front_end};
use crate::record::{FileDaemonRecord, VmmIdentity};
use crate::store::blocking;
use crate::vm::{self, Inherited, PodDirectory, open_pidfd, start_ticks};
use crate::{Result, SandboxError};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Instant;
use tokio::sync::watch;

/// The most files that a guest can have open, and with it directories that it knows.
const DESCRIPTORS: u64 = 65_536;
/// Requests that are served at once.
const THREADS: usize = 2;
const SOCKET: &str = "fs.sock";
const LOG: &str = "fs.log";

/// A file daemon.
pub(super) struct FileDaemon {
    identity: VmmIdentity,
    /// Which of the pod's it is; the next has a higher one.
    pub(super) epoch: u16,
    /// When this daemon started or found it.
    pub(super) began: Instant,
    /// Stays when the process ends, and with it the pod's volumes.
    namespace: File,
    /// Why it has ended, once it has.
    end: watch::Receiver<Option<String>>,
}

impl FileDaemon {
    /// Starts one in the pod's cgroup. Answers as well what the VMM needs to reach it.
    pub(super) async fn start(
        pod: &str,
        parts: Parts<'_>,
        epoch: u16,
    ) -> Result<(Self, Vec<OwnedFd>)> {
        let failed = || SandboxError::io(format!("start the file daemon of pod sandbox {pod}"));
        let program = &parts.sandbox.services.config.file_daemon;
        let path = parts.sandbox.directory();
        let directory = PodDirectory::open(&path)?;
        let mut files = Inherited::default();
        let number = files.add(directory.listen_stream(SOCKET)?);
        let config = format!(
            r#"{{"listener_fd":{number},"descriptors":{DESCRIPTORS},"threads":{THREADS},"epoch":{epoch}}}"#
        );
        let mut command = Command::new(program);
        command
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(directory.create_file(LOG)?);
        files.give_to(&mut command).map_err(failed())?;
        let mut child = Killed(Some(command.spawn().map_err(|error| {
            SandboxError::io(format!("start the file daemon {}", program.display()))(error)
        })?));
        // Its copy of the listening socket must be the only one: it ends with the process.
        drop(command);
        let identity = child.begin(&parts, &config).await.map_err(failed())?;
        let socket = directory.connect_stream(SOCKET)?;
        directory.remove(SOCKET)?;
        let fds = blocking(move || Ok(front_end::set_up(socket.into())));
        let fds = fds.await?.map_err(|error| {
            let words = std::fs::read_to_string(path.join(LOG)).unwrap_or_default();
            failed()(io::Error::other(format!("{error} {}", words.trim())))
        })?;
        let daemon = Self::find(pod, &FileDaemonRecord { identity, epoch }).map_err(failed())?;
        child.0 = None;
        Ok((daemon, fds))
    }

    /// Finds the process, if it is still the same.
    pub(super) fn find(pod: &str, record: &FileDaemonRecord) -> io::Result<Self> {
        let identity = &record.identity;
        let pidfd = open_pidfd(identity.pid)?;
        let namespace = File::open(format!("/proc/{}/ns/mnt", identity.pid))?;
        // Compared after both are open: they are of this process, whatever comes.
        if start_ticks(identity.pid)? != identity.start_ticks {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "Its process is gone",
            ));
        }
        let (sender, end) = watch::channel(None);
        tokio::spawn(tell_exit(pod.to_owned(), pidfd, sender));
        Ok(Self {
            identity: identity.clone(),
            epoch: record.epoch,
            began: Instant::now(),
            namespace,
            end,
        })
    }

    /// Why it has ended; nothing while it runs.
    pub(super) fn ended(&self) -> Option<String> {
        self.end.borrow().clone()
    }

    /// Tells of its end.
    pub(super) fn end(&self) -> watch::Receiver<Option<String>> {
        self.end.clone()
    }

    /// What another daemon finds it by.
    pub(super) fn record(&self) -> FileDaemonRecord {
        FileDaemonRecord {
            identity: self.identity.clone(),
            epoch: self.epoch,
        }
    }

    /// Its mount namespace.
    pub(super) fn namespace(&self) -> Result<File> {
        self.namespace
            .try_clone()
            .map_err(SandboxError::io("duplicate a descriptor"))
    }
}

/// A child that is killed unless it is taken out.
struct Killed(Option<Child>);

impl Killed {
    /// Puts it into the pod's cgroup and gives it its configuration.
    async fn begin(&mut self, parts: &Parts<'_>, config: &str) -> io::Result<VmmIdentity> {
        let child = self
            .0
            .as_mut()
            .ok_or_else(|| io::Error::other("It has gone"))?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        let joined = parts.sandbox.cgroup().add(pid).await;
        joined.map_err(|error| io::Error::other(error.to_string()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // Smaller than a pipe's buffer, so this does not block.
            stdin.write_all(config.as_bytes())?;
        }
        Ok(VmmIdentity {
            pid,
            start_ticks: start_ticks(pid)?,
            user: 0,
        })
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // It may have ended by itself; then there is nothing to kill, only to reap.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

async fn tell_exit(pod: String, pidfd: OwnedFd, end: watch::Sender<Option<String>>) {
    let pidfd = match vm::watch(pidfd) {
        Ok(pidfd) => pidfd,
        Err(error) => return tracing::error!(pod, %error, "The file daemon cannot be watched"),
    };
    // A pidfd becomes readable when its process ends.
    if let Err(error) = pidfd.readable().await {
        return tracing::error!(pod, %error, "The file daemon cannot be watched");
    }
    let status = waitid(
        WaitId::PidFd(pidfd.get_ref().as_fd()),
        WaitIdOptions::EXITED,
    );
    let cause = match status {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("it exited with status {code}"),
            (None, Some(signal)) => format!("signal {signal} ended it"),
            _ => "it ended".to_owned(),
        },
        // Not a child of this daemon's.
        _ => "it ended".to_owned(),
    };
    tracing::debug!(pod, cause, "The file daemon has ended");
    end.send_replace(Some(cause));
}
