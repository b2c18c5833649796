//! Id-mapped volumes of pods with a user namespace (`Mount.uidMappings`): what belongs to user 0 on the node's disk
//! belongs, in the file daemon's mount and so in the guest, to the user that is 0 in the container.

#![allow(unsafe_code)] // clone(2) has no wrapper that makes a process in a user namespace.

use super::tree::set_attributes;
use bulkhead_cri::v1::IdMapping;
use rustix::mount::MountAttrFlags;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// The most ranges that the kernel takes (user_namespaces(7)).
const MAX_RANGES: usize = 340;

/// Maps the ids of a detached mount and of those in it.
///
/// # Errors
/// What the kernel says; EINVAL when the file system knows no id-mapped mounts.
pub(super) fn map(tree: BorrowedFd<'_>, uids: &[IdMapping], gids: &[IdMapping]) -> io::Result<()> {
    let namespace = user_namespace(&ranges(uids)?, &ranges(gids)?)?;
    let id_map = u64::from(MountAttrFlags::MOUNT_ATTR_IDMAP.bits());
    let number = u64::try_from(namespace.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    set_attributes(tree, true, [id_map, 0, 0, number])
}

fn ranges(mappings: &[IdMapping]) -> io::Result<String> {
    if mappings.is_empty() || mappings.len() > MAX_RANGES {
        let text = format!("{} ranges of ids are not 1 to {MAX_RANGES}", mappings.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let line = |one: &IdMapping| format!("{} {} {}\n", one.container_id, one.host_id, one.length);
    Ok(mappings.iter().map(line).collect())
}

/// A user namespace exists as long as a process or a descriptor does: a process makes it and is killed.
fn user_namespace(uids: &str, gids: &str) -> io::Result<File> {
    let process = Waiting::spawn()?;
    let base = format!("/proc/{}", process.0.as_raw_nonzero());
    std::fs::write(format!("{base}/uid_map"), uids)?;
    std::fs::write(format!("{base}/gid_map"), gids)?;
    File::open(format!("{base}/ns/user"))
}

/// A process that does nothing, in a user namespace of its own. Dropped, it is killed.
struct Waiting(Pid);

impl Waiting {
    fn spawn() -> io::Result<Self> {
        let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
        // SAFETY: without CLONE_VM the child has its own copy of the memory, and with a stack of 0 goes on with its
        // copy of this one. Other threads are not in it, so it must not wait for any lock: it calls nothing but
        // pause(2), for ever.
        match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
            -1 => Err(io::Error::last_os_error()),
            0 => loop {
                // SAFETY: waits for a signal, and there is no handler that returns into anything else.
                unsafe { libc::pause() };
            },
            child => {
                let pid = i32::try_from(child).ok().and_then(Pid::from_raw);
                pid.map(Self).ok_or_else(|| io::Error::other("no process"))
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // It is our child and not waited for yet, so the number is still its own.
        let _ = kill_process(self.0, Signal::KILL);
        let _ = waitpid(Some(self.0), WaitOptions::empty());
    }
}

#[cfg(test)]
mod tests {
    use super::ranges;
    use bulkhead_cri::v1::IdMapping;

    #[test]
    fn mappings_become_the_kernels_lines() {
        let map = |container_id, host_id, length| IdMapping {
            host_id,
            container_id,
            length,
        };
        let text = ranges(&[map(0, 1 << 20, 65_536), map(70_000, 7, 1)]).unwrap();
        assert_eq!(text, "0 1048576 65536\n70000 7 1\n");
        assert!(ranges(&[]).is_err());
        assert!(ranges(&vec![map(0, 0, 1); 341]).is_err());
    }
}
