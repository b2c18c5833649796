//! Connections that the guest opens; the first is the agent's announcement.
//!
//! The guest is not trusted: what it sends is capped, and what it dials besides is closed.

use super::control::Control;
use crate::{Result, SandboxError};
use bulkhead_agent_api::agent::Announcement;
use bulkhead_agent_api::{ANNOUNCE_PORT, MAX_ANNOUNCEMENT};
use bulkhead_vmm_api::{GuestConnection, Reply};
use protobuf::Message;
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

/// Brings the connections that the guest opens, for as long as it is held.
pub(crate) struct Feed {
    control: Control,
}

impl Feed {
    pub(crate) fn new(control: Control) -> Self {
        Self { control }
    }

    /// Waits for the agent's announcement.
    pub(crate) async fn announcement(&mut self, pod: &str) -> Result<Announcement> {
        let closed = |message: &str| SandboxError::Vmm {
            pod: pod.to_owned(),
            doing: "bring the guest's connections",
            message: message.to_owned(),
        };
        match self.control.receive::<Reply>().await? {
            Some((Reply::Done, _)) => {}
            Some((other, _)) => return Err(closed(&format!("its reply was {other:?}"))),
            None => return Err(closed("it closed the connection")),
        }
        loop {
            let Some((connection, fds)) = self.control.receive::<GuestConnection>().await? else {
                return Err(closed("it closed the connection"));
            };
            let Some(fd) = fds.into_iter().next() else {
                return Err(closed("a connection came without its descriptor"));
            };
            if connection.port != ANNOUNCE_PORT {
                tracing::warn!(
                    pod,
                    port = connection.port,
                    "The guest dialled an unknown port"
                );
                continue;
            }
            return read(fd).await.map_err(SandboxError::io(format!(
                "read the announcement of the guest of pod sandbox {pod}"
            )));
        }
    }
}

async fn read(fd: OwnedFd) -> io::Result<Announcement> {
    let stream = std::os::unix::net::UnixStream::from(fd);
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    let length = stream.read_u32_le().await?;
    if length > MAX_ANNOUNCEMENT {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("It says to be {length} bytes long; {MAX_ANNOUNCEMENT} are allowed"),
        ));
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    stream.read_exact(&mut bytes).await?;
    Announcement::parse_from_bytes(&bytes).map_err(io::Error::other)
}
