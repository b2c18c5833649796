//! The files of images: how they come into the store, are checked, and go.

use super::{Inner, locked};
use crate::digest::Digest;
use crate::image::ImageConfig;
use crate::index::{Index, Record};
use crate::integrity;
use crate::pull::Finished;
use crate::staging::Staging;
use crate::{FsInfo, ImageError, Result};
use rustix::fs::{Mode, OFlags};
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) const DISKS: &str = "disks";
pub(super) const CONFIGURATIONS: &str = "configs";

impl Inner {
    /// Puts a finished EROFS file and its image into the store.
    pub(crate) async fn commit(
        self: &Arc<Self>,
        image: Finished,
        staging: Arc<Staging>,
    ) -> Result<()> {
        self.blocking(move |inner| {
            let failed = |error| ImageError::io("keeping an image", error);
            // Outside the lock: it takes as long as the disk does.
            let sealed = seal(&staging.disk()).map_err(failed)?;
            let _writing = locked(&inner.writing);
            let mut index = Index::clone(&inner.snapshot());
            // The same image may have come from another repository in the meantime.
            let is_new = !index.images.contains_key(&image.id);
            if is_new {
                inner
                    .keep(&image, &staging)
                    .map_err(failed)
                    .inspect_err(|_| inner.forget(&image.id))?;
                let record = sealed.into_record(image.configuration.config);
                index.images.insert(image.id.clone(), record);
            }
            index.name(&image.id, &image.name, &image.target);
            let published = inner.publish(index);
            if published.is_err() && is_new {
                inner.forget(&image.id);
            }
            published
        })
        .await
    }

    fn keep(&self, image: &Finished, staging: &Staging) -> io::Result<()> {
        let mut file = File::create(self.configuration_path(&image.id))?;
        file.write_all(&image.configuration.bytes)?;
        file.sync_all()?;
        File::open(self.root.join(CONFIGURATIONS))?.sync_all()?;
        std::fs::rename(staging.disk(), self.disk_path(&image.id))?;
        File::open(self.root.join(DISKS))?.sync_all()
    }

    /// Takes the files of an image away again; what stays, the next start removes.
    fn forget(&self, id: &Digest) {
        for path in [self.disk_path(id), self.configuration_path(id)] {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Removes an image whose entry the new index does not have any more. The file goes first: an
    /// index that names no file is put right at the next start, and on a full disk the index can be
    /// written only afterwards. Giving back the blocks of a large file and writing the index take
    /// their time, which nobody has to wait for.
    pub(super) fn remove_image(self: &Arc<Self>, id: &Digest, index: Index) -> Result<()> {
        let removing = |error: io::Error| ImageError::io("removing an image", error);
        let path = self.disk_path(id);
        let disk = match open(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(removing(error)),
            disk => disk.ok(),
        };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(removing(error)),
            _ => *locked(&self.index) = Arc::new(index),
        }
        self.forget(id);
        let inner = Arc::clone(self);
        let later = move || {
            drop(disk);
            let _writing = locked(&inner.writing);
            inner.tidy();
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(later)),
            Err(_) => drop(std::thread::spawn(later)),
        }
        Ok(())
    }

    /// Writes down which images have gone.
    fn tidy(&self) {
        let index = self.snapshot();
        if let Err(error) = index.save(&self.root) {
            // The next start sees that the file is not there.
            tracing::warn!(%error, "The index still has an image that is removed");
        }
    }

    /// Opens the disk of an image after a check of every byte of it.
    pub(super) fn checked_disk(self: &Arc<Self>, id: &Digest, record: &Record) -> Result<File> {
        let opening = |error| ImageError::io("opening the disk of an image", error);
        let file = match open(&self.disk_path(id)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(ImageError::NotFound {
                    image: id.to_string(),
                });
            }
            Err(error) => return Err(opening(error)),
        };
        match integrity::digest(&file) {
            Ok(digest) if digest == record.blake3 => Ok(file),
            Ok(_) => Err(self.discard(id, Some(&file))),
            // The disk itself knows that it has lost something.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                Err(self.discard(id, Some(&file)))
            }
            Err(error) => Err(opening(error)),
        }
    }

    /// Removes a damaged image, unless it has been replaced in the meantime.
    fn discard(self: &Arc<Self>, id: &Digest, damaged: Option<&File>) -> ImageError {
        tracing::error!(image = %id, "An image is damaged on the disk and is removed");
        let _writing = locked(&self.writing);
        let same = |damaged: &File| -> io::Result<bool> {
            let now = std::fs::symlink_metadata(self.disk_path(id))?;
            let then = damaged.metadata()?;
            Ok((now.dev(), now.ino()) == (then.dev(), then.ino()))
        };
        if damaged.is_none_or(|damaged| same(damaged).unwrap_or(false)) {
            let mut index = Index::clone(&self.snapshot());
            index.images.remove(id);
            if let Err(error) = self.remove_image(id, index) {
                return error;
            }
        }
        ImageError::Damaged {
            image: id.to_string(),
        }
    }

    /// The configuration of an image, as it was pulled.
    pub(super) fn read_configuration(self: &Arc<Self>, id: &Digest) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        open(&self.configuration_path(id))
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .map_err(|error| ImageError::io("reading the configuration of an image", error))?;
        match id.of_same_kind(&bytes) == *id {
            true => Ok(bytes),
            false => Err(self.discard(id, None)),
        }
    }

    fn disk_path(&self, id: &Digest) -> PathBuf {
        self.root.join(DISKS).join(id.file_name())
    }

    fn configuration_path(&self, id: &Digest) -> PathBuf {
        self.root.join(CONFIGURATIONS).join(id.file_name())
    }

    /// Forgets images whose files are not what the index says; says whether there were any.
    pub(super) fn drop_incomplete(&self, index: &mut Index) -> bool {
        let before = index.images.len();
        index.images.retain(|id, record| {
            let length = |path: &Path| {
                let metadata = std::fs::symlink_metadata(path).ok()?;
                metadata.is_file().then_some(metadata.len())
            };
            let disk = length(&self.disk_path(id));
            let whole = disk == Some(record.size)
                && length(&self.configuration_path(id)).is_some()
                && !record.blake3.is_empty();
            // Without a file it has been removed.
            if disk.is_some() && !whole {
                tracing::warn!(image = %id, "An image is not complete and is removed");
            }
            whole
        });
        index.images.len() != before
    }

    /// Removes files of no image.
    pub(super) fn drop_strangers(&self, index: &Index) -> Result<()> {
        let known: HashSet<String> = index.images.keys().map(Digest::file_name).collect();
        let sweep = |directory: &str| -> io::Result<()> {
            for entry in std::fs::read_dir(self.root.join(directory))? {
                let entry = entry?;
                let name = entry.file_name();
                if !name.to_str().is_some_and(|name| known.contains(name)) {
                    std::fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        };
        sweep(DISKS)
            .and_then(|()| sweep(CONFIGURATIONS))
            .map_err(|error| ImageError::io("removing what belongs to no image", error))
    }

    /// Counts everything below the store's directory.
    pub(super) fn measure(&self) -> io::Result<FsInfo> {
        let mut info = FsInfo {
            root: self.root.clone(),
            used_bytes: 0,
            used_inodes: 0,
        };
        let mut pending = vec![self.root.clone()];
        while let Some(directory) = pending.pop() {
            let entries = match std::fs::read_dir(&directory) {
                // A pull has ended since.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                entries => entries?,
            };
            for entry in entries {
                let Ok(entry) = entry else { continue };
                let Ok(metadata) = entry.metadata() else {
                    continue;
                };
                info.used_bytes += metadata.blocks() * 512;
                info.used_inodes += 1;
                if metadata.is_dir() {
                    pending.push(entry.path());
                }
            }
        }
        Ok(info)
    }
}

fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

/// What a finished EROFS file is like.
struct Sealed {
    metadata: std::fs::Metadata,
    blake3: String,
}

impl Sealed {
    fn into_record(self, config: ImageConfig) -> Record {
        let (length, occupied) = (self.metadata.len(), self.metadata.blocks() * 512);
        Record::new(length, occupied, self.blake3, config)
    }
}

/// Waits until a finished EROFS file is on the disk.
fn seal(path: &Path) -> io::Result<Sealed> {
    let file = open(path)?;
    let blake3 = integrity::seal(&file)?;
    let metadata = file.metadata()?;
    Ok(Sealed { metadata, blake3 })
}
