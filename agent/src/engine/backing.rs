//! What stands behind a container's root: an image to read and a place to write.

use crate::deadline::Deadline;
use crate::disk::Disks;
use crate::error::Context;
use crate::init::plan::{DirectVolume, EmptyDir};
use crate::pod::{DirectVolumes, EmptyDirs, Mirror, Project, Scratch};
use crate::{Error, Result};
use async_trait::async_trait;
use rustix::mount::{MountFlags, UnmountFlags};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// By this the guest's kernel knows the device of the shared volumes (virtio 1.2, 5.11.4).
const SHARED_TAG: &str = "bulkhead";

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
    /// Where a volume is that the pod shares with the node. Blocks.
    fn shared_volume(&self, name: &str) -> Result<PathBuf> {
        Err(Error::NotFound(format!(
            "There is no shared volume {name} here"
        )))
    }
    /// Makes the mirror of a shared volume. Blocks.
    fn mirror(&self, _volume: PathBuf, name: &str) -> Result<Arc<Mirror>> {
        Err(Error::NotFound(format!(
            "There is no place for a mirror of {name} here"
        )))
    }
    /// Has the mirror of a shared volume take over what the volume has now. Blocks.
    fn update_mirror(&self, name: &str) -> Result<()> {
        Err(Error::NotFound(format!("There is no mirror of {name}")))
    }
    /// Where an emptyDir volume is, which is made when it is asked for first.
    fn empty_dir(&self, volume: &EmptyDir) -> Result<PathBuf> {
        Err(Error::NotFound(format!(
            "There is no place for the emptyDir volume {} here",
            volume.name
        )))
    }
    /// Where a direct volume is, which is mounted when it is asked for first.
    async fn direct_volume(&self, volume: &DirectVolume, _: Deadline) -> Result<PathBuf> {
        let disk = &volume.disk;
        Err(Error::NotFound(format!("There is no disk {disk} here")))
    }
    /// The pod's direct volumes, where there can be any.
    fn direct_volumes(&self) -> Option<&DirectVolumes> {
        None
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
    shared: Mutex<SharedVolumes>,
    empty_dirs: EmptyDirs,
    direct: DirectVolumes,
    /// Where mirrors are mounted.
    mirror_points: PathBuf,
    mirrors: Mutex<HashMap<String, Weak<Mirror>>>,
    mounted: Mutex<HashMap<String, Weak<Image>>>,
}

/// The file system of the shared volumes, which is there once the pod has one.
#[derive(Debug)]
struct SharedVolumes {
    path: PathBuf,
    mounted: bool,
}

impl SharedVolumes {
    fn mount(&mut self) -> Result<PathBuf> {
        if !self.mounted {
            let path = &self.path;
            std::fs::create_dir_all(path).context(|| format!("Cannot make {}", path.display()))?;
            rustix::mount::mount(SHARED_TAG, path, "virtiofs", MountFlags::NODEV, None)
                .context(|| "Cannot mount the shared volumes")?;
            self.mounted = true;
        }
        Ok(self.path.clone())
    }
}

impl GuestDisks {
    /// `run` is a directory for mount points.
    pub fn new(disks: Disks, run: &Path, scratch: Arc<Scratch>) -> Self {
        Self {
            direct: DirectVolumes::new(disks.clone(), run.join("direct")),
            disks,
            images: run.join("images"),
            shared: Mutex::new(SharedVolumes {
                path: run.join("shared"),
                mounted: false,
            }),
            mirror_points: run.join("mirrors"),
            mirrors: Mutex::default(),
            empty_dirs: EmptyDirs::new(scratch.clone(), run.join("memory")),
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

    /// Each directory on another file system of the node is one of its own here, which the kernel mounts when it is
    /// opened first. That is done here, once: a container that did it would have one for itself, and neither locks nor
    /// caches in common with the others.
    fn shared_volume(&self, name: &str) -> Result<PathBuf> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let path = shared.mount()?.join(name);
        drop(shared);
        std::fs::File::open(&path).context(|| format!("Cannot open the shared volume {name}"))?;
        Ok(path)
    }

    fn mirror(&self, volume: PathBuf, name: &str) -> Result<Arc<Mirror>> {
        let mirror = Mirror::mount(volume, self.mirror_points.join(name))?;
        let mirror = Arc::new(mirror);
        let mut mirrors = self.mirrors.lock().unwrap_or_else(PoisonError::into_inner);
        mirrors.retain(|_, mirror| mirror.strong_count() > 0);
        mirrors.insert(name.to_owned(), Arc::downgrade(&mirror));
        Ok(mirror)
    }

    fn update_mirror(&self, name: &str) -> Result<()> {
        let mirrors = self.mirrors.lock().unwrap_or_else(PoisonError::into_inner);
        let mirror = mirrors.get(name).and_then(Weak::upgrade);
        drop(mirrors);
        mirror
            .ok_or_else(|| Error::NotFound(format!("There is no mirror of {name}")))?
            .update()
    }

    fn empty_dir(&self, volume: &EmptyDir) -> Result<PathBuf> {
        self.empty_dirs.directory(volume)
    }

    async fn direct_volume(&self, volume: &DirectVolume, deadline: Deadline) -> Result<PathBuf> {
        self.direct.directory(volume, deadline).await
    }

    fn direct_volumes(&self) -> Option<&DirectVolumes> {
        Some(&self.direct)
    }

    fn scratch(&self) -> Result<PathBuf> {
        self.scratch.directory()
    }

    fn project(&self, directory: &Path) -> Result<Option<Project>> {
        self.scratch.project(directory).map(Some)
    }
}
