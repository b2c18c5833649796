//! The VMM's side: the configuration on standard input, the control socket, the process that is the guest.

use crate::AGENT;
use crate::disks::Disks;
use anyhow::{Context, Result, ensure};
use bulkhead_agent::sys::fd::inherited;
use bulkhead_agent::sys::process::unshare;
use bulkhead_agent_api::ANNOUNCE_PORT;
use bulkhead_vmm_api::wire::{self, WireError};
use bulkhead_vmm_api::{
    ExitReason, GuestConnection, PROTOCOL_VERSION, Reply, Request, VmmConfig, VmmStatus,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::net::{AddressFamily, SocketFlags, SocketType, accept_with, socketpair};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::time::{ClockId, clock_gettime};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The namespaces of a pod.
const NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC;

pub(crate) fn run() -> Result<ExitReason> {
    let main_ns = monotonic_ns();
    let config: VmmConfig = serde_json::from_reader(std::io::stdin().lock())?;
    ensure!(
        config.network_interfaces == 0,
        "A pod of processes has no network"
    );
    let take = |fd| -> Result<OwnedFd> {
        let fd = inherited(fd)?;
        fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
        Ok(fd)
    };
    for unused in [config.kvm_fd, config.kernel_fd, config.initrd_fd] {
        drop(take(unused)?);
    }
    let (control, vsock) = (take(config.control_fd)?, take(config.vsock_fd)?);
    let program = std::env::current_exe()?;
    enter_cgroup()?;
    enter_namespaces()?;
    let disks = Disks::new()?;
    let (host, guest) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let child = start(&program, [vsock, guest])?;
    let pid = Pid::from_child(&child);
    let vmm = Vmm {
        listener: control,
        connections: Vec::new(),
        disks,
        announcement: Some(host),
        guest: pidfd_open(pid, PidfdFlags::empty())?,
        child,
        main_ns,
        started_ns: monotonic_ns(),
    };
    vmm.serve()
}

/// Makes the pod's cgroup one that can have others below, with its controllers, and goes below: only what has no
/// processes hands controllers down.
fn enter_cgroup() -> Result<()> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let own = text.trim().strip_prefix("0::/").context("No cgroup v2")?;
    let pod = Path::new("/sys/fs/cgroup").join(own);
    let guest = pod.join("guest");
    fs::create_dir(&guest)?;
    fs::write(guest.join("cgroup.procs"), "0")?;
    let controllers = fs::read_to_string(pod.join("cgroup.controllers"))?;
    for controller in controllers.split_whitespace() {
        fs::write(pod.join("cgroup.subtree_control"), format!("+{controller}"))
            .with_context(|| format!("Cannot hand down {controller}"))?;
    }
    Ok(unshare(libc::CLONE_NEWCGROUP)?)
}

/// Gives the pod what a guest has: from here on only children are in the pid namespace.
fn enter_namespaces() -> Result<()> {
    unshare(NAMESPACES)?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let device = MountFlags::NOSUID | MountFlags::NOEXEC;
    for (kind, target, flags, options) in [
        ("tmpfs", "/run", MountFlags::empty(), c"mode=0755"),
        ("sysfs", "/sys", safe, c""),
        ("cgroup2", "/sys/fs/cgroup", safe, c""),
        ("tmpfs", "/dev/shm", safe, c"mode=1777"),
        ("mqueue", "/dev/mqueue", safe, c""),
        (
            "devpts",
            "/dev/pts",
            device,
            c"ptmxmode=0666,mode=0620,gid=5",
        ),
    ] {
        fs::create_dir_all(target)?;
        mount(kind, target, kind, flags, options)
            .with_context(|| format!("Cannot mount {target}"))?;
    }
    // Beside the containers' cgroups, as a guest's PID 1 cannot be in the root that hands controllers down.
    let agent = PathBuf::from("/sys/fs/cgroup/agent");
    fs::create_dir(&agent)?;
    Ok(fs::write(agent.join("cgroup.procs"), "0")?)
}

fn start(program: &Path, fds: [OwnedFd; 2]) -> Result<Child> {
    let mut command = Command::new(program);
    command.arg(AGENT).stdin(Stdio::null());
    for fd in &fds {
        fcntl_setfd(fd, FdFlags::empty())?;
        command.arg(fd.as_raw_fd().to_string());
    }
    Ok(command.spawn()?)
}

struct Vmm {
    listener: OwnedFd,
    connections: Vec<OwnedFd>,
    disks: Disks,
    /// Until somebody takes the guest's connections.
    announcement: Option<OwnedFd>,
    guest: OwnedFd,
    child: Child,
    main_ns: u64,
    started_ns: u64,
}

impl Vmm {
    /// Serves until the guest has ended.
    fn serve(mut self) -> Result<ExitReason> {
        loop {
            let always = [self.guest.as_fd(), self.listener.as_fd()];
            let connections = self.connections.iter().map(AsFd::as_fd);
            let mut waiting: Vec<_> = always
                .into_iter()
                .chain(connections)
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
                .collect();
            poll(&mut waiting, None)?;
            let ready: Vec<bool> = waiting.iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready.first() == Some(&true) {
                let status = self.child.wait()?;
                return Ok(match status.success() {
                    true => ExitReason::GuestPowerOff,
                    false => ExitReason::GuestPanic,
                });
            }
            let readable = ready
                .iter()
                .skip(2)
                .copied()
                .chain(std::iter::repeat(false));
            for (connection, readable) in std::mem::take(&mut self.connections)
                .into_iter()
                .zip(readable)
            {
                if !readable {
                    self.connections.push(connection);
                    continue;
                }
                match wire::receive::<Request>(&connection) {
                    Ok(Some((Request::Kill, _))) => return Ok(ExitReason::Killed),
                    Ok(Some((request, fds))) => {
                        if self.answer(&connection, request, &fds).is_ok() {
                            self.connections.push(connection);
                        }
                    }
                    // It has closed, or speaks something else.
                    Ok(None) | Err(_) => {}
                }
            }
            if ready.get(1) == Some(&true) {
                let connection = accept_with(&self.listener, SocketFlags::CLOEXEC)?;
                self.connections.push(connection);
            }
        }
    }

    fn answer(
        &mut self,
        connection: &OwnedFd,
        request: Request,
        fds: &[OwnedFd],
    ) -> Result<(), WireError> {
        let reply = self.handle(&request, fds);
        let reply = reply.unwrap_or_else(|error| Reply::Error {
            message: format!("{error:#}"),
        });
        wire::send(connection, &reply, &[])?;
        if request == Request::AcceptGuestConnections
            && let Some(announcement) = self.announcement.take()
        {
            let port = ANNOUNCE_PORT;
            wire::send(
                connection,
                &GuestConnection { port },
                &[announcement.as_fd()],
            )?;
        }
        Ok(())
    }

    fn handle(&mut self, request: &Request, fds: &[OwnedFd]) -> Result<Reply> {
        match request {
            Request::BindDisk { slot, .. } => {
                let file = fds.first().context("The disk came without its file")?;
                self.disks.bind(*slot, file)?;
            }
            Request::UnbindDisk { slot } => self.disks.unbind(*slot)?,
            Request::Status => {
                return Ok(Reply::Status(VmmStatus {
                    version: PROTOCOL_VERSION,
                    main_ns: self.main_ns,
                    vcpus_started_ns: self.started_ns,
                    ..VmmStatus::default()
                }));
            }
            // What the agent prints goes to standard error, that is the VMM's log.
            Request::Console { .. } => {
                return Ok(Reply::Console {
                    text: String::new(),
                });
            }
            Request::AcceptGuestConnections => {}
            other => anyhow::bail!("A pod of processes cannot do this: {other:?}"),
        }
        Ok(Reply::Done)
    }
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}
