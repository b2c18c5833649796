//! A control connection to a VMM.

use super::socket::PodDirectory;
use super::watched::watch;
use crate::{Result, SandboxError};
use bulkhead_vmm_api::wire::{self, WireError};
use bulkhead_vmm_api::{Reply, Request};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;

/// How long a VMM may take to answer; it answers without waiting for the guest, so a longer silence
/// is a fault.
const DEADLINE: Duration = Duration::from_secs(30);

/// One control connection: requests go one after another.
pub(crate) struct Control {
    pod: String,
    socket: Mutex<AsyncFd<OwnedFd>>,
}

impl Control {
    pub(crate) fn connect(pod: &str, directory: &PodDirectory) -> Result<Self> {
        let socket = directory.connect_packets("control.sock")?;
        let socket = watch(socket).map_err(SandboxError::io("watch a control socket"))?;
        Ok(Self {
            pod: pod.to_owned(),
            socket: Mutex::new(socket),
        })
    }

    /// Sends a request and does not wait for the reply.
    pub(crate) async fn send(&mut self, request: &Request) -> Result<()> {
        write(self.socket.get_mut(), request, &[])
            .await
            .map_err(wire_error(&self.pod))
    }

    /// Receives what the VMM sends next; `None` when it has closed.
    pub(crate) async fn receive<T: DeserializeOwned>(
        &mut self,
    ) -> Result<Option<(T, Vec<OwnedFd>)>> {
        read(self.socket.get_mut())
            .await
            .map_err(wire_error(&self.pod))
    }

    /// Sends a request with its descriptors and waits for the reply.
    pub(crate) async fn request(
        &self,
        doing: &'static str,
        request: &Request,
        fds: &[OwnedFd],
    ) -> Result<Reply> {
        let exchange = async {
            // Held over the exchange: a reply belongs to the request before it.
            let socket = self.socket.lock().await;
            write(&socket, request, fds).await?;
            read::<Reply>(&socket).await
        };
        let refused = |message: &str| SandboxError::Vmm {
            pod: self.pod.clone(),
            doing,
            message: message.to_owned(),
        };
        match tokio::time::timeout(DEADLINE, exchange).await {
            Ok(Ok(Some((Reply::Error { message }, _)))) => Err(refused(&message)),
            Ok(Ok(Some((reply, _)))) => Ok(reply),
            Ok(Ok(None)) => Err(refused("it closed the control connection")),
            Ok(Err(error)) => Err(wire_error(&self.pod)(error)),
            Err(_) => Err(refused("it did not answer in time")),
        }
    }

    pub(crate) fn unexpected(&self, doing: &'static str, reply: &Reply) -> SandboxError {
        SandboxError::Vmm {
            pod: self.pod.clone(),
            doing,
            message: format!("its reply was {reply:?}"),
        }
    }
}

fn wire_error(pod: &str) -> impl FnOnce(WireError) -> SandboxError + use<> {
    let pod = pod.to_owned();
    move |source| SandboxError::VmmWire { pod, source }
}

async fn write(
    socket: &AsyncFd<OwnedFd>,
    request: &Request,
    fds: &[OwnedFd],
) -> Result<(), WireError> {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    loop {
        let mut guard = socket.writable().await.map_err(not_watched)?;
        match wire::send(socket.get_ref(), request, &fds) {
            Err(WireError::Socket(Errno::AGAIN)) => guard.clear_ready(),
            result => return result,
        }
    }
}

async fn read<T: DeserializeOwned>(
    socket: &AsyncFd<OwnedFd>,
) -> Result<Option<(T, Vec<OwnedFd>)>, WireError> {
    loop {
        let mut guard = socket.readable().await.map_err(not_watched)?;
        match wire::receive(socket.get_ref()) {
            Err(WireError::Socket(Errno::AGAIN)) => guard.clear_ready(),
            result => return result,
        }
    }
}

fn not_watched(error: std::io::Error) -> WireError {
    WireError::Socket(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
