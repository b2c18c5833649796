//! Project quotas of a file system (quotactl_fd(2), and `struct fsxattr` of linux/fs.h).
#![allow(unsafe_code)] // neither call has a safe wrapper; each passes what its command wants

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `_IOR('X', 31, struct fsxattr)`.
const FS_IOC_FSGETXATTR: libc::c_ulong = 0x801c_581f;
/// `_IOW('X', 32, struct fsxattr)`.
const FS_IOC_FSSETXATTR: libc::c_ulong = 0x401c_5820;
/// What is made in the directory belongs to its project.
const FS_XFLAG_PROJINHERIT: u32 = 0x200;
/// `QCMD(Q_GETQUOTA, PRJQUOTA)`.
const GET_PROJECT: u32 = (0x80_0007 << 8) | 2;

#[repr(C)]
#[derive(Default)]
struct Fsxattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

#[repr(C)]
#[derive(Default)]
struct Dqblk {
    block_hard_limit: u64,
    block_soft_limit: u64,
    space: u64,
    inode_hard_limit: u64,
    inode_soft_limit: u64,
    inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
}

/// What a project has on its file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Bytes of blocks.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

/// Gives a directory, and whatever is made in it from now on, to a project.
pub fn set_project(directory: impl AsFd, project: u32) -> io::Result<()> {
    let fd = directory.as_fd().as_raw_fd();
    let mut attributes = Fsxattr::default();
    // SAFETY: the command writes one `struct fsxattr`, through a pointer to one.
    if unsafe { libc::ioctl(fd, FS_IOC_FSGETXATTR, &raw mut attributes) } < 0 {
        return Err(io::Error::last_os_error());
    }
    attributes.projid = project;
    attributes.xflags |= FS_XFLAG_PROJINHERIT;
    // SAFETY: the command reads one `struct fsxattr`, through a pointer to one.
    if unsafe { libc::ioctl(fd, FS_IOC_FSSETXATTR, &raw const attributes) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// What a project has on the file system of `directory`.
pub fn project_used(directory: impl AsFd, project: u32) -> io::Result<Used> {
    let mut quota = Dqblk::default();
    // SAFETY: the command writes one `struct if_dqblk`, through a pointer to one.
    let result = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            directory.as_fd().as_raw_fd(),
            GET_PROJECT,
            project,
            &raw mut quota,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Used {
        bytes: quota.space,
        inodes: quota.inodes,
    })
}
