//! One stream, as its two halves.

use super::connection::Shared;
use super::frame::{Frame, MAX_PIECE, reset};
use super::headers::Headers;
use super::table::End;
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use tokio::sync::{Notify, mpsc};

/// A stream that the client has opened.
pub(crate) struct Stream {
    pub(crate) id: u32,
    pub(crate) headers: Headers,
    pub(crate) reader: StreamReader,
    pub(crate) writer: StreamWriter,
}

/// The client's direction. Dropped before its end, what still comes is dropped too.
pub(crate) struct StreamReader {
    id: u32,
    shared: Arc<Shared>,
    readable: Arc<Notify>,
    _other: Option<StreamWriter>,
}

/// Our direction. Dropped before [`StreamWriter::finish`], the stream is reset.
pub(crate) struct StreamWriter {
    id: u32,
    shared: Arc<Shared>,
    writable: Arc<Notify>,
    queue: mpsc::Sender<Frame>,
    /// It says nothing when it is dropped.
    silent: bool,
}

impl Stream {
    /// Only the client's direction. Ours stays open, for Go's client takes its end for that of the
    /// process, and stops sending.
    pub(crate) fn into_reader(self) -> StreamReader {
        let Self {
            mut reader,
            mut writer,
            ..
        } = self;
        writer.silent = true;
        reader._other = Some(writer);
        reader
    }

    pub(super) fn new(
        id: u32,
        headers: Headers,
        shared: &Arc<Shared>,
        [readable, writable]: [Arc<Notify>; 2],
        queue: mpsc::Sender<Frame>,
    ) -> Self {
        let (reader, writer) = (Arc::clone(shared), Arc::clone(shared));
        Self {
            id,
            headers,
            reader: StreamReader {
                id,
                shared: reader,
                readable,
                _other: None,
            },
            writer: StreamWriter {
                id,
                shared: writer,
                writable,
                queue,
                silent: false,
            },
        }
    }
}

fn cut_off() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionReset,
        "The client's stream was cut off",
    )
}

impl StreamReader {
    /// The next bytes; `None` at the end.
    pub(crate) async fn read(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let (next, room) = self.shared.table().read(self.id);
            match next {
                Some(Ok(bytes)) => {
                    self.shared.room.notify_one();
                    for (id, delta) in [(self.id, room.stream), (0, room.session)] {
                        if delta > 0 {
                            self.shared.control(Frame::WindowUpdate { id, delta });
                        }
                    }
                    return Ok(Some(bytes));
                }
                Some(Err(End::Finished)) => return Ok(None),
                Some(Err(End::Reset)) => return Err(cut_off()),
                None => self.readable.notified().await,
            }
        }
    }
}

impl Drop for StreamReader {
    fn drop(&mut self) {
        self.shared.table().drop_reader(self.id);
        self.shared.room.notify_one();
    }
}

impl StreamWriter {
    /// Sends bytes, waiting while there is no window or the connection is behind.
    pub(crate) async fn write(&mut self, mut bytes: Bytes) -> io::Result<()> {
        while !bytes.is_empty() {
            let wanted = bytes.len().min(MAX_PIECE);
            let allowed = self.shared.table().send(self.id, wanted);
            match allowed {
                None => return Err(cut_off()),
                Some(0) => {}
                Some(allowed) => {
                    let (id, bytes) = (self.id, bytes.split_to(allowed));
                    let frame = Frame::Data {
                        id,
                        fin: false,
                        bytes,
                    };
                    self.queue.send(frame).await.map_err(|_| cut_off())?;
                    continue;
                }
            }
            self.writable.notified().await;
        }
        Ok(())
    }

    /// Ends our direction, after what was written.
    pub(crate) async fn finish(self) -> io::Result<()> {
        if !self.shared.table().finish(self.id) {
            return Err(cut_off());
        }
        let (id, bytes) = (self.id, Bytes::new());
        let frame = Frame::Data {
            id,
            fin: true,
            bytes,
        };
        self.queue.send(frame).await.map_err(|_| cut_off())
    }
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        if self.silent {
            self.shared.table().finish(self.id);
        }
        if self.shared.table().drop_writer(self.id) {
            let (id, reason) = (self.id, reset::CANCEL);
            self.shared.control(Frame::RstStream { id, reason });
        }
        self.shared.room.notify_one();
    }
}
