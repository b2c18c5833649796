//! Block devices to give to pods.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device over a file; detached at the end.
#[derive(Debug)]
pub struct Loop {
    /// The file under it.
    pub file: PathBuf,
    /// Its node, as `/dev/loop0`.
    pub device: String,
}

impl Loop {
    /// Makes one over a file that is there.
    ///
    /// # Panics
    /// There can be none.
    #[must_use]
    pub fn over(file: &Path) -> Self {
        let made = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output();
        let made = made.expect("losetup runs");
        assert!(made.status.success(), "{made:?}");
        let device = String::from_utf8(made.stdout).expect("a path");
        Self {
            file: file.to_owned(),
            device: device.trim().to_owned(),
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // Fails, and is found by the checker, when anybody still has it.
        let _ = Command::new("losetup")
            .args(["--detach", &self.device])
            .status();
    }
}
