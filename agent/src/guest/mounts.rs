//! The first mounts, and a root that containers can leave behind.
//!
//! The kernel starts PID 1 in the initramfs, whose mount has no parent: `pivot_root` refuses to move
//! it. So the agent binds that same file system to a directory of it, read-only, moves the bind
//! over the root and makes it the root. Nothing is copied, the containers can pivot, and the
//! agent's program, which every container's process runs for a moment, is on a mount where nobody
//! can write.

use crate::Result;
use crate::error::Context;
use rustix::fs::{Mode, mkdir, symlink};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_move, mount_remount};

/// Where the root is bound first. In the initramfs.
const NEW_ROOT: &str = "/root";

struct Early {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: &'static std::ffi::CStr,
}

const SAFE: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

const EARLY: [Early; 9] = [
    Early {
        kind: "proc",
        target: "/proc",
        flags: SAFE,
        options: c"",
    },
    Early {
        kind: "sysfs",
        target: "/sys",
        flags: SAFE,
        options: c"",
    },
    Early {
        kind: "devtmpfs",
        target: "/dev",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: c"mode=0755",
    },
    Early {
        kind: "devpts",
        target: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: c"ptmxmode=0666,mode=0620,gid=5",
    },
    Early {
        kind: "tmpfs",
        target: "/dev/shm",
        flags: SAFE,
        options: c"mode=1777",
    },
    Early {
        kind: "mqueue",
        target: "/dev/mqueue",
        flags: SAFE,
        options: c"",
    },
    Early {
        kind: "cgroup2",
        target: "/sys/fs/cgroup",
        flags: SAFE,
        options: c"nsdelegate,memory_recursiveprot",
    },
    Early {
        kind: "tmpfs",
        target: "/run",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        options: c"mode=0755",
    },
    Early {
        kind: "tmpfs",
        target: "/tmp",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        options: c"mode=1777",
    },
];

/// Makes the root and mounts all that the guest needs.
pub(super) fn mount_all() -> Result<()> {
    new_root()?;
    for early in EARLY {
        let what = || format!("Cannot mount {}", early.target);
        if early.target.starts_with("/dev/") {
            make_directory(early.target).context(what)?;
        }
        match mount(
            early.kind,
            early.target,
            early.kind,
            early.flags,
            early.options,
        ) {
            // The kernel may have mounted devtmpfs itself.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(error) => return Err(error).context(what),
        }
    }
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        match symlink(target, link) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).context(|| format!("Cannot make {link}")),
        }
    }
    Ok(())
}

fn new_root() -> Result<()> {
    let what = || "Cannot make a root that can be left";
    mount_bind("/", NEW_ROOT).context(what)?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
    mount_remount(NEW_ROOT, flags, c"").context(what)?;
    rustix::process::chdir(NEW_ROOT).context(what)?;
    mount_move(".", "/").context(what)?;
    rustix::process::chroot(".").context(what)?;
    rustix::process::chdir("/").context(what)
}

fn make_directory(path: &str) -> rustix::io::Result<()> {
    match mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error),
    }
}
