//! A WebSocket connection with channels: a task that reads messages and one that writes them.

use super::channels::{Input, Protocol};
use crate::limits::Limits;
use crate::streams::CHUNK;
use bytes::Bytes;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use std::io;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Messages that wait to be written; each has at most [`CHUNK`] bytes.
const QUEUE: usize = 4;
/// Messages of one channel that wait for their reader; one can be large.
const INBOX: usize = 1;

/// A channel from the client.
pub(crate) struct ChannelReader(mpsc::Receiver<Bytes>);

/// A channel to the client.
pub(crate) struct ChannelWriter {
    channel: u8,
    queue: mpsc::Sender<(u8, Bytes)>,
}

impl ChannelReader {
    /// The next message's bytes; `None` at the end.
    pub(crate) async fn read(&mut self) -> Option<Bytes> {
        self.0.recv().await
    }
}

impl ChannelWriter {
    /// Sends bytes, waiting while the connection is behind. No bytes are an empty message.
    pub(crate) async fn write(&mut self, mut bytes: Bytes) -> io::Result<()> {
        loop {
            let message = bytes.split_to(bytes.len().min(CHUNK));
            let sent = self.queue.send((self.channel, message)).await;
            sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            if bytes.is_empty() {
                return Ok(());
            }
        }
    }
}

/// A connection. When it is dropped, everything of it is gone.
pub(crate) struct Connection {
    queue: mpsc::Sender<(u8, Bytes)>,
    gone: CancellationToken,
    reader: AbortOnDropHandle<()>,
    writer: AbortOnDropHandle<()>,
    linger: Duration,
}

impl Connection {
    /// Begins to move messages; `inputs` are the channels that the client may send on, each of which
    /// gets its reader, in the same order.
    pub(crate) fn start<W>(
        socket: W,
        protocol: Protocol,
        inputs: &[u8],
        limits: &Limits,
    ) -> (Self, Vec<ChannelReader>)
    where
        W: Stream<Item = Result<Message, Error>> + Sink<Message, Error = Error> + Send + 'static,
    {
        let (sink, stream) = socket.split();
        let (queue, messages) = mpsc::channel(QUEUE);
        let gone = CancellationToken::new();
        let (senders, readers) = inputs
            .iter()
            .map(|channel| {
                let (sender, receiver) = mpsc::channel(INBOX);
                ((*channel, sender), ChannelReader(receiver))
            })
            .unzip();
        let (reader_gone, writer_gone) = (gone.clone(), gone.clone());
        let reader = async move {
            read(stream, protocol, senders).await;
            reader_gone.cancel();
        };
        let ping = limits.ping;
        let writer = async move {
            if let Err(error) = write(sink, protocol, messages, ping).await {
                tracing::debug!(%error, "A WebSocket client is gone");
                writer_gone.cancel();
            }
        };
        let connection = Self {
            queue,
            gone,
            reader: AbortOnDropHandle::new(tokio::spawn(reader)),
            writer: AbortOnDropHandle::new(tokio::spawn(writer)),
            linger: limits.linger,
        };
        (connection, readers)
    }

    /// The writer of a channel.
    pub(crate) fn writer(&self, channel: u8) -> ChannelWriter {
        let queue = self.queue.clone();
        ChannelWriter { channel, queue }
    }

    /// Cancelled when the client is gone.
    pub(crate) fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    /// Closes the connection when everything is sent: every writer must have been dropped. Waits for
    /// the client's own Close, but not for ever.
    pub(crate) async fn finish(self) {
        let Self {
            queue,
            gone,
            mut reader,
            mut writer,
            linger,
        } = self;
        drop(queue);
        let farewell = async {
            let _ = (&mut writer).await;
            let _ = tokio::time::timeout(linger, &mut reader).await;
        };
        tokio::select! {
            () = farewell => {}
            () = gone.cancelled() => {}
        }
    }
}

/// Reads messages until the client closes, or breaks the protocol.
async fn read<S>(mut stream: S, protocol: Protocol, mut inboxes: Vec<(u8, mpsc::Sender<Bytes>)>)
where
    S: Stream<Item = Result<Message, Error>> + Unpin,
{
    while let Some(message) = stream.next().await {
        let content = match message {
            Ok(Message::Binary(bytes)) => bytes,
            Ok(Message::Text(text)) => text.into(),
            // Pings are answered by the library; its Close is followed by the end.
            Ok(_) => continue,
            Err(error) => return tracing::debug!(%error, "A WebSocket connection broke"),
        };
        match protocol.decode(content) {
            Some(Input::Data(channel, bytes)) => {
                let inbox = inboxes.iter().find(|(known, _)| *known == channel);
                if let Some((_, inbox)) = inbox.filter(|_| !bytes.is_empty()) {
                    // One that nobody reads any more takes nothing.
                    let _ = inbox.send(bytes).await;
                }
            }
            Some(Input::End(channel)) => inboxes.retain(|(known, _)| *known != channel),
            None => return tracing::debug!("A WebSocket message has no channel"),
        }
    }
}

/// Writes messages until there are no more writers, then closes.
async fn write<S>(
    mut sink: S,
    protocol: Protocol,
    mut messages: mpsc::Receiver<(u8, Bytes)>,
    ping: Duration,
) -> Result<(), Error>
where
    S: Sink<Message, Error = Error> + Unpin,
{
    loop {
        let message = tokio::select! {
            message = messages.recv() => message,
            () = tokio::time::sleep(ping) => {
                sink.send(Message::Ping(Bytes::new())).await?;
                continue;
            }
        };
        let Some((channel, bytes)) = message else {
            break;
        };
        sink.send(protocol.encode(channel, &bytes)).await?;
    }
    let close = CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    };
    sink.send(Message::Close(Some(close))).await
}
