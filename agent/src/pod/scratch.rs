//! The pod's scratch disk: ext4, made small on the host and grown here to the size of the disk.

use super::ext4;
use crate::deadline::Deadline;
use crate::disk::{Disk, Disks};
use crate::error::Context;
use crate::sys::quota::{Used, project_used, set_project};
use crate::{Error, Result, spec};
use rustix::fs::StatVfs;
use rustix::mount::{MountFlags, UnmountFlags};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The scratch disk and where it is mounted.
#[derive(Debug)]
pub struct Scratch {
    disks: Disks,
    path: PathBuf,
    mounted: Mutex<Option<String>>,
    /// The newest project; 0 is everybody's.
    projects: AtomicU32,
}

/// A directory of the scratch disk of whose content the file system keeps count.
#[derive(Debug)]
pub struct Project {
    directory: File,
    number: u32,
}

impl Project {
    /// What is in it now.
    pub fn used(&self) -> io::Result<Used> {
        project_used(&self.directory, self.number)
    }

    /// The file system that it is on.
    pub fn file_system(&self) -> io::Result<StatVfs> {
        Ok(rustix::fs::fstatvfs(&self.directory)?)
    }
}

impl Scratch {
    /// To be mounted at `path`.
    pub fn new(disks: Disks, path: PathBuf) -> Self {
        Self {
            disks,
            path,
            mounted: Mutex::default(),
            projects: AtomicU32::new(0),
        }
    }

    /// Mounts the disk with this serial, once something is bound to it, and grows its file system.
    pub async fn mount(&self, serial: &str, deadline: Deadline) -> Result<()> {
        if let Some(mounted) = self.mounted().as_deref() {
            if mounted == serial {
                return Ok(());
            }
            return Err(Error::Precondition(format!(
                "Disk {mounted} is the scratch disk already"
            )));
        }
        let disk = self.disks.wait(serial, deadline).await?;
        let mut mounted = self.mounted();
        self.mount_now(serial, &disk)?;
        *mounted = Some(serial.to_owned());
        Ok(())
    }

    fn mount_now(&self, serial: &str, disk: &Disk) -> Result<()> {
        let what = || format!("Cannot mount the scratch disk {serial}");
        fs::create_dir_all(&self.path).context(what)?;
        // Nothing on it outlives the guest: the journal need not wait for the disk's cache. Deleted
        // files give their space back to the host, and inode tables that nobody uses take none.
        let options = c"nobarrier,discard,noinit_itable";
        let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOATIME;
        // Set-user-id programs and devices of a container are seen through its overlay, whose mount
        // has flags of its own.
        rustix::mount::mount(&disk.node, &self.path, "ext4", flags, options).context(what)?;
        let result = ext4::grow(serial, &disk.node, &self.path).and_then(|()| {
            for directory in [self.containers(), PathBuf::from(spec::VOLUMES)] {
                if directory.starts_with(&self.path) {
                    fs::create_dir_all(&directory).context(what)?;
                }
            }
            Ok(())
        });
        if result.is_err() {
            // The error is the one to tell.
            let _ = rustix::mount::unmount(&self.path, UnmountFlags::empty());
        }
        result
    }

    /// Where containers have their directories.
    pub fn directory(&self) -> Result<PathBuf> {
        if self.mounted().is_none() {
            return Err(Error::Precondition(
                "The pod has no scratch disk yet".to_owned(),
            ));
        }
        Ok(self.containers())
    }

    /// Where the pod has its emptyDir volumes.
    pub fn volumes(&self) -> Result<PathBuf> {
        let containers = self.directory()?;
        Ok(containers.with_file_name("volumes"))
    }

    /// Makes an empty directory of the disk a project of its own.
    pub fn project(&self, directory: &Path) -> Result<Project> {
        let what = || format!("Cannot count what is in {}", directory.display());
        let number = self.projects.fetch_add(1, Ordering::Relaxed) + 1;
        let directory = File::open(directory).context(what)?;
        set_project(&directory, number).context(what)?;
        Ok(Project { directory, number })
    }

    /// Writes everything back and unmounts it.
    pub fn unmount(&self) -> Result<()> {
        let mut mounted = self.mounted();
        if mounted.is_some() {
            rustix::mount::unmount(&self.path, UnmountFlags::empty())
                .context(|| "Cannot unmount the scratch disk")?;
            *mounted = None;
        }
        Ok(())
    }

    fn containers(&self) -> PathBuf {
        self.path.join("containers")
    }

    fn mounted(&self) -> MutexGuard<'_, Option<String>> {
        self.mounted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
