//! The root and the mounts of a container, with the mount API that works on descriptors
//! (`fsopen`, `open_tree`, `move_mount`): a target is resolved once, inside the root, and what is
//! mounted goes to that very place.

use super::plan::{Container, Mount, Source};
use super::root::Root;
use super::{Doing, Step};
use crate::id::quote;
use crate::sys::mount::{attr, set_attributes};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

/// Mounts the container's root on its mount point: the image under a directory for changes.
///
/// The overlay is `volatile`: a container's changes live no longer than the guest, so a program's
/// `fsync` of them need not wait for a disk that nobody will read after a crash. It is mounted in
/// the container's own mount namespace and goes away with it.
pub(super) fn root(container: &Container) -> Step<Root> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).doing("make all mounts private")?;
    let options = format!(
        "lowerdir={},upperdir={},workdir={},volatile",
        container.image.display(),
        container.upper.display(),
        container.work.display()
    );
    let what = "mount the root";
    let options = CString::new(options).doing(what)?;
    let at = &container.mount_point;
    rustix::mount::mount(
        "overlay",
        at,
        "overlay",
        MountFlags::empty(),
        options.as_c_str(),
    )
    .doing(what)?;
    Root::at(&at.to_string_lossy())
}

/// Mounts one thing in the container.
pub(super) fn mount(root: &Root, mount: &Mount) -> Step {
    let shown = quote(&mount.target);
    let what = format!("mount {shown}");
    let tree = match &mount.what {
        Source::Bind {
            path,
            recursive,
            create,
        } => bind(path, *recursive, *create)?,
        Source::New {
            kind,
            source,
            parameters,
        } => new(kind, source, parameters, &what)?,
    };
    let is_directory = match &mount.what {
        Source::New { .. } => true,
        Source::Bind { .. } => {
            let stat = rustix::fs::fstat(&tree).doing(&what)?;
            FileType::from_raw_mode(stat.st_mode) == FileType::Directory
        }
    };
    if mount.set_recursive | mount.clear_recursive != 0 {
        set_attributes(&tree, mount.set_recursive, mount.clear_recursive, 0, true).doing(&what)?;
    }
    if mount.set | mount.clear != 0 {
        set_attributes(&tree, mount.set, mount.clear, 0, false).doing(&what)?;
    }
    let target = if is_directory {
        root.directory(&mount.target, 0o755)?
    } else {
        root.file(&mount.target)?
    };
    attach(&tree, &target, &what)?;
    if let Some((propagation, recursive)) = mount.propagation {
        set_attributes(&tree, 0, 0, propagation, recursive).doing(&what)?;
    }
    Ok(())
}

/// Puts a detached mount on an open place.
pub(super) fn attach(tree: impl AsFd, place: impl AsFd, what: &str) -> Step {
    let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", place, "", empty).doing(what)
}

/// A detached copy of the mount at an open place.
pub(super) fn copy(place: impl AsFd, recursive: bool) -> rustix::io::Result<OwnedFd> {
    rustix::mount::open_tree(
        place,
        "",
        tree_flags(recursive) | OpenTreeFlags::AT_EMPTY_PATH,
    )
}

fn tree_flags(recursive: bool) -> OpenTreeFlags {
    let copy = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        copy | OpenTreeFlags::AT_RECURSIVE
    } else {
        copy
    }
}

/// A detached copy of a place in the guest. The path is the daemon's, in the agent's own root.
fn bind(path: &str, recursive: bool, create: bool) -> Step<OwnedFd> {
    if create {
        std::fs::create_dir_all(path).doing(&format!("make {}", quote(path)))?;
    }
    let what = format!("bind {}", quote(path));
    rustix::mount::open_tree(CWD, path, tree_flags(recursive)).doing(&what)
}

/// A detached mount of a new file system.
pub(super) fn new(
    kind: &str,
    source: &str,
    parameters: &[(String, Option<String>)],
    what: &str,
) -> Step<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).doing(what)?;
    rustix::mount::fsconfig_set_string(context.as_fd(), "source", source).doing(what)?;
    for (key, value) in parameters {
        let result = match value {
            Some(value) => {
                rustix::mount::fsconfig_set_string(context.as_fd(), key.as_str(), value.as_str())
            }
            None => rustix::mount::fsconfig_set_flag(context.as_fd(), key.as_str()),
        };
        result.doing(&format!("{what} with option {}", quote(key)))?;
    }
    // sysfs and procfs refuse to be created twice with different super blocks: never here, each
    // has its own network or pid namespace or takes the one that is there.
    rustix::mount::fsconfig_create(context.as_fd()).doing(what)?;
    rustix::mount::fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .doing(what)
}

/// Makes the container's root the root and lets go of everything else.
pub(super) fn enter_root(root: &Root, read_only: bool) -> Step {
    let what = "enter the root";
    if read_only {
        // By the mount, not by the path: the mount is the topmost one there.
        let top = root
            .open("/", OFlags::PATH | OFlags::DIRECTORY)
            .doing(what)?;
        set_attributes(&top, attr::RDONLY, 0, 0, false).doing("make the root read-only")?;
    }
    rustix::process::fchdir(root).doing(what)?;
    // With both names the same the old root ends up on top of the new one (pivot_root(2), NOTES).
    rustix::process::pivot_root(".", ".").doing(what)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).doing(what)?;
    rustix::process::chdir("/").doing(what)
}

/// Opens an agent's own file for [`copy`].
pub(super) fn open_path(path: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
    )
}
