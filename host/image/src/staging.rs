//! Directories for what is not an image yet.

use crate::{ImageError, Result};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The directory of one pull, removed with everything in it when it is dropped.
pub(crate) struct Staging {
    path: PathBuf,
}

impl Staging {
    /// Makes a new directory that only root can enter: it holds what is not checked yet.
    pub(crate) fn new(parent: &Path) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let staging = Self {
            path: parent.join(format!("{}-{number}", std::process::id())),
        };
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&staging.path)
            .map_err(|error| ImageError::io("making a staging directory", error))?;
        Ok(staging)
    }

    /// Removes the directory now, unless somebody else still works in it; then it goes with them.
    pub(crate) async fn remove(self: Arc<Self>) {
        let work = || {
            if let Some(mut staging) = Arc::into_inner(self) {
                take_away(&std::mem::take(&mut staging.path));
            }
        };
        // It can only fail by a panic, and then the next start removes the directory.
        let _ = tokio::task::spawn_blocking(work).await;
    }

    /// The directory itself.
    pub(crate) fn directory(&self) -> PathBuf {
        self.path.clone()
    }

    /// Where the EROFS file is made.
    pub(crate) fn disk(&self) -> PathBuf {
        self.path.join("disk")
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        if path.as_os_str().is_empty() {
            return;
        }
        // A large tree takes a while, which a thread that drives other pulls does not have.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || take_away(&path))),
            Err(_) => take_away(&path),
        }
    }
}

fn take_away(path: &Path) {
    if let Err(error) = remove_all(path) {
        // The next start of the daemon tries again.
        tracing::warn!(path = %path.display(), %error, "A staging directory stays");
    }
}

/// Removes a directory; it is no error when it is not there.
pub(crate) fn remove_all(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
