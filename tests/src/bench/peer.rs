//! containerd with runc, from Debian, as a CRI server beside ours.

use crate::artifacts::artifact;
use crate::node::connect;
use crate::registry::Registry;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use tempfile::TempDir;
use tonic::transport::Channel;

/// A running containerd; dropped, it ends.
pub(super) struct Containerd {
    directory: TempDir,
    process: Child,
    pub(super) channel: Channel,
}

impl Containerd {
    pub(super) async fn start(registry: &Registry) -> Result<Self> {
        Self::start_with(registry, Path::new("/nonexistent")).await
    }

    /// With CNI configurations from a directory.
    pub(super) async fn start_with(registry: &Registry, networks: &Path) -> Result<Self> {
        let directory = TempDir::with_prefix("bulkhead-containerd-")?;
        let path = directory.path();
        let pause = push_pause_image(registry, path)?;
        let config = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n\
             [grpc]\naddress = \"{0}/containerd.sock\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{pause}\"\n\
             disable_apparmor = true\nrestrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\nconf_dir = \"{1}\"\n",
            path.display(),
            networks.display()
        );
        std::fs::write(path.join("config.toml"), config)?;
        let mut process = Command::new("containerd")
            .arg("--config")
            .arg(path.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("Cannot start containerd")?;
        let stderr = process
            .stderr
            .take()
            .context("containerd has no standard error")?;
        let (sender, served) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if line.contains("containerd successfully booted") {
                    // Whoever does not wait any more is not interested.
                    let _ = sender.send(());
                }
            }
        });
        if served.recv().is_err() {
            bail!("containerd ended with {}", process.wait()?);
        }
        let channel = connect(&path.join("containerd.sock")).await?;
        Ok(Self {
            process,
            channel,
            directory,
        })
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Pushes the demo image once more with an entrypoint that sleeps: containerd starts one such
/// process in every pod.
fn push_pause_image(registry: &Registry, directory: &Path) -> Result<String> {
    let layout = directory.join("pause");
    let status = Command::new("cp")
        .arg("-r")
        .arg(artifact("demo-image"))
        .arg(&layout)
        .status()?;
    ensure!(status.success(), "The demo image cannot be copied");
    let blob = |digest: &str| layout.join("blobs").join(digest.replacen(':', "/", 1));
    let read =
        |path: &Path| -> Result<Value> { Ok(serde_json::from_slice(&std::fs::read(path)?)?) };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut index = read(&layout.join("index.json"))?;
    let mut manifest = read(&blob(&text(&index["manifests"][0]["digest"])))?;
    let mut config = read(&blob(&text(&manifest["config"]["digest"])))?;
    config["config"]["Entrypoint"] = json!(["sleep"]);
    config["config"]["Cmd"] = json!(["1000000"]);
    let store = |document: &Value| -> Result<(String, usize)> {
        let bytes = serde_json::to_vec(document)?;
        let staging = layout.join("staging");
        std::fs::write(&staging, &bytes)?;
        let output = Command::new("sha256sum").arg(&staging).output()?;
        let hex = String::from_utf8(output.stdout)?;
        let digest = format!(
            "sha256:{}",
            hex.split_whitespace().next().unwrap_or_default()
        );
        std::fs::rename(&staging, blob(&digest))?;
        Ok((digest, bytes.len()))
    };
    let (digest, size) = store(&config)?;
    manifest["config"]["digest"] = json!(digest);
    manifest["config"]["size"] = json!(size);
    let (digest, size) = store(&manifest)?;
    index["manifests"][0]["digest"] = json!(digest);
    index["manifests"][0]["size"] = json!(size);
    std::fs::write(layout.join("index.json"), serde_json::to_vec(&index)?)?;
    registry.push(&layout, "pause:latest")?;
    Ok(format!("{}/pause:latest", registry.host()))
}
