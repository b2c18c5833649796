//! The terminal of a process: a pseudo-terminal of the container's own devpts.
//!
//! The container may have put anything in the place of its /dev/pts, so what is opened there is
//! used only if it is a pseudo-terminal master of a devpts, and the other side is reached through
//! the master (`TIOCGPTPEER`), not by a path.

use super::mounts::{attach, copy};
use super::plan::{Failure, FailureKind};
use super::root::Root;
use super::{Doing, Step};
use rustix::fs::{FileType, OFlags, major, minor};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use std::os::fd::OwnedFd;

/// `DEVPTS_SUPER_MAGIC` (linux/magic.h).
const DEVPTS: i64 = 0x1cd1;

/// Both sides.
pub(super) struct Terminal {
    master: OwnedFd,
    process: OwnedFd,
}

impl Terminal {
    /// Makes one of this size (columns, rows) in the container.
    pub(super) fn open(root: &Root, size: (u16, u16)) -> Step<Self> {
        let what = "open a terminal in the container's /dev/pts";
        let master = root
            .open(
                "/dev/pts/ptmx",
                OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK,
            )
            .doing(what)?;
        let stat = rustix::fs::fstat(&master).doing(what)?;
        let system = rustix::fs::fstatfs(&master).doing(what)?;
        let is_master = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && (major(stat.st_rdev), minor(stat.st_rdev)) == (5, 2)
            && system.f_type == DEVPTS;
        if !is_master {
            return Err(Failure {
                kind: FailureKind::Invalid,
                message: "The container's /dev/pts/ptmx is not a terminal".to_owned(),
            });
        }
        crate::sys::ioctl::unlock_terminal(&master).doing(what)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let process = rustix::pty::ioctl_tiocgptpeer(&master, flags).doing(what)?;
        let (ws_col, ws_row) = size;
        let size = Winsize {
            ws_row,
            ws_col,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&process, size).doing("set the size of the terminal")?;
        Ok(Self { master, process })
    }

    /// Shows the terminal as the container's /dev/console.
    pub(super) fn show_as_console(&self, root: &Root) -> Step {
        let what = "show the terminal as /dev/console";
        let place = root.file("/dev/console")?;
        let tree = copy(&self.process, false).doing(what)?;
        attach(&tree, &place, what)
    }

    /// Makes it the controlling terminal and stdin, stdout and stderr. Gives the master.
    pub(super) fn take_control(self) -> Step<OwnedFd> {
        let what = "take the terminal";
        rustix::process::ioctl_tiocsctty(&self.process).doing(what)?;
        rustix::stdio::dup2_stdin(&self.process).doing(what)?;
        rustix::stdio::dup2_stdout(&self.process).doing(what)?;
        rustix::stdio::dup2_stderr(&self.process).doing(what)?;
        Ok(self.master)
    }
}
