//! What the daemon says on standard input.

use crate::epoch::Epoch;
use crate::error::Error;
use rustix::fs::fstat;
use serde::Deserialize;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

/// The longest configuration in bytes.
const MAX_LENGTH: u64 = 4096;
/// The most threads that serve requests.
const MAX_THREADS: usize = 16;
/// Descriptors that the program needs for itself: sockets, eventfds, epoll, the memory's file.
pub(crate) const OWN_DESCRIPTORS: u64 = 64;

/// How a pod's volumes are served.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// A listening `SOCK_STREAM` Unix socket, inherited; 3 or higher.
    pub(crate) listener_fd: RawFd,
    /// The most descriptors (RLIMIT_NOFILE), and so how many files the guest can have open; fewer where
    /// the hard limit that the process comes with is lower.
    pub(crate) descriptors: u64,
    /// How many requests are served at once, 1 to 16.
    pub(crate) threads: usize,
    /// Which of the pod's file daemons this is, 1 to 32767: a higher one than any before it.
    pub(crate) epoch: u16,
}

/// Reads the configuration and takes the socket.
///
/// # Errors
/// [`Error::Config`].
pub(crate) fn read(from: impl Read) -> Result<(Config, UnixListener), Error> {
    let config = parse(from)?;
    // SAFETY: the number is 3 or higher, so it is no standard stream; nothing in this process has opened
    // or closed a descriptor yet, so if it is open it was inherited and belongs to nobody else. Whether
    // it is open at all is asked first.
    #[allow(unsafe_code)]
    let listener = unsafe {
        let fd = BorrowedFd::borrow_raw(config.listener_fd);
        check(fd)?;
        OwnedFd::from_raw_fd(config.listener_fd)
    };
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::CLOEXEC)
        .map_err(Error::host("take the listening socket"))?;
    Ok((config, UnixListener::from(listener)))
}

fn check(fd: BorrowedFd<'_>) -> Result<(), Error> {
    fstat(fd).map_err(|_| Error::Config("listener_fd is not open".to_owned()))?;
    match rustix::net::sockopt::socket_acceptconn(fd.as_fd()) {
        Ok(true) => Ok(()),
        _ => Err(Error::Config(
            "listener_fd is not a listening socket".to_owned(),
        )),
    }
}

fn parse(from: impl Read) -> Result<Config, Error> {
    let mut text = String::new();
    from.take(MAX_LENGTH + 1)
        .read_to_string(&mut text)
        .map_err(|error| Error::Config(error.to_string()))?;
    if text.len() as u64 > MAX_LENGTH {
        return Err(Error::Config(format!("more than {MAX_LENGTH} bytes")));
    }
    let config: Config =
        serde_json::from_str(&text).map_err(|error| Error::Config(error.to_string()))?;
    if config.listener_fd < 3 {
        return Err(Error::Config("listener_fd is below 3".to_owned()));
    }
    if !(1..=MAX_THREADS).contains(&config.threads) {
        return Err(Error::Config(format!("threads is not 1 to {MAX_THREADS}")));
    }
    if Epoch::new(config.epoch).is_none() {
        let last = Epoch::LAST;
        return Err(Error::Config(format!("epoch is not 1 to {last}")));
    }
    if config.descriptors < 4 * OWN_DESCRIPTORS {
        let least = 4 * OWN_DESCRIPTORS;
        return Err(Error::Config(format!("descriptors is below {least}")));
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::{Config, parse};

    #[test]
    fn a_configuration_is_read() {
        let text = r#"{"listener_fd":3,"descriptors":1024,"threads":4,"epoch":7}"#;
        let config = Config {
            listener_fd: 3,
            descriptors: 1024,
            threads: 4,
            epoch: 7,
        };
        assert!(parse(text.as_bytes()).is_ok_and(|read| read == config));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (text, why) in [
            ("", "EOF"),
            (
                r#"{"listener_fd":3,"descriptors":1024,"epoch":1}"#,
                "threads",
            ),
            (
                r#"{"listener_fd":2,"descriptors":1024,"threads":1,"epoch":1}"#,
                "below 3",
            ),
            (
                r#"{"listener_fd":3,"descriptors":255,"threads":1,"epoch":1}"#,
                "below 256",
            ),
            (
                r#"{"listener_fd":3,"descriptors":1024,"threads":0,"epoch":1}"#,
                "1 to 16",
            ),
            (
                r#"{"listener_fd":3,"descriptors":1024,"threads":17,"epoch":1}"#,
                "1 to 16",
            ),
            (
                r#"{"listener_fd":3,"descriptors":1024,"threads":1,"epoch":1,"x":1}"#,
                "unknown field",
            ),
            (
                r#"{"listener_fd":3,"descriptors":1024,"threads":1,"epoch":0}"#,
                "1 to 32767",
            ),
            (
                r#"{"listener_fd":3,"descriptors":1024,"threads":1,"epoch":32768}"#,
                "1 to 32767",
            ),
        ] {
            let error = parse(text.as_bytes()).map_err(|error| error.to_string());
            assert!(error.is_err_and(|error| error.contains(why)), "{text}");
        }
        assert!(parse(" ".repeat(5000).as_bytes()).is_err());
    }
}
