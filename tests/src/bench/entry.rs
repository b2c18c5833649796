//! When KVM first enters a guest, by its own tracepoint: the same measure for every VMM.

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const TRACEFS: &str = "/sys/kernel/tracing";

/// A buffer of the kernel's for one event; dropped, it is gone.
pub(super) struct Entries {
    instance: PathBuf,
    pipe: BufReader<File>,
}

impl Entries {
    /// Looks out for entries from now on.
    pub(super) fn new() -> Result<Self> {
        let tracefs = Path::new(TRACEFS);
        if !tracefs.join("instances").exists() {
            let arguments = ["-t", "tracefs", "tracefs", TRACEFS];
            // What is missing then is told below.
            let _ = Command::new("mount").args(arguments).status()?;
        }
        let instance = tracefs.join(format!("instances/bulkhead-{}", std::process::id()));
        fs::create_dir(&instance).context("The kernel cannot trace (tracefs)")?;
        let pipe = File::open(instance.join("trace_pipe"));
        let entries = Self {
            pipe: BufReader::new(pipe?),
            instance,
        };
        entries.set("trace_clock", "mono")?;
        entries.set("events/kvm/kvm_entry/enable", "1")?;
        Ok(entries)
    }

    fn set(&self, file: &str, value: &str) -> Result<()> {
        fs::write(self.instance.join(file), value).with_context(|| format!("Cannot set {file}"))
    }

    /// Waits for the first entry and answers CLOCK_MONOTONIC then.
    pub(super) fn first(&mut self) -> Result<Duration> {
        let mut line = String::new();
        self.pipe.read_line(&mut line)?;
        // `task-number [cpu] flags seconds: kvm_entry: ...`
        let (before, _) = line.split_once(": kvm_entry").context("No entry")?;
        let seconds = before.rsplit(' ').next().unwrap_or_default();
        Ok(Duration::from_secs_f64(seconds.parse()?))
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        // The rest is not wanted, and a buffer is not removed while it is read.
        let _ = self.set("events/kvm/kvm_entry/enable", "0");
        if let Ok(none) = File::open("/dev/null") {
            self.pipe = BufReader::new(none);
        }
        let _ = fs::remove_dir(&self.instance);
    }
}

/// CLOCK_MONOTONIC.
pub(super) fn now() -> Duration {
    // It is never negative.
    clock_gettime(ClockId::Monotonic)
        .try_into()
        .unwrap_or_default()
}
