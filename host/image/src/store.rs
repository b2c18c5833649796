//! The store: what is on this node and the operations of the CRI's image service.

use crate::{Auth, FsInfo, Image, ImageError, PullProgress, Result, StoreConfig};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The images of this node. Cheap to clone; clones are the same store.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    #[expect(dead_code, reason = "the pull comes next")]
    config: StoreConfig,
}

impl ImageStore {
    /// Opens the store in `root`, which is made when it does not exist, and removes what a
    /// predecessor left when it was killed. Blocks: call it before serving.
    ///
    /// # Errors
    /// [`ImageError::InUse`] when another process has it open, [`ImageError::InvalidIndex`],
    /// [`ImageError::NoSpace`] and [`ImageError::Io`].
    pub fn open(root: &Path, config: StoreConfig) -> Result<Self> {
        Ok(Self {
            inner: Arc::new(Inner {
                root: root.to_owned(),
                config,
            }),
        })
    }

    /// Pulls an image by tag or digest; a short name gets `docker.io/library/` and `:latest`.
    /// Calls for the same image at the same time share one download; when every caller has dropped
    /// its future, the download stops. `progress` is called when something has changed.
    ///
    /// # Errors
    /// Every variant of [`ImageError`]; none leaves anything in the store.
    pub async fn pull(
        &self,
        reference: &str,
        auth: Option<Auth>,
        progress: impl FnMut(&PullProgress) + Send,
    ) -> Result<Image> {
        let _ = (auth, progress);
        Err(ImageError::NotFound {
            image: reference.to_owned(),
        })
    }

    /// The image that a tag, a digest, an id (with or without `sha256:`) or the unique beginning
    /// of an id stands for; nothing when the store has none.
    ///
    /// # Errors
    /// [`ImageError::InvalidReference`] when it can be none of these or more than one image's id
    /// begins so.
    pub async fn get(&self, _reference_or_id: &str) -> Result<Option<Image>> {
        Ok(None)
    }

    /// All images, by id.
    ///
    /// # Errors
    /// None yet; kept for a store that has to read.
    pub async fn list(&self) -> Result<Vec<Image>> {
        Ok(Vec::new())
    }

    /// Removes a name, and the image with its last tag; by id the image with all its names.
    /// Removing what is not there succeeds. Disks that are open stay usable.
    ///
    /// # Errors
    /// [`ImageError::InvalidReference`] as [`ImageStore::get`], [`ImageError::NoSpace`],
    /// [`ImageError::Io`].
    pub async fn remove(&self, _reference_or_id: &str) -> Result<()> {
        Ok(())
    }

    /// What all images occupy.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub async fn fs_info(&self) -> Result<FsInfo> {
        Ok(FsInfo {
            root: self.inner.root.clone(),
            used_bytes: 0,
            used_inodes: 0,
        })
    }

    /// Opens an image's EROFS file read-only; it stays valid when the image is removed. Its size
    /// is a multiple of 4096 bytes.
    ///
    /// # Errors
    /// [`ImageError::NotFound`], [`ImageError::Io`].
    pub async fn open_disk(&self, image_id: &str) -> Result<OwnedFd> {
        Err(ImageError::NotFound {
            image: image_id.to_owned(),
        })
    }
}
