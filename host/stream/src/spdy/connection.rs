//! One connection: a task that reads frames and one that writes them.

use super::frame::{Decoder, Frame, FrameError, reset, setting};
use super::headers::{Deflater, HeaderError, Inflater};
use super::stream::Stream;
use super::table::{INITIAL_WINDOW, SESSION_WINDOW, STREAM_WINDOW, Table, Taken, Violation};
use crate::limits::Limits;
use bytes::{Bytes, BytesMut};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Data frames that wait to be written.
const QUEUE: usize = 4;
/// Answers that wait to be written. A peer that makes more without reading them has only that in mind.
const MAX_CONTROL: usize = 4096;
/// So much is gathered for one write.
const GATHER: usize = 64 * 1024;
const READ: usize = 64 * 1024;

/// What the tasks and the streams' halves share.
pub(crate) struct Shared {
    table: Mutex<Table>,
    /// A reader has made room.
    pub(super) room: Notify,
    control: mpsc::UnboundedSender<Frame>,
    controls: AtomicUsize,
    gone: CancellationToken,
}

impl Shared {
    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a frame that must not wait for the client to read.
    pub(super) fn control(&self, frame: Frame) {
        if self.controls.fetch_add(1, Ordering::Relaxed) >= MAX_CONTROL {
            tracing::debug!("A SPDY client makes us answer and does not read");
            self.close();
        }
        // A connection whose writer is gone needs no answers.
        let _ = self.control.send(frame);
    }

    fn close(&self) {
        self.table().close();
        self.gone.cancel();
    }
}

/// Why a connection was ended by us.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error(transparent)]
    Violation(#[from] Violation),
}

/// A connection. When it is dropped, everything of it is gone.
pub(crate) struct Connection {
    shared: Arc<Shared>,
    streams: mpsc::Receiver<Stream>,
    queue: mpsc::Sender<Frame>,
    reader: AbortOnDropHandle<()>,
    writer: AbortOnDropHandle<()>,
    linger: Duration,
}

impl Connection {
    /// Begins to speak SPDY over a connection that has just been upgraded.
    pub(crate) fn start<T>(io: T, limits: &Limits) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (input, output) = tokio::io::split(io);
        let (control, controls) = mpsc::unbounded_channel();
        let (queue, data) = mpsc::channel(QUEUE);
        let (opened, streams) = mpsc::channel(limits.streams.max(1));
        let shared = Arc::new(Shared {
            table: Mutex::new(Table::new(limits.streams)),
            room: Notify::new(),
            control,
            controls: AtomicUsize::new(0),
            gone: CancellationToken::new(),
        });
        let max_streams = u32::try_from(limits.streams).unwrap_or(u32::MAX);
        shared.control(Frame::Settings(vec![
            (setting::MAX_CONCURRENT_STREAMS, max_streams),
            (setting::INITIAL_WINDOW_SIZE, STREAM_WINDOW),
        ]));
        let delta = SESSION_WINDOW - INITIAL_WINDOW;
        shared.control(Frame::WindowUpdate { id: 0, delta });
        let writer = Writer {
            output,
            shared: Arc::clone(&shared),
            buffer: BytesMut::new(),
        };
        let writer = tokio::spawn(writer.run(controls, data, limits.ping));
        let reader = Reader {
            shared: Arc::clone(&shared),
            inflater: Inflater::new(),
            deflater: Deflater::new(),
            opened,
            queue: queue.clone(),
        };
        let reader = tokio::spawn(reader.run(input));
        Self {
            shared,
            streams,
            queue,
            reader: AbortOnDropHandle::new(reader),
            writer: AbortOnDropHandle::new(writer),
            linger: limits.linger,
        }
    }

    /// The next stream that the client opens; `None` when the connection is gone.
    pub(crate) async fn accept(&mut self) -> Option<Stream> {
        let gone = self.gone();
        tokio::select! {
            biased;
            () = gone.cancelled() => None,
            stream = self.streams.recv() => stream,
        }
    }

    /// Cancelled when the client is gone.
    pub(crate) fn gone(&self) -> CancellationToken {
        self.shared.gone.clone()
    }

    /// Says good-bye, and stays until the client has read everything, as far as that can be known: it
    /// closes, or its time is over. To close earlier could make its kernel throw away what it has
    /// received and not read.
    pub(crate) async fn finish(self) {
        let last = self.shared.table().last;
        let Self {
            queue,
            mut reader,
            mut writer,
            linger,
            shared,
            ..
        } = self;
        let farewell = async {
            // The last frame: the writer ends after it.
            let frame = Frame::GoAway { last, reason: 0 };
            if queue.send(frame).await.is_ok() {
                let _ = (&mut writer).await;
                let _ = tokio::time::timeout(linger, &mut reader).await;
            }
        };
        tokio::select! {
            () = farewell => {}
            () = shared.gone.cancelled() => {}
        }
    }
}

struct Reader {
    shared: Arc<Shared>,
    inflater: Inflater,
    deflater: Deflater,
    opened: mpsc::Sender<Stream>,
    queue: mpsc::Sender<Frame>,
}

impl Reader {
    async fn run<R: AsyncRead + Unpin>(mut self, input: R) {
        match self.read(input).await {
            Ok(()) => {}
            Err(Broken::Io(error)) => tracing::debug!(%error, "A SPDY connection broke"),
            Err(error) => {
                tracing::debug!(%error, "A SPDY connection is ended");
                let last = self.shared.table().last;
                self.shared.control(Frame::GoAway { last, reason: 1 });
            }
        }
        self.shared.close();
    }

    async fn read<R: AsyncRead + Unpin>(&mut self, mut input: R) -> Result<(), Broken> {
        let mut decoder = Decoder::default();
        let mut buffer = BytesMut::new();
        loop {
            while let Some(frame) = decoder.decode(&mut buffer)? {
                self.take(frame).await?;
            }
            // What was given out keeps the old memory; an idle connection holds none.
            if buffer.is_empty() {
                buffer = BytesMut::new();
            }
            buffer.reserve(READ);
            if input.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> Result<(), Broken> {
        match frame {
            Frame::Data { id, fin, bytes } => self.data(id, fin, bytes).await?,
            Frame::SynStream { id, fin, block } => {
                let headers = self.inflater.read(&block)?;
                let opened = self.shared.table().open(id, fin)?;
                let Some(notifies) = opened else {
                    self.reset(id, reset::REFUSED_STREAM);
                    return Ok(());
                };
                // Before anybody can write to it: clients drop data that comes before the reply.
                let block = self.deflater.write(&[]);
                self.shared.control(Frame::SynReply {
                    id,
                    fin: false,
                    block,
                });
                let queue = self.queue.clone();
                let stream = Stream::new(id, headers, &self.shared, notifies, queue);
                // There is room for as many as can be open; one that nobody takes is reset.
                let _ = self.opened.try_send(stream);
            }
            Frame::SynReply { block, .. } | Frame::Headers { block, .. } => {
                // Nothing is wanted of it, but the context goes on.
                self.inflater.read(&block)?;
            }
            Frame::RstStream { id, .. } => self.shared.table().reset(id),
            Frame::Settings(settings) => {
                for (id, value) in settings {
                    if id == setting::INITIAL_WINDOW_SIZE {
                        self.shared.table().initial_window(value)?;
                    }
                }
            }
            // Ours have even numbers and need no reading: that they can be sent is what they show.
            Frame::Ping(id) if id.is_multiple_of(2) => {}
            Frame::Ping(id) => self.shared.control(Frame::Ping(id)),
            Frame::GoAway { .. } => {}
            Frame::WindowUpdate { id, delta } => {
                let refused = self.shared.table().window_update(id, delta)?;
                if let Some(reason) = refused {
                    self.reset(id, reason);
                }
            }
        }
        Ok(())
    }

    async fn data(&self, id: u32, fin: bool, mut bytes: Bytes) -> Result<(), Violation> {
        loop {
            let taken = self.shared.table().data(id, fin, bytes)?;
            match taken {
                Taken::Yes => break,
                Taken::Reset(reason) => {
                    self.reset(id, reason);
                    break;
                }
                Taken::Wait(again) => {
                    bytes = again;
                    // One waits at a time, and a reader that was faster has left its mark.
                    self.shared.room.notified().await;
                }
            }
        }
        let delta = self.shared.table().session_room();
        if delta > 0 {
            self.shared.control(Frame::WindowUpdate { id: 0, delta });
        }
        Ok(())
    }

    fn reset(&self, id: u32, reason: u32) {
        self.shared.control(Frame::RstStream { id, reason });
    }
}

struct Writer<W> {
    output: W,
    shared: Arc<Shared>,
    buffer: BytesMut,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    async fn run(
        mut self,
        controls: mpsc::UnboundedReceiver<Frame>,
        data: mpsc::Receiver<Frame>,
        ping: Duration,
    ) {
        if let Err(error) = self.write(controls, data, ping).await {
            tracing::debug!(%error, "A SPDY client is gone");
            self.shared.close();
        }
    }

    /// Writes until the connection's last frame, or until it is over.
    async fn write(
        &mut self,
        mut controls: mpsc::UnboundedReceiver<Frame>,
        mut data: mpsc::Receiver<Frame>,
        ping: Duration,
    ) -> io::Result<()> {
        let gone = self.shared.gone.clone();
        let mut ping_id = 0u32;
        let mut last = false;
        while !last {
            let first = tokio::select! {
                biased;
                frame = controls.recv() => frame,
                frame = data.recv() => frame,
                () = gone.cancelled() => None,
                () = tokio::time::sleep(ping) => {
                    ping_id = ping_id.wrapping_add(2);
                    Some(Frame::Ping(ping_id))
                }
            };
            let Some(first) = first else {
                break;
            };
            last = self.push(&first);
            while !last && self.buffer.len() < GATHER {
                let Ok(next) = controls.try_recv().or_else(|_| data.try_recv()) else {
                    break;
                };
                last = self.push(&next);
            }
            tokio::select! {
                biased;
                result = self.output.write_all_buf(&mut self.buffer) => result?,
                // The reader has seen the end. What it wanted to say goes if it goes at once.
                () = gone.cancelled() => break,
            }
            self.output.flush().await?;
            if controls.is_empty() && data.is_empty() {
                self.buffer = BytesMut::new();
            }
        }
        self.output.shutdown().await
    }

    /// Appends a frame; true for the last one.
    fn push(&mut self, frame: &Frame) -> bool {
        frame.encode(&mut self.buffer);
        if !matches!(frame, Frame::Data { .. }) {
            // Saturating, as data's GOAWAY and pings were not counted.
            let less = |count: usize| Some(count.saturating_sub(1));
            let _ = self
                .shared
                .controls
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
        matches!(frame, Frame::GoAway { .. })
    }
}
