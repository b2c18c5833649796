//! A local registry (Debian's docker-registry) with the demo image in it.

use crate::artifacts::{artifact, repository};
use anyhow::{Context, Result, ensure};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A running registry; dropped, it ends and its storage is removed.
pub struct Registry {
    directory: TempDir,
    port: u16,
}

impl Registry {
    /// Starts a registry on a free port of the loopback interface and pushes the demo image as
    /// `demo:latest`.
    ///
    /// # Errors
    /// docker-registry is missing or does not start.
    pub fn start() -> Result<Self> {
        let directory = TempDir::with_prefix("bulkhead-registry-")?;
        // Free now; the registry says so if somebody else was quicker.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let registry = Self { directory, port };
        registry.control("start")?;
        registry.push(&artifact("demo-image"), "demo:latest")?;
        Ok(registry)
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The full name of the demo image.
    #[must_use]
    pub fn demo_image(&self) -> String {
        format!("{}/demo:latest", self.host())
    }

    /// Pushes an OCI image layout under a name.
    ///
    /// # Errors
    /// The registry refused it.
    pub fn push(&self, layout: &Path, name: &str) -> Result<()> {
        let script = repository().join("images/push");
        let output = Command::new(script)
            .arg(layout)
            .args([&self.host(), name])
            .output()?;
        ensure!(
            output.status.success(),
            "The image could not be pushed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// The file that holds a blob.
    #[must_use]
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let blobs = self
            .directory
            .path()
            .join("storage/docker/registry/v2/blobs/sha256");
        blobs
            .join(hex.get(..2).unwrap_or_default())
            .join(hex)
            .join("data")
    }

    fn control(&self, verb: &str) -> Result<()> {
        let status = Command::new(repository().join("images/registry"))
            .arg(verb)
            .arg(self.directory.path())
            .arg(self.port.to_string())
            .status()
            .context("Cannot run images/registry")?;
        ensure!(status.success(), "images/registry {verb} failed");
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Err(error) = self.control("stop") {
            eprintln!("The registry was not stopped: {error:#}");
        }
    }
}
