//! Changes of volumes that the kubelet replaces as a whole: it renames a new link over `..data`. One inotify
//! instance serves all pods, for a user can have few of them.

use crate::vm::watch as watch_fd;
use crate::{Result, SandboxError};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

const DATA: &[u8] = b"..data";
/// Room for some events, and for the longest.
const BUFFER: usize = 4096;

/// The directories that are watched.
pub(crate) struct Watches(Arc<Shared>);

struct Shared {
    events: AsyncFd<OwnedFd>,
    /// By watch descriptor; a directory has one, however many follow it.
    watched: Mutex<HashMap<i32, Watched>>,
}

struct Watched {
    changed: watch::Sender<()>,
    followers: usize,
}

/// Somebody who wants to know of a directory's changes.
pub(crate) struct Follower {
    shared: Arc<Shared>,
    number: i32,
    changed: watch::Receiver<()>,
}

impl Watches {
    /// None yet. Needs a runtime.
    ///
    /// # Errors
    /// The node has no inotify instance left.
    pub(crate) fn new() -> Result<Self> {
        let failed = || SandboxError::io("watch volumes (fs.inotify.max_user_instances)");
        let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
        let events = inotify::init(flags).map_err(|error| failed()(error.into()))?;
        let shared = Arc::new(Shared {
            events: watch_fd(events).map_err(failed())?,
            watched: Mutex::default(),
        });
        tokio::spawn(listen(Arc::clone(&shared)));
        Ok(Self(shared))
    }

    /// Follows a directory from now on.
    ///
    /// # Errors
    /// The node has no inotify watch left.
    pub(crate) fn follow(&self, directory: BorrowedFd<'_>) -> Result<Follower> {
        let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
        let flags = WatchFlags::MOVED_TO | WatchFlags::CREATE | WatchFlags::ONLYDIR;
        // Under the lock, so that nobody removes the same one meanwhile.
        let mut watched = self.0.lock();
        let number = inotify::add_watch(self.0.events.get_ref(), path, flags).map_err(|error| {
            SandboxError::io("watch a volume (fs.inotify.max_user_watches)")(error.into())
        })?;
        let entry = watched.entry(number).or_insert_with(|| Watched {
            changed: watch::Sender::new(()),
            followers: 0,
        });
        entry.followers += 1;
        Ok(Follower {
            changed: entry.changed.subscribe(),
            shared: Arc::clone(&self.0),
            number,
        })
    }
}

impl Follower {
    /// Has the next wait end at once.
    pub(crate) fn look(&mut self) {
        self.changed.mark_changed();
    }

    /// Waits for a change since the last one; answers false when the directory is gone.
    pub(crate) async fn changed(&mut self) -> bool {
        self.changed.changed().await.is_ok()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut watched = self.shared.lock();
        let Some(entry) = watched.get_mut(&self.number) else {
            return;
        };
        entry.followers -= 1;
        if entry.followers == 0 {
            watched.remove(&self.number);
            // It is gone if the directory is.
            let _ = inotify::remove_watch(self.shared.events.get_ref(), self.number);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<i32, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the followers of all events that are there.
    fn tell(&self) -> rustix::io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut events = inotify::Reader::new(self.events.get_ref().as_fd(), &mut buffer);
        loop {
            let event = match events.next() {
                Err(Errno::INTR) => continue,
                result => result?,
            };
            let mut watched = self.lock();
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                // Nobody knows whose are lost.
                watched
                    .values()
                    .for_each(|one| one.changed.send_replace(()));
            } else if event.events().contains(ReadFlags::IGNORED) {
                watched.remove(&event.wd());
            } else if event
                .file_name()
                .is_some_and(|name| name.to_bytes() == DATA)
                && let Some(one) = watched.get(&event.wd())
            {
                one.changed.send_replace(());
            }
        }
    }
}

async fn listen(shared: Arc<Shared>) {
    loop {
        let Ok(mut ready) = shared.events.readable().await else {
            return;
        };
        match shared.tell() {
            Err(Errno::AGAIN) | Ok(()) => ready.clear_ready(),
            Err(error) => {
                return tracing::error!(%error, "Changes of volumes can no longer be seen");
            }
        }
    }
}

#[cfg(test)]
mod tests;
