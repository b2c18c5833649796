//! Seeing one process to its end: a task that waits for the end of the control socket (the program
//! runs, or why not), then for the end of the process, then for the last of its output, and tells
//! the actor.

use super::actor::{Command, log};
use super::launch::{Answer, Control};
use super::stdio::Pumps;
use crate::cgroup::Cgroup;
use crate::id::Id;
use crate::reaper::{ExitReceiver, Status};
use bulkhead_agent_api::agent::Exit;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;

/// The exit code of a program that could not be run.
const NOT_RUN: u32 = 128;
/// How long the exit of a container waits for the rest of its processes to be gone.
const REST_TIME: Duration = Duration::from_secs(10);

/// Sees a process to its end.
pub(super) struct Supervisor {
    pub(super) container_id: Id,
    pub(super) exec_id: Option<Id>,
    pub(super) cgroup: Arc<Cgroup>,
    /// OOM kills in the cgroup before the process was made.
    pub(super) oom_kills: u64,
    pub(super) commands: mpsc::Sender<Command>,
}

impl Supervisor {
    pub(super) async fn run(self, control: Arc<Control>, mut exit: ExitReceiver, pumps: Pumps) {
        let mut early = None;
        let said = tokio::select! {
            biased;
            said = control.receive() => said,
            // A process whose control socket somebody else holds open.
            status = &mut exit => {
                early = Some(status);
                control.receive_now()
            }
        };
        let failure = match said {
            Ok(Answer::Failure(failure)) => Some(failure),
            _ => None,
        };
        // An actor that is gone has removed the container.
        let _ = self
            .commands
            .send(Command::Launched(self.exec_id.clone(), failure.clone()))
            .await;
        drop(control);
        let status = match early {
            Some(status) => status,
            None => exit.await,
        };
        let finished_ns = now_ns();
        if self.exec_id.is_none() {
            // With a pid namespace of its own everything in it is dying already.
            log(self.cgroup.kill());
            if tokio::time::timeout(REST_TIME, self.cgroup.empty())
                .await
                .is_err()
            {
                tracing::warn!(
                    "Container {} has processes that do not die",
                    self.container_id
                );
            }
        }
        let ([stdout_bytes, stderr_bytes], deliveries) = pumps.finish().await;
        let mut message = Exit::new();
        message.container_id = self.container_id.to_string();
        message.exec_id = self
            .exec_id
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        (message.code, message.signal) = match status {
            Ok(Status::Exited(code)) => (code.into(), 0),
            Ok(Status::Signaled(signal)) => (128 + signal, signal),
            Err(_) => (255, 0),
        };
        if let Some(failure) = failure {
            (message.code, message.signal) = (NOT_RUN, 0);
            message.error = failure.message;
        }
        message.oom_killed = self.cgroup.oom_kills() > self.oom_kills;
        message.finished_ns = finished_ns;
        (message.stdout_bytes, message.stderr_bytes) = (stdout_bytes, stderr_bytes);
        let _ = self
            .commands
            .send(Command::Ended(self.exec_id, message, deliveries))
            .await;
    }
}

/// Nanoseconds since the epoch.
pub(super) fn now_ns() -> u64 {
    let elapsed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
}
