//! Processes that run no program: the first one of the pod's pid namespace, which reaps what the
//! containers' processes leave behind, and the one that holds a user namespace until the agent has
//! its file.

use super::control::Control;
use super::plan::{Failure, FailureKind};
use super::{Doing, Never, Step, mounts, process};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use std::path::Path;

/// Says READY and waits until the agent closes its end. With an empty directory that becomes the
/// root, for containers that share the pid namespace could look at it through `/proc/1/root`.
pub(super) fn stay(control: &Control, empty: Option<&Path>) -> Step<Never> {
    // Children that have ended are reaped by the kernel: a namespace's first process that ignores
    // SIGCHLD has no zombies (wait(2), NOTES).
    process::ignore_children().doing("ignore the end of children")?;
    if let Some(empty) = empty {
        cage(empty)?;
    }
    control.ready(None, None).doing("report to the agent")?;
    while control.wait_for_go() {}
    Err(Failure {
        kind: FailureKind::Other,
        message: "The agent is gone".to_owned(),
    })
}

/// An empty root that nobody can write, no capabilities, nobody's user.
fn cage(empty: &Path) -> Step {
    use rustix::thread::{CapabilitySet, CapabilitySets};
    let what = "put the pod's first process into a cage";
    rustix::thread::set_name(c"pause").doing(what)?;
    mounts::make_private()?;
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).doing(what)?;
    rustix::mount::fsconfig_set_string(&context, "size", "0").doing(what)?;
    rustix::mount::fsconfig_create(&context).doing(what)?;
    let flags = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root =
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags).doing(what)?;
    mounts::attach(
        &root,
        &mounts::open_path(&empty.to_string_lossy()).doing(what)?,
        what,
    )?;
    mounts::pivot(&root)?;
    for number in 0..=63u64 {
        // The kernel refuses those that it does not have.
        let _ = rustix::thread::remove_capability_from_bounding_set(
            CapabilitySet::from_bits_retain(1 << number),
        );
    }
    let none = CapabilitySet::empty();
    rustix::thread::set_thread_groups(&[]).doing(what)?;
    let (uid, gid) = (
        rustix::fs::Uid::from_raw(NOBODY),
        rustix::fs::Gid::from_raw(NOBODY),
    );
    rustix::thread::set_thread_res_gid(gid, gid, gid).doing(what)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).doing(what)?;
    let sets = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    rustix::thread::set_capabilities(None, sets).doing(what)?;
    rustix::thread::set_no_new_privs(true).doing(what)?;
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    set_dumpable_behavior(DumpableBehavior::NotDumpable).doing(what)
}

/// User and group that own nothing.
const NOBODY: u32 = 65_534;
