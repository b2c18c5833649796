//! The pod's directory on the host and the Unix sockets in it.
//!
//! Sockets are bound and dialled through the directory's descriptor, because the path of a Unix
//! socket may have 107 bytes at most, whatever the configured directory is.

use crate::{Result, SandboxError};
use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Connections that may wait until the VMM takes them.
const BACKLOG: i32 = 128;
/// The longest answer to `CONNECT`: "OK " and a 32-bit number.
const MAX_ANSWER: usize = 32;

/// A pod's directory, held open.
pub(crate) struct PodDirectory {
    path: PathBuf,
    fd: OwnedFd,
}

impl PodDirectory {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| {
            SandboxError::io(format!("open the pod's directory {}", path.display()))(error.into())
        })?;
        Ok(Self {
            path: path.to_owned(),
            fd,
        })
    }

    fn address(&self, name: &str) -> io::Result<SocketAddrUnix> {
        Ok(SocketAddrUnix::new(format!(
            "/proc/self/fd/{}/{name}",
            self.fd.as_raw_fd()
        ))?)
    }

    fn failed(&self, doing: &str, name: &str) -> impl FnOnce(io::Error) -> SandboxError + use<> {
        SandboxError::io(format!("{doing} {}", self.path.join(name).display()))
    }

    pub(crate) fn create_file(&self, name: &str) -> Result<File> {
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(0o600))
            .map(File::from)
            .map_err(|error| self.failed("make", name)(error.into()))
    }

    pub(crate) fn listen_packets(&self, name: &str) -> Result<OwnedFd> {
        self.listen(name, SocketType::SEQPACKET)
            .map_err(self.failed("listen on", name))
    }

    pub(crate) fn listen_stream(&self, name: &str) -> Result<OwnedFd> {
        self.listen(name, SocketType::STREAM)
            .map_err(self.failed("listen on", name))
    }

    fn listen(&self, name: &str, kind: SocketType) -> io::Result<OwnedFd> {
        let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &self.address(name)?)?;
        listen(&socket, BACKLOG)?;
        Ok(socket)
    }

    /// Connects to a packet socket; the result does not block.
    pub(crate) fn connect_packets(&self, name: &str) -> Result<OwnedFd> {
        let dial = || -> io::Result<OwnedFd> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            connect(&socket, &self.address(name)?)?;
            Ok(socket)
        };
        dial().map_err(self.failed("connect to", name))
    }

    /// Connects to a stream socket.
    pub(crate) fn connect_stream(&self, name: &str) -> Result<OwnedFd> {
        let dial = || -> io::Result<OwnedFd> {
            let flags = SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            connect(&socket, &self.address(name)?)?;
            Ok(socket)
        };
        dial().map_err(self.failed("connect to", name))
    }

    /// Removes a file.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        rustix::fs::unlinkat(&self.fd, name, rustix::fs::AtFlags::empty())
            .map_err(|error| self.failed("remove", name)(error.into()))
    }

    /// Connects to a port of the guest's through the VMM's vsock socket.
    pub(crate) async fn dial_guest(&self, name: &str, port: u32) -> Result<UnixStream> {
        let path = format!("/proc/self/fd/{}/{name}", self.fd.as_raw_fd());
        let dial = async {
            let mut stream = UnixStream::connect(path).await?;
            stream
                .write_all(format!("CONNECT {port}\n").as_bytes())
                .await?;
            read_answer(&mut stream).await?;
            Ok(stream)
        };
        dial.await
            .map_err(self.failed(&format!("connect to guest port {port} through"), name))
    }
}

/// Reads `OK port\n`, byte by byte because what follows belongs to the connection's user.
async fn read_answer(stream: &mut UnixStream) -> io::Result<()> {
    let mut answer = Vec::with_capacity(MAX_ANSWER);
    while answer.last() != Some(&b'\n') {
        if answer.len() >= MAX_ANSWER {
            return Err(io::Error::other("The VMM's answer is too long"));
        }
        match stream.read_u8().await {
            Ok(byte) => answer.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(io::Error::new(
                    io::ErrorKind::ConnectionRefused,
                    "Nothing in the guest listens on that port",
                ));
            }
            Err(error) => return Err(error),
        }
    }
    match answer.starts_with(b"OK ") {
        true => Ok(()),
        false => Err(io::Error::other("The VMM's answer is not OK")),
    }
}
