//! What is asked of a tap: Linux `Documentation/networking/tuntap.rst` and `linux/if_tun.h`.

use super::{F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6, HEADER};
use crate::error::Error;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const IFF_TAP: u16 = 0x2;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;

/// Why a tap cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// There is one already.
    #[error("The interface has a tap already")]
    NotEmpty,
    /// Not a tap, or not one of this kind.
    #[error("The descriptor is not a tap with IFF_VNET_HDR and IFF_NO_PI")]
    Kind,
    /// The tap refused its settings.
    #[error("The tap refused its settings")]
    Settings(#[source] io::Error),
    /// The host refused.
    #[error("The host refused")]
    Host(#[source] Error),
}

/// `struct ifreq` as TUNGETIFF fills it: name and flags.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Checks a tap's kind and sets the length of its header; makes it non-blocking.
pub(super) fn check(tap: BorrowedFd<'_>) -> Result<(), TapError> {
    let mut request = Request {
        name: [0; 16],
        flags: 0,
        rest: [0; 22],
    };
    // SAFETY: TUNGETIFF writes a `struct ifreq`, which `Request` has the size of (40 bytes); another
    // kind of file refuses the request.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), TUNGETIFF, &raw mut request) };
    let needed = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    if result < 0 || request.flags & needed != needed {
        return Err(TapError::Kind);
    }
    let length = HEADER as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads an `int`.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETVNETHDRSZ, &raw const length) };
    if result < 0 {
        return Err(TapError::Settings(io::Error::last_os_error()));
    }
    rustix::io::ioctl_fionbio(tap, true).map_err(|error| TapError::Settings(error.into()))
}

/// Lets the host leave to the guest what the guest has said that it can do itself.
pub(super) fn set_offloads(tap: BorrowedFd<'_>, features: u64) -> Result<(), TapError> {
    let mut offloads = 0;
    if features & F_GUEST_CSUM != 0 {
        offloads |= TUN_F_CSUM;
        for (feature, offload) in [(F_GUEST_TSO4, TUN_F_TSO4), (F_GUEST_TSO6, TUN_F_TSO6)] {
            if features & feature != 0 {
                offloads |= offload;
            }
        }
    }
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETOFFLOAD, offloads) };
    if result < 0 {
        return Err(TapError::Settings(io::Error::last_os_error()));
    }
    Ok(())
}
