//! Standard streams of containers: from the guest into the log and to whoever watches.

mod line;
mod log;
mod pump;

pub(crate) use log::Log;
#[cfg(test)]
mod tests;

pub(crate) use pump::{Pump, collect};

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How many chunks, of 64 KiB at most, a viewer may lag behind before it holds the container back.
const VIEWER_QUEUE: usize = 16;
/// For how long one that takes nothing may do so. One that reads slowly gets everything, as from
/// containerd; one that does not read must not keep the log from going on.
const PATIENCE: Duration = Duration::from_secs(10);

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

/// Somebody who watches a container's output. One who takes nothing for so long that the log would have
/// to wait is cut off.
pub struct Viewer {
    receiver: mpsc::Receiver<OutputChunk>,
    cut_off: Arc<AtomicBool>,
}

impl Viewer {
    /// The next piece; `None` at the end of the output, or when we were cut off.
    pub async fn next(&mut self) -> Option<OutputChunk> {
        self.receiver.recv().await
    }

    /// Whether we were too slow, and the output went on without us.
    #[must_use]
    pub fn was_cut_off(&self) -> bool {
        self.cut_off.load(Ordering::Acquire)
    }
}

/// Our side of a [`Viewer`].
#[derive(Clone)]
struct Shown {
    sender: mpsc::Sender<OutputChunk>,
    cut_off: Arc<AtomicBool>,
}

#[derive(Default)]
struct Viewers {
    list: Vec<Shown>,
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

    /// Watches the output from now on.
    pub(crate) fn watch(&self) -> Viewer {
        let (sender, receiver) = mpsc::channel(VIEWER_QUEUE);
        let cut_off = Arc::new(AtomicBool::new(false));
        let mut viewers = self.viewers.lock().unwrap_or_else(PoisonError::into_inner);
        // Those of a container that says nothing would gather here.
        viewers.list.retain(|viewer| !viewer.sender.is_closed());
        if !viewers.closed {
            viewers.list.push(Shown {
                sender,
                cut_off: Arc::clone(&cut_off),
            });
        }
        Viewer { receiver, cut_off }
    }

    async fn show(&self, kind: StreamKind, bytes: &[u8]) {
        let viewers = self
            .viewers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .list
            .clone();
        // One time for all: many that do not read hold the container back no longer than one.
        let until = Instant::now() + PATIENCE;
        let mut gone = false;
        for Shown { sender, cut_off } in viewers {
            let bytes = bytes.to_owned();
            match tokio::time::timeout_at(until, sender.send(OutputChunk { kind, bytes })).await {
                Ok(sent) => gone |= sent.is_err(),
                Err(_) => {
                    cut_off.store(true, Ordering::Release);
                    gone = true;
                }
            }
        }
        if gone {
            let mut viewers = self.viewers.lock().unwrap_or_else(PoisonError::into_inner);
            let stays = |viewer: &Shown| {
                !viewer.sender.is_closed() && !viewer.cut_off.load(Ordering::Acquire)
            };
            viewers.list.retain(stays);
        }
    }

    fn end_viewers(&self) {
        let mut viewers = self.viewers.lock().unwrap_or_else(PoisonError::into_inner);
        viewers.closed = true;
        viewers.list.clear();
    }
}
