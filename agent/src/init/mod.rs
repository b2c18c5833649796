//! The other side of a spawn: from a fresh process to the program's `execve`.
//!
//! # Why the agent runs itself again
//! The agent has threads, and a child of a clone in such a process may not allocate or lock
//! anything. So [`crate::sys::spawn`] clones and at once runs the agent's own program again under
//! another name. This module is what it does then: single-threaded, with an ordinary heap, told
//! what to do by a [`plan`]. One `execve` of a file that is in memory anyway buys that no code here
//! needs care about what another thread held. It reads nothing from the container that it does not
//! open with `openat2(RESOLVE_IN_ROOT)`, and it writes to no file system that the container made.
//!
//! # Order
//! The clone has put the process into its cgroup and its new namespaces. Then: join or make the
//! mount namespace and all that is in it ([`root`], [`mounts`], [`devices`], [`mask`]), the
//! terminal ([`terminal`]), the user and the working directory ([`user`]), limits, the user
//! namespace, capabilities ([`identity`]); say READY; wait for GO; run the hooks ([`hooks`]), install
//! the seccomp filter; look the program up and run it ([`program`]). The control socket is
//! close-on-exec: its end tells the agent that the program runs.
//!
//! The process is not dumpable, so that the programs of a container that it joins can neither
//! trace it nor look into its `/proc` directory unless they have CAP_SYS_PTRACE in the guest.

mod control;
mod copy_up;
mod devices;
mod hooks;
mod identity;
mod mask;
mod mounts;
pub mod plan;
mod program;
pub mod root;
mod stay;
mod terminal;
pub mod user;

use crate::sys::{process, spawn};
use control::Control;
use plan::{Container, Failure, FailureKind, Place, Plan};
use root::Root;
use rustix::fs::Mode;
use rustix::io::Errno;
use std::io::Read;
use std::os::fd::OwnedFd;

/// A step that can fail with something to tell the caller.
type Step<T = ()> = Result<T, Failure>;

/// Whether this process is to become a container's: its argv 0 says so.
pub fn is_requested() -> bool {
    std::env::args_os()
        .next()
        .is_some_and(|name| name == spawn::INIT_NAME)
}

/// Becomes the program of the plan. Returns only when that fails; the agent has been told then.
pub fn run() -> std::process::ExitCode {
    let result = control::inherit().map(|inherited| {
        let failure = match become_program(&inherited.control, inherited.plan, inherited.others) {
            Ok(never) => match never {},
            Err(failure) => failure,
        };
        inherited.control.fail(&failure);
    });
    // Without descriptors somebody ran the program by hand under this name.
    std::process::ExitCode::from(if result.is_ok() { 1 } else { 2 })
}

enum Never {}

fn become_program(control: &Control, plan: OwnedFd, others: Vec<OwnedFd>) -> Step<Never> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    set_dumpable_behavior(DumpableBehavior::NotDumpable).doing("hide from other processes")?;
    let mut text = Vec::new();
    std::fs::File::from(plan)
        .read_to_end(&mut text)
        .doing("read the plan")?;
    let plan: Plan = serde_json::from_slice(&text).map_err(|error| Failure {
        kind: FailureKind::Other,
        message: format!("The plan makes no sense: {error}"),
    })?;
    rustix::process::umask(Mode::empty());
    // Through the agent's own /proc, which no container can have changed.
    identity::set_oom_score(&plan.process)?;
    let terminal = match &plan.place {
        Place::Make(container) => make(container, &plan, &others)?,
        Place::Join { cgroup_namespace } => {
            join(&others, *cgroup_namespace, plan.process.terminal)?
        }
        Place::Stay(empty) => return stay::stay(control, empty.as_deref()),
    };
    let root = Root::current()?.owned_by(plan.ids.root());
    rustix::process::setsid().doing("start a session")?;
    let master = terminal.map(terminal::Terminal::take_control).transpose()?;
    let prepared = identity::prepare(&root, &plan.process, &plan.ids)?;
    program::enter_directory(&root, &plan.process.cwd)?;
    drop(root);
    identity::set_limits(&plan.process)?;
    if !plan.ids.is_empty() {
        enter_user_namespace(&plan, &others)?;
    }
    drop(others);
    identity::assume(&plan.process, &prepared)?;
    let env = program::environment(&plan.process.env, &prepared.home);
    control
        .ready(master.as_ref(), Some(&prepared.identity))
        .doing("report to the agent")?;
    drop(master);
    if !control.wait_for_go() {
        return Err(Failure {
            kind: FailureKind::Other,
            message: "The agent is gone".to_owned(),
        });
    }
    process::default_signals();
    if let Place::Make(container) = &plan.place {
        hooks::run(&container.start_hooks, &container.state, "created")?;
    }
    // Whatever the filter refuses, between here and the program there is only `execve`.
    if let Some(filter) = &plan.process.seccomp {
        crate::sys::seccomp::install(filter).doing("install the seccomp filter")?;
    }
    Err(program::run(&plan.process.args, &env))
}

/// Enters the user namespace of the container, last of all: until here the process is the guest's
/// root, which alone may mount images, make devices and raise limits. The container's mounts become
/// those of a mount namespace that belongs to the user namespace, so that its root may mount more,
/// but cannot take away what covers another path.
fn enter_user_namespace(plan: &Plan, others: &[OwnedFd]) -> Step {
    let what = "enter the user namespace";
    match &plan.place {
        Place::Make(container) => {
            let namespace = user_namespace(container, &plan.ids, others)?;
            process::enter(namespace, libc::CLONE_NEWUSER).doing(what)?;
            process::unshare(libc::CLONE_NEWNS).doing(what)
        }
        _ => match others.first() {
            Some(pidfd) => process::enter(pidfd, libc::CLONE_NEWUSER).doing(what),
            None => Err(missing("container to join")),
        },
    }
}

/// The file of a user namespace of the plan.
fn user_namespace<'a>(
    container: &Container,
    ids: &plan::IdMaps,
    others: &'a [OwnedFd],
) -> Step<&'a OwnedFd> {
    let joined = container.join_namespaces.len();
    let position = container
        .user_namespaces
        .iter()
        .position(|maps| maps == ids);
    position
        .and_then(|position| others.get(joined + position))
        .ok_or_else(|| missing("user namespace"))
}

fn missing(what: &str) -> Failure {
    Failure {
        kind: FailureKind::Other,
        message: format!("The {what} is missing"),
    }
}

/// Makes the container in the namespaces that the clone has made.
fn make(
    container: &Container,
    plan: &Plan,
    others: &[OwnedFd],
) -> Step<Option<terminal::Terminal>> {
    for (fd, kind) in others.iter().zip(&container.join_namespaces) {
        // The pid namespace was joined before the clone.
        if *kind != libc::CLONE_NEWPID {
            process::enter(fd, *kind).doing("join a namespace")?;
        }
    }
    if container.cgroup_namespace {
        process::unshare(libc::CLONE_NEWCGROUP).doing("make a cgroup namespace")?;
    }
    if let Some(name) = &container.hostname {
        rustix::system::sethostname(name.as_bytes()).doing("set the host name")?;
    }
    if let Some(name) = &container.domainname {
        rustix::system::setdomainname(name.as_bytes()).doing("set the domain name")?;
    }
    // Keyrings are not part of any namespace. A kernel without keys has none to leave.
    let _ = process::new_session_keyring();
    let null = mask::Null::open()?;
    let mut maker = mounts::Maker::new(container, &plan.ids, others)?;
    let root = maker.root()?;
    for mount in &container.mounts {
        maker.mount(&root, mount)?;
    }
    devices::create(&root, &container.devices, &plan.ids)?;
    let terminal = plan
        .process
        .terminal
        .map(|size| terminal::Terminal::open(&root, size))
        .transpose()?;
    if let Some(terminal) = &terminal {
        terminal.show_as_console(&root)?;
    }
    for path in &container.read_only {
        mask::make_read_only(&root, path)?;
    }
    for path in &container.masked {
        mask::hide(&root, path, &null)?;
    }
    hooks::run(&container.create_hooks, &container.state, "creating")?;
    mounts::enter_root(&root, container.root_read_only)?;
    Ok(terminal)
}

/// Joins the container of the pidfd. The pid namespace was joined before the clone.
///
/// The cgroup namespace is not the container's but one like it: an exec is in a cgroup of its own
/// beneath the container's, and in that namespace too its path is `/`.
fn join(
    others: &[OwnedFd],
    cgroup_namespace: bool,
    size: Option<(u16, u16)>,
) -> Step<Option<terminal::Terminal>> {
    let Some(pidfd) = others.first() else {
        return Err(missing("container to join"));
    };
    if cgroup_namespace {
        process::unshare(libc::CLONE_NEWCGROUP).doing("make a cgroup namespace")?;
    }
    let all = libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    process::enter(pidfd, all).doing("join the container")?;
    let _ = process::new_session_keyring();
    let root = Root::current()?;
    size.map(|size| terminal::Terminal::open(&root, size))
        .transpose()
}

/// Says what was being done when the system refused.
trait Doing<T> {
    /// `what` completes "Cannot ...".
    fn doing(self, what: &str) -> Step<T>;
}

impl<T, E: Into<std::io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: &str) -> Step<T> {
        self.map_err(|error| {
            let error = error.into();
            let kind = match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::NOENT) => FailureKind::NotFound,
                Some(Errno::INVAL | Errno::LOOP | Errno::NOTDIR | Errno::ISDIR) => {
                    FailureKind::Invalid
                }
                _ => FailureKind::Other,
            };
            Failure {
                kind,
                message: format!("Cannot {what}: {error}"),
            }
        })
    }
}
