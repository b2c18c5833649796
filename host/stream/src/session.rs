//! One exec or attach: a client's streams on one side, a process on the other.

use crate::backend::{Backend, Process, Reader, Resize, Wants, Writer};
use crate::resize::Sizes;
use crate::status::Outcome;
use crate::streams::{CHUNK, Sink, Source};
use crate::token::Call;
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

/// The streams of a client, complete.
pub(crate) struct Client {
    pub(crate) stdin: Option<Source>,
    pub(crate) stdout: Option<Sink>,
    pub(crate) stderr: Option<Sink>,
    pub(crate) resize: Option<Source>,
    /// Where the outcome is told.
    pub(crate) error: Sink,
    /// It is told as JSON.
    pub(crate) json: bool,
    /// Cancelled when the connection is gone.
    pub(crate) gone: CancellationToken,
}

/// The streams that a call's client is to open; none for port-forward.
pub(crate) fn wants(call: &Call) -> Wants {
    match call {
        Call::Exec(request) => request.wants,
        Call::Attach(request) => request.wants,
        Call::Forward(_) => Wants::default(),
    }
}

/// Runs a call to its end and tells the client how it ended. A client that goes away ends it at once.
pub(crate) async fn run(backend: &dyn Backend, call: &Call, client: Client) {
    let Client {
        stdin,
        mut stdout,
        mut stderr,
        resize,
        mut error,
        json,
        gone,
    } = client;
    let work = async {
        let started = match call {
            Call::Exec(request) => (backend.exec(request).await)
                .map_err(|problem| format!("error executing command in container: {problem}")),
            Call::Attach(request) => (backend.attach(request).await)
                .map_err(|problem| format!("error attaching to container: {problem}")),
            Call::Forward(_) => Err("a port-forward is no command".to_owned()),
        };
        let outcome = match started {
            Ok(process) => {
                let streams = (stdin, resize, &mut stdout, &mut stderr);
                join(process, streams).await
            }
            Err(problem) => Outcome::Failed(problem),
        };
        // What fails here fails because the client is gone.
        let words = outcome.encode(json);
        if !words.is_empty() {
            error.write(words.into()).await.ok()?;
        }
        for sink in [stdout, stderr, Some(error)].into_iter().flatten() {
            sink.finish().await.ok()?;
        }
        Some(())
    };
    tokio::select! {
        _ = work => {}
        () = gone.cancelled() => {}
    }
}

type Streams<'a> = (
    Option<Source>,
    Option<Source>,
    &'a mut Option<Sink>,
    &'a mut Option<Sink>,
);

/// Moves bytes until the process has ended and its output is sent.
async fn join(process: Process, (stdin, resize, stdout, stderr): Streams<'_>) -> Outcome {
    let Process {
        stdin: process_stdin,
        stdout: process_stdout,
        stderr: process_stderr,
        resize: set_size,
        exit,
    } = process;
    let input = async {
        if let (Some(source), Some(writer)) = (stdin, process_stdin) {
            give(source, writer).await;
        }
        std::future::pending::<()>().await;
    };
    let sizes = async {
        if let Some(source) = resize {
            follow(source, &set_size).await;
        }
        std::future::pending::<()>().await;
    };
    let output = async {
        let streams = (
            take(process_stdout, stdout.as_mut()),
            take(process_stderr, stderr.as_mut()),
        );
        let (_, _, exit) = tokio::join!(streams.0, streams.1, exit);
        exit
    };
    tokio::select! {
        exit = output => match exit {
            Ok(0) => Outcome::Success,
            Ok(code) => Outcome::ExitCode(code),
            Err(problem) => Outcome::Failed(problem),
        },
        () = input => Outcome::Success,
        () = sizes => Outcome::Success,
    }
}

/// Copies the client's input to its end, and ends the process's.
async fn give(mut source: Source, mut writer: Writer) {
    loop {
        match source.read().await {
            Ok(Some(bytes)) => {
                if writer.write_all(&bytes).await.is_err() {
                    // The process has closed it; what still comes is dropped.
                    return;
                }
            }
            // A process that has ended has closed it already.
            Ok(None) => return writer.shutdown().await.unwrap_or_default(),
            // Cut off: the session ends by its own way, and the input is not taken for complete.
            Err(_) => return std::future::pending().await,
        }
    }
}

/// Copies output to its end. A client that does not want more closes the process's stream.
async fn take(reader: Option<Reader>, sink: Option<&mut Sink>) {
    let (Some(mut reader), Some(sink)) = (reader, sink) else {
        return;
    };
    loop {
        let mut bytes = BytesMut::with_capacity(CHUNK);
        match reader.read_buf(&mut bytes).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
        if sink.write(bytes.freeze()).await.is_err() {
            return;
        }
    }
}

async fn follow(mut source: Source, set_size: &Resize) {
    let mut sizes = Sizes::default();
    while let Ok(Some(bytes)) = source.read().await {
        match sizes.push(&bytes) {
            Ok(Some(size)) => set_size(size).await,
            Ok(None) => {}
            Err(()) => return tracing::debug!("A client's resize stream is not in JSON"),
        }
    }
}
