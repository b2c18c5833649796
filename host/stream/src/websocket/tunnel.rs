//! A stream of bytes in the binary messages of a WebSocket.

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::{Error, Message};

/// The largest message that is sent.
const MAX: usize = 32 * 1024;

/// The bytes of a WebSocket. Its Close is the end.
pub(crate) struct Tunnel<S> {
    socket: S,
    received: Bytes,
}

impl<S> Tunnel<S> {
    pub(crate) fn new(socket: S) -> Self {
        Self {
            socket,
            received: Bytes::new(),
        }
    }
}

impl<S> AsyncRead for Tunnel<S>
where
    S: Stream<Item = Result<Message, Error>> + Unpin,
{
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.received.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(context)) {
                Some(Ok(Message::Binary(bytes))) => self.received = bytes,
                Some(Ok(Message::Text(_))) => {
                    let problem = "A text message in a tunnel of binary ones";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, problem)));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.received.len().min(buffer.remaining());
        buffer.put_slice(self.received.get(..count).unwrap_or_default());
        self.received.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S> AsyncWrite for Tunnel<S>
where
    S: Sink<Message, Error = Error> + Unpin,
{
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let socket = Pin::new(&mut self.socket);
        ready!(socket.poll_ready(context)).map_err(io::Error::other)?;
        let part = bytes.get(..MAX).unwrap_or(bytes);
        let message = Message::binary(Bytes::copy_from_slice(part));
        let socket = Pin::new(&mut self.socket);
        socket.start_send(message).map_err(io::Error::other)?;
        Poll::Ready(Ok(part.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket)
            .poll_flush(context)
            .map_err(io::Error::other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket)
            .poll_close(context)
            .map_err(io::Error::other)
    }
}
