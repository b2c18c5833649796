//! One more process in a running container.

use crate::container::Container;
use crate::id::{new_id, new_stream_id};
use crate::io::collect;
use crate::record::{ContainerState, StreamIds};
use crate::sandbox::Running;
use crate::{Result, SandboxError};
use bulkhead_agent_api::agent;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

/// The most output of one stream that ExecSync returns; the rest is dropped. Both streams together
/// must fit in one message of 16 MiB, which is the kubelet's limit.
const MAX_OUTPUT: usize = (8 << 20) - 4096;
/// SIGKILL.
const KILL: u32 = 9;

/// What to run.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    /// Program and arguments.
    pub args: Vec<String>,
    /// Whether standard input is wanted.
    pub stdin: bool,
    /// Whether it gets a terminal; then there is no standard error.
    pub terminal: bool,
    /// Initial size of the terminal, in characters.
    pub size: (u32, u32),
}

/// What a command printed and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Its exit code.
    pub code: i32,
}

/// The terminal of an [`Execution`].
#[derive(Clone)]
pub struct Terminal {
    container: Arc<Container>,
    running: Arc<Running>,
    id: String,
}

impl Terminal {
    /// Sets its size, in characters.
    ///
    /// # Errors
    /// Those of the agent.
    pub async fn resize(&self, width: u32, height: u32) -> Result<()> {
        let agent = &self.running.agent;
        agent
            .resize(self.container.id(), &self.id, (width, height))
            .await
    }
}

/// A process that was started by [`Container::exec`]. Dropped before its end, it is killed with
/// everything that it has started.
pub struct Execution {
    container: Arc<Container>,
    running: Arc<Running>,
    id: String,
    /// Standard input, if it was asked for; dropping its write half ends it.
    pub stdin: Option<UnixStream>,
    /// Standard output, or the terminal.
    pub stdout: Option<UnixStream>,
    /// Standard error, unless there is a terminal.
    pub stderr: Option<UnixStream>,
    started: bool,
    /// Until its end was told.
    exit: Option<oneshot::Receiver<agent::Exit>>,
}

impl Container {
    /// Starts a process in the container, as its user and with its environment.
    ///
    /// # Errors
    /// [`SandboxError::WrongState`] unless the container runs; the agent's refusal, NOT_FOUND if
    /// the program is not in the image.
    pub async fn exec(self: &Arc<Self>, request: ExecRequest) -> Result<Execution> {
        if !matches!(self.state(), ContainerState::Running { .. }) {
            return Err(self.wrong_state("only in a running container can a command be executed"));
        }
        if request.args.is_empty() {
            return Err(SandboxError::InvalidField {
                field: "cmd",
                problem: "must name a program".to_owned(),
            });
        }
        let running = self.sandbox.running()?;
        let streams = StreamIds {
            stdin: if request.stdin { new_stream_id()? } else { 0 },
            stdout: new_stream_id()?,
            stderr: if request.terminal {
                0
            } else {
                new_stream_id()?
            },
            terminal: request.terminal,
        };
        let record = self.record();
        let mut process = record.process;
        process.set_args(Some(request.args));
        process.set_terminal(Some(request.terminal));
        let mut message = agent::ExecRequest::new();
        message.container_id = self.id().to_owned();
        message.exec_id = new_id()?;
        message.user = record.user;
        message.strict_groups = record.strict_groups;
        message.stdio = Some(streams.to_stdio(request.size)).into();
        message.process = serde_json::to_vec(&process).map_err(|source| SandboxError::Spec {
            container: self.id().to_owned(),
            source,
        })?;
        let id = message.exec_id.clone();
        let mut execution = Execution {
            started: false,
            exit: Some(running.exits.expect(&id)),
            container: Arc::clone(self),
            running,
            id,
            stdin: None,
            stdout: None,
            stderr: None,
        };
        for (stream, id) in [
            (&mut execution.stdin, streams.stdin),
            (&mut execution.stdout, streams.stdout),
            (&mut execution.stderr, streams.stderr),
        ] {
            if id != 0 {
                *stream = Some(execution.running.agent.stream(id).await?);
            }
        }
        // In a task of its own, so that a caller who goes away does not leave a process behind.
        let container = self.id().to_owned();
        let started = tokio::spawn(async move {
            execution.running.agent.exec(&message).await?;
            execution.started = true;
            Ok(execution)
        });
        let cut_short = |_| SandboxError::NotFound {
            what: "container",
            id: container,
        };
        started.await.map_err(cut_short)?
    }

    /// Runs a command to its end. A zero `limit` means that there is none.
    ///
    /// # Errors
    /// Those of [`Container::exec`]; [`SandboxError::ExecTimeout`] after which the command is dead.
    pub async fn exec_sync(
        self: &Arc<Self>,
        args: Vec<String>,
        limit: Duration,
    ) -> Result<ExecOutput> {
        let mut execution = self
            .exec(ExecRequest {
                args,
                ..Default::default()
            })
            .await?;
        let (stdout, stderr) = (execution.stdout.take(), execution.stderr.take());
        let output = async {
            let (stdout, stderr) = tokio::join!(collected(stdout), collected(stderr));
            let code = execution.wait().await?;
            Ok(ExecOutput {
                stdout,
                stderr,
                code,
            })
        };
        if limit.is_zero() {
            return output.await;
        }
        match tokio::time::timeout(limit, output).await {
            Ok(output) => output,
            Err(_) => {
                execution.kill().await?;
                Err(SandboxError::ExecTimeout {
                    container: self.id().to_owned(),
                    limit,
                })
            }
        }
    }
}

async fn collected(stream: Option<UnixStream>) -> Vec<u8> {
    match stream {
        Some(stream) => collect(stream, MAX_OUTPUT).await,
        None => Vec::new(),
    }
}

impl Execution {
    /// Waits for its end and tells its exit code.
    ///
    /// # Errors
    /// [`SandboxError::PlaceEnded`] if the pod's VM ended first.
    pub async fn wait(&mut self) -> Result<i32> {
        let Some(exit) = self.exit.as_mut() else {
            return Err(self.container.wrong_state("its end was told already"));
        };
        let told = exit.await;
        self.exit = None;
        match told {
            Ok(exit) => Ok(i32::try_from(exit.code).unwrap_or(255)),
            Err(_) => Err(SandboxError::PlaceEnded {
                pod: self.container.sandbox.id(),
                cause: self.running.place.ended().await,
            }),
        }
    }

    /// Kills it with everything that it has started.
    ///
    /// # Errors
    /// Those of the agent.
    pub async fn kill(&self) -> Result<()> {
        self.container.signal(&self.id, KILL, true).await
    }

    /// Its terminal, to be resized while somebody waits for its end.
    #[must_use]
    pub fn terminal(&self) -> Terminal {
        Terminal {
            container: Arc::clone(&self.container),
            running: Arc::clone(&self.running),
            id: self.id.clone(),
        }
    }
}

impl Drop for Execution {
    fn drop(&mut self) {
        self.running.exits.forget(&self.id);
        if !self.started || self.exit.is_none() {
            return;
        }
        // Nobody waits for it any more.
        let (container, id) = (Arc::clone(&self.container), std::mem::take(&mut self.id));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = container.signal(&id, KILL, true).await {
                    tracing::debug!(exec = id, %error, "An abandoned process was not killed");
                }
            });
        }
    }
}
