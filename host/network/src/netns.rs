//! Network namespaces that have a path, as plugins want it: a file that the namespace is bound to.
#![allow(unsafe_code)] // unshare(2) is marked unsafe; see there.

use crate::{NetworkError, Result};
use bulkhead_netlink::{Socket, link};
use rustix::fs::{Mode, OFlags};
use rustix::mount::UnmountFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Makes a namespace with its loopback interface up, and binds it to a new file. Blocks.
///
/// # Errors
/// The system's; nothing is left then.
pub fn create(path: &Path) -> Result<()> {
    let failed = || NetworkError::io(format!("make the network namespace {}", path.display()));
    fs::File::create_new(path).map_err(failed())?;
    let target = path.to_owned();
    let made = on_thread(move || {
        // SAFETY: what could be unsound is to unshare descriptors (CLONE_FILES); this is the network only,
        // and of a thread that ends with this function.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET)? };
        let mut socket = Socket::open()?;
        let up = link::Change {
            up: Some(true),
            ..Default::default()
        };
        // The loopback interface is the first of each namespace.
        link::set(&mut socket, 1, &up)?;
        Ok(rustix::mount::mount_bind(
            "/proc/thread-self/ns/net",
            &target,
        )?)
    });
    made.map_err(|error| {
        let _ = fs::remove_file(path);
        failed()(error)
    })
}

/// Opens a namespace by its path. Blocks.
///
/// # Errors
/// It is not there.
pub fn open(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| {
        NetworkError::io(format!("open the network namespace {}", path.display()))(error.into())
    })
}

/// Unbinds a namespace and removes its file. Succeeds if there is none. Blocks.
///
/// # Errors
/// The system's.
pub fn remove(path: &Path) -> Result<()> {
    let failed = || NetworkError::io(format!("remove the network namespace {}", path.display()));
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    match rustix::mount::unmount(path, flags) {
        // Not there, or only the file is.
        Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) => {}
        Err(error) => return Err(failed()(error.into())),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed()(error)),
        _ => Ok(()),
    }
}

/// Runs a function in a namespace, on a thread of its own: no other thread ever leaves its namespace.
/// Blocks.
///
/// # Errors
/// Those of the function, or the namespace cannot be entered.
pub fn within<T: Send + 'static>(
    namespace: impl AsFd + Send + 'static,
    function: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    on_thread(move || {
        let kind = Some(LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)?;
        function()
    })
}

fn on_thread<T: Send + 'static>(
    function: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let thread = std::thread::Builder::new()
        .name("netns".into())
        .spawn(function)?;
    thread
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("The thread panicked")))
}
