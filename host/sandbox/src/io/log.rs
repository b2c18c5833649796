//! A container's log file, which may be replaced while it is written.

use std::path::Path;
use tokio::fs::{File, OpenOptions};
use tokio::io::AsyncWriteExt;

/// The log; without a file what is written is dropped.
#[derive(Default)]
pub(crate) struct Log {
    file: tokio::sync::Mutex<Option<File>>,
}

impl Log {
    /// Writes to the file at a path from now on, appending, and makes it if there is none; an empty
    /// path means no file. What was written before is in the file that was there before: nothing
    /// is lost, nothing comes twice, and no line is in two parts.
    pub(crate) async fn open(&self, path: &Path) -> std::io::Result<()> {
        let file = match path.as_os_str().is_empty() {
            true => None,
            false => Some(open(path).await?),
        };
        *self.file.lock().await = file;
        Ok(())
    }

    /// Appends whole lines. They are in the file when this returns.
    pub(crate) async fn write(&self, container: &str, lines: &[u8]) {
        let mut file = self.file.lock().await;
        let Some(log) = file.as_mut().filter(|_| !lines.is_empty()) else {
            return;
        };
        let written = async {
            log.write_all(lines).await?;
            log.flush().await
        };
        if let Err(error) = written.await {
            // The container goes on: a full disk of the node must not stop it.
            tracing::error!(container, %error, "The log cannot be written; it ends here until it is reopened");
            *file = None;
        }
    }
}

async fn open(path: &Path) -> std::io::Result<File> {
    if let Some(directory) = path.parent() {
        tokio::fs::create_dir_all(directory).await?;
    }
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o640);
    options.open(path).await
}
