//! Numbers that outlive this process.
//!
//! The library counts inodes and handles anew in each process, and a guest goes on with the next process after one
//! has died: what it was given before must never mean another file. So what the guest gets carries the process's
//! [`Epoch`]: an inode of another epoch is ESTALE, on which Linux looks the path up again, and a handle of another
//! epoch is EBADF.
//!
//! Volumes are what the guest cannot look up again: its containers hold them as mounts. They are the directories and
//! files below the root, and their numbers follow from their names ([`volume`]), so that a process that has never
//! been asked for one by name finds it.

mod file_system;
mod known;
mod volume;

use crate::gauge::Gauge;
use known::Known;
use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use virtiofsd::filesystem::{Context, Entry, FileSystem, ROOT_ID};
use virtiofsd::soft_idmap::{GuestGid, GuestUid};

/// Which of a pod's file daemons this is, 1 to [`Epoch::LAST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Epoch(u64);

impl Epoch {
    /// The highest.
    pub(crate) const LAST: u16 = 0x7fff;
    /// Where it is in a number; the bit above it is [`volume::MARK`].
    const SHIFT: u32 = 48;
    const INNER: u64 = (1 << Self::SHIFT) - 1;

    /// `None` for a number that is none.
    pub(crate) fn new(number: u16) -> Option<Self> {
        (1..=Self::LAST)
            .contains(&number)
            .then_some(Self(u64::from(number)))
    }

    /// What the guest gets for a number of the library; `None` when that has counted further than anybody could.
    fn tag(self, inner: u64) -> Option<u64> {
        (inner <= Self::INNER).then_some(self.0 << Self::SHIFT | inner)
    }

    /// The library's number; `None` for what another process gave.
    fn untag(self, given: u64) -> Option<u64> {
        (given >> Self::SHIFT == self.0).then_some(given & Self::INNER)
    }
}

/// A file system whose numbers carry an epoch.
pub(crate) struct Epochs<F> {
    inner: F,
    epoch: Epoch,
    /// The volumes that the guest knows and this process has found, by their numbers.
    volumes: RwLock<HashMap<u64, Volume>>,
    known: Known,
}

/// A volume that has been found. It holds one lookup of the library's inode.
#[derive(Debug, Clone, Copy)]
struct Volume {
    inner: u64,
    /// How often the guest was given it. That it has used it without being given it, because an earlier process
    /// gave it, counts once.
    lookups: u64,
}

impl<F: FileSystem<Inode = u64, Handle = u64>> Epochs<F> {
    /// The gauge tells how many inodes the guest knows.
    pub(crate) fn new(inner: F, epoch: Epoch, inodes: Gauge) -> Self {
        Self {
            inner,
            epoch,
            volumes: RwLock::default(),
            known: Known::new(inodes),
        }
    }

    /// The library's inode.
    fn inode(&self, given: u64) -> io::Result<u64> {
        if given == ROOT_ID {
            return Ok(ROOT_ID);
        }
        if given & volume::MARK != 0 {
            return self.volume(given);
        }
        self.epoch.untag(given).ok_or_else(stale)
    }

    /// The library's handle.
    fn handle(&self, given: u64) -> io::Result<u64> {
        let foreign = || io::Error::from_raw_os_error(libc::EBADF);
        self.epoch.untag(given).ok_or_else(foreign)
    }

    fn volume(&self, given: u64) -> io::Result<u64> {
        if let Some(volume) = self.read().get(&given) {
            return Ok(volume.inner);
        }
        let name = volume::name(given).ok_or_else(stale)?;
        let entry = self.inner.lookup(nobody(), ROOT_ID, &name);
        let entry = entry.map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT) => stale(),
            _ => error,
        })?;
        self.known.add(entry.inode);
        Ok(self.found(given, entry.inode))
    }

    /// A volume was looked up. Answers its inode.
    fn found(&self, given: u64, inner: u64) -> u64 {
        let mut volumes = self.write();
        let volume = volumes.entry(given).or_insert(Volume { inner, lookups: 0 });
        volume.lookups = volume.lookups.saturating_add(1);
        // One lookup of the library's is held, of the inode that the name has now.
        let superfluous = (volume.lookups > 1).then_some(volume.inner);
        volume.inner = inner;
        drop(volumes);
        if let Some(superfluous) = superfluous {
            self.forget_inner(superfluous, 1);
        }
        inner
    }

    fn forget_one(&self, given: u64, count: u64) {
        if given & volume::MARK == 0 {
            if let Ok(inner) = self.inode(given) {
                self.forget_inner(inner, count);
            }
            return;
        }
        let mut volumes = self.write();
        let Some(volume) = volumes.get_mut(&given) else {
            return;
        };
        // Fewer than the guest says when an earlier process gave the others.
        volume.lookups = volume.lookups.saturating_sub(count);
        if volume.lookups > 0 {
            return;
        }
        let gone = volumes.remove(&given);
        drop(volumes);
        if let Some(gone) = gone {
            self.forget_inner(gone.inner, 1);
        }
    }

    fn forget_inner(&self, inner: u64, count: u64) {
        self.known.forget(inner, count);
        self.inner.forget(nobody(), inner, count);
    }

    /// The guest's number for what was looked up in a directory of the library.
    fn give(&self, parent: u64, name: &CStr, mut entry: Entry) -> io::Result<Entry> {
        if entry.inode == 0 || entry.inode == ROOT_ID {
            return Ok(entry);
        }
        self.known.add(entry.inode);
        entry.inode = match volume::number(name) {
            Some(number) if parent == ROOT_ID => {
                self.found(number, entry.inode);
                number
            }
            _ => self.give_inode(entry.inode)?,
        };
        Ok(entry)
    }

    fn give_inode(&self, inner: u64) -> io::Result<u64> {
        self.epoch.tag(inner).ok_or_else(|| {
            self.forget_inner(inner, 1);
            exhausted()
        })
    }

    fn give_handle(&self, inner: Option<u64>) -> io::Result<Option<u64>> {
        let tagged = inner.map(|inner| self.epoch.tag(inner).ok_or_else(exhausted));
        tagged.transpose()
    }

    fn forget_all(&self) {
        self.write().clear();
        self.known.forget_all();
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<u64, Volume>> {
        self.volumes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<u64, Volume>> {
        self.volumes.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In whose name the library is asked for what no user asks for; it does not look.
fn nobody() -> Context {
    Context {
        uid: GuestUid::from(0),
        gid: GuestGid::from(0),
        pid: 0,
    }
}

fn stale() -> io::Error {
    io::Error::from_raw_os_error(libc::ESTALE)
}

fn exhausted() -> io::Error {
    io::Error::from_raw_os_error(libc::EOVERFLOW)
}

#[cfg(test)]
mod tests;
