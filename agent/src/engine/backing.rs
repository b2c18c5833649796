//! What stands behind a container's root: an image to read and a place to write.

use crate::deadline::Deadline;
use crate::disk::Disks;
use crate::error::Context;
use crate::pod::{Project, Scratch};
use crate::{Error, Result};
use async_trait::async_trait;
use rustix::mount::{MountFlags, UnmountFlags};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A source of images and of scratch space. The guest's is [`GuestDisks`]; a test's can be plain
/// directories.
#[async_trait]
pub trait Backing: Send + Sync {
    /// The image of this name, once it is there. It stays as long as the result is kept.
    async fn image(&self, name: &str, deadline: Deadline) -> Result<Arc<Image>>;
    /// The device number of a disk, once something is bound to it.
    async fn device(&self, serial: &str, _: Deadline) -> Result<u64> {
        Err(Error::NotFound(format!("There is no disk {serial} here")))
    }
    /// The directory in which a container may have one of its own for its changes.
    fn scratch(&self) -> Result<PathBuf>;
    /// Has the file system count what is in an empty directory of the scratch space, where it can.
    fn project(&self, _directory: &Path) -> Result<Option<Project>> {
        Ok(None)
    }
}

/// A directory with an image in it.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    mounted: bool,
}

impl Image {
    /// A directory that is there anyway.
    pub fn directory(path: PathBuf) -> Self {
        Self {
            path,
            mounted: false,
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if self.mounted {
            if let Err(error) = rustix::mount::unmount(&self.path, UnmountFlags::NOFOLLOW) {
                tracing::warn!("Cannot unmount image {}: {error}", self.path.display());
            }
            // Only the mount point, which is empty then.
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}

/// The disks of a guest: an EROFS image on each read-only slot, mounted once for all containers
/// that use it, and the pod's scratch disk.
#[derive(Debug)]
pub struct GuestDisks {
    disks: Disks,
    images: PathBuf,
    scratch: Arc<Scratch>,
    mounted: Mutex<HashMap<String, Weak<Image>>>,
}

impl GuestDisks {
    /// `images` is a directory for mount points.
    pub fn new(disks: Disks, images: PathBuf, scratch: Arc<Scratch>) -> Self {
        Self {
            disks,
            images,
            scratch,
            mounted: Mutex::default(),
        }
    }

    fn mount(&self, serial: &str, node: &Path) -> Result<Arc<Image>> {
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(image) = mounted.get(serial).and_then(Weak::upgrade) {
            return Ok(image);
        }
        let path = self.images.join(serial);
        std::fs::create_dir_all(&path).context(|| format!("Cannot make {}", path.display()))?;
        let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOATIME;
        rustix::mount::mount(node, &path, "erofs", flags, None)
            .context(|| format!("Cannot mount the image on disk {serial}"))?;
        let image = Arc::new(Image {
            path,
            mounted: true,
        });
        mounted.retain(|_, image| image.strong_count() > 0);
        mounted.insert(serial.to_owned(), Arc::downgrade(&image));
        Ok(image)
    }
}

#[async_trait]
impl Backing for GuestDisks {
    async fn image(&self, name: &str, deadline: Deadline) -> Result<Arc<Image>> {
        let disk = self.disks.wait(name, deadline).await?;
        self.mount(name, &disk.node)
    }

    async fn device(&self, serial: &str, deadline: Deadline) -> Result<u64> {
        let disk = self.disks.wait(serial, deadline).await?;
        let stat = rustix::fs::stat(&disk.node)
            .context(|| format!("Cannot find the device of disk {serial}"))?;
        Ok(stat.st_rdev)
    }

    fn scratch(&self) -> Result<PathBuf> {
        self.scratch.directory()
    }

    fn project(&self, directory: &Path) -> Result<Option<Project>> {
        self.scratch.project(directory).map(Some)
    }
}
