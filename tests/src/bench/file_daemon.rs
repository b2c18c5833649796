//! The file daemon beside a VMM that lends it the guest's memory, as vhost-user has it.

use crate::artifacts::artifact;
use anyhow::{Context, Result, ensure};
use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, mount_remount, move_mount, open_tree,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// What the benchmark's program is told when it is to enter a file daemon's namespace.
pub const ARGUMENT: &str = "attach-volume";
/// What the volume is called below the daemon's root.
pub(super) const VOLUME: &str = "volume";

/// A running file daemon; dropped, it ends.
pub(super) struct FileDaemon {
    process: Child,
    directory: TempDir,
}

impl FileDaemon {
    /// Starts one that serves nothing yet, as a pod's is started.
    pub(super) fn start() -> Result<Self> {
        let directory = TempDir::with_prefix("bulkhead-fs-")?;
        let listener = UnixListener::bind(directory.path().join("socket"))?;
        rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty())?;
        let mut process = Command::new(artifact("bin/bulkhead-fs"))
            .stdin(Stdio::piped())
            .spawn()?;
        let config = format!(
            r#"{{"listener_fd":{},"descriptors":65536,"threads":2,"epoch":1}}"#,
            listener.as_raw_fd()
        );
        let mut stdin = process.stdin.take().context("No standard input")?;
        stdin.write_all(config.as_bytes())?;
        Ok(Self { process, directory })
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Puts a directory below its root. Somebody must be connected: then it is in its cage.
    pub(super) fn attach(&self, directory: &Path) -> Result<()> {
        // A namespace is entered by processes of one thread.
        let status = Command::new(std::env::current_exe()?)
            .arg(ARGUMENT)
            .arg(self.process.id().to_string())
            .arg(directory)
            .status()?;
        ensure!(status.success(), "The volume cannot be attached");
        Ok(())
    }
}

impl Drop for FileDaemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Puts a directory below the root of the file daemon with this process number.
///
/// # Errors
/// The kernel's.
pub fn attach(daemon: &str, directory: &Path) -> Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, directory, flags)?;
    let namespace = File::open(format!("/proc/{daemon}/ns/mnt"))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
    let read_only = MountFlags::BIND | MountFlags::RDONLY;
    mount_remount("/", MountFlags::BIND, c"")?;
    let target = Path::new("/").join(VOLUME);
    std::fs::create_dir(&target)?;
    move_mount(
        &tree,
        "",
        CWD,
        &target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(mount_remount("/", read_only, c"")?)
}
