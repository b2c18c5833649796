//! Namespaces that belong to the pod rather than to one container: the pid namespace that its
//! containers may share, and user namespaces, one for each mapping. Held by descriptors.

use super::Shared;
use super::launch::{Birth, Control, Waiting, launch};
use super::stdio::{Prepared, StdioSpec};
use crate::cgroup::Cgroup;
use crate::error::Context;
use crate::init::plan::{IdMap, IdMaps, Place, Plan, Process};
use crate::streams::pump::InputEnd;
use crate::{Error, Result, sys};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{Mutex, OnceCell};

/// The cgroup of the pod's own processes, beside those of the containers. No container has this name:
/// an [`crate::id::Id`] begins with a letter or digit.
const CGROUP: &str = ".pod";
/// The most user namespaces. A pod has one for its containers and few for its volumes.
const MAX_USER: usize = 64;

/// See the module.
#[derive(Default)]
pub(super) struct Namespaces {
    cgroup: OnceCell<Cgroup>,
    first: Mutex<Option<First>>,
    users: Mutex<HashMap<IdMaps, Arc<OwnedFd>>>,
}

/// The first process of the pod's pid namespace. It ends when this is dropped.
struct First {
    pidfd: Arc<OwnedFd>,
    _control: Control,
}

impl Namespaces {
    /// A pidfd of the first process of the pod's pid namespace, which is made when it is not there.
    pub(super) async fn pid(&self, shared: &Shared) -> Result<Arc<OwnedFd>> {
        let mut first = self.first.lock().await;
        if let Some(first) = first.as_ref().filter(|first| lives(&first.pidfd)) {
            return Ok(first.pidfd.clone());
        }
        let empty = shared.paths.mount_point.clone();
        let flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS;
        let made = self.stay(shared, flags, Some(empty)).await?;
        let pidfd = made.process.pidfd.clone();
        *first = Some(First {
            pidfd: pidfd.clone(),
            _control: made.control,
        });
        Ok(pidfd)
    }

    /// The user namespace with these mappings.
    pub(super) async fn user(&self, shared: &Shared, maps: &IdMaps) -> Result<Arc<OwnedFd>> {
        let mut users = self.users.lock().await;
        if let Some(namespace) = users.get(maps) {
            return Ok(namespace.clone());
        }
        if users.len() >= MAX_USER {
            return Err(Error::Exhausted(format!(
                "There are {MAX_USER} user namespaces already"
            )));
        }
        let holder = self.stay(shared, libc::CLONE_NEWUSER, None).await?;
        let (pid, pidfd) = (holder.process.pid, &holder.process.pidfd);
        let what = || "Cannot make a user namespace";
        let open = fs::File::open(format!("/proc/{pid}/ns/user")).context(what)?;
        for (file, ranges) in [("uid_map", &maps.uids), ("gid_map", &maps.gids)] {
            let path = format!("/proc/{pid}/{file}");
            let map = fs::File::options().write(true).open(path).context(what)?;
            // While it lives the number is its own, so what was opened above is the holder's.
            if !lives(pidfd) {
                let message = "A process ended while its user namespace was made";
                return Err(Error::Internal(message.to_owned()));
            }
            io::Write::write_all(&mut &map, text(ranges).as_bytes()).map_err(|error| {
                Error::Invalid(format!("The kernel refuses the {file}: {error}"))
            })?;
        }
        let namespace = Arc::new(OwnedFd::from(open));
        users.insert(maps.clone(), namespace.clone());
        Ok(namespace)
    }

    async fn stay(&self, shared: &Shared, flags: i32, root: Option<PathBuf>) -> Result<Waiting> {
        shared.prepare_cgroup().await?;
        let make = || async { Cgroup::create(&shared.paths.cgroup, CGROUP, &[]) };
        let cgroup = self.cgroup.get_or_try_init(make).await?;
        let plan = Plan {
            place: Place::Stay(root),
            ids: IdMaps::default(),
            process: Process::default(),
        };
        let birth = Birth {
            namespaces: flags,
            pid_namespace: None,
            cgroup: cgroup.directory(),
            fds: Vec::new(),
            input_end: InputEnd::AnyClose,
        };
        launch(
            shared,
            &plan,
            Prepared::new(shared, &StdioSpec::default())?,
            birth,
        )
        .await
    }
}

fn lives(pidfd: impl AsFd) -> bool {
    sys::process::signal(pidfd, 0).is_ok()
}

/// As the kernel reads it.
fn text(ranges: &[IdMap]) -> String {
    ranges.iter().fold(String::new(), |mut text, map| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{} {} {}", map.inside, map.outside, map.count);
        text
    })
}
