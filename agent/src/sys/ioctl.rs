//! ioctls of block devices, ext4, terminals and network interfaces.
#![allow(unsafe_code)] // ioctl(2) takes any argument: each call here passes what its command wants.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `_IOR(0x12, 114, size_t)`: size of a block device in bytes.
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
/// `_IOW('f', 16, __u64)`: grows a mounted ext4 to this many blocks.
const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;

/// Bytes of a block device.
pub fn block_size(device: impl AsFd) -> io::Result<u64> {
    let mut size = 0u64;
    // SAFETY: the command writes one u64, through a pointer to one.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), BLKGETSIZE64, &raw mut size) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(size)
    }
}

/// Grows the mounted ext4 that `directory` belongs to; `blocks` of its own block size.
pub fn grow_ext4(directory: impl AsFd, blocks: u64) -> io::Result<()> {
    // SAFETY: the command reads one u64, through a pointer to one.
    let result = unsafe {
        libc::ioctl(
            directory.as_fd().as_raw_fd(),
            EXT4_IOC_RESIZE_FS,
            &raw const blocks,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Unlocks the terminal of a pseudo-terminal master.
pub fn unlock_terminal(master: impl AsFd) -> io::Result<()> {
    let locked: libc::c_int = 0;
    // SAFETY: the command reads one int, through a pointer to one.
    let result = unsafe {
        libc::ioctl(
            master.as_fd().as_raw_fd(),
            libc::TIOCSPTLCK,
            &raw const locked,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Bytes that a pipe or terminal holds for its reader.
pub fn bytes_waiting(fd: impl AsFd) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: the command writes one int, through a pointer to one.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut count) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Sets the loopback interface up.
pub fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    // SAFETY: ifreq is plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    // SAFETY: the command reads and writes one ifreq, through a pointer to one.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: SIOCGIFFLAGS has just filled this member of the union.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    // SAFETY: the command reads one ifreq, through a pointer to one.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
