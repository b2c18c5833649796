//! Exec and attach over SPDY: one stream for each of error, stdin, stdout, stderr and resize, told
//! apart by their `streamType`.

use super::{Connection, Stream};
use crate::backend::Backend;
use crate::limits::Limits;
use crate::session::{self, Client};
use crate::streams::{Sink, Source};
use crate::token::Call;
use tokio::io::{AsyncRead, AsyncWrite};

/// A version of the protocol, `vN.channel.k8s.io`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    /// `channel.k8s.io`, and of clients that name none.
    V1,
    V2,
    /// Terminals have a resize stream.
    V3,
    /// The error stream carries a `metav1.Status` as JSON.
    V4,
}

impl Version {
    /// The names, newest first, as the server tells them to a client that has none of them.
    pub(crate) const NAMES: [(&'static str, Self); 4] = [
        ("v4.channel.k8s.io", Self::V4),
        ("v3.channel.k8s.io", Self::V3),
        ("v2.channel.k8s.io", Self::V2),
        ("channel.k8s.io", Self::V1),
    ];
}

/// Serves a call over a connection that has been upgraded.
pub(crate) async fn serve<T>(
    io: T,
    (backend, limits): (&dyn Backend, &Limits),
    (call, version): (&Call, Version),
) where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut connection = Connection::start(io, limits);
    let wants = session::wants(call);
    let mut expected = 1 + usize::from(wants.stdin) + usize::from(wants.stdout);
    expected += usize::from(wants.stderr);
    expected += usize::from(wants.tty && version >= Version::V3);
    let complete = tokio::time::timeout(limits.setup, streams(&mut connection, expected)).await;
    let Ok(Some(Streams {
        stdin,
        stdout,
        stderr,
        resize,
        error: Some(error),
    })) = complete
    else {
        tracing::debug!("A SPDY client did not open the streams of its call");
        return;
    };
    let client = Client {
        // Streams that were not asked for are not used, and reset.
        stdin: stdin
            .filter(|_| wants.stdin)
            .map(|one| Source::Spdy(one.into_reader())),
        stdout: stdout
            .filter(|_| wants.stdout)
            .map(|one| Sink::Spdy(one.writer)),
        stderr: stderr
            .filter(|_| wants.stderr)
            .map(|one| Sink::Spdy(one.writer)),
        resize: resize
            .filter(|_| wants.tty)
            .map(|one| Source::Spdy(one.into_reader())),
        error: Sink::Spdy(error.writer),
        json: version >= Version::V4,
        gone: connection.gone(),
    };
    session::run(backend, call, client).await;
    connection.finish().await;
}

#[derive(Default)]
struct Streams {
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
    error: Option<Stream>,
}

/// Takes so many streams of different types.
async fn streams(connection: &mut Connection, expected: usize) -> Option<Streams> {
    let mut streams = Streams::default();
    for _ in 0..expected {
        let stream = connection.accept().await?;
        let place = match stream.headers.get("streamtype") {
            "stdin" => &mut streams.stdin,
            "stdout" => &mut streams.stdout,
            "stderr" => &mut streams.stderr,
            "resize" => &mut streams.resize,
            "error" => &mut streams.error,
            _ => return None,
        };
        if place.replace(stream).is_some() {
            return None;
        }
    }
    Some(streams)
}
