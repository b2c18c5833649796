//! Taking connections: who may connect, and what the first bytes of a stream say.

use super::Hub;
use crate::sys::fd::Fd;
use crate::sys::net::{HOST_CID, accept};
use futures_core::Stream;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// How long a connection may take to name its stream.
const HEADER_TIME: Duration = Duration::from_secs(10);
/// How long a listener rests when there are no descriptors.
const REST: Duration = Duration::from_millis(100);

/// The connections that a listener takes. Of a vsock listener only those of the host: programs in
/// the guest could connect as well, through the loopback transport.
#[derive(Debug)]
pub struct Incoming(Fd);

impl Incoming {
    /// For a listening socket.
    pub fn new(listener: OwnedFd) -> io::Result<Self> {
        Ok(Self(Fd::new(listener)?))
    }

    /// The next connection. Never ends.
    pub async fn next(&self) -> Fd {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<Fd> {
        loop {
            match ready!(self.0.poll_readable(context, |fd| accept(fd))) {
                Ok((_, Some(cid))) if cid != HOST_CID => {
                    tracing::warn!("Refused a connection from vsock context {cid}");
                }
                Ok((fd, _)) => match Fd::new(fd) {
                    Ok(fd) => return Poll::Ready(fd),
                    Err(error) => tracing::warn!("Cannot take a connection: {error}"),
                },
                // The connection was gone before it was taken, or there are no descriptors now.
                Err(error) => {
                    tracing::warn!("Cannot take a connection: {error}");
                    if !matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                    ) {
                        let waker = context.waker().clone();
                        tokio::spawn(async move {
                            tokio::time::sleep(REST).await;
                            waker.wake();
                        });
                        return Poll::Pending;
                    }
                }
            }
        }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Fd>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll(context).map(|fd| Some(Ok(fd)))
    }
}

/// Takes the connections of byte streams until there are no more.
pub async fn serve(mut incoming: impl Stream<Item = io::Result<Fd>> + Unpin, hub: Arc<Hub>) {
    let mut next = async || std::future::poll_fn(|c| Pin::new(&mut incoming).poll_next(c)).await;
    while let Some(connection) = next().await {
        let Ok(connection) = connection else {
            continue;
        };
        let hub = hub.clone();
        tokio::spawn(async move {
            if let Ok(Ok(id)) = tokio::time::timeout(HEADER_TIME, header(&connection)).await {
                hub.connect(id, connection);
            }
        });
    }
}

/// Reads the stream id: 8 bytes, little-endian.
async fn header(connection: &Fd) -> io::Result<u64> {
    let mut header = [0; 8];
    let mut filled = 0;
    while let Some(free @ [_, ..]) = header.get_mut(filled..) {
        match connection.read(free).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => filled += n,
        }
    }
    Ok(u64::from_le_bytes(header))
}
