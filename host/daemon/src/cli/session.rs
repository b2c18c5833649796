//! Standard streams of a process in a pod, as one's own.

use super::terminal::{self, RawMode};
use super::{Client, refused};
use anyhow::{Context, Result, bail};
use bulkhead_node_api::v1::input::Input as In;
use bulkhead_node_api::v1::output::Output as Out;
use bulkhead_node_api::v1::{Empty, Exit, Input, Output, Size};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

const QUEUE: usize = 16;
const BUFFER: usize = 64 * 1024;

/// A joined process.
pub(super) struct Session {
    inputs: mpsc::Sender<Input>,
    outputs: Streaming<Output>,
}

impl Session {
    /// Joins what `first` names; when this returns, no output can be missed.
    pub(super) async fn join(client: &Client, first: In) -> Result<Self, tonic::Status> {
        let unreachable = |error: anyhow::Error| tonic::Status::unavailable(format!("{error:#}"));
        let (inputs, receiver) = mpsc::channel(QUEUE);
        let closed = || tonic::Status::internal("The request could not be sent");
        inputs
            .send(Input { input: Some(first) })
            .await
            .map_err(|_| closed())?;
        let mut node = client.node().await.map_err(unreachable)?;
        let mut outputs = node
            .stream(ReceiverStream::new(receiver))
            .await?
            .into_inner();
        match outputs.message().await?.and_then(|output| output.output) {
            Some(Out::Joined(_)) => Ok(Self { inputs, outputs }),
            _ => Err(tonic::Status::internal(
                "The daemon's first message is not `joined`",
            )),
        }
    }

    /// Passes the streams through until the process has ended.
    pub(super) async fn pass(mut self, stdin: bool, terminal: bool) -> Result<Exit> {
        let _raw = match terminal && stdin {
            true => RawMode::enter().context("Cannot put the terminal into raw mode")?,
            false => None,
        };
        if stdin {
            tokio::spawn(send_stdin(self.inputs.clone()));
        }
        if terminal {
            tokio::spawn(send_sizes(self.inputs.clone()));
        }
        let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
        while let Some(output) = self.outputs.message().await.map_err(refused)? {
            match output.output {
                Some(Out::Stdout(bytes)) => write(&mut out, &bytes).await?,
                Some(Out::Stderr(bytes)) => write(&mut err, &bytes).await?,
                Some(Out::Exit(exit)) => return Ok(exit),
                _ => {}
            }
        }
        bail!("The daemon ended the connection before the process did")
    }
}

async fn write(to: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8]) -> Result<()> {
    to.write_all(bytes)
        .await
        .context("Cannot write the output")?;
    to.flush().await.context("Cannot write the output")
}

async fn send_stdin(inputs: mpsc::Sender<Input>) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = stdin.read(&mut buffer).await.unwrap_or(0);
        let bytes = buffer.get(..count).unwrap_or_default();
        let input = match bytes.is_empty() {
            true => In::StdinEnd(Empty {}),
            false => In::Stdin(bytes.to_owned()),
        };
        if inputs.send(Input { input: Some(input) }).await.is_err() || bytes.is_empty() {
            return;
        }
    }
}

async fn send_sizes(inputs: mpsc::Sender<Input>) {
    let Ok(mut changed) = signal(SignalKind::window_change()) else {
        return;
    };
    loop {
        let (width, height) = terminal::size();
        if width > 0 && height > 0 {
            let size = In::Size(Size { width, height });
            if inputs.send(Input { input: Some(size) }).await.is_err() {
                return;
            }
        }
        if changed.recv().await.is_none() {
            return;
        }
    }
}
