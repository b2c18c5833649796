//! Copies of directories with everything that is in them.
//!
//! Everything goes by descriptors of directories, and no link is followed.

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, makedev};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// How deep directories may be.
pub const MAX_DEPTH: u32 = 64;

/// Copies what is in one directory into another, which is open for reading, no deeper than `depth`.
pub fn directory(from: &OwnedFd, to: &OwnedFd, depth: u32) -> io::Result<()> {
    let depth = depth.checked_sub(1).ok_or(Errno::LOOP)?;
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mode = Mode::from_raw_mode(stat.st_mode);
        let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                rustix::fs::mkdirat(to, name, Mode::RWXU)?;
                let flags = read | OFlags::DIRECTORY;
                let inner = rustix::fs::openat(to, name, flags, Mode::empty())?;
                let source = rustix::fs::openat(from, name, flags, Mode::empty())?;
                directory(&source, &inner, depth)?;
            }
            FileType::RegularFile => {
                let source = rustix::fs::openat(from, name, read, Mode::empty())?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let target = rustix::fs::openat(to, name, flags, Mode::RWXU)?;
                io::copy(
                    &mut std::fs::File::from(source),
                    &mut std::fs::File::from(target),
                )?;
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(target.as_c_str(), to, name)?;
            }
            kind => {
                let (major, minor) = (
                    rustix::fs::major(stat.st_rdev),
                    rustix::fs::minor(stat.st_rdev),
                );
                rustix::fs::mknodat(to, name, kind, mode, makedev(major, minor))?;
            }
        }
        finish(to, name, &stat)?;
    }
    Ok(())
}

/// Owner, mode and time of something that was copied.
fn finish(to: impl AsFd, name: &std::ffi::CStr, stat: &rustix::fs::Stat) -> io::Result<()> {
    let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    let no_follow = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(&to, name, Some(owner.0), Some(owner.1), no_follow)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        let mode = Mode::from_raw_mode(stat.st_mode);
        rustix::fs::chmodat(&to, name, mode, AtFlags::empty())?;
    }
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime,
            tv_nsec: stat.st_atime_nsec.try_into().unwrap_or(0),
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec.try_into().unwrap_or(0),
        },
    };
    Ok(rustix::fs::utimensat(to, name, &times, no_follow)?)
}
