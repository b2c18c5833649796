//! The cage: what the process gives up before it touches anything of the guest.
//!
//! It starts as root with nothing but the descriptors of its configuration. When [`enter`] returns it has
//! an identity of its own, no capability and no way to get one, an empty read-only root directory, and
//! namespaces in which it is alone. From there on everything it can reach is what it holds open. The
//! system calls that its threads may still make are [`crate::seccomp`]'s part.
//!
//! There is no way to run without it: a VMM that cannot enter its cage does not start.

use crate::error::Error;
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
};
use rustix::process::{Gid, Resource, Rlimit, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType, UnshareFlags};
use std::os::fd::{AsFd, OwnedFd};

/// The most descriptors: control and guest connections are capped far below.
const MAX_DESCRIPTORS: u64 = 4096;
/// Threads besides those of vCPUs and disks: control and devices, and room for threads that end.
const SPARE_THREADS: u64 = 16;

/// Who the process becomes.
#[derive(Debug)]
pub struct Cage {
    /// User id; not 0.
    pub uid: u32,
    /// Group id; not 0.
    pub gid: u32,
    /// The pod's network namespace; without one the process gets an empty one of its own.
    pub network: Option<OwnedFd>,
    /// How many threads the machine can have, besides a few of the process's own.
    pub threads: u64,
}

/// Enters the cage. Must be called while there is only one thread.
///
/// # Errors
/// [`Error::Host`]; the process is then somewhere half way and must end.
pub fn enter(cage: &Cage) -> Result<(), Error> {
    namespaces(cage.network.as_ref())?;
    empty_root()?;
    limits(cage.threads)?;
    identity(cage.uid, cage.gid)?;
    powerless()
}

fn namespaces(network: Option<&OwnedFd>) -> Result<(), Error> {
    use rustix::thread as sys;
    let mut own = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    match network {
        Some(network) => {
            sys::move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(Error::host("enter the pod's network namespace"))?;
        }
        None => own |= UnshareFlags::NEWNET,
    }
    // SAFETY: descriptors are not unshared (CLONE_FILES), which is what could be unsound here.
    unsafe { sys::unshare_unsafe(own) }.map_err(Error::host("make namespaces"))?;
    rustix::system::sethostname(b"bulkhead").map_err(Error::host("set the host name"))
}

/// Makes an empty, read-only file system the root and leaves everything else behind.
fn empty_root() -> Result<(), Error> {
    use rustix::mount as sys;
    let failed = || Error::host("make an empty root directory");
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    sys::mount_change("/", private).map_err(failed())?;
    let context = sys::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed())?;
    for (key, value) in [("mode", "0555"), ("nr_inodes", "1"), ("nr_blocks", "1")] {
        sys::fsconfig_set_string(&context, key, value).map_err(failed())?;
    }
    sys::fsconfig_create(&context).map_err(failed())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root =
        sys::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed())?;
    // Over the old root, which needs no directory to be there; it is entered by descriptor.
    let empty_path = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    sys::move_mount(&root, "", CWD, "/", empty_path).map_err(failed())?;
    rustix::process::fchdir(&root).map_err(failed())?;
    // With both names the same directory the old root lies on top of the new one, pivot_root(2), and
    // is taken off from there.
    rustix::process::pivot_root(".", ".").map_err(failed())?;
    sys::unmount(".", UnmountFlags::DETACH).map_err(failed())?;
    rustix::process::chdir("/").map_err(failed())
}

fn limits(threads: u64) -> Result<(), Error> {
    for (resource, most) in [
        (Resource::Nofile, MAX_DESCRIPTORS),
        (Resource::Nproc, threads + SPARE_THREADS),
        // Guest memory does not go into a file.
        (Resource::Core, 0),
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
        (Resource::Sigpending, 64),
    ] {
        let before = rustix::process::getrlimit(resource).maximum;
        let most = Some(before.map_or(most, |before| before.min(most)));
        let limit = Rlimit {
            current: most,
            maximum: most,
        };
        rustix::process::setrlimit(resource, limit).map_err(Error::host("limit resources"))?;
    }
    Ok(())
}

fn identity(uid: u32, gid: u32) -> Result<(), Error> {
    use rustix::thread as sys;
    let failed = || Error::host("become the pod's own user");
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    sys::set_thread_groups(&[]).map_err(failed())?;
    sys::set_thread_res_gid(gid, gid, gid).map_err(failed())?;
    // Takes the effective and permitted capabilities along, capabilities(7); the rest goes first,
    // while it may.
    bounding_set()?;
    sys::set_thread_res_uid(uid, uid, uid).map_err(failed())
}

fn bounding_set() -> Result<(), Error> {
    for number in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // The kernel has no capability of this number, nor of any higher one.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(Error::host("drop capabilities")(error)),
        }
    }
    Ok(())
}

fn powerless() -> Result<(), Error> {
    use rustix::thread as sys;
    let failed = || Error::host("drop capabilities");
    sys::clear_ambient_capability_set().map_err(failed())?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    sys::set_capabilities(None, none).map_err(failed())?;
    sys::set_no_new_privs(true).map_err(Error::host("refuse new privileges"))
}
