//! `mount_setattr(2)`, which rustix does not have, and the attribute bits.
#![allow(unsafe_code)] // A raw system call with one struct.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Attributes of a mount (`MOUNT_ATTR_*`).
pub mod attr {
    /// Read-only.
    pub const RDONLY: u64 = 0x1;
    /// Set-user-id bits have no effect.
    pub const NOSUID: u64 = 0x2;
    /// Device nodes cannot be opened.
    pub const NODEV: u64 = 0x4;
    /// Programs cannot be run.
    pub const NOEXEC: u64 = 0x8;
    /// The mask of the three access-time modes, of which relatime is 0.
    pub const ATIME: u64 = 0x70;
    /// Access times are never updated.
    pub const NOATIME: u64 = 0x10;
    /// Access times are always updated.
    pub const STRICTATIME: u64 = 0x20;
    /// Access times of directories are never updated.
    pub const NODIRATIME: u64 = 0x80;
    /// Symbolic links are not followed.
    pub const NOSYMFOLLOW: u64 = 0x20_0000;
}

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Sets and clears attributes of the mount at `fd`, and its propagation (an `MS_*` flag) unless 0;
/// of all mounts below it too when `recursive`.
pub fn set_attributes(
    fd: impl AsFd,
    set: u64,
    clear: u64,
    propagation: u64,
    recursive: bool,
) -> io::Result<()> {
    apply(
        fd.as_fd(),
        recursive,
        MountAttr {
            attr_set: set,
            attr_clr: clear,
            propagation,
            userns_fd: 0,
        },
    )
}

/// Maps the ids of a detached mount (and of those below it when `recursive`) as the user namespace
/// does.
pub fn map_ids(fd: impl AsFd, namespace: impl AsFd, recursive: bool) -> io::Result<()> {
    const IDMAP: u64 = 0x10_0000;
    let namespace = u64::try_from(namespace.as_fd().as_raw_fd()).unwrap_or(u64::MAX);
    apply(
        fd.as_fd(),
        recursive,
        MountAttr {
            attr_set: IDMAP,
            attr_clr: 0,
            propagation: 0,
            userns_fd: namespace,
        },
    )
}

fn apply(fd: BorrowedFd<'_>, recursive: bool, attr: MountAttr) -> io::Result<()> {
    const EMPTY: &CStr = c"";
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string, the struct is of the size that is passed along.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            EMPTY.as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
