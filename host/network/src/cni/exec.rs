//! One execution of a plugin: a process in a group of its own, its input and output capped and timed.
#![allow(unsafe_code)] // having the runtime watch a descriptor is marked unsafe; see there.

use super::config::names;
use crate::{NetworkError, Result};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus};
use serde::Deserialize;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, Interest};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};

/// The longest output in bytes.
const MAX_OUTPUT: usize = 1 << 20;
/// How much of what a plugin writes to standard error is shown.
const MAX_WORDS: usize = 2048;

/// What is to be executed.
pub(crate) struct Execution<'a> {
    /// The plugin's type.
    pub(crate) plugin: &'a str,
    /// ADD, DEL, ...
    pub(crate) command: &'static str,
    /// Where plugins are.
    pub(crate) directories: &'a [PathBuf],
    /// CNI_CONTAINERID and so on; CNI_COMMAND and CNI_PATH are added.
    pub(crate) variables: Vec<(&'static str, String)>,
    /// The configuration.
    pub(crate) input: Vec<u8>,
    /// How long it may take.
    pub(crate) limit: Duration,
}

/// The plugin's process. Whatever happens, no process of its group outlives this.
struct Group {
    child: Child,
    pid: Pid,
}

impl Group {
    /// The group's number cannot belong to others: its first process has not been waited for.
    fn kill(&self) {
        // Nobody may be left.
        let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
        // The signal that ends it is on its way.
        let _ = self.child.wait();
    }
}

/// The error that a plugin prints when it refuses.
#[derive(Deserialize)]
struct Refusal {
    code: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

impl Execution<'_> {
    /// Runs the plugin to its end and returns its output. Dropped, it kills the plugin.
    pub(crate) async fn run(self) -> Result<Vec<u8>> {
        let program = self.find()?;
        let failed = |problem: String| NetworkError::PluginFailed {
            plugin: self.plugin.to_owned(),
            command: self.command,
            problem,
        };
        let broken = |error: io::Error| failed(error.to_string());
        let mut group = self.start(&program).map_err(broken)?;
        let pidfd = rustix::process::pidfd_open(group.pid, PidfdFlags::empty())
            .map_err(|error| broken(error.into()))?;
        // SAFETY: an `OwnedFd` closes only when it is dropped, and the `AsyncFd` deregisters it before that.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
        let pidfd = pidfd.map_err(|error| broken(error.into()))?;
        let (stdin, stdout, stderr) = pipes(&mut group.child).map_err(broken)?;
        let work = async {
            let talk =
                async { tokio::join!(feed(stdin, &self.input), output(stdout), words(stderr)) };
            let end = async {
                let status = ended(&pidfd).await;
                // What it has left running would keep its output open.
                group.kill();
                status
            };
            tokio::join!(talk, end)
        };
        let Ok((((), stdout, words), status)) = tokio::time::timeout(self.limit, work).await else {
            return Err(NetworkError::PluginTimeout {
                plugin: self.plugin.to_owned(),
                command: self.command,
                limit: self.limit,
            });
        };
        let status = status.map_err(broken)?;
        let stdout = stdout.map_err(broken)?;
        if status.exit_status() == Some(0) {
            return Ok(stdout);
        }
        if let Ok(refusal) = serde_json::from_slice::<Refusal>(&stdout) {
            let details = [refusal.msg, refusal.details].join(": ");
            return Err(NetworkError::PluginRefused {
                plugin: self.plugin.to_owned(),
                command: self.command,
                code: refusal.code,
                message: details.trim_matches([':', ' ']).to_owned(),
            });
        }
        Err(failed(describe(&status, &words)))
    }

    pub(crate) fn find(&self) -> Result<PathBuf> {
        let executable = |path: &PathBuf| {
            std::fs::metadata(path)
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        let mut candidates = self.directories.iter().map(|one| one.join(self.plugin));
        candidates
            .find(executable)
            .ok_or_else(|| NetworkError::PluginMissing {
                plugin: self.plugin.to_owned(),
                directories: names(self.directories),
            })
    }

    /// The environment is the daemon's, as the reference library's: plugins look for programs in PATH.
    fn start(&self, program: &Path) -> io::Result<Group> {
        let mut command = Command::new(program);
        let paths: Vec<_> = self.directories.iter().map(|one| one.as_os_str()).collect();
        command
            .env("CNI_COMMAND", self.command)
            .env("CNI_PATH", paths.join(std::ffi::OsStr::new(":")))
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        Ok(Group { child, pid })
    }
}

fn pipes(child: &mut Child) -> io::Result<(ChildStdin, ChildStdout, ChildStderr)> {
    let missing = || io::Error::other("A pipe is missing");
    Ok((
        ChildStdin::from_std(child.stdin.take().ok_or_else(missing)?)?,
        ChildStdout::from_std(child.stdout.take().ok_or_else(missing)?)?,
        ChildStderr::from_std(child.stderr.take().ok_or_else(missing)?)?,
    ))
}

/// A plugin that does not read its configuration says so by how it ends.
async fn feed(mut stdin: ChildStdin, input: &[u8]) {
    let _ = stdin.write_all(input).await;
}

/// Waits for the end without reaping, so that the process group stays the plugin's.
async fn ended(pidfd: &AsyncFd<OwnedFd>) -> io::Result<WaitIdStatus> {
    let _ready = pidfd.readable().await?;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    let status = rustix::process::waitid(WaitId::PidFd(pidfd.get_ref().as_fd()), options)?;
    status.ok_or_else(|| io::Error::other("Its exit status is not known"))
}

/// All output to its end; too much is an error, and is read all the same.
async fn output(mut pipe: impl AsyncRead + Unpin) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    (&mut pipe)
        .take(MAX_OUTPUT as u64 + 1)
        .read_to_end(&mut all)
        .await?;
    if all.len() > MAX_OUTPUT {
        tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
        return Err(io::Error::other(format!(
            "its output is longer than {MAX_OUTPUT} bytes"
        )));
    }
    Ok(all)
}

/// The end of what it says to people.
async fn words(mut pipe: impl AsyncRead + Unpin) -> String {
    let mut last = Vec::new();
    let mut chunk = vec![0; 4096];
    while let Ok(length @ 1..) = pipe.read(&mut chunk).await {
        last.extend(chunk.iter().take(length));
        let surplus = last.len().saturating_sub(MAX_WORDS);
        last.drain(..surplus);
    }
    String::from_utf8_lossy(&last).trim().to_owned()
}

fn describe(status: &WaitIdStatus, words: &str) -> String {
    let how = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("it exited with status {code}"),
        (None, Some(signal)) => format!("signal {signal} ended it"),
        (None, None) => "it ended".to_owned(),
    };
    match words.is_empty() {
        true => format!("{how} and said nothing"),
        false => format!("{how}; it said: {words}"),
    }
}
