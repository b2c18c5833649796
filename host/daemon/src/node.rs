//! The service behind the command line's interactive commands (`proto/node/node.proto`).

use crate::cri::{image_status, pull_phase, sandbox_status};
use bulkhead_image::{ImageStore, PullPhase};
use bulkhead_node_api::v1::input::Input as In;
use bulkhead_node_api::v1::node_server::Node;
use bulkhead_node_api::v1::output::Output as Out;
use bulkhead_node_api::v1::{
    Attach, Empty, Exec, Exit, Input, LayerProgress, Output, PullProgress, PullRequest,
    VolumeRequest, VolumeStatsResponse,
};
use bulkhead_sandbox::figures::VolumeFigures;
use bulkhead_sandbox::{Container, ExecRequest, Execution, Sandboxes, StreamKind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Chunks that may wait for a slow client; then the process is held back.
const QUEUE: usize = 16;
const BUFFER: usize = 64 * 1024;
/// Between two messages about the same phase of a pull.
const PROGRESS_PAUSE: Duration = Duration::from_millis(100);

/// What a client is told that does not read what it attached to.
pub(crate) const CUT_OFF: &str =
    "The output was not read for ten seconds, and the container goes on without this client";

type Sender = mpsc::Sender<Result<Output, Status>>;

/// The service.
pub(crate) struct NodeApi {
    sandboxes: Sandboxes,
    images: ImageStore,
}

impl NodeApi {
    pub(crate) fn new(sandboxes: Sandboxes, images: ImageStore) -> Self {
        Self { sandboxes, images }
    }
}

#[tonic::async_trait]
impl Node for NodeApi {
    type StreamStream = ReceiverStream<Result<Output, Status>>;
    type PullStream = ReceiverStream<Result<PullProgress, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<Input>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let mut inputs = request.into_inner();
        let first = inputs.message().await?.and_then(|input| input.input);
        let (sender, receiver) = mpsc::channel(QUEUE);
        match first {
            Some(In::Attach(Attach { container_id })) => {
                let container = self
                    .sandboxes
                    .container(&container_id)
                    .map_err(sandbox_status)?;
                tokio::spawn(attach(container, inputs, sender));
            }
            Some(In::Exec(exec)) => {
                let container = self
                    .sandboxes
                    .container(&exec.container_id)
                    .map_err(sandbox_status)?;
                let execution = container
                    .exec(to_request(exec))
                    .await
                    .map_err(sandbox_status)?;
                tokio::spawn(run(execution, inputs, sender));
            }
            _ => {
                return Err(Status::invalid_argument(
                    "The first input must be attach or exec",
                ));
            }
        }
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn volume_stats(
        &self,
        request: Request<VolumeRequest>,
    ) -> Result<Response<VolumeStatsResponse>, Status> {
        let path = request.into_inner().path;
        let figures = self.sandboxes.volume_figures(&path).await;
        Ok(Response::new(to_volume_stats(
            &figures.map_err(sandbox_status)?,
        )))
    }

    async fn resize_volume(
        &self,
        request: Request<VolumeRequest>,
    ) -> Result<Response<VolumeStatsResponse>, Status> {
        let path = request.into_inner().path;
        let figures = self.sandboxes.grow_volume(&path).await;
        Ok(Response::new(to_volume_stats(
            &figures.map_err(sandbox_status)?,
        )))
    }

    async fn pull(
        &self,
        request: Request<PullRequest>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let images = self.images.clone();
        tokio::spawn(async move {
            let name = request.into_inner().image;
            let mut shown: Option<(PullPhase, Instant)> = None;
            let report = |progress: &bulkhead_image::PullProgress| {
                let is_soon = |(phase, at): (PullPhase, Instant)| {
                    phase == progress.phase && at.elapsed() < PROGRESS_PAUSE
                };
                if shown.is_some_and(is_soon) {
                    return;
                }
                shown = Some((progress.phase, Instant::now()));
                // A client that lags behind misses steps, not the end.
                let _ = sender.try_send(Ok(to_progress(progress)));
            };
            let pulled = tokio::select! {
                pulled = images.pull(&name, None, report) => pulled,
                () = sender.closed() => return,
            };
            let last = pulled.map_err(image_status).map(|image| PullProgress {
                phase: "done".to_owned(),
                image_id: image.id,
                ..PullProgress::default()
            });
            // The client may have gone.
            let _ = sender.send(last).await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

fn to_volume_stats(figures: &VolumeFigures) -> VolumeStatsResponse {
    VolumeStatsResponse {
        total_bytes: figures.total_bytes,
        used_bytes: figures.used_bytes,
        available_bytes: figures.available_bytes,
        total_inodes: figures.total_inodes,
        used_inodes: figures.used_inodes,
        free_inodes: figures.free_inodes,
    }
}

fn to_progress(progress: &bulkhead_image::PullProgress) -> PullProgress {
    let layers: Vec<LayerProgress> = progress
        .layers
        .iter()
        .map(|layer| LayerProgress {
            digest: layer.digest.clone(),
            done: layer.done,
            total: layer.total,
        })
        .collect();
    PullProgress {
        phase: pull_phase(progress.phase).to_owned(),
        done: layers.iter().map(|layer| layer.done).sum(),
        total: layers.iter().map(|layer| layer.total).sum(),
        image_id: String::new(),
        layers,
    }
}

fn to_request(exec: Exec) -> ExecRequest {
    let size = exec.size.unwrap_or_default();
    ExecRequest {
        args: exec.args,
        stdin: exec.stdin,
        terminal: exec.terminal,
        size: (size.width, size.height),
    }
}

fn output(out: Out) -> Result<Output, Status> {
    Ok(Output { output: Some(out) })
}

async fn attach(container: Arc<Container>, mut inputs: Streaming<Input>, sender: Sender) {
    let mut chunks = container.watch_output();
    if sender.send(output(Out::Joined(Empty {}))).await.is_err() {
        return;
    }
    let give_input = async {
        while let Ok(Some(input)) = inputs.message().await {
            match input.input {
                Some(In::Stdin(bytes)) => container.write_stdin(&bytes).await,
                Some(In::StdinEnd(_)) => container.close_stdin().await,
                Some(In::Size(size)) => {
                    if let Err(error) = container.resize(size.width, size.height).await {
                        tracing::debug!(%error, "A terminal was not resized");
                    }
                }
                _ => {}
            }
        }
        // The client sends no more, and stays for the output.
        std::future::pending::<()>().await;
    };
    let take_output = async {
        while let Some(chunk) = chunks.next().await {
            let out = match chunk.kind {
                StreamKind::Stdout => Out::Stdout(chunk.bytes),
                StreamKind::Stderr => Out::Stderr(chunk.bytes),
            };
            if sender.send(output(out)).await.is_err() {
                return;
            }
        }
        if chunks.was_cut_off() {
            let _ = sender.send(Err(Status::aborted(CUT_OFF))).await;
            return;
        }
        let exit = container.exited().await;
        let exit = Exit {
            code: exit.code,
            reason: exit.reason,
            message: exit.message,
        };
        let _ = sender.send(output(Out::Exit(exit))).await;
    };
    tokio::select! {
        () = give_input => {}
        () = take_output => {}
        () = sender.closed() => {}
    }
}

async fn run(mut execution: Execution, mut inputs: Streaming<Input>, sender: Sender) {
    if sender.send(output(Out::Joined(Empty {}))).await.is_err() {
        return;
    }
    let (stdout, stderr) = (execution.stdout.take(), execution.stderr.take());
    let mut stdin = execution.stdin.take();
    let terminal = execution.terminal();
    let outputs = async {
        let out = forward(stdout, sender.clone(), Out::Stdout);
        let err = forward(stderr, sender.clone(), Out::Stderr);
        tokio::join!(out, err);
    };
    let give_input = async {
        while let Ok(Some(input)) = inputs.message().await {
            match input.input {
                Some(In::Stdin(bytes)) => write(&mut stdin, &bytes).await,
                // Dropping the stream would end its reading half too; only the writing half ends.
                Some(In::StdinEnd(_)) => end(&mut stdin).await,
                Some(In::Size(size)) => {
                    if let Err(error) = terminal.resize(size.width, size.height).await {
                        tracing::debug!(%error, "A terminal was not resized");
                    }
                }
                _ => {}
            }
        }
        std::future::pending::<()>().await;
    };
    let gone = tokio::select! {
        () = outputs => false,
        () = give_input => false,
        () = sender.closed() => true,
    };
    if gone {
        // As with a terminal that is closed: what nobody listens to any more is ended.
        if let Err(error) = execution.kill().await {
            tracing::debug!(%error, "An abandoned process was not killed");
        }
        return;
    }
    let last = match execution.wait().await {
        Ok(code) => output(Out::Exit(Exit {
            code,
            ..Exit::default()
        })),
        Err(error) => Err(sandbox_status(error)),
    };
    let _ = sender.send(last).await;
}

async fn write(stdin: &mut Option<UnixStream>, bytes: &[u8]) {
    if let Some(stream) = stdin
        && stream.write_all(bytes).await.is_err()
    {
        *stdin = None;
    }
}

async fn end(stdin: &mut Option<UnixStream>) {
    if let Some(stream) = stdin {
        // The process may have closed it already.
        let _ = stream.shutdown().await;
    }
}

async fn forward(
    stream: Option<impl AsyncRead + Unpin>,
    sender: Sender,
    wrap: impl Fn(Vec<u8>) -> Out,
) {
    let Some(mut stream) = stream else {
        return;
    };
    let mut buffer = vec![0; BUFFER];
    while let Ok(count) = stream.read(&mut buffer).await {
        let bytes = buffer.get(..count).unwrap_or_default();
        if bytes.is_empty() || sender.send(output(wrap(bytes.to_owned()))).await.is_err() {
            return;
        }
    }
}
