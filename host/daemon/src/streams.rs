//! What the streaming server serves: the processes and ports of pods.

use crate::cri::sandbox_status;
use crate::node::CUT_OFF;
use async_trait::async_trait;
use bulkhead_sandbox::{Container, OutputChunk, SandboxError, Sandboxes, StreamKind, Viewer};
use bulkhead_stream::{AttachRequest, Backend, ExecRequest, Process, Reader, Size, Writer};
use futures::FutureExt;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

/// What may wait between a container's streams and a client.
const BUFFER: usize = 64 * 1024;

/// The pods.
pub(crate) struct PodStreams {
    sandboxes: Sandboxes,
}

impl PodStreams {
    pub(crate) fn new(sandboxes: Sandboxes) -> Self {
        Self { sandboxes }
    }
}

/// An error as a client is told it.
fn words(error: SandboxError) -> String {
    sandbox_status(error).message().to_owned()
}

#[async_trait]
impl Backend for PodStreams {
    async fn exec(&self, request: &ExecRequest) -> Result<Process, String> {
        let wants = request.wants;
        let container = self
            .sandboxes
            .container(&request.container)
            .map_err(words)?;
        let exec = bulkhead_sandbox::ExecRequest {
            args: request.command.clone(),
            stdin: wants.stdin,
            terminal: wants.tty,
            size: (0, 0),
        };
        let mut execution = container.exec(exec).await.map_err(words)?;
        let terminal = execution.terminal();
        let set_size = move |Size { width, height }| {
            let terminal = terminal.clone();
            let resize = async move {
                if let Err(error) = terminal.resize(width.into(), height.into()).await {
                    tracing::debug!(%error, "A terminal was not resized");
                }
            };
            resize.boxed()
        };
        let stdin = execution.stdin.take();
        let (stdout, rest_of_stdout) = split(execution.stdout.take(), wants.stdout);
        let (stderr, rest_of_stderr) = split(execution.stderr.take(), wants.stderr);
        // Dropped before its end, it is killed with everything that it has started.
        let exit = async move {
            let unwanted = async { tokio::join!(discard(rest_of_stdout), discard(rest_of_stderr)) };
            let (_, exit) = tokio::join!(unwanted, execution.wait());
            exit.map_err(words)
        };
        Ok(Process {
            stdin: stdin.map(|stream| Box::new(stream) as Writer),
            stdout: stdout.map(|stream| Box::new(stream) as Reader),
            stderr: stderr.map(|stream| Box::new(stream) as Reader),
            resize: Box::new(set_size),
            exit: exit.boxed(),
        })
    }

    async fn attach(&self, request: &AttachRequest) -> Result<Process, String> {
        let wants = request.wants;
        let container = self
            .sandboxes
            .container(&request.container)
            .map_err(words)?;
        let running = "its streams can be joined only while it runs";
        container.check_running(running).map_err(words)?;
        let viewer = container.watch_output();
        let (stdout, to_stdout) = pipe(wants.stdout);
        let (stderr, to_stderr) = pipe(wants.stderr);
        let config = container.record().config;
        let (from_stdin, stdin) = pipe(wants.stdin && config.stdin);
        let resized = Arc::clone(&container);
        let set_size = move |Size { width, height }| {
            let container = Arc::clone(&resized);
            let resize = async move {
                if let Err(error) = container.resize(width.into(), height.into()).await {
                    tracing::debug!(%error, "A terminal was not resized");
                }
            };
            resize.boxed()
        };
        let exit = async move {
            let ends_container_stdin = config.stdin_once && !config.tty;
            tokio::select! {
                outcome = show(viewer, to_stdout, to_stderr) => outcome,
                () = give(&container, from_stdin, ends_container_stdin) => Ok(0),
            }
        };
        Ok(Process {
            stdin: stdin.map(|stream| Box::new(stream) as Writer),
            stdout: stdout.map(|stream| Box::new(stream) as Reader),
            stderr: stderr.map(|stream| Box::new(stream) as Reader),
            resize: Box::new(set_size),
            exit: exit.boxed(),
        })
    }

    async fn forward(&self, pod: &str, port: u16) -> Result<(Reader, Writer), String> {
        let sandbox = self.sandboxes.sandbox(pod).map_err(words)?;
        let stream = sandbox.forward(port).await.map_err(words)?;
        let (reader, writer) = stream.into_split();
        Ok((Box::new(reader), Box::new(writer)))
    }
}

/// An output that the client wants, or one that is to be thrown away.
fn split<T>(stream: Option<T>, wanted: bool) -> (Option<T>, Option<T>) {
    if wanted {
        (stream, None)
    } else {
        (None, stream)
    }
}

async fn discard(stream: Option<impl AsyncRead + Unpin>) {
    if let Some(mut stream) = stream {
        // Its end, of whatever kind, is all that there is to wait for.
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    }
}

/// Both ends of a pipe: what is written to the second is read from the first.
fn pipe(wanted: bool) -> (Option<DuplexStream>, Option<DuplexStream>) {
    wanted.then(|| duplex(BUFFER)).unzip()
}

/// Moves a container's output until it ends.
async fn show(
    mut viewer: Viewer,
    mut stdout: Option<DuplexStream>,
    mut stderr: Option<DuplexStream>,
) -> Result<i32, String> {
    while let Some(OutputChunk { kind, bytes }) = viewer.next().await {
        let stream = match kind {
            StreamKind::Stdout => &mut stdout,
            StreamKind::Stderr => &mut stderr,
        };
        if let Some(open) = stream
            && open.write_all(&bytes).await.is_err()
        {
            // The client has closed this one.
            *stream = None;
        }
    }
    match viewer.was_cut_off() {
        true => Err(CUT_OFF.to_owned()),
        // The container has ended. Its exit code is in its status; attach has none.
        false => Ok(0),
    }
}

/// Moves a client's input to its end. That is the container's end of file if it is to have one after
/// its first client; otherwise it is this client's way to detach.
async fn give(container: &Container, stdin: Option<DuplexStream>, ends_container_stdin: bool) {
    let Some(mut stdin) = stdin else {
        return std::future::pending().await;
    };
    let mut bytes = vec![0; BUFFER];
    while let Ok(count @ 1..) = stdin.read(&mut bytes).await {
        container
            .write_stdin(bytes.get(..count).unwrap_or_default())
            .await;
    }
    if ends_container_stdin {
        container.close_stdin().await;
        std::future::pending().await
    }
}
