//! Moves a process's output: into a log file and to viewers, or into memory.

use super::line::LineWriter;
use super::{ContainerIo, StreamKind};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::task::JoinHandle;

const BUFFER: usize = 64 * 1024;

/// The one task that reads a container's output. It ends when both streams have ended, and then the
/// log is complete.
pub(crate) struct Pump {
    pub(crate) container: String,
    pub(crate) io: Arc<ContainerIo>,
}

impl Pump {
    pub(crate) fn spawn<R>(self, stdout: Option<R>, stderr: Option<R>) -> JoinHandle<()>
    where
        R: AsyncRead + Send + Unpin + 'static,
    {
        tokio::spawn(self.run(stdout, stderr))
    }

    async fn run<R: AsyncRead + Unpin>(self, mut stdout: Option<R>, mut stderr: Option<R>) {
        let mut lines = [
            LineWriter::new(StreamKind::Stdout),
            LineWriter::new(StreamKind::Stderr),
        ];
        let mut buffers = [vec![0; BUFFER], vec![0; BUFFER]];
        while stdout.is_some() || stderr.is_some() {
            let [out_buffer, err_buffer] = &mut buffers;
            let (kind, count) = tokio::select! {
                count = read(&mut stdout, out_buffer) => (StreamKind::Stdout, count),
                count = read(&mut stderr, err_buffer) => (StreamKind::Stderr, count),
            };
            let (stream, writer, buffer) = match kind {
                StreamKind::Stdout => (&mut stdout, &mut lines[0], &buffers[0]),
                StreamKind::Stderr => (&mut stderr, &mut lines[1], &buffers[1]),
            };
            let mut text = Vec::new();
            let now = SystemTime::now();
            let bytes = buffer.get(..count).unwrap_or_default();
            if bytes.is_empty() {
                *stream = None;
                writer.finish(now, &mut text);
            } else {
                writer.push(bytes, now, &mut text);
            }
            self.io.log.write(&self.container, &text).await;
            if !bytes.is_empty() {
                self.io.show(kind, bytes).await;
            }
        }
        self.io.end_viewers();
    }
}

/// Reads from a stream, or waits for ever where there is none. A broken stream is an ended one.
async fn read<R: AsyncRead + Unpin>(stream: &mut Option<R>, buffer: &mut [u8]) -> usize {
    match stream {
        Some(stream) => stream.read(buffer).await.unwrap_or(0),
        None => std::future::pending().await,
    }
}

/// Reads a stream to its end and keeps the first `limit` bytes.
pub(crate) async fn collect<R: AsyncRead + Unpin>(mut stream: R, limit: usize) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = stream.read(&mut buffer).await.unwrap_or(0);
        if count == 0 {
            return kept;
        }
        let room = limit.saturating_sub(kept.len()).min(count);
        kept.extend_from_slice(buffer.get(..room).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests;
