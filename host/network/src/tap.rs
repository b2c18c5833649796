//! The tap through which a VM's packets go: Linux `Documentation/networking/tuntap.rst`, `linux/if_tun.h`.
#![allow(unsafe_code)] // ioctl(2) takes any argument: each call here passes what its command wants.

use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETSNDBUF: libc::c_ulong = 0x4004_54d4;
const IFF_TAP: u16 = 0x2;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const IFF_MULTI_QUEUE: u16 = 0x100;
/// The longest name of an interface in bytes, without its NUL.
const MAX_NAME: usize = 15;

/// `struct ifreq` as TUNSETIFF takes it: name and flags.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Makes a tap in the calling thread's network namespace and opens its queues. It lives as long as one of
/// them is open.
///
/// # Errors
/// The system's.
pub fn open(name: &str, queues: u16) -> io::Result<Vec<OwnedFd>> {
    (0..queues.max(1))
        .map(|_| queue(name, queues > 1))
        .collect()
}

fn queue(name: &str, several: bool) -> io::Result<OwnedFd> {
    if name.len() > MAX_NAME {
        return Err(io::Error::other(format!(
            "{name:?} is too long a name for a tap"
        )));
    }
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    let mut request = Request {
        name: [0; 16],
        flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR,
        rest: [0; 22],
    };
    if several {
        request.flags |= IFF_MULTI_QUEUE;
    }
    for (to, from) in request.name.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, of which `Request` has the size (40 bytes).
    if unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // What the guest sends is never held back here: its own share of the CPUs is what limits it.
    let unlimited = libc::c_int::MAX;
    // SAFETY: TUNSETSNDBUF reads an `int`.
    if unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETSNDBUF, &raw const unlimited) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}
