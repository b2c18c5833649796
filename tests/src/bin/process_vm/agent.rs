//! The agent, as PID 1 of a pid namespace instead of a guest.

use crate::DISKS;
use anyhow::Result;
use bulkhead_agent::disk::Disks;
use bulkhead_agent::engine::{Engine, GuestDisks, Paths};
use bulkhead_agent::pod::{Pod, Scratch};
use bulkhead_agent::service::Service;
use bulkhead_agent::streams::server::{Incoming, serve};
use bulkhead_agent::sys::fd::{Fd, inherited};
use bulkhead_agent::sys::{ioctl, process, spawn};
use bulkhead_agent_api::agent::Announcement;
use bulkhead_agent_api::{CONTROL_PORT, STREAM_PORT, VERSION};
use bulkhead_vmm_api::ExitReason;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use protobuf::Message;
use rustix::mount::{MountFlags, mount};
use rustix::process::{Signal, set_parent_process_death_signal};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Where the agent keeps its things, as in a guest: the daemon names some of them.
const RUN: &str = "/run/bulkhead";
/// The longest request of a connection: "CONNECT " and a 32-bit number.
const MAX_REQUEST: usize = 32;
/// How long the answer to `Shutdown` may take to leave.
const FAREWELL: Duration = Duration::from_millis(20);

type Connections = UnboundedSender<io::Result<Fd>>;

pub(crate) fn run(listener: &str, announcement: &str) -> Result<ExitReason> {
    let started = Instant::now();
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let listener = inherited(listener.parse()?)?;
    let announcement = inherited(announcement.parse()?)?;
    for fd in [&listener, &announcement] {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?;
    }
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", safe, None)?;
    process::set_limit(libc::RLIMIT_NOFILE, 65_536, 1_048_576)?;
    ioctl::loopback_up()?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(guest(listener, announcement, started))?;
    Ok(ExitReason::GuestPowerOff)
}

async fn guest(listener: OwnedFd, announcement: OwnedFd, started: Instant) -> Result<()> {
    let run = Path::new(RUN);
    let disks = Disks::shown_in(Path::new(DISKS));
    let scratch = Arc::new(Scratch::new(disks.clone(), run.join("scratch")));
    let backing = GuestDisks::new(disks, run, scratch.clone());
    let paths = Paths {
        cgroup: PathBuf::from("/sys/fs/cgroup/bulkhead"),
        mount_point: run.join("root"),
    };
    let engine = Engine::new(paths, spawn::own_program()?, Arc::new(backing))?;
    let (files, shm) = (run.join("pod"), "/dev/shm".into());
    let pod = Pod::new(files, "/proc/sys".into(), shm, scratch).without_clock();
    let (control, controls) = unbounded();
    let (stream, streams) = unbounded();
    tokio::spawn(serve(streams, engine.hub().clone()));
    let shutdown = Arc::new(Notify::new());
    let service = Service::new(engine, Arc::new(pod), shutdown.clone());
    let _server = service.serve(controls).await?;
    tokio::spawn(connect(Incoming::new(listener)?, control, stream));
    announce(announcement, started).await?;
    shutdown.notified().await;
    tokio::time::sleep(FAREWELL).await;
    Ok(())
}

/// Takes the connections into the guest, as the VMM's vsock socket does.
async fn connect(incoming: Incoming, control: Connections, stream: Connections) {
    loop {
        let connection = incoming.next().await;
        let (control, stream) = (control.clone(), stream.clone());
        tokio::spawn(async move {
            let to = match asked_port(&connection).await {
                Ok(CONTROL_PORT) => control,
                Ok(STREAM_PORT) => stream,
                // Nobody listens: it is closed.
                _ => return,
            };
            if connection.write_all(b"OK 1\n").await.is_ok() {
                // The receivers are there as long as the process.
                let _ = to.unbounded_send(Ok(connection));
            }
        });
    }
}

/// Reads `CONNECT port\n`, byte by byte because what follows belongs to the connection's user.
async fn asked_port(connection: &Fd) -> io::Result<u32> {
    let mut request = Vec::with_capacity(MAX_REQUEST);
    let mut byte = [0];
    while byte != *b"\n" {
        if request.len() == MAX_REQUEST || connection.read(&mut byte).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        request.extend(byte);
    }
    let text = String::from_utf8_lossy(&request);
    let port = text.trim_end().strip_prefix("CONNECT ");
    port.and_then(|port| port.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Tells that it is ready, on a connection that the host has already.
async fn announce(connection: OwnedFd, started: Instant) -> Result<()> {
    let mut announcement = Announcement::new();
    announcement.version = VERSION;
    announcement.kernel_release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    announcement.ready_ns = u64::try_from(started.elapsed().as_nanos())?;
    let body = announcement.write_to_bytes()?;
    let length = u32::try_from(body.len())?.to_le_bytes();
    let frame = [length.as_slice(), &body].concat();
    Ok(Fd::new(connection)?.write_all(&frame).await?)
}
