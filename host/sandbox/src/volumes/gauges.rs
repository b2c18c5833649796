//! What a file daemon holds, as the kernel and itself tell it.

use crate::record::FileDaemonRecord;
use crate::vm::start_ticks;
use rustix::fs::{Dir, Mode, OFlags, openat};
use serde::Serialize;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

/// What the file is called in which it says how many inodes the guest knows (`bulkhead-fs`, `gauge.rs`).
const INODES: &[u8] = b"/memfd:bulkhead-inodes (deleted)";

/// What a pod's file daemon holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FileDaemonGauges {
    /// Its process.
    pub pid: i32,
    /// Which of the pod's it is, from 1; one more than how often one has ended.
    pub epoch: u16,
    /// Open descriptors: files that the guest has open, and some of its own.
    pub descriptors: u64,
    /// Files and directories that the guest knows; without descriptors on file systems with file handles.
    pub inodes: Option<u64>,
    /// Memory of its own, in bytes.
    pub private_bytes: u64,
}

impl FileDaemonRecord {
    /// Asks for what it holds now.
    ///
    /// # Errors
    /// It has ended, or `/proc` cannot be read.
    pub fn gauges(&self) -> io::Result<FileDaemonGauges> {
        let pid = self.identity.pid;
        let process = File::open(format!("/proc/{pid}"))?;
        let process = process.as_fd();
        // Compared after it is open: it is of this process, whatever becomes of the number.
        if start_ticks(pid)? != self.identity.start_ticks {
            return Err(io::ErrorKind::NotFound.into());
        }
        let (descriptors, inodes) = descriptors(process)?;
        Ok(FileDaemonGauges {
            pid,
            epoch: self.epoch,
            descriptors,
            inodes,
            private_bytes: private_bytes(&read(process, "smaps_rollup")?),
        })
    }
}

/// How many there are, and the number in the file of inodes.
fn descriptors(process: BorrowedFd<'_>) -> io::Result<(u64, Option<u64>)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(process, "fd", flags, Mode::empty())?;
    let (mut count, mut inodes) = (0, None);
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes().starts_with(b".") {
            continue;
        }
        count += 1;
        if inodes.is_some() {
            continue;
        }
        // One that is closed meanwhile is none.
        let target = rustix::fs::readlinkat(&directory, name, Vec::new());
        if target.is_ok_and(|target| target.as_bytes() == INODES) {
            // It is a process that a guest may have taken over: no waiting.
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let file = File::from(openat(&directory, name, flags, Mode::empty())?);
            let mut bytes = [0; 8];
            (&file).read_exact(&mut bytes)?;
            inodes = Some(u64::from_ne_bytes(bytes));
        }
    }
    Ok((count, inodes))
}

fn read(process: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut file = File::from(openat(process, name, flags, Mode::empty())?);
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// `Private_Clean` and `Private_Dirty` (proc_pid_smaps(5)), which are in KiB.
fn private_bytes(smaps: &str) -> u64 {
    let own = smaps.lines().filter(|line| line.starts_with("Private_"));
    let sizes = own.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    sizes.sum::<u64>().saturating_mul(1024)
}

#[cfg(test)]
#[path = "gauges/tests.rs"]
mod tests;
