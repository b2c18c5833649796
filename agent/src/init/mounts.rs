//! The root and the mounts of a container, with the mount API that works on descriptors
//! (`fsopen`, `open_tree`, `move_mount`): a target is resolved once, inside the root, and what is
//! mounted goes to that very place.

use super::plan::{Container, Failure, FailureKind, IdMaps, Mount, Source};
use super::root::Root;
use super::{Doing, Step, copy_up};
use crate::id::quote;
use crate::sys::mount::{attr, map_ids, set_attributes};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Makes the mounts of one container.
pub(super) struct Maker<'a> {
    container: &'a Container,
    ids: &'a IdMaps,
    others: &'a [OwnedFd],
    /// What is bound, in the order of the mounts, opened while the process still is a peer of the
    /// guest's shared mounts: a bind with propagation belongs to their group.
    sources: std::vec::IntoIter<OwnedFd>,
}

impl<'a> Maker<'a> {
    /// Opens what is bound and leaves the guest's propagation.
    pub(super) fn new(
        container: &'a Container,
        ids: &'a IdMaps,
        others: &'a [OwnedFd],
    ) -> Step<Self> {
        let mut sources = Vec::new();
        for mount in &container.mounts {
            match &mount.what {
                Source::Bind {
                    path,
                    recursive,
                    create,
                } => sources.push(bind(path, *recursive, *create)?),
                Source::Image { root, sub_path, .. } => sources.push(part(root, sub_path)?),
                Source::Shared { root, .. } => sources.push(shared(root)?),
                Source::EmptyDir {
                    volume,
                    sub_path,
                    root,
                } => sources.push(empty_dir(root, sub_path, volume.mode)?),
                Source::Direct { root, sub_path, .. } => sources.push(direct(root, sub_path)?),
                Source::New { .. } => {}
            }
        }
        make_private()?;
        Ok(Self {
            container,
            ids,
            others,
            sources: sources.into_iter(),
        })
    }

    /// Mounts the container's root on its mount point: the image under a directory for changes.
    ///
    /// The overlay is `volatile`: a container's changes live no longer than the guest, so a
    /// program's `fsync` of them need not wait for a disk that nobody will read after a crash. It is
    /// mounted in the container's own mount namespace and goes away with it.
    ///
    /// With a user namespace the image is an id-mapped mount: overlayfs takes such layers, but is
    /// not mapped itself. The changes carry the guest's ids. The mapped image is mounted where the
    /// overlay goes, which then covers it.
    pub(super) fn root(&self) -> Step<Root> {
        let what = "mount the root";
        let container = self.container;
        let mount_point = container.mount_point.to_string_lossy();
        let mut image = container.image.to_string_lossy();
        if !self.ids.is_empty() {
            let layer = copy(open_path(&image).doing(what)?, false).doing(what)?;
            let namespace = super::user_namespace(container, self.ids, self.others)?;
            map_ids(&layer, namespace, false).doing("map the ids of the image")?;
            attach(&layer, open_path(&mount_point).doing(what)?, what)?;
            image = mount_point.clone();
        }
        let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).doing(what)?;
        for (key, value) in [
            ("source", "overlay"),
            ("lowerdir", &*image),
            ("upperdir", &*container.upper.to_string_lossy()),
            ("workdir", &*container.work.to_string_lossy()),
        ] {
            rustix::mount::fsconfig_set_string(&context, key, value).doing(what)?;
        }
        rustix::mount::fsconfig_set_flag(&context, "volatile").doing(what)?;
        rustix::mount::fsconfig_create(&context).doing(what)?;
        let tree = rustix::mount::fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )
        .doing(what)?;
        // By the path, which leads to the topmost mount there.
        attach(&tree, Root::at(&mount_point)?, what)?;
        Ok(Root::at(&mount_point)?.owned_by(self.ids.root()))
    }

    /// Mounts one thing in the container.
    pub(super) fn mount(&mut self, root: &Root, mount: &Mount) -> Step {
        let shown = quote(&mount.target);
        let what = format!("mount {shown}");
        let tree = match &mount.what {
            Source::New {
                kind,
                source,
                parameters,
            } => new(kind, source, parameters, self.ids, &what)?,
            _ => self
                .sources
                .next()
                .ok_or_else(|| super::missing("source of a mount"))?,
        };
        let is_directory = match &mount.what {
            Source::New { .. } => true,
            _ => {
                let stat = rustix::fs::fstat(&tree).doing(&what)?;
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            }
        };
        if let Some((maps, recursive)) = &mount.ids {
            let namespace = super::user_namespace(self.container, maps, self.others)?;
            map_ids(&tree, namespace, *recursive).doing(&format!("map the ids of {shown}"))?;
        }
        let target = if is_directory {
            root.directory(&mount.target, 0o755)?
        } else {
            root.file(&mount.target)?
        };
        if mount.copy_up {
            copy_up::copy(root, &mount.target, &tree).doing(&format!("fill {shown}"))?;
        }
        if mount.set_recursive | mount.clear_recursive != 0 {
            let (set, clear) = (mount.set_recursive, mount.clear_recursive);
            set_attributes(&tree, set, clear, 0, true).doing(&what)?;
        }
        if mount.set | mount.clear != 0 {
            set_attributes(&tree, mount.set, mount.clear, 0, false).doing(&what)?;
        }
        // Unless it is asked for, nothing that is mounted on either side shows on the other.
        let (propagation, recursive) = mount.propagation.unwrap_or((libc::MS_PRIVATE, true));
        if mount.propagation.is_none() {
            set_attributes(&tree, 0, 0, propagation, recursive).doing(&what)?;
        }
        attach(&tree, &target, &what)?;
        if mount.propagation.is_some() {
            set_attributes(&tree, 0, 0, propagation, recursive).doing(&what)?;
        }
        Ok(())
    }
}

/// Nothing that is mounted from now on shows outside, nor the other way round.
pub(super) fn make_private() -> Step {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).doing("make all mounts private")
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

/// A detached copy of a part of an image, resolved inside it whatever links it has.
fn part(image: &Path, sub_path: &str) -> Step<OwnedFd> {
    let root = Root::at(&image.to_string_lossy())?;
    let place = root.open(sub_path, OFlags::PATH).map_err(|error| Failure {
        kind: FailureKind::NotFound,
        message: format!("Cannot open {} in the image: {error}", quote(sub_path)),
    })?;
    copy(place, false).doing(&format!("bind {} of the image", quote(sub_path)))
}

/// A detached copy of a volume with what is mounted in it.
fn shared(volume: &Path) -> Step<OwnedFd> {
    let what = || format!("bind the shared volume {}", volume.display());
    let open = |flags| rustix::fs::open(volume, flags | OFlags::CLOEXEC, Mode::empty());
    // A directory is a mount of its own, which is made when it is opened as one.
    let place = match open(OFlags::PATH | OFlags::DIRECTORY) {
        Err(Errno::NOTDIR) => open(OFlags::PATH),
        result => result,
    };
    let place = place.doing(&what())?;
    copy(place, true).doing(&what())
}

/// A detached copy of an emptyDir volume or a part of it, which containers of the pod may have changed: links lead
/// nowhere outside it. It lies where programs may not be set-user-id and times are not kept; a volume's may.
fn empty_dir(volume: &Path, sub_path: &str, mode: u32) -> Step<OwnedFd> {
    let root = Root::at(&volume.to_string_lossy())?;
    let what = format!("bind {} of an emptyDir volume", quote(sub_path));
    let place = match root.open(sub_path, OFlags::PATH) {
        Err(Errno::NOENT) => root.directory(sub_path, mode)?,
        result => result.doing(&what)?,
    };
    let tree = copy(place, false).doing(&what)?;
    let inherited = attr::NOSUID | attr::ATIME;
    set_attributes(&tree, 0, inherited, 0, false).doing(&what)?;
    Ok(tree)
}

/// A detached copy of a direct volume or a part of it. What is in it may have been made by anybody: links lead
/// nowhere outside it. A directory that is made has the permissions of the volume's root, as with the kubelet.
fn direct(volume: &Path, sub_path: &str) -> Step<OwnedFd> {
    let root = Root::at(&volume.to_string_lossy())?;
    let what = format!("bind {} of a direct volume", quote(sub_path));
    let place = match root.open(sub_path, OFlags::PATH) {
        Err(Errno::NOENT) => {
            let mode = rustix::fs::fstat(&root).doing(&what)?.st_mode & 0o777;
            root.directory(sub_path, mode)?
        }
        result => result.doing(&what)?,
    };
    copy(place, false).doing(&what)
}

/// A detached mount of a new file system. Numbers of users and groups in its parameters are those of
/// the container's user namespace.
pub(super) fn new(
    kind: &str,
    source: &str,
    parameters: &[(String, Option<String>)],
    ids: &IdMaps,
    what: &str,
) -> Step<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).doing(what)?;
    let has = |name: &str| parameters.iter().any(|(key, _)| key == name);
    let set = |key: &str, value: &str| {
        rustix::mount::fsconfig_set_string(context.as_fd(), key, value)
            .doing(&format!("{what} with option {}", quote(key)))
    };
    // What mountinfo shows.
    set("source", source)?;
    if kind == "tmpfs" && !ids.is_empty() {
        let (uid, gid) = ids.root();
        for (key, id) in [("uid", uid), ("gid", gid)] {
            if !has(key) {
                set(key, &id.to_string())?;
            }
        }
    }
    for (key, value) in parameters {
        let inside = || value.as_deref().and_then(|value| value.parse().ok());
        let mapped = match key.as_str() {
            "uid" => inside().and_then(|id| ids.uid(id)),
            "gid" => inside().and_then(|id| ids.gid(id)),
            _ => None,
        };
        if let Some(id) = mapped {
            set(key, &id.to_string())?;
            continue;
        }
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
    pivot(root)
}

/// Makes a mount the root.
pub(super) fn pivot(root: impl AsFd) -> Step {
    let what = "enter the root";
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
