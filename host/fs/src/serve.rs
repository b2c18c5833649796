//! The file system and the connection.

use crate::cage::Caged;
use crate::config::{Config, OWN_DESCRIPTORS};
use crate::epoch::{Epoch, Epochs};
use crate::error::Error;
use crate::gauge::Gauge;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;
use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error as BackendError, VhostUserDaemon};
use virtiofsd::filesystem::{FileSystem, SerializableFileSystem};
use virtiofsd::passthrough::{
    self, CachePolicy, InodeFileHandlesMode, NegotiationMode, PassthroughFs,
};
use virtiofsd::vhost_user::VhostUserFsBackendBuilder;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// The pod's volumes: what is mounted below the root.
///
/// # Errors
/// [`Error::Host`]; [`Error::Config`] when the host allows too few descriptors.
pub(crate) fn file_system(caged: Caged, config: &Config) -> Result<Epochs<PassthroughFs>, Error> {
    let epoch = Epoch::new(config.epoch);
    let epoch = epoch.ok_or_else(|| Error::Config("epoch is none".to_owned()))?;
    let own = OWN_DESCRIPTORS + config.threads as u64;
    let guest_fd_limit = caged.limit.checked_sub(own).ok_or_else(|| {
        let limit = caged.limit;
        Error::Config(format!(
            "the host allows {limit} descriptors, fewer than the {own} of the program"
        ))
    })?;
    let config = passthrough::Config {
        // What the host changes must be seen at once: the guest asks for names and attributes each time.
        entry_timeout: Duration::ZERO,
        attr_timeout: Duration::ZERO,
        // Content stays in the guest's page cache between open and close, and mmap(2) works; it is looked
        // at again with each open.
        cache_policy: CachePolicy::Auto,
        writeback: false,
        root_dir: "/".to_owned(),
        xattr: true,
        // The guest asks for lists where the mode has a group's rights and the user is not the owner. A guest kernel
        // without `guest-kernel/patches/fuse-submount-acl.patch` does without.
        posix_acl: NegotiationMode::Auto,
        proc_sfd_rawfd: Some(caged.descriptors),
        proc_mountinfo_rawfd: Some(caged.mounts),
        announce_submounts: true,
        inode_file_handles: InodeFileHandlesMode::Prefer,
        // With timeouts of zero the attributes that come along would be thrown away.
        readdirplus: false,
        allow_direct_io: true,
        killpriv_v2: true,
        guest_fd_limit,
        ..passthrough::Config::default()
    };
    let file_system = PassthroughFs::new(config).map_err(Error::host("prepare the file system"))?;
    Ok(Epochs::new(file_system, epoch, Gauge::new()?))
}

/// Serves one connection to its end.
///
/// # Errors
/// [`Error::Connection`].
pub(crate) fn serve<F>(file_system: F, listener: UnixListener, threads: usize) -> Result<(), Error>
where
    F: FileSystem + SerializableFileSystem + Send + Sync + 'static,
{
    let backend = VhostUserFsBackendBuilder::default()
        .set_thread_pool_size(threads)
        .build(file_system)
        .map_err(|error| Error::Connection(error.to_string()))?;
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new("bulkhead-fs".to_owned(), Arc::new(backend), memory)
        .map_err(|error| Error::Connection(error.to_string()))?;
    let mut listener = Listener::from(listener);
    daemon
        .start(&mut listener)
        .map_err(|error| Error::Connection(error.to_string()))?;
    match daemon.wait() {
        // The VMM has gone, and the pod with it.
        Ok(()) | Err(BackendError::HandleRequest(VhostUserError::Disconnected)) => Ok(()),
        Err(error) => Err(Error::Connection(error.to_string())),
    }
}
