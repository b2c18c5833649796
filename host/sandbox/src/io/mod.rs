//! Standard streams of containers: from the guest into the log and to whoever watches.

mod line;
mod log;
mod pump;

pub(crate) use log::Log;
pub(crate) use pump::{Pump, collect};

use std::sync::{Mutex, PoisonError};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// How many chunks a watcher may lag behind before it holds the container's output back.
const VIEWER_QUEUE: usize = 16;

/// Which output stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamKind {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputChunk {
    /// Where from.
    pub kind: StreamKind,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// The streams of a container as the daemon holds them.
#[derive(Default)]
pub(crate) struct ContainerIo {
    stdin: tokio::sync::Mutex<Option<UnixStream>>,
    viewers: Mutex<Viewers>,
    pub(crate) log: Log,
}

#[derive(Default)]
struct Viewers {
    senders: Vec<mpsc::Sender<OutputChunk>>,
    closed: bool,
}

impl ContainerIo {
    pub(crate) async fn set_stdin(&self, stdin: UnixStream) {
        *self.stdin.lock().await = Some(stdin);
    }

    /// Writes to standard input. What comes after its end, or after the container's, is dropped.
    pub(crate) async fn write_stdin(&self, bytes: &[u8]) {
        let mut stdin = self.stdin.lock().await;
        if let Some(stream) = stdin.as_mut()
            && stream.write_all(bytes).await.is_err()
        {
            *stdin = None;
        }
    }

    /// Ends standard input.
    pub(crate) async fn close_stdin(&self) {
        if let Some(stream) = self.stdin.lock().await.as_mut() {
            // Only this direction: the agent takes a connection that is closed as a whole for a
            // daemon that is gone and waits for the next. It fails if the container has ended.
            let _ = stream.shutdown().await;
        }
    }

    /// Watches the output from now on. The receiver ends with the output.
    pub(crate) fn watch(&self) -> mpsc::Receiver<OutputChunk> {
        let (sender, receiver) = mpsc::channel(VIEWER_QUEUE);
        let mut viewers = self.viewers.lock().unwrap_or_else(PoisonError::into_inner);
        if !viewers.closed {
            viewers.senders.push(sender);
        }
        receiver
    }

    async fn show(&self, kind: StreamKind, bytes: &[u8]) {
        let senders = self
            .viewers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .senders
            .clone();
        let mut gone = false;
        for sender in senders {
            gone |= sender
                .send(OutputChunk {
                    kind,
                    bytes: bytes.to_owned(),
                })
                .await
                .is_err();
        }
        if gone {
            let mut viewers = self.viewers.lock().unwrap_or_else(PoisonError::into_inner);
            viewers.senders.retain(|sender| !sender.is_closed());
        }
    }

    fn end_viewers(&self) {
        let mut viewers = self.viewers.lock().unwrap_or_else(PoisonError::into_inner);
        viewers.closed = true;
        viewers.senders.clear();
    }
}
