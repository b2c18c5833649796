//! Exec and attach over WebSocket: channels 0 to 4.

use super::channels::Protocol;
use super::connection::Connection;
use crate::backend::Backend;
use crate::limits::Limits;
use crate::session::{self, Client};
use crate::streams::{Sink, Source};
use crate::token::Call;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// Serves a call over a connection that has been upgraded.
pub(crate) async fn serve<T>(
    io: T,
    (backend, limits): (&dyn Backend, &Limits),
    (call, protocol): (&Call, Protocol),
) where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let socket = super::start(io).await;
    let wants = session::wants(call);
    let (connection, readers) = Connection::start(socket, protocol, &[STDIN, RESIZE], limits);
    let mut readers = readers.into_iter();
    let (stdin, resize) = (readers.next(), readers.next());
    let writer = |channel, wanted: bool| wanted.then(|| connection.writer(channel));
    let (mut stdout, mut stderr) = (writer(STDOUT, wants.stdout), writer(STDERR, wants.stderr));
    let mut error = connection.writer(ERROR);
    // An empty message tells the client that it is connected.
    let first = stdout.as_mut().or(stderr.as_mut()).unwrap_or(&mut error);
    if first.write(Bytes::new()).await.is_err() {
        return;
    }
    let client = Client {
        stdin: stdin.filter(|_| wants.stdin).map(Source::Channel),
        stdout: stdout.map(Sink::Channel),
        stderr: stderr.map(Sink::Channel),
        resize: resize.filter(|_| wants.tty).map(Source::Channel),
        error: Sink::Channel(error),
        json: protocol.json,
        gone: connection.gone(),
    };
    session::run(backend, call, client).await;
    connection.finish().await;
}
