//! Directories for what is not an image yet.

use crate::{ImageError, Result};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The directory of one pull, removed with everything in it when it is dropped.
pub(crate) struct Staging {
    path: PathBuf,
}

impl Staging {
    /// Makes a new directory that only root can enter: it holds set-user-ID programs and devices.
    pub(crate) fn new(parent: &Path) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let staging = Self {
            path: parent.join(format!("{}-{number}", std::process::id())),
        };
        // The tree becomes the image's root directory: few images have an entry for it, and its
        // users must get through it, whatever our umask is.
        let root_mode = std::fs::Permissions::from_mode(0o755);
        let make = |path: &Path| std::fs::DirBuilder::new().mode(0o700).create(path);
        make(&staging.path)
            .and_then(|()| make(&staging.tree()))
            .and_then(|()| std::fs::set_permissions(staging.tree(), root_mode))
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

    /// Where layers are unpacked.
    pub(crate) fn tree(&self) -> PathBuf {
        self.path.join("tree")
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
    // A predecessor's `mkfs.erofs` may live a moment longer than its parent and make a file
    // meanwhile.
    for _ in 0..10 {
        match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            result => return result,
        }
    }
    std::fs::remove_dir_all(path)
}

#[cfg(test)]
mod tests {
    use super::Staging;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn everybody_gets_through_the_root_of_an_image() {
        let parent = tempfile::tempdir().unwrap();
        let staging = Staging::new(parent.path()).unwrap();
        let mode = |path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(staging.tree()), 0o755);
        assert_eq!(
            mode(staging.path.clone()),
            0o700,
            "what is unpacked is nobody else's"
        );
    }
}
