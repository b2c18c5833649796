//! The mounts that volumes are: detached copies of what is on the node, put below the file daemon's root.

#![allow(unsafe_code)] // mount_setattr(2) has no wrapper; unshare(2) is marked unsafe.

use super::direct::{self, Direct};
use super::ids;
use super::kubelet::{self, EmptyDir};
use crate::store::blocking;
use crate::{Result, SandboxError};
use bulkhead_cri::v1::{self, MountPropagation};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, StatxFlags, mkdirat, openat, statx, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{
    MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

/// The most volumes of one container.
const MAX_VOLUMES: usize = 256;

/// What a volume becomes in the guest.
#[derive(Debug)]
pub(crate) enum Kind {
    /// Files of the node, seen over virtio-fs.
    Shared,
    /// A copy in the guest's memory, which follows what the node has.
    Mirror,
    /// A directory of the guest.
    EmptyDir(EmptyDir),
    /// A file system on a disk, mounted in the guest only.
    Direct(Box<Direct>),
}

/// A volume that a container asks for: the mount that it is, not yet anywhere.
#[derive(Debug)]
pub(crate) struct Volume {
    /// Which of the container's.
    pub(crate) index: usize,
    pub(crate) kind: Kind,
    tree: OwnedFd,
    pub(crate) is_directory: bool,
    pub(crate) host_path: String,
    pub(crate) container_path: String,
    /// What the guest is told of it, as options of a mount.
    pub(crate) options: Vec<&'static str>,
    /// What it is and how it is mounted, if containers that ask for the same have the same mount.
    pub(super) shared_place: Option<String>,
}

impl Volume {
    /// Whether nothing of it is on the node.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self.kind, Kind::EmptyDir(_) | Kind::Direct(_))
    }

    /// What it is on the node.
    pub(crate) fn place(&self) -> BorrowedFd<'_> {
        self.tree.as_fd()
    }

    /// Its mount once more.
    pub(super) fn tree(&self) -> Result<OwnedFd> {
        self.tree
            .try_clone()
            .map_err(SandboxError::io("duplicate a descriptor"))
    }
}

/// What a mount names.
enum Opened {
    Volume(Volume),
    /// A block device, which becomes a disk.
    Device(v1::Device),
}

/// Checks and opens the volumes of a container. Mounts of block devices come back as the devices that they are.
/// `kubelet` is the kubelet's directory.
///
/// # Errors
/// [`SandboxError::InvalidField`], [`SandboxError::NotFound`], [`SandboxError::DirectVolume`], and what opening them says.
pub(crate) async fn open(
    kubelet: &Path,
    mounts: &[v1::Mount],
) -> Result<(Vec<Volume>, Vec<v1::Device>)> {
    let mounts = of_the_node(mounts);
    if mounts.len() > MAX_VOLUMES {
        return Err(wrong(format!("more than {MAX_VOLUMES} volumes")));
    }
    let (mut volumes, mut devices) = (Vec::new(), Vec::new());
    if mounts.is_empty() {
        return Ok((volumes, devices));
    }
    let kubelet = kubelet.to_owned();
    // A path may lie on a file system that answers slowly.
    blocking(move || {
        for one in mounts.iter().enumerate() {
            match open_one(&kubelet, one)? {
                Opened::Volume(volume) => volumes.push(volume),
                Opened::Device(device) => devices.push(device),
            }
        }
        Ok((volumes, devices))
    })
    .await
}

fn of_the_node(mounts: &[v1::Mount]) -> Vec<v1::Mount> {
    let mounts = mounts.iter().filter(|mount| mount.image.is_none());
    mounts.cloned().collect()
}

/// The volumes of a container, by their indices, that are mirrored and still there.
pub(super) async fn find_mirrored(mounts: &[v1::Mount]) -> Result<Vec<(usize, OwnedFd)>> {
    let mounts = of_the_node(mounts);
    let find = move || {
        let all = mounts.iter().enumerate();
        let mirrored = all.filter_map(|(index, mount)| {
            let place = open_place(&mount.host_path).ok()?;
            let kind = kubelet::kind(Path::new(&mount.host_path), place.as_fd(), mount.readonly);
            matches!(kind, Ok(Kind::Mirror)).then_some((index, place))
        });
        Ok(mirrored.collect())
    };
    blocking(find).await
}

fn open_place(path: &str) -> rustix::io::Result<OwnedFd> {
    openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// A block device that was asked for as a mount.
fn device(mount: &v1::Mount) -> v1::Device {
    v1::Device {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.clone(),
        permissions: if mount.readonly { "r" } else { "rw" }.to_owned(),
    }
}

fn open_one(kubelet_root: &Path, (index, mount): (usize, &v1::Mount)) -> Result<Opened> {
    let propagation = check(mount)?;
    let host = &mount.host_path;
    let failed = || SandboxError::io(format!("open the volume {host}"));
    let (place, file_type) = find(mount)?;
    if file_type == FileType::BlockDevice {
        return Ok(Opened::Device(device(mount)));
    }
    let kind = match direct::find(kubelet_root, Path::new(host), place.as_fd())? {
        Some(direct) => Kind::Direct(Box::new(direct)),
        None => {
            let kind = kubelet::kind(Path::new(host), place.as_fd(), mount.readonly);
            kind.map_err(|error| match error.kind() {
                io::ErrorKind::Unsupported => SandboxError::Unsupported {
                    what: "config.mounts with an emptyDir volume of huge pages",
                },
                _ => failed()(error),
            })?
        }
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(&place, "", flags).map_err(|error| failed()(error.into()))?;
    let options = restrict(tree.as_fd(), mount, propagation, &kind)?;
    let shared_place = match kind {
        Kind::Shared => Some(shared_place(&place, mount, &options).map_err(failed())?),
        _ => None,
    };
    Ok(Opened::Volume(Volume {
        index,
        kind,
        tree,
        is_directory: file_type == FileType::Directory,
        host_path: host.clone(),
        container_path: mount.container_path.clone(),
        options,
        shared_place,
    }))
}

/// What tells volumes apart that are not the same place mounted in the same way.
fn shared_place(place: &OwnedFd, mount: &v1::Mount, options: &[&str]) -> io::Result<String> {
    let wanted = StatxFlags::INO | StatxFlags::MNT_ID;
    let status = statx(place, "", AtFlags::EMPTY_PATH, wanted)?;
    let ids = [&mount.uid_mappings, &mount.gid_mappings].map(|maps| {
        let parts = maps
            .iter()
            .map(|map| format!("{}:{}:{}", map.container_id, map.host_id, map.length));
        parts.collect::<Vec<_>>().join(",")
    });
    Ok(format!(
        "{} {}:{} {} {} {}",
        status.stx_mnt_id,
        status.stx_dev_major,
        status.stx_dev_minor,
        status.stx_ino,
        options.join(","),
        ids.join(" ")
    ))
}

/// Checks what a mount says; answers its propagation, as mount_setattr(2) takes it.
fn check(mount: &v1::Mount) -> Result<u64> {
    for path in [&mount.host_path, &mount.container_path] {
        let parts = Path::new(path);
        let climbs = parts.components().any(|part| part == Component::ParentDir);
        if !parts.is_absolute() || climbs {
            let text = format!("{path:?} is not an absolute path without \"..\"");
            return Err(wrong(text));
        }
    }
    let host = &mount.host_path;
    if mount.recursive_read_only && !mount.readonly {
        let text = format!("{host:?} is recursive_read_only and not readonly");
        return Err(wrong(text));
    }
    match mount.propagation() {
        MountPropagation::PropagationPrivate => Ok(libc::MS_PRIVATE),
        MountPropagation::PropagationHostToContainer => Ok(libc::MS_SLAVE),
        MountPropagation::PropagationBidirectional => Err(wrong(format!(
            "the volume {host:?} asks for BIDIRECTIONAL propagation; what is mounted in a virtual machine cannot appear on the node"
        ))),
    }
}

/// What is at a mount's path on the node, links followed, and of which type it is.
fn find(mount: &v1::Mount) -> Result<(OwnedFd, FileType)> {
    let host = &mount.host_path;
    let failed = |error: Errno| SandboxError::io(format!("open the volume {host}"))(error.into());
    let place = match open_place(host) {
        Err(Errno::NOENT | Errno::NOTDIR) => {
            return Err(SandboxError::NotFound {
                what: "volume",
                id: host.clone(),
            });
        }
        result => result.map_err(failed)?,
    };
    let stat = rustix::fs::fstat(&place).map_err(failed)?;
    let file_type = FileType::from_raw_mode(stat.st_mode);
    let hint = match file_type {
        FileType::Directory | FileType::RegularFile | FileType::BlockDevice => {
            return Ok((place, file_type));
        }
        FileType::Socket => "; a Unix socket of the node does not reach into a virtual machine",
        _ => "",
    };
    Err(wrong(format!(
        "{host:?} is no directory, file or block device ({file_type:?}){hint}"
    )))
}

/// Gives a mount its propagation, and on the node what the guest must not be able to undo. Answers the options that
/// the mount has in the guest.
fn restrict(
    tree: BorrowedFd<'_>,
    mount: &v1::Mount,
    propagation: u64,
    kind: &Kind,
) -> Result<Vec<&'static str>> {
    let failed = || SandboxError::io(format!("open the volume {}", mount.host_path));
    let mut options = vec![match propagation {
        libc::MS_SLAVE => "rslave",
        _ => "rprivate",
    }];
    set_attributes(tree, true, [0, 0, propagation, 0]).map_err(failed())?;
    if mount.readonly {
        let read_only = u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits());
        let recursive = mount.recursive_read_only;
        set_attributes(tree, recursive, [read_only, 0, 0, 0]).map_err(failed())?;
        options.push(if recursive { "rro" } else { "ro" });
    }
    if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
        let what = || SandboxError::io(format!("map the ids of the volume {}", mount.host_path));
        match kind {
            // The guest's kernel cannot map ids of a file system over virtio.
            Kind::Shared => {
                ids::map(tree, &mount.uid_mappings, &mount.gid_mappings).map_err(what())?;
            }
            Kind::Mirror | Kind::EmptyDir(_) | Kind::Direct(_) => options.push("ridmap"),
        }
    }
    Ok(options)
}

fn wrong(problem: String) -> SandboxError {
    SandboxError::InvalidField {
        field: "config.mounts",
        problem,
    }
}

/// mount_setattr(2): attributes to set and to clear, propagation, user namespace.
pub(super) fn set_attributes(
    tree: BorrowedFd<'_>,
    recursive: bool,
    attributes: [u64; 4],
) -> io::Result<()> {
    let flags = if recursive {
        libc::AT_EMPTY_PATH | libc::AT_RECURSIVE
    } else {
        libc::AT_EMPTY_PATH
    };
    // SAFETY: the path is an empty string, the attributes are four numbers as the kernel expects them, both
    // outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Mounts a tree below the root of a mount namespace, on a directory or a file that is made for it.
pub(super) fn attach(
    namespace: File,
    tree: OwnedFd,
    name: &str,
    directory: bool,
) -> io::Result<()> {
    inside(&namespace, || {
        let root = writable_root()?;
        if directory {
            mkdirat(&root, name, Mode::from_raw_mode(0o700))?;
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(&root, name, flags, Mode::from_raw_mode(0o600))?;
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        let moved = move_mount(&tree, "", CWD, format!("/{name}"), flags);
        if moved.is_err() {
            remove(&root, name);
        }
        Ok(moved?)
    })
}

/// Takes a mount away, whoever uses it, and what it was on.
pub(super) fn detach(namespace: File, name: &str) -> io::Result<()> {
    inside(&namespace, || {
        match unmount(format!("/{name}"), UnmountFlags::DETACH) {
            Ok(()) => {}
            Err(Errno::NOENT | Errno::INVAL) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        remove(&writable_root()?, name);
        Ok(())
    })
}

fn remove(root: &OwnedFd, name: &str) {
    // It is one or the other.
    let _ = unlinkat(root, name, AtFlags::REMOVEDIR);
    let _ = unlinkat(root, name, AtFlags::empty());
}

/// The root of this thread's namespace as a mount of its own that can be written to.
fn writable_root() -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let root = open_tree(CWD, "/", flags)?;
    let read_only = u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits());
    set_attributes(root.as_fd(), false, [0, read_only, 0, 0])?;
    Ok(root)
}

/// Does something in a mount namespace, in a thread that ends afterwards.
pub(super) fn inside<T: Send>(
    namespace: &File,
    act: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: what could be unsound is to unshare descriptors (CLONE_FILES); these are root and
            // working directory.
            unsafe { unshare_unsafe(UnshareFlags::FS) }?;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
            act()
        });
        let panicked = |_| io::Error::other("a thread panicked");
        thread.join().map_err(panicked)?
    })
}
