//! Direct volumes: a CSI driver leaves the volume's directory empty on the node and puts a file
//! `direct-volume.json` beside it, which names a block device with a file system. The guest mounts it, and no file
//! of it ever passes through the node.
//!
//! The file says which device of the node a pod gets, so it is believed only below the kubelet's directory, reached
//! without links, and if nobody but root could have written it.

mod figures;
mod file;

use super::kubelet;
use crate::disks::PodDisks;
use crate::place::Place;
use crate::{Result, SandboxError};
use bulkhead_vmm_api::DiskSlot;
pub(crate) use file::Description;
use file::Part;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, open, openat, openat2,
};
use rustix::io::Errno;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The name of the file.
const FILE: &str = "direct-volume.json";
/// The directory of the CSI drivers' volumes. Those of other kinds have no place that their content is not at.
const CSI: &str = "kubernetes.io~csi";
/// Who may say which device a pod gets.
const ROOT: u32 = 0;

/// A direct volume that a container asks for.
#[derive(Debug)]
pub(crate) struct Direct {
    pub(crate) device: Arc<Device>,
    pub(crate) description: Description,
    /// What of it the container gets.
    pub(crate) sub_path: Option<String>,
    /// The slot that its device is on, once it is.
    pub(crate) slot: Option<DiskSlot>,
}

/// The device of a direct volume, looked at and not yet opened.
#[derive(Debug)]
pub(crate) struct Device {
    /// The volume's directory on the node.
    pub(crate) volume: String,
    /// `st_rdev` on the node.
    pub(crate) number: u64,
    pub(crate) write: bool,
    path: PathBuf,
    found: OwnedFd,
}

impl Direct {
    /// What the guest is told of it, as options of a mount.
    pub(crate) fn mount_options(&self) -> Vec<String> {
        let Description {
            file_system,
            options,
            fs_group,
            on_root_mismatch,
            ..
        } = &self.description;
        let mut told = vec![format!("fstype={file_system}")];
        if !options.is_empty() {
            told.push(format!("fs-options={}", options.join(",")));
        }
        told.extend(fs_group.map(|gid| format!("fs-group={gid}")));
        if *on_root_mismatch {
            told.push("fs-group-on-root-mismatch".to_owned());
        }
        let sub_path = self.sub_path.as_ref();
        told.extend(sub_path.map(|path| format!("subpath={path}")));
        told
    }

    /// The serial of its disk; empty before it is bound.
    pub(crate) fn serial(&self) -> String {
        self.slot.map(|slot| slot.serial()).unwrap_or_default()
    }
}

/// The direct volume that a path of the node means, of which `opened` is what the kubelet has bound there. Nothing if
/// it is another kind of volume.
///
/// # Errors
/// [`SandboxError::DirectVolume`].
pub(super) fn find(root: &Path, path: &Path, opened: BorrowedFd<'_>) -> Result<Option<Direct>> {
    find_of(ROOT, root, path, opened)
}

/// As [`find`], for a file that has to be this user's.
fn find_of(owner: u32, root: &Path, path: &Path, opened: BorrowedFd<'_>) -> Result<Option<Direct>> {
    let Ok(below) = path.strip_prefix(root) else {
        return match elsewhere(path) {
            None => Ok(None),
            Some(volume) => Err(refused(
                &volume.to_string_lossy(),
                format!(
                    "it is not below {}; set `kubelet` in the configuration to the kubelet's directory",
                    root.display()
                ),
            )),
        };
    };
    let Some(place) = file::place(below) else {
        return Ok(None);
    };
    let volume = root.join(&place.volume);
    let refused = |problem: String| refused(&volume.to_string_lossy(), problem);
    let Some(directory) = open_directory(root, &place.volume).map_err(refused)? else {
        return Ok(None);
    };
    let Some(content) = read(directory.as_fd(), owner).map_err(refused)? else {
        return Ok(None);
    };
    let description =
        file::parse(&content).map_err(|problem| refused(format!("{FILE}: {problem}")))?;
    let sub_path = match place.part {
        Part::Whole => None,
        Part::Below(part) => Some(part),
        Part::Bound => match bound(&directory, opened).map_err(refused)? {
            Some(part) => Some(part),
            // A volume of the pod itself can have the name of a CSI volume.
            None if is_of_an_empty_dir(&volume) => return Ok(None),
            None => return Err(refused("its sub-path is not in it".to_owned())),
        },
    };
    let (found, number) = look(&description.device).map_err(refused)?;
    let device = Device {
        volume: volume.to_string_lossy().into_owned(),
        number,
        write: !description.is_read_only(),
        path: description.device.clone(),
        found,
    };
    Ok(Some(Direct {
        device: Arc::new(device),
        description,
        sub_path,
        slot: None,
    }))
}

/// The volume that a path would mean if the kubelet's directory were another. It must not be taken for an ordinary
/// one: what is written to that would not be on the device.
fn elsewhere(path: &Path) -> Option<PathBuf> {
    path.ancestors().find_map(|root| {
        let place = file::place(path.strip_prefix(root).ok()?)?;
        let volume = root.join(place.volume);
        volume
            .join(FILE)
            .symlink_metadata()
            .is_ok()
            .then_some(volume)
    })
}

/// The directory of a volume, reached without links below the kubelet's own.
fn open_directory(root: &Path, volume: &Path) -> Result<Option<OwnedFd>, String> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = match open(root, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        result => {
            result.map_err(|error| format!("{} cannot be opened: {error}", root.display()))?
        }
    };
    match open_beneath(&root, volume, flags) {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        // What is reached by links is not believed, and must not be taken for an ordinary volume either.
        Err(Errno::LOOP) => match rustix::fs::statat(&root, volume.join(FILE), AtFlags::empty()) {
            Ok(_) => Err(format!("a link leads to its {FILE}")),
            Err(_) => Ok(None),
        },
        Err(error) => Err(format!("its directory cannot be opened: {error}")),
        Ok(directory) => Ok(Some(directory)),
    }
}

fn open_beneath(root: impl AsFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // Somebody renamed something meanwhile.
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

/// The content of the file in a volume's directory, if there is one.
fn read(directory: BorrowedFd<'_>, owner: u32) -> Result<Option<Vec<u8>>, String> {
    let failed = |error: Errno| format!("{FILE} cannot be read: {error}");
    // Not waiting for the other end if somebody has put a FIFO there.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let file = match open_beneath(directory, Path::new(FILE), flags) {
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP) => return Err(format!("{FILE} is a link")),
        result => result.map_err(failed)?,
    };
    let found = fstat(&file).map_err(failed)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err(format!("{FILE} is no plain file"));
    }
    only_of(owner, &found).map_err(|problem| format!("{FILE} {problem}"))?;
    // It would be possible to put another file of this owner there.
    let around = fstat(directory).map_err(failed)?;
    only_of(owner, &around).map_err(|problem| format!("its directory {problem}"))?;
    let mut content = Vec::new();
    let mut limited = File::from(file).take(file::MAX_SIZE + 1);
    let size = limited.read_to_end(&mut content);
    let size = size.map_err(|error| format!("{FILE} cannot be read: {error}"))?;
    if size as u64 > file::MAX_SIZE {
        return Err(format!("{FILE} is larger than {} bytes", file::MAX_SIZE));
    }
    Ok(Some(content))
}

fn only_of(owner: u32, found: &Stat) -> Result<(), String> {
    if found.st_uid != owner {
        return Err(format!("belongs to user {}, not to {owner}", found.st_uid));
    }
    if found.st_mode & 0o022 != 0 {
        let mode = found.st_mode & 0o7777;
        return Err(format!("can be written by others (mode {mode:o})"));
    }
    Ok(())
}

/// Where in the volume's empty directory on the node the kubelet has made what it has bound.
fn bound(directory: &OwnedFd, opened: BorrowedFd<'_>) -> Result<Option<String>, String> {
    let failed = |error: std::io::Error| format!("its sub-path cannot be found: {error}");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mount = openat(directory, "mount", flags, Mode::empty());
    let mount = mount.map_err(|error| failed(error.into()))?;
    let wanted = fstat(opened).map_err(|error| failed(error.into()))?;
    kubelet::find(&mount, (wanted.st_dev, wanted.st_ino)).map_err(failed)
}

fn is_of_an_empty_dir(volume: &Path) -> bool {
    let (Some(name), Some(volumes)) = (volume.file_name(), volume.ancestors().nth(2)) else {
        return false;
    };
    volumes.join(kubelet::EMPTY_DIR).join(name).exists()
}

/// Finds a block device and its number.
fn look(path: &Path) -> Result<(OwnedFd, u64), String> {
    let shown = path.display();
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let found = openat(CWD, path, flags, Mode::empty())
        .map_err(|error| format!("its device {shown} cannot be opened: {error}"))?;
    let stat = fstat(&found).map_err(|error| format!("its device {shown}: {error}"))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => Ok((found, stat.st_rdev)),
        other => Err(format!("{shown} is no block device ({other:?})")),
    }
}

impl Device {
    /// Opens the device for this pod alone. Blocks.
    ///
    /// # Errors
    /// [`SandboxError::DirectVolume`]: somebody on the node or another pod has it.
    pub(crate) fn open(&self) -> Result<OwnedFd> {
        let mode = match self.write {
            true => OFlags::RDWR,
            false => OFlags::RDONLY,
        };
        // The very file that was looked at. The kernel lends a device to one at a time of those who ask for it
        // exclusively, as every mount does.
        let same = format!("/proc/self/fd/{}", self.found.as_raw_fd());
        let opened = open(same, mode | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty());
        opened.map_err(|error| {
            let path = self.path.display();
            let problem = match error {
                Errno::BUSY => format!(
                    "its device {path} is in use; unmount it on the node, or wait until the pod that has it has ended"
                ),
                error => format!("its device {path} cannot be opened: {error}"),
            };
            self.refused(problem)
        })
    }

    /// One that is no block device but can be opened.
    #[cfg(test)]
    pub(crate) fn fake(volume: &str, number: u64, write: bool) -> Arc<Self> {
        let (path, flags) = ("/dev/null", OFlags::PATH | OFlags::CLOEXEC);
        Arc::new(Self {
            volume: volume.to_owned(),
            number,
            write,
            path: path.into(),
            found: open(path, flags, Mode::empty()).unwrap(),
        })
    }

    pub(crate) fn refused(&self, problem: String) -> SandboxError {
        refused(&self.volume, problem)
    }
}

fn refused(volume: &str, problem: String) -> SandboxError {
    SandboxError::DirectVolume {
        volume: volume.to_owned(),
        problem,
    }
}

/// Puts the devices of a container's direct volumes behind slots. Answers whether there is any.
pub(crate) async fn bind(
    place: &dyn Place,
    disks: &PodDisks,
    volumes: &mut [super::Volume],
) -> Result<bool> {
    let mut any = false;
    for volume in volumes {
        if let super::Kind::Direct(direct) = &mut volume.kind {
            direct.slot = Some(disks.take_volume(place, &direct.device).await?);
            any = true;
        }
    }
    Ok(any)
}

#[cfg(test)]
mod tests;
