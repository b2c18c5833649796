//! Connections to ports of the pod, each joined with a stream of the host's.

use super::{Hub, Port};
use crate::deadline::Deadline;
use crate::sys::fd::Fd;
use crate::{Error, Result};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// How many may be open. With both buffers they take 8 MiB at most.
const MAX_FORWARDS: usize = 256;
/// Bytes that are copied at a time.
const CHUNK: usize = 16 * 1024;
/// How long the host may take to connect the stream.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// How often a connection that the host has half-closed is looked at: whether the host is still there
/// is no event then.
const LOOK: Duration = Duration::from_secs(5);

/// Opens them.
#[derive(Debug, Clone)]
pub struct Forwards {
    hub: Arc<Hub>,
    places: Arc<Semaphore>,
}

impl Forwards {
    /// Streams come by this hub.
    pub fn new(hub: Arc<Hub>) -> Self {
        Self {
            hub,
            places: Arc::new(Semaphore::new(MAX_FORWARDS)),
        }
    }

    #[cfg(test)]
    pub(super) fn open_now(&self) -> usize {
        MAX_FORWARDS - self.places.available_permits()
    }

    /// Connects to a port and waits, in the background, for the host to connect the stream.
    pub async fn open(&self, port: u32, stream: u64, deadline: Deadline) -> Result<()> {
        let number = u16::try_from(port).ok().filter(|port| *port > 0);
        let port = number.ok_or_else(|| Error::Invalid(format!("There is no TCP port {port}")))?;
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return Err(Error::Exhausted(format!(
                "{MAX_FORWARDS} forwarded connections of the pod are open, which is the limit"
            )));
        };
        let stream = self.hub.claim(stream)?;
        let what = || format!("Port {port} of the pod does not take connections");
        let socket = deadline.limit(what, connect(port)).await?;
        let socket = socket.map_err(|error| {
            Error::Precondition(format!(
                "Nothing listens on port {port} of the pod: {error}"
            ))
        })?;
        tokio::spawn(async move {
            // A connection that breaks has no more to say; dropping both ends is what tells it.
            let _ = join(socket, stream).await;
            drop(place);
        });
        Ok(())
    }
}

/// Programs may listen on either loopback address; what IPv4 says counts when neither does.
async fn connect(port: u16) -> io::Result<TcpStream> {
    let [first, second] = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];
    match TcpStream::connect((first, port)).await {
        Ok(socket) => Ok(socket),
        Err(error) => (TcpStream::connect((second, port)).await).map_err(|_| error),
    }
}

async fn join(mut socket: TcpStream, mut stream: Port) -> io::Result<()> {
    let connection = tokio::time::timeout(CONNECT_TIME, stream.connection()).await?;
    // Small pieces go at once, as they came.
    socket.set_nodelay(true)?;
    let (mut reader, mut writer) = socket.split();
    let inward = async {
        let mut chunk = vec![0; CHUNK];
        loop {
            let count = connection.read(&mut chunk).await?;
            let bytes = chunk.get(..count).unwrap_or_default();
            if bytes.is_empty() || writer.write_all(bytes).await.is_err() {
                // A program that has closed altogether needs no end of file; what it has to say is
                // still wanted.
                let _ = writer.shutdown().await;
                return io::Result::Ok(());
            }
        }
    };
    let outward = async {
        let mut chunk = vec![0; CHUNK];
        loop {
            let count = tokio::select! {
                count = reader.read(&mut chunk) => count?,
                () = gone(&connection) => return Err(io::ErrorKind::ConnectionReset.into()),
            };
            match chunk.get(..count).unwrap_or_default() {
                [] => return connection.shutdown_write(),
                bytes => connection.write_all(bytes).await?,
            }
        }
    };
    tokio::try_join!(inward, outward).map(drop)
}

/// Waits until the host has closed its end altogether. Only while ours is open.
async fn gone(connection: &Fd) {
    while !connection.peer_is_gone() {
        tokio::time::sleep(LOOK).await;
    }
}
