//! runc and crun by their command lines.

use super::{EXECS, Round, spec};
use anyhow::{Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

pub(super) struct Peer {
    program: &'static str,
    directory: PathBuf,
}

impl Peer {
    pub(super) fn new(program: &'static str, base: &Path) -> Result<Self> {
        let directory = base.join(program);
        fs::create_dir_all(&directory)?;
        let mut spec = spec(&["sleep", "1000000"])?;
        spec["root"]["path"] = base.join("image").display().to_string().into();
        spec["linux"]["cgroupsPath"] = format!("/bulkhead-bench-{program}/c").into();
        fs::write(directory.join("config.json"), spec.to_string())?;
        Ok(Self { program, directory })
    }

    pub(super) fn round(&self, number: usize) -> Result<Round> {
        let id = format!("{}-{number}", self.program);
        let bundle = self.directory.display().to_string();
        let create = self.time(&["create", "--bundle", &bundle, &id])?;
        let start = self.time(&["start", &id])?;
        let execs = (0..EXECS).map(|_| self.time(&["exec", &id, "true"]));
        let execs = execs.collect::<Result<Vec<_>>>()?;
        let remove = self.time(&["delete", "--force", &id])?;
        Ok(Round {
            create,
            start,
            execs,
            remove,
        })
    }

    /// Milliseconds of one run.
    fn time(&self, words: &[&str]) -> Result<f64> {
        let began = Instant::now();
        let status = Command::new(self.program)
            .arg("--root")
            .arg(self.directory.join("state"))
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()?;
        let time = began.elapsed().as_secs_f64() * 1e3;
        ensure!(
            status.success(),
            "{} {} failed",
            self.program,
            words.join(" ")
        );
        Ok(time)
    }
}
