//! Direct volumes: file systems on disks that are the pod's alone, each mounted once for all its containers and
//! unmounted cleanly before the guest ends, for the node reads them next.

use super::{ext4, fs_group};
use crate::blocking::blocking;
use crate::deadline::Deadline;
use crate::disk::Disks;
use crate::error::Context;
use crate::id::quote;
use crate::init::plan::DirectVolume;
use crate::{Error, Result};
use bulkhead_agent_api::agent::VolumeFigures;
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What the guest's kernel has for them.
pub const FILE_SYSTEMS: [&str; 1] = ["ext4"];
/// The most mount options of a volume.
const MAX_OPTIONS: usize = 32;

/// A pod's direct volumes.
#[derive(Debug, Clone)]
pub struct DirectVolumes {
    disks: Disks,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// A directory for mount points.
    points: PathBuf,
    /// Held by the one who mounts, grows or unmounts.
    turn: tokio::sync::Mutex<()>,
    mounted: Mutex<Vec<Mounted>>,
    /// The pod ends.
    stopping: AtomicBool,
}

#[derive(Debug, Clone)]
struct Mounted {
    volume: DirectVolume,
    path: PathBuf,
    node: PathBuf,
}

impl DirectVolumes {
    /// None yet.
    pub fn new(disks: Disks, points: PathBuf) -> Self {
        Self {
            disks,
            shared: Arc::new(Shared {
                points,
                turn: tokio::sync::Mutex::default(),
                mounted: Mutex::default(),
                stopping: AtomicBool::new(false),
            }),
        }
    }

    /// Where a volume is; it is mounted, and given to its group, when it is asked for first. That goes on when the
    /// deadline has passed, so that who asks again finds it done.
    ///
    /// # Errors
    /// [`Error::Precondition`] when the same disk is mounted otherwise, and what mounting it says.
    pub async fn directory(&self, asked: &DirectVolume, deadline: Deadline) -> Result<PathBuf> {
        let disk = self.disks.wait(&asked.disk, deadline).await?;
        let (shared, asked) = (Arc::clone(&self.shared), asked.clone());
        let waited = format!("The volume on disk {} is still being mounted", asked.disk);
        let mount = blocking(move || {
            let _turn = shared.turn.blocking_lock();
            shared.directory(&asked, &disk.node)
        });
        deadline.limit(|| waited, mount).await?
    }

    /// How full a volume is.
    ///
    /// # Errors
    /// [`Error::NotFound`] without one on this disk.
    pub fn figures(&self, serial: &str) -> Result<VolumeFigures> {
        let mounted = self.shared.find(serial)?;
        let found = rustix::fs::statvfs(&mounted.path)
            .context(|| format!("Cannot look at the volume on disk {serial}"))?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        let mut figures = VolumeFigures::new();
        figures.total_bytes = bytes(found.f_blocks);
        figures.used_bytes = bytes(found.f_blocks.saturating_sub(found.f_bfree));
        figures.available_bytes = bytes(found.f_bavail);
        figures.total_inodes = found.f_files;
        figures.used_inodes = found.f_files.saturating_sub(found.f_ffree);
        figures.free_inodes = found.f_ffree;
        Ok(figures)
    }

    /// Grows a volume's file system to the size of its disk, once that has at least `bytes`. Containers go on.
    ///
    /// # Errors
    /// [`Error::NotFound`] without a volume on this disk, [`Error::Precondition`] if it is read-only.
    pub async fn grow(&self, serial: &str, bytes: u64, deadline: Deadline) -> Result<()> {
        let mounted = self.shared.find(serial)?;
        if mounted.is_read_only()? {
            return Err(Error::Precondition(format!(
                "The volume on disk {serial} is read-only and cannot grow"
            )));
        }
        let disks = &self.disks;
        disks.wait_for_size(serial, bytes, deadline).await?;
        let shared = Arc::clone(&self.shared);
        let work = blocking(move || {
            let _turn = shared.turn.blocking_lock();
            // It may have been unmounted meanwhile.
            let mounted = shared.find(&mounted.volume.disk)?;
            ext4::grow(&mounted.volume.disk, &mounted.node, &mounted.path)
        });
        let waited = || format!("The volume on disk {serial} is still growing");
        deadline.limit(waited, work).await?
    }

    /// Writes everything back and unmounts them all; nothing that uses them may be left. Blocks.
    pub fn unmount_all(&self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        let _turn = self.shared.turn.blocking_lock();
        let all = std::mem::take(&mut *self.shared.mounted());
        for mounted in all {
            if let Err(error) = mounted.unmount() {
                tracing::error!("{}", error.chain());
            }
        }
    }
}

impl Shared {
    fn mounted(&self) -> MutexGuard<'_, Vec<Mounted>> {
        self.mounted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, serial: &str) -> Result<Mounted> {
        let mounted = self.mounted();
        let found = mounted.iter().find(|one| one.volume.disk == serial);
        let missing = || Error::NotFound(format!("There is no volume mounted from disk {serial}"));
        found.cloned().ok_or_else(missing)
    }

    /// For who has the turn.
    fn directory(&self, asked: &DirectVolume, node: &Path) -> Result<PathBuf> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err(Error::Precondition("The pod ends".to_owned()));
        }
        if let Ok(before) = self.find(&asked.disk) {
            if before.volume != *asked {
                return Err(Error::Precondition(format!(
                    "The volume on disk {} is mounted already, with other options or another group",
                    asked.disk
                )));
            }
            return Ok(before.path);
        }
        let mounted = Mounted {
            volume: asked.clone(),
            path: self.points.join(&asked.disk),
            node: node.to_owned(),
        };
        mounted.mount(&self.stopping)?;
        let path = mounted.path.clone();
        self.mounted().push(mounted);
        Ok(path)
    }
}

impl Mounted {
    fn mount(&self, stop: &AtomicBool) -> Result<()> {
        let Self { volume, path, node } = self;
        let (flags, data) = mount_options(&volume.options)?;
        let kind = volume.file_system.as_str();
        let what = || format!("Cannot mount the volume on disk {} as {kind}", volume.disk);
        std::fs::create_dir_all(path).context(what)?;
        // Most often it is what is on the disk that is wrong.
        let mounted = rustix::mount::mount(node, path, kind, flags, &*data);
        mounted.map_err(|error| Error::Precondition(format!("{}: {error}", what())))?;
        let Some(group) = volume.fs_group else {
            return Ok(());
        };
        if flags.contains(MountFlags::RDONLY) {
            return Ok(());
        }
        let (disk, gid) = (&volume.disk, group.gid);
        let given = fs_group::give(path, group, stop);
        let given =
            given.context(|| format!("Cannot give the volume on disk {disk} to group {gid}"));
        if given.is_err() {
            // The error is the one to tell.
            let _ = rustix::mount::unmount(path, UnmountFlags::empty());
        }
        given
    }

    fn is_read_only(&self) -> Result<bool> {
        let (flags, _) = mount_options(&self.volume.options)?;
        Ok(flags.contains(MountFlags::RDONLY))
    }

    /// Read-only first: that makes the file system clean on its disk even if somebody still has it mounted.
    fn unmount(&self) -> Result<()> {
        let disk = &self.volume.disk;
        let (flags, data) = mount_options(&self.volume.options)?;
        let mut clean = Ok(());
        if !flags.contains(MountFlags::RDONLY) {
            let read_only = flags | MountFlags::RDONLY;
            clean = rustix::mount::mount_remount(&self.path, read_only, &*data)
                .context(|| format!("Cannot make the volume on disk {disk} read-only"));
        }
        rustix::mount::unmount(&self.path, UnmountFlags::empty())
            .context(|| format!("Cannot unmount the volume on disk {disk}"))?;
        clean
    }
}

/// A volume's options as mount(2) takes them. A later one takes back an earlier one. Devices have no effect on a
/// volume in any case.
///
/// # Errors
/// [`Error::Invalid`] with the name of the one that is not allowed.
pub fn mount_options(options: &[String]) -> Result<(MountFlags, CString)> {
    if options.len() > MAX_OPTIONS {
        let text = format!("A direct volume has more than {MAX_OPTIONS} mount options");
        return Err(Error::Invalid(text));
    }
    let times = MountFlags::NOATIME | MountFlags::RELATIME | MountFlags::STRICTATIME;
    let mut flags = MountFlags::NODEV;
    let mut data = "";
    for option in options {
        let (set, clear) = match option.as_str() {
            "defaults" | "nodev" => (MountFlags::empty(), MountFlags::empty()),
            "ro" => (MountFlags::RDONLY, MountFlags::empty()),
            "rw" => (MountFlags::empty(), MountFlags::RDONLY),
            "nosuid" => (MountFlags::NOSUID, MountFlags::empty()),
            "suid" => (MountFlags::empty(), MountFlags::NOSUID),
            "noexec" => (MountFlags::NOEXEC, MountFlags::empty()),
            "exec" => (MountFlags::empty(), MountFlags::NOEXEC),
            "noatime" => (MountFlags::NOATIME, times),
            "relatime" => (MountFlags::RELATIME, times),
            "strictatime" => (MountFlags::STRICTATIME, times),
            "atime" => (MountFlags::empty(), times),
            "nodiratime" => (MountFlags::NODIRATIME, MountFlags::empty()),
            "diratime" => (MountFlags::empty(), MountFlags::NODIRATIME),
            "lazytime" => (MountFlags::LAZYTIME, MountFlags::empty()),
            "nolazytime" => (MountFlags::empty(), MountFlags::LAZYTIME),
            "sync" => (MountFlags::SYNCHRONOUS, MountFlags::empty()),
            "async" => (MountFlags::empty(), MountFlags::SYNCHRONOUS),
            "dirsync" => (MountFlags::DIRSYNC, MountFlags::empty()),
            "discard" | "nodiscard" => {
                data = if option == "discard" { "discard" } else { "" };
                continue;
            }
            _ => {
                let option = quote(option);
                let text = format!("A direct volume cannot have the mount option {option}");
                return Err(Error::Invalid(text));
            }
        };
        flags = flags.difference(clear).union(set);
    }
    let data = CString::new(data).context(|| "Cannot pass on mount options")?;
    Ok((flags, data))
}

#[cfg(test)]
mod tests {
    use super::mount_options;
    use rustix::mount::MountFlags;

    fn options(list: &[&str]) -> Result<(MountFlags, String), String> {
        let list: Vec<_> = list.iter().map(|word| (*word).to_owned()).collect();
        let made = mount_options(&list).map_err(|error| error.to_string());
        made.map(|(flags, data)| (flags, data.into_string().unwrap()))
    }

    #[test]
    fn a_later_option_takes_back_an_earlier_one() {
        let least = MountFlags::NODEV;
        for (list, flags, data) in [
            (vec![], least, ""),
            (vec!["ro", "discard"], least | MountFlags::RDONLY, "discard"),
            (vec!["ro", "discard", "rw", "nodiscard"], least, ""),
            (
                vec!["noatime", "strictatime"],
                least | MountFlags::STRICTATIME,
                "",
            ),
            (
                vec!["nosuid", "noexec", "exec"],
                least | MountFlags::NOSUID,
                "",
            ),
            (
                vec!["lazytime", "defaults", "async"],
                least | MountFlags::LAZYTIME,
                "",
            ),
        ] {
            assert_eq!(options(&list), Ok((flags, data.to_owned())), "{list:?}");
        }
    }

    #[test]
    fn what_is_not_on_the_list_is_refused_by_name() {
        for word in [
            "dev",
            "bind",
            "remount",
            "data=journal",
            "",
            "discard,x",
            "RO",
        ] {
            let error = options(&["ro", word]).unwrap_err();
            assert!(error.contains(&format!("{word:?}")), "{error}");
        }
        assert!(options(&["ro"; 33]).unwrap_err().contains("32"));
    }
}
