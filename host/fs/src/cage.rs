//! The cage: what the process gives up before it serves anybody.
//!
//! It stays root, for it makes files in the name of any user, but keeps only the capabilities that
//! concern files. Its mount namespace is empty: a read-only tmpfs below which the daemon, which can enter
//! the namespace, puts the volumes. Of `/proc` it keeps the list of its own descriptors, as a mount of its
//! own, so that `..` leads nowhere, and its own mount table.

use crate::error::Error;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};
use std::fs::File;

/// What the guest's users can do with files of the volumes. MKNOD is not among them: a guest makes no
/// device nodes on the host. Without SYS_ADMIN a read-only mount stays read-only.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP);

/// Mount points that the root has room for.
const MAX_INODES: &str = "4096";

/// What the process still has in its cage.
#[derive(Debug)]
pub(crate) struct Caged {
    /// The most descriptors: what was asked for, or less where the host's limit is lower.
    pub(crate) limit: u64,
    /// The process's own descriptors, the root of a mount that is nowhere else.
    pub(crate) descriptors: File,
    /// The process's own mount table, open for reading.
    pub(crate) mounts: File,
}

/// Enters the cage with at most so many descriptors. Must be called while there is only one thread.
///
/// # Errors
/// [`Error::Host`]; the process is then somewhere half way and must end.
pub(crate) fn enter(descriptors: u64) -> Result<Caged, Error> {
    namespaces()?;
    let (own, mounts) = empty_root()?;
    let limit = limits(descriptors)?;
    capabilities()?;
    Ok(Caged {
        limit,
        descriptors: own,
        mounts,
    })
}

fn namespaces() -> Result<(), Error> {
    let own =
        UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWNET;
    // SAFETY: descriptors are not unshared (CLONE_FILES), which is what could be unsound here.
    #[allow(unsafe_code)]
    unsafe { rustix::thread::unshare_unsafe(own) }.map_err(Error::host("make namespaces"))?;
    rustix::system::sethostname(b"bulkhead").map_err(Error::host("set the host name"))
}

/// Makes an empty file system the root, read-only for this process, and leaves everything else behind.
/// Answers what it keeps of `/proc`: its own descriptors and its mount table.
fn empty_root() -> Result<(File, File), Error> {
    use rustix::mount as sys;
    let failed = || Error::host("make an empty root directory");
    // Volumes that come later may receive mounts of the host; what this process has inherited must not.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    sys::mount_change("/", private).map_err(failed())?;

    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let descriptors =
        sys::open_tree(CWD, "/proc/self/fd", flags).map_err(Error::host("keep /proc/self/fd"))?;
    let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = openat(CWD, "/proc", path, Mode::empty()).map_err(Error::host("open /proc"))?;

    let context = sys::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed())?;
    for (key, value) in [
        ("mode", "0555"),
        ("nr_inodes", MAX_INODES),
        ("nr_blocks", "1"),
    ] {
        sys::fsconfig_set_string(&context, key, value).map_err(failed())?;
    }
    sys::fsconfig_create(&context).map_err(failed())?;
    // The mount is read-only, not the file system: through a mount of its own the daemon makes the
    // directories and files on which volumes are mounted.
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root =
        sys::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed())?;
    let empty_path = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    sys::move_mount(&root, "", CWD, "/", empty_path).map_err(failed())?;
    rustix::process::fchdir(&root).map_err(failed())?;
    // With both names the same directory the old root lies on top of the new one, pivot_root(2), and
    // is taken off from there.
    rustix::process::pivot_root(".", ".").map_err(failed())?;
    sys::unmount(".", UnmountFlags::DETACH).map_err(failed())?;
    rustix::process::chdir("/").map_err(failed())?;

    // The table shows paths as seen from the root that the process has when it opens it.
    let read = OFlags::RDONLY | OFlags::CLOEXEC;
    let mounts = openat(&proc, "self/mountinfo", read, Mode::empty())
        .map_err(Error::host("keep /proc/self/mountinfo"))?;
    Ok((descriptors.into(), mounts.into()))
}

/// Answers how many descriptors the process may have: never more than the hard limit that it came with.
fn limits(descriptors: u64) -> Result<u64, Error> {
    let before = rustix::process::getrlimit(Resource::Nofile).maximum;
    let descriptors = before.map_or(descriptors, |before| before.min(descriptors));
    for (resource, most) in [
        (Resource::Nofile, descriptors),
        // What volumes hold does not go into a file.
        (Resource::Core, 0),
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
        (Resource::Sigpending, 64),
    ] {
        let most = Some(most);
        let limit = Rlimit {
            current: most,
            maximum: most,
        };
        rustix::process::setrlimit(resource, limit).map_err(Error::host("limit resources"))?;
    }
    Ok(descriptors)
}

fn capabilities() -> Result<(), Error> {
    use rustix::thread as sys;
    let failed = || Error::host("drop capabilities");
    for number in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if KEPT.contains(one) {
            continue;
        }
        match sys::remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // The kernel has no capability of this number, nor of any higher one.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(failed()(error)),
        }
    }
    sys::clear_ambient_capability_set().map_err(failed())?;
    let sets = CapabilitySets {
        effective: KEPT,
        permitted: KEPT,
        inheritable: CapabilitySet::empty(),
    };
    sys::set_capabilities(None, sets).map_err(failed())?;
    sys::set_no_new_privs(true).map_err(Error::host("refuse new privileges"))
}
