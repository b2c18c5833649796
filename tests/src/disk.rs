//! A disk of the node's with ext4, as most nodes have: it has rules that file systems in memory do not have.

use anyhow::{Result, ensure};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// A disk in a file, mounted; dropped, it is unmounted.
#[derive(Debug)]
pub struct Disk(TempDir);

impl Disk {
    /// Makes one of so many bytes.
    ///
    /// # Errors
    /// A program is missing, or there is no loop device.
    pub fn new(bytes: u64) -> Result<Self> {
        let directory = TempDir::with_prefix("bulkhead-disk-")?;
        let image = directory.path().join("image");
        File::create(&image)?.set_len(bytes)?;
        let disk = Self(directory);
        fs::create_dir(disk.path())?;
        let done = |command: &mut Command| {
            let status = command.status()?;
            ensure!(status.success(), "{command:?} failed");
            Ok(())
        };
        done(Command::new("mkfs.ext4").arg("-q").arg(&image))?;
        let mut mount = Command::new("mount");
        done(mount.args(["-o", "loop"]).arg(&image).arg(disk.path()))?;
        Ok(disk)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.0.path().join("disk")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Nothing to be done if it fails; the directory stays then.
        let _ = Command::new("umount").arg(self.path()).status();
    }
}
