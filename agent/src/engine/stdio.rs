//! A process's stdin, stdout and stderr: pipes or a terminal on one side, streams on the other.

use super::Shared;
use crate::error::Context;
use crate::streams::Port;
use crate::streams::pump::{InputEnd, OutputEnd, input, output};
use crate::sys::fd::Fd;
use crate::{Error, Result, sys};
use bulkhead_agent_api::agent::Stdio;
use std::os::fd::OwnedFd;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Stream ids, 0 where there is none, and the terminal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StdioSpec {
    /// To the process.
    pub stdin: u64,
    /// From the process.
    pub stdout: u64,
    /// From the process; 0 with a terminal.
    pub stderr: u64,
    /// Columns and rows, when there is one.
    pub terminal: Option<(u16, u16)>,
}

impl StdioSpec {
    /// Checks the message; an absent one asks for nothing.
    pub fn parse(stdio: &Stdio) -> Result<Self> {
        if stdio.terminal && stdio.stderr != 0 {
            return Err(Error::Invalid(
                "A process with a terminal has no stderr stream".to_owned(),
            ));
        }
        let ids = [stdio.stdin, stdio.stdout, stdio.stderr];
        let mut used: Vec<u64> = ids.into_iter().filter(|id| *id != 0).collect();
        used.sort_unstable();
        if used.windows(2).any(|pair| pair.first() == pair.last()) {
            return Err(Error::Invalid(
                "Two streams of a process have the same id".to_owned(),
            ));
        }
        Ok(Self {
            stdin: stdio.stdin,
            stdout: stdio.stdout,
            stderr: stdio.stderr,
            terminal: if stdio.terminal {
                Some(terminal_size(stdio.width, stdio.height)?)
            } else {
                None
            },
        })
    }

    /// The message that says the same.
    pub fn to_message(self) -> Stdio {
        let mut stdio = Stdio::new();
        (stdio.stdin, stdio.stdout, stdio.stderr) = (self.stdin, self.stdout, self.stderr);
        if let Some((width, height)) = self.terminal {
            stdio.terminal = true;
            (stdio.width, stdio.height) = (width.into(), height.into());
        }
        stdio
    }
}

/// Checks a size in columns and rows.
pub(crate) fn terminal_size(width: u32, height: u32) -> Result<(u16, u16)> {
    match (u16::try_from(width), u16::try_from(height)) {
        (Ok(width), Ok(height)) => Ok((width, height)),
        _ => Err(Error::Invalid(format!(
            "A terminal of {width} by {height} characters is too large"
        ))),
    }
}

/// Stdio that is prepared: the process's ends and the agent's.
pub(super) struct Prepared {
    /// What becomes 0, 1 and 2 of the process. /dev/null until it has its terminal.
    pub(super) process: [OwnedFd; 3],
    stdin: Option<(Port, Option<OwnedFd>)>,
    stdout: Option<(Port, Option<OwnedFd>)>,
    stderr: Option<(Port, Option<OwnedFd>)>,
}

/// The running pumps of a process.
pub(super) struct Pumps {
    stdin: Option<JoinHandle<()>>,
    outputs: [Option<Output>; 2],
}

struct Output {
    ended: oneshot::Sender<()>,
    total: oneshot::Receiver<u64>,
    task: JoinHandle<()>,
}

impl Prepared {
    /// Claims the streams and makes the pipes.
    pub(super) fn new(shared: &Shared, spec: &StdioSpec) -> Result<Self> {
        let claim = |id: u64| {
            if id == 0 {
                Ok(None)
            } else {
                shared.hub.claim(id).map(Some)
            }
        };
        let (stdin, stdout, stderr) =
            (claim(spec.stdin)?, claim(spec.stdout)?, claim(spec.stderr)?);
        if spec.terminal.is_some() {
            let with_terminal = |port: Option<Port>| port.map(|port| (port, None));
            return Ok(Self {
                process: [null()?, null()?, null()?],
                stdin: with_terminal(stdin),
                stdout: with_terminal(stdout),
                stderr: None,
            });
        }
        let (in_process, stdin) = match stdin {
            None => (null()?, None),
            Some(port) => {
                let (read, write) = pipe()?;
                (read, Some((port, Some(write))))
            }
        };
        let out = |port: Option<Port>| match port {
            None => Ok::<_, Error>((null()?, None)),
            Some(port) => {
                let (read, write) = pipe()?;
                Ok((write, Some((port, Some(read)))))
            }
        };
        let (out_process, stdout) = out(stdout)?;
        let (err_process, stderr) = out(stderr)?;
        Ok(Self {
            process: [in_process, out_process, err_process],
            stdin,
            stdout,
            stderr,
        })
    }

    /// Starts to copy. The process's ends are closed here: they are the process's now.
    pub(super) fn start(self, master: Option<&OwnedFd>, end: InputEnd) -> Result<Pumps> {
        drop(self.process);
        let side = |pipe: Option<OwnedFd>| -> Result<Fd> {
            let what = || "Cannot prepare stdio";
            let fd = match (pipe, master) {
                (Some(pipe), _) => pipe,
                (None, Some(master)) => rustix::io::fcntl_dupfd_cloexec(master, 0).context(what)?,
                (None, None) => {
                    return Err(Error::Internal("The process sent no terminal".to_owned()));
                }
            };
            Fd::new(fd).context(what)
        };
        let output = |stream: Option<(Port, Option<OwnedFd>)>| -> Result<Option<Output>> {
            let Some((port, pipe)) = stream else {
                return Ok(None);
            };
            let source = side(pipe)?;
            let (ended, ended_receiver) = oneshot::channel();
            let (total_sender, total) = oneshot::channel();
            let end = OutputEnd {
                ended: ended_receiver,
                total: total_sender,
            };
            let task = tokio::spawn(output(source, port, end));
            Ok(Some(Output { ended, total, task }))
        };
        let outputs = [output(self.stdout)?, output(self.stderr)?];
        let stdin = match self.stdin {
            None => None,
            Some((port, pipe)) => {
                let is_terminal = pipe.is_none();
                Some(tokio::spawn(input(port, side(pipe)?, end, is_terminal)))
            }
        };
        Ok(Pumps { stdin, outputs })
    }
}

impl Pumps {
    /// The process has ended: takes what is left of its output and returns the totals of stdout and
    /// stderr. Delivery goes on by itself, in the tasks that are returned.
    pub(super) async fn finish(self) -> ([u64; 2], Vec<JoinHandle<()>>) {
        if let Some(stdin) = self.stdin {
            stdin.abort();
        }
        let mut totals = [0; 2];
        let mut tasks = Vec::new();
        for (output, total) in self.outputs.into_iter().zip(&mut totals) {
            if let Some(output) = output {
                // One that ended by itself has told its total already.
                let _ = output.ended.send(());
                *total = output.total.await.unwrap_or(0);
                tasks.push(output.task);
            }
        }
        tasks.retain(|task| !task.is_finished());
        (totals, tasks)
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context(|| "Cannot make a pipe")
}

fn null() -> Result<OwnedFd> {
    sys::spawn::null().context(|| "Cannot open /dev/null")
}
