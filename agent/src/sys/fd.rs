//! A file descriptor in the tokio reactor, whatever is behind it: pipe, pseudo-terminal, Unix or
//! vsock connection.
#![allow(unsafe_code)] // Registering with the reactor asks for a promise; inherited descriptors.

use rustix::fs::OFlags;
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// A descriptor that can be waited for. Made non-blocking when it enters.
#[derive(Debug)]
pub struct Fd(AsyncFd<OwnedFd>);

impl Fd {
    /// Registers the descriptor with the reactor of the current runtime.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        // SAFETY: the descriptor is owned and never given out but borrowed, so it stays open and
        // the same as long as it is registered.
        Ok(Self(unsafe { AsyncFd::register(fd) }?))
    }

    /// For a file of the kernel that tells a change by an exceptional condition (POLLPRI), as those
    /// of cgroups do.
    pub fn exceptional(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: as above.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::PRIORITY) };
        Ok(Self(fd?))
    }

    /// Waits for the next exceptional condition.
    pub async fn changed(&self) -> io::Result<()> {
        self.0.ready(Interest::PRIORITY).await?.clear_ready();
        Ok(())
    }

    /// Reads what is there, waiting until there is something. 0 is end of file; so is the EIO of a
    /// pseudo-terminal whose other side is closed.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0
            .async_io(Interest::READABLE, |fd| {
                end_of_terminal(retry(|| rustix::io::read(fd, &mut *buffer)))
            })
            .await
    }

    /// Reads what is there now; `None` when there is nothing.
    pub fn read_now(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match end_of_terminal(retry(|| rustix::io::read(self.0.get_ref(), &mut *buffer))) {
            Ok(n) => Ok(Some(n)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes some of the buffer, waiting until there is room.
    pub async fn write(&self, buffer: &[u8]) -> io::Result<usize> {
        self.0
            .async_io(Interest::WRITABLE, |fd| {
                Ok(retry(|| rustix::io::write(fd, buffer))?)
            })
            .await
    }

    /// Writes all of the buffer.
    pub async fn write_all(&self, mut buffer: &[u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            let n = self.write(buffer).await?;
            buffer = buffer.get(n..).unwrap_or_default();
        }
        Ok(())
    }

    /// Half-closes a socket: the peer reads end of file.
    pub fn shutdown_write(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(
            self.0.get_ref(),
            rustix::net::Shutdown::Write,
        )?)
    }

    /// Whether the peer of a socket has closed its reading side too (a whole close or a reset, not
    /// a half-close). A send of no bytes sees it, for Unix and for vsock.
    pub fn peer_is_gone(&self) -> bool {
        let flags = rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT;
        matches!(
            rustix::net::send(self.0.get_ref(), &[], flags),
            Err(error) if error != Errno::AGAIN
        )
    }

    /// Runs a non-blocking operation until it no longer says EAGAIN.
    pub async fn readable<T>(
        &self,
        mut operation: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        self.0
            .async_io(Interest::READABLE, |fd| operation(fd.as_fd()))
            .await
    }

    /// As [`Self::readable`], for use in hand-written futures.
    pub fn poll_readable<T>(
        &self,
        context: &mut Context<'_>,
        mut operation: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            if let Ok(result) = guard.try_io(|fd| operation(fd.as_fd())) {
                return Poll::Ready(result);
            }
        }
    }

    /// Waits until a connection under way is made.
    pub async fn connected(&self) -> io::Result<()> {
        // Readiness is kept for the first write: there is no second edge to wait for.
        self.0.writable().await?.retain_ready();
        Ok(rustix::net::sockopt::socket_error(self.0.get_ref())??)
    }

    fn poll_writable<T>(
        &self,
        context: &mut Context<'_>,
        mut operation: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            if let Ok(result) = guard.try_io(|fd| operation(fd.as_fd())) {
                return Poll::Ready(result);
            }
        }
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsyncRead for Fd {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let n = ready!(
            self.poll_readable(context, |fd| Ok(retry(|| rustix::io::read(
                fd,
                buffer.initialize_unfilled()
            ))?))
        )?;
        buffer.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Fd {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_writable(context, |fd| Ok(retry(|| rustix::io::write(fd, buffer))?))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.shutdown_write())
    }
}

/// Again after an interruption.
fn retry<T>(mut operation: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match operation() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

fn end_of_terminal(result: rustix::io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(Errno::IO) => Ok(0),
        result => Ok(result?),
    }
}

/// Takes a descriptor that the process was born with.
pub fn inherited(number: RawFd) -> rustix::io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: borrowed only to ask whether the number is open, which F_GETFD does for any number.
    let open = rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) });
    open?;
    // SAFETY: the number is open. Only `init::control` calls this, once for each number, before the
    // process has opened anything itself.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
