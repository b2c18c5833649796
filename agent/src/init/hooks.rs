//! Hooks (OCI runtime specification, "POSIX-platform Hooks"): `createContainer` hooks are programs
//! of the guest, run in the container's namespaces before its root is entered; `startContainer`
//! hooks are programs of the container, run as its user just before its own program. A hook that
//! fails ends the container.

use super::plan::{Failure, FailureKind, Hook, State};
use super::{Doing, Step};
use crate::id::quote;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Runs them one after the other; each reads the state of the container from its standard input.
pub(super) fn run(hooks: &[Hook], state: &State, status: &str) -> Step {
    if hooks.is_empty() {
        return Ok(());
    }
    let document = Document {
        state,
        status,
        pid: pid(),
    };
    let text = serde_json::to_vec(&document).map_err(std::io::Error::other);
    let text = text.doing("write the state for a hook")?;
    hooks.iter().try_for_each(|hook| run_one(hook, &text))
}

#[derive(serde::Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    state: &'a State,
    status: &'a str,
    pid: u32,
}

/// The process's number as /proc here shows it.
fn pid() -> u32 {
    std::fs::read_link("/proc/self")
        .ok()
        .and_then(|link| link.to_str()?.parse().ok())
        .unwrap_or_else(std::process::id)
}

fn run_one(hook: &Hook, state: &[u8]) -> Step {
    let shown = quote(&hook.path);
    let what = format!("run hook {shown}");
    let mut command = Command::new(&hook.path);
    if let Some((name, args)) = hook.args.split_first() {
        command.arg0(name).args(args);
    }
    let env = hook.env.iter().filter_map(|entry| entry.split_once('='));
    // A group of its own, to be killed with what it has started.
    // A memory file, not a pipe, which a hook that does not read it could let overflow.
    let memory = rustix::fs::memfd_create("state", rustix::fs::MemfdFlags::CLOEXEC).doing(&what)?;
    let mut memory = std::fs::File::from(memory);
    memory.write_all(state).doing(&what)?;
    memory.rewind().doing(&what)?;
    command.env_clear().envs(env).stdin(memory);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.process_group(0);
    let mut child = command.spawn().doing(&what)?;
    let status = wait(&mut child, hook.timeout.map(Duration::from_secs)).doing(&what)?;
    let failed = |how: String| {
        Err(Failure {
            kind: FailureKind::Invalid,
            message: format!("Hook {shown} {how}"),
        })
    };
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => failed(format!("failed: {status}")),
        None => failed(format!(
            "did not end within {} seconds",
            hook.timeout.unwrap_or_default()
        )),
    }
}

/// Waits for the end; `None` when the time is over, the hook being dead then.
fn wait(child: &mut Child, limit: Option<Duration>) -> std::io::Result<Option<ExitStatus>> {
    let Some(limit) = limit else {
        return child.wait().map(Some);
    };
    let pid = rustix::process::Pid::from_child(child);
    let pidfd: OwnedFd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    let end = Instant::now() + limit;
    loop {
        let rest = end.saturating_duration_since(Instant::now());
        let time = Timespec {
            tv_sec: i64::try_from(rest.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: rest.subsec_nanos().into(),
        };
        let mut fds = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&time)) {
            Ok(0) => {
                // Not reaped yet, so the number is still the hook's.
                let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
                child.kill()?;
                child.wait()?;
                return Ok(None);
            }
            Ok(_) => return child.wait().map(Some),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
