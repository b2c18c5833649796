//! How much a container has written.
//!
//! On a scratch disk each container is a project of the file system, which keeps the count. Elsewhere
//! there is no cheap way to know it. Then a call gets the newest count and, if that is old, starts the
//! next one in the background; a count takes at most a fiftieth of the time, however many files there are.

use super::supervisor::now_ns;
use crate::pod::Project;
use crate::sys::quota::Used;
use bulkhead_agent_api::agent::WritableLayer;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, StatxFlags};
use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Directories in directories; each is an open descriptor.
const MAX_DEPTH: usize = 64;
/// Files with several names whose numbers are kept, so that they count once.
const MAX_LINKED: usize = 65_536;
/// The least time between two counts.
const LEAST: Duration = Duration::from_secs(10);
/// How many times as long as a count the time to the next is.
const REST: u32 = 50;

/// How a container's changes are known.
#[derive(Debug)]
pub(super) enum Usage {
    /// By the file system: all that the container has on it, which is some directories more.
    Project(Project),
    /// By looking.
    Counted(Arc<Counter>),
}

impl Usage {
    /// What it has written. Needs a tokio runtime.
    pub(super) fn newest(&self) -> WritableLayer {
        let project = match self {
            Self::Counted(counter) => return counter.newest(),
            Self::Project(project) => project,
        };
        let mut layer = WritableLayer::new();
        layer.timestamp_ns = now_ns();
        match project.used() {
            Ok(Used { bytes, inodes }) => (layer.used_bytes, layer.inodes) = (bytes, inodes),
            Err(error) => {
                tracing::warn!("Cannot read a project's quota: {error}");
                layer.incomplete = true;
            }
        }
        if let Ok(system) = project.file_system() {
            layer.capacity_bytes = system.f_blocks.saturating_mul(system.f_frsize);
            layer.capacity_inodes = system.f_files;
            layer.free_inodes = system.f_ffree;
        }
        layer
    }
}

/// Counts what is in a directory.
#[derive(Debug)]
pub(super) struct Counter {
    upper: PathBuf,
    counting: AtomicBool,
    newest: Mutex<Newest>,
}

#[derive(Debug, Clone)]
struct Newest {
    count: WritableLayer,
    at: Instant,
    took: Duration,
}

impl Counter {
    /// Of a directory that is nearly empty still.
    pub(super) fn new(upper: PathBuf) -> Arc<Self> {
        let newest = count(&upper);
        Arc::new(Self {
            upper,
            counting: AtomicBool::new(false),
            newest: Mutex::new(newest),
        })
    }

    /// The newest count. Starts the next one when it is time; needs a tokio runtime.
    fn newest(self: &Arc<Self>) -> WritableLayer {
        let newest = self.lock().clone();
        let due = newest.at.elapsed() >= LEAST.max(newest.took * REST);
        if due && !self.counting.swap(true, Ordering::AcqRel) {
            let usage = self.clone();
            tokio::task::spawn_blocking(move || {
                let newest = count(&usage.upper);
                *usage.lock() = newest;
                usage.counting.store(false, Ordering::Release);
            });
        }
        newest.count
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Newest> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(directory: &Path) -> Newest {
    let at = Instant::now();
    let mut count = WritableLayer::new();
    count.timestamp_ns = now_ns();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::open(directory, flags, Mode::empty()) {
        Ok(top) => {
            count.inodes = 1;
            let mut linked = HashSet::new();
            walk(top, MAX_DEPTH, &mut linked, &mut count);
        }
        Err(_) => count.incomplete = true,
    }
    Newest {
        count,
        at,
        took: at.elapsed(),
    }
}

/// Adds what is in a directory. The container changes it meanwhile: what has gone is not counted.
fn walk(directory: OwnedFd, depth: usize, linked: &mut HashSet<u64>, count: &mut WritableLayer) {
    let Ok(entries) = Dir::read_from(&directory) else {
        count.incomplete = true;
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let at = AtFlags::SYMLINK_NOFOLLOW;
        let wanted = StatxFlags::BASIC_STATS;
        let Ok(stat) = rustix::fs::statx(&directory, name, at, wanted) else {
            continue;
        };
        let kind = FileType::from_raw_mode(stat.stx_mode.into());
        if stat.stx_nlink > 1 && kind != FileType::Directory {
            if linked.contains(&stat.stx_ino) {
                continue;
            }
            if linked.len() < MAX_LINKED {
                linked.insert(stat.stx_ino);
            }
        }
        count.inodes += 1;
        count.used_bytes += stat.stx_blocks.saturating_mul(512);
        if kind != FileType::Directory {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&directory, name, flags, Mode::empty()) {
            Ok(inner) if depth > 0 => walk(inner, depth - 1, linked, count),
            Ok(_) => count.incomplete = true,
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_DEPTH, count};
    use std::fs;

    #[test]
    fn files_count_once_and_links_are_not_followed() {
        let top = std::env::temp_dir().join(format!("bulkhead-usage-{}", std::process::id()));
        let _ = fs::remove_dir_all(&top);
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::write(top.join("a/file"), vec![1; 100_000]).unwrap();
        fs::hard_link(top.join("a/file"), top.join("a/b/again")).unwrap();
        std::os::unix::fs::symlink("/usr", top.join("a/link")).unwrap();
        let before = count(&top).count;
        // The top, a, b, file, link.
        assert_eq!(before.inodes, 5);
        assert!(
            before.used_bytes >= 100_000 && before.used_bytes < 200_000,
            "{before:?}"
        );
        assert!(!before.incomplete);
        let mut deep = top.clone();
        for _ in 0..MAX_DEPTH + 3 {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        assert!(count(&top).count.incomplete);
        fs::remove_dir_all(&top).unwrap();
        assert!(count(&top).count.incomplete);
    }
}
