//! What processes have open, from `/proc` (proc_pid_fd(5)).

use rustix::fs::{CWD, Dir, Mode, OFlags, openat, readlinkat};
use rustix::process::Pid;

/// The most descriptors of a container that are looked at; what is beyond is not counted.
const MAX: u64 = 100_000;

/// Open descriptors.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Open {
    pub(super) all: u64,
    pub(super) sockets: u64,
}

/// Those of some processes; one that has ended has none.
pub(super) fn of(processes: &[Pid]) -> Open {
    let mut open = Open::default();
    for pid in processes {
        let path = format!("/proc/{}/fd", pid.as_raw_nonzero());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(directory) = openat(CWD, path, flags, Mode::empty()) else {
            continue;
        };
        for entry in Dir::read_from(&directory).into_iter().flatten().flatten() {
            if entry.file_name().to_bytes().starts_with(b".") {
                continue;
            }
            if open.all == MAX {
                return open;
            }
            open.all += 1;
            // Its name says what it is; to look at the file itself could wait for the node.
            let name = readlinkat(&directory, entry.file_name(), Vec::new());
            let is_socket = name.is_ok_and(|name| name.to_bytes().starts_with(b"socket:"));
            open.sockets += u64::from(is_socket);
        }
    }
    open
}

/// The soft limit of a process's descriptors; nothing if it has ended or has none.
pub(super) fn limit(process: Pid) -> Option<u64> {
    let path = format!("/proc/{}/limits", process.as_raw_nonzero());
    soft_limit(&std::fs::read_to_string(path).ok()?)
}

fn soft_limit(limits: &str) -> Option<u64> {
    let mut lines = limits.lines();
    let values = lines.find_map(|line| line.strip_prefix("Max open files"))?;
    values.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{limit, of, soft_limit};
    use rustix::process::getpid;
    use std::net::TcpListener;

    #[test]
    fn what_this_process_has_is_counted() {
        let before = of(&[getpid()]);
        let _sockets = [0, 0, 0].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let after = of(&[getpid()]);
        // Other tests open and close theirs meanwhile.
        assert!(
            after.sockets >= 3 && after.all > after.sockets,
            "{before:?} {after:?}"
        );
        assert!(limit(getpid()).is_some_and(|limit| limit >= after.all));
    }

    #[test]
    fn a_limit_is_read() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max processes             1                    2                    processes \n\
                    Max open files            1024                 4096                 files     \n";
        assert_eq!(soft_limit(text), Some(1024));
        assert_eq!(
            soft_limit("Max open files            unlimited            unlimited            files"),
            None
        );
        assert_eq!(soft_limit(""), None);
    }
}
