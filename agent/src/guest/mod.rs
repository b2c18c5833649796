//! What only PID 1 of a guest does: mounts, root, loopback, logging, announcement, end.

mod announce;
mod log;
mod mounts;

use crate::disk::Disks;
use crate::engine::{Engine, GuestDisks, Paths};
use crate::error::Context;
use crate::pod::{Pod, Scratch};
use crate::service::Service;
use crate::streams::server::{self, Incoming};
use crate::{Result, sys};
use bulkhead_agent_api::{CONTROL_PORT, STREAM_PORT};
use rustix::system::RebootCommand;
use rustix::time::{ClockId, clock_gettime};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Where the agent keeps its things.
const RUN: &str = "/run/bulkhead";
/// Memory in bytes that the containers together leave, for streams, more containers and the kernel.
const RESERVE: u64 = 8 << 20;
/// How long the answer to `Shutdown` may take to leave before the machine ends.
const FAREWELL: Duration = Duration::from_millis(20);

/// Runs the guest. Returns only when it cannot be run; the kernel panics then, as PID 1 has ended.
pub fn run() -> std::process::ExitCode {
    let started_ns = boottime_ns();
    let result = prepare().and_then(|()| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime
            .context(|| "Cannot start the runtime")?
            .block_on(serve(started_ns))
    });
    if let Err(error) = result {
        tracing::error!("{}", error.chain());
    }
    std::process::ExitCode::FAILURE
}

/// Everything that needs no runtime.
fn prepare() -> Result<()> {
    mounts::mount_all()?;
    log::start();
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context(|| "Cannot hide from containers")?;
    // Programs get their own limits; the agent has streams to hold.
    sys::process::set_limit(libc::RLIMIT_NOFILE, 65_536, 1_048_576)
        .context(|| "Cannot raise the file limit")?;
    sys::ioctl::loopback_up().context(|| "Cannot set the loopback interface up")
}

async fn serve(started_ns: u64) -> Result<()> {
    let run = Path::new(RUN);
    let disks = Disks::default();
    let scratch = Arc::new(Scratch::new(disks.clone(), run.join("scratch")));
    let backing = GuestDisks::new(disks, run, scratch.clone());
    let paths = Paths {
        cgroup: PathBuf::from("/sys/fs/cgroup/bulkhead"),
        mount_point: run.join("root"),
    };
    let program = sys::spawn::own_program().context(|| "Cannot open the agent's own program")?;
    let engine = Engine::new(paths, program, Arc::new(backing))?;
    let pod = Pod::new(
        run.join("pod"),
        "/proc/sys".into(),
        "/dev/shm".into(),
        scratch,
    );
    let listen = |port| {
        let listener = sys::net::listen_vsock(port).and_then(Incoming::new);
        listener.context(|| format!("Cannot listen on vsock port {port}"))
    };
    let (control, streams) = (listen(CONTROL_PORT)?, listen(STREAM_PORT)?);
    let (hub, ahead) = (engine.hub().clone(), engine.clone());
    tokio::spawn(server::serve(streams, hub));
    let shutdown = Arc::new(Notify::new());
    let service = Service::new(engine, Arc::new(pod), shutdown.clone());
    let _server = service
        .serve(control)
        .await
        .map_err(|error| crate::Error::Internal(format!("Cannot serve: {error}")))?;
    tokio::spawn(async move {
        // A daemon that is not there finds this guest by itself when it comes back.
        if let Err(error) = announce::announce(started_ns).await {
            tracing::warn!("Nobody takes the announcement: {error}");
        }
        if let Err(error) = ahead.reserve_memory(RESERVE).await {
            tracing::error!("{}", error.chain());
        }
    });
    shutdown.notified().await;
    tokio::time::sleep(FAREWELL).await;
    rustix::system::reboot(RebootCommand::PowerOff).context(|| "Cannot power off")
}

/// Nanoseconds since the machine was started.
fn boottime_ns() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}
