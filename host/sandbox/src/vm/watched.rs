//! Descriptors that the async runtime watches.

// The one place: registering a descriptor is `unsafe` in Tokio because of what it may be.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

/// Has the runtime watch a descriptor.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the runtime must not watch a descriptor that is closed or replaced under it. An
    // `OwnedFd` closes only when it is dropped, always names the same descriptor, and `AsyncFd`
    // deregisters it before it drops it; nobody here takes its raw number.
    Ok(unsafe { AsyncFd::register(fd) }?)
}
