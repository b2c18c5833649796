//! vsock and Unix sockets, as far as the agent uses them.
#![allow(unsafe_code)] // socket addresses of AF_VSOCK are passed to the kernel as bytes.

use super::fd::Fd;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// The context id of the host (vsock(7)).
pub const HOST_CID: u32 = 2;
/// Any context id.
const ANY_CID: u32 = u32::MAX;
const VSOCK: AddressFamily = AddressFamily::VSOCK;
const LENGTH: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: sockaddr_vm is plain data, for which all zeroes is a value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

fn stream(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(
        family,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

/// A listening vsock socket.
pub fn listen_vsock(port: u32) -> io::Result<OwnedFd> {
    let socket = stream(VSOCK)?;
    let address = address(ANY_CID, port);
    // SAFETY: the pointer is to an address of the length that is passed along.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), LENGTH) } < 0 {
        return Err(io::Error::last_os_error());
    }
    rustix::net::listen(&socket, 128)?;
    Ok(socket)
}

/// Connects to a port of the host.
pub async fn connect_host(port: u32) -> io::Result<Fd> {
    let socket = stream(VSOCK)?;
    let address = address(HOST_CID, port);
    // SAFETY: the pointer is to an address of the length that is passed along.
    if unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), LENGTH) } < 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINPROGRESS) {
            return Err(error);
        }
        let socket = Fd::new(socket)?;
        socket.connected().await?;
        return Ok(socket);
    }
    Fd::new(socket)
}

/// A listening Unix socket, for tests and for agents that are not in a guest.
pub fn listen_unix(path: &Path) -> io::Result<OwnedFd> {
    let socket = stream(AddressFamily::UNIX)?;
    rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 128)?;
    Ok(socket)
}

/// Accepts one connection of a listener that does not block. The context id of the peer comes along
/// for vsock: programs in the guest can connect too, through the loopback transport.
pub fn accept(listener: impl AsFd) -> io::Result<(OwnedFd, Option<u32>)> {
    let mut address = address(0, 0);
    let mut length = LENGTH;
    // SAFETY: the pointers are to an address and to its length; the kernel writes no more than that.
    let fd = unsafe {
        libc::accept4(
            listener.as_fd().as_raw_fd(),
            (&raw mut address).cast(),
            &raw mut length,
            libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: accept4 has just made this descriptor, nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let vsock = libc::c_int::from(address.svm_family) == libc::AF_VSOCK;
    Ok((fd, vsock.then_some(address.svm_cid)))
}
