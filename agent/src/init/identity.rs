//! What the program runs as: user, groups, limits, capabilities.

use super::plan::{Failure, IdMaps, Process};
use super::root::Root;
use super::user::{self, Identity, MAX_FILE};
use super::{Doing, Step};
use crate::sys::process::set_limit;
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::io::Read;

/// Numbers of capabilities to try: the kernel says which is the last by refusing the next
/// (`PR_CAPBSET_READ`); /proc/sys/kernel/cap_last_cap could be the container's work.
const MAX_CAPABILITY: u32 = 63;

/// What was found in the image.
pub(super) struct Prepared {
    pub(super) identity: Identity,
    /// For HOME, if the environment lacks it.
    pub(super) home: String,
}

/// Sets how eager the OOM killer is. A kernel that does not let it be lowered is not argued with.
pub(super) fn set_oom_score(process: &Process) -> Step {
    if let Some(score) = process.oom_score_adj {
        match std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {}
            result => result.doing("set oom_score_adj")?,
        }
    }
    Ok(())
}

/// Resolves the user in the image and gives it the stdio pipes, so that a program that is not root
/// can open /dev/stdout again.
pub(super) fn prepare(root: &Root, process: &Process, ids: &IdMaps) -> Step<Prepared> {
    let passwd = read(root, "/etc/passwd")?;
    let identity = match &process.user_name {
        None => Identity {
            uid: process.uid,
            gid: process.gid,
            groups: process.groups.clone(),
        },
        Some(name) => {
            let mut identity = user::resolve(name, &passwd, &read(root, "/etc/group")?)?;
            if process.strict_groups {
                identity.groups = vec![identity.gid];
            }
            for group in &process.groups {
                if !identity.groups.contains(group) {
                    identity.groups.push(*group);
                }
            }
            identity
        }
    };
    let home = user::home(identity.uid, &passwd).unwrap_or("/").to_owned();
    let stdio = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    for fd in stdio {
        let stat = rustix::fs::fstat(fd).doing("look at stdio")?;
        let is_terminal = rustix::termios::isatty(fd);
        if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo || is_terminal {
            let owner = ids.uid(identity.uid).ok_or_else(|| Failure {
                kind: super::FailureKind::Invalid,
                message: format!("User {} is not in the user namespace", identity.uid),
            })?;
            let owner = Some(Uid::from_raw(owner));
            rustix::fs::fchown(fd, owner, None).doing("give stdio to the user")?;
        }
    }
    Ok(Prepared { identity, home })
}

/// Sets the resource limits, which only the guest's root may raise.
pub(super) fn set_limits(process: &Process) -> Step {
    for (resource, soft, hard) in &process.limits {
        set_limit(*resource, *soft, *hard).doing(&format!("set resource limit {resource}"))?;
    }
    Ok(())
}

/// Becomes it. After this the process can do no more than the program.
pub(super) fn assume(process: &Process, prepared: &Prepared) -> Step {
    let sets = process.capabilities;
    let known = known_capabilities();
    for number in (0..=MAX_CAPABILITY).filter(|number| known & (1 << number) != 0) {
        if sets.bounding & (1 << number) == 0 {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            rustix::thread::remove_capability_from_bounding_set(capability)
                .doing("drop a capability")?;
        }
    }
    let what = "take the user's identity";
    rustix::thread::set_keep_capabilities(true).doing(what)?;
    let groups: Vec<Gid> = prepared
        .identity
        .groups
        .iter()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    rustix::thread::set_thread_groups(&groups).doing("set the supplementary groups")?;
    let gid = Gid::from_raw(prepared.identity.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).doing(what)?;
    let uid = Uid::from_raw(prepared.identity.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).doing(what)?;
    rustix::thread::set_keep_capabilities(false).doing(what)?;
    let bits = |set: u64| CapabilitySet::from_bits_retain(set & known);
    // To install a filter later. `execve` makes the program's capabilities from the bounding,
    // inheritable and ambient sets, so that this one goes no further (capabilities(7)).
    let more = match (&process.seccomp, process.no_new_privileges) {
        (Some(_), false) => CapabilitySet::SYS_ADMIN.bits(),
        _ => 0,
    };
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: bits(sets.effective | more),
            permitted: bits(sets.permitted | more),
            inheritable: bits(sets.inheritable),
        },
    )
    .doing("set the capabilities")?;
    rustix::thread::clear_ambient_capability_set().doing("clear the ambient capabilities")?;
    for capability in bits(sets.ambient).iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true)
            .doing("raise an ambient capability")?;
    }
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).doing("forbid new privileges")?;
    }
    // Root that gives up its user id becomes dumpable or not by the sysctl: not, until the program.
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    set_dumpable_behavior(DumpableBehavior::NotDumpable).doing(what)?;
    rustix::process::umask(Mode::from_raw_mode(process.umask.unwrap_or(0o022)));
    Ok(())
}

/// The capabilities that the kernel has, bit by number.
fn known_capabilities() -> u64 {
    (0..=MAX_CAPABILITY)
        .map(|number| 1u64 << number)
        .filter(|bit| {
            let capability = CapabilitySet::from_bits_retain(*bit);
            rustix::thread::capability_is_in_bounding_set(capability).is_ok()
        })
        .sum()
}

/// A file of the image; empty when it is not there. What is no plain file, or too large, is refused.
fn read(root: &Root, path: &str) -> Step<String> {
    let what = format!("read the image's {path}");
    let file = match root.open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        file => std::fs::File::from(file.doing(&what)?),
    };
    let metadata = file.metadata().doing(&what)?;
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return Err(Failure {
            kind: super::FailureKind::Invalid,
            message: format!("The image's {path} is not a file of at most {MAX_FILE} bytes"),
        });
    }
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text).doing(&what)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
