//! What a process has used, by the kernel's accounts, and what a directory occupies.

use anyhow::{Context, Result};
use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// The accounts of a process and of the children that it has waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    /// In user mode and in the kernel.
    pub(super) cpu: Duration,
    /// Bytes that it caused to be written to disks, without those it took back in time.
    pub(super) written: u64,
}

impl Usage {
    pub(super) fn of(pid: u32) -> Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // proc_pid_stat(5): utime, stime, cutime and cstime are the fields 14 to 17; the second is
        // the name, in parentheses.
        let (_, rest) = stat.rsplit_once(") ").context("/proc/PID/stat is odd")?;
        let fields = rest.split(' ').skip(11).take(4);
        let ticks: u64 = fields.map(|field| field.parse::<u64>().unwrap_or(0)).sum();
        let cpu = Duration::from_secs(1) * u32::try_from(ticks)?
            / u32::try_from(rustix::param::clock_ticks_per_second())?;
        let io = std::fs::read_to_string(format!("/proc/{pid}/io"))?;
        let of = |key: &str| -> u64 {
            let line = io.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|value| value.trim().parse().ok())
                .unwrap_or(0)
        };
        Ok(Self {
            cpu,
            written: of("write_bytes:").saturating_sub(of("cancelled_write_bytes:")),
        })
    }
}

/// Starts the measurement of a process's peak anew (proc_pid_clear_refs(5)).
pub(super) fn reset_peak(pid: u32) -> Result<()> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").context("Cannot reset the peak")
}

/// The most bytes of memory that a process has had since the reset; children are not in it.
pub(super) fn peak(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.context("VmHWM is missing")? * 1024)
}

/// The bytes of disk blocks below a directory, each file once whatever its links.
pub(super) fn occupied(path: &Path) -> Result<u64> {
    let mut seen = HashSet::new();
    let mut pending = vec![path.to_owned()];
    let mut bytes = 0;
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if seen.insert((metadata.dev(), metadata.ino())) {
                bytes += metadata.blocks() * 512;
            }
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    Ok(bytes)
}

/// Writes everything out, and forgets what has been read, so that everybody starts from the disk.
pub(super) fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("Cannot drop the caches")
}
