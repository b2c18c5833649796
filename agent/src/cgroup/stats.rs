//! The figures of a container's cgroup.

use super::{Cgroup, descriptors, pids};
use bulkhead_agent_api::agent::ContainerStats;
use bulkhead_agent_api::cgroup::figures;
use rustix::fs::{Mode, OFlags};

/// The longest file that is read; `io.stat` has a line for each disk.
const MAX_FILE: usize = 64 * 1024;

impl Cgroup {
    /// Its figures, without names and times.
    pub fn stats(&self) -> ContainerStats {
        let mut stats = figures(|file| self.read(file));
        let mut processes = Vec::new();
        pids(&self.path, &mut processes);
        stats.processes = processes.len() as u64;
        let open = descriptors::of(&processes);
        (stats.file_descriptors, stats.sockets) = (open.all, open.sockets);
        stats.descriptor_limit = processes.first().copied().and_then(descriptors::limit);
        stats
    }

    fn read(&self, file: &str) -> Option<String> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.directory, file, flags, Mode::empty()).ok()?;
        let mut text = Vec::new();
        let file = std::fs::File::from(file);
        std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_FILE as u64), &mut text)
            .ok()?;
        String::from_utf8(text).ok()
    }
}
