//! Making a process that waits to run its program, and telling it to.

use super::Shared;
use super::actor::log;
use super::stdio::{Prepared, Pumps};
use crate::cgroup::Cgroup;
use crate::error::Context;
use crate::init::plan::{Failure, GO, MAX_ANSWER, Plan, READY, fds};
use crate::init::user::Identity;
use crate::reaper::{ExitReceiver, Status};
use crate::streams::pump::InputEnd;
use crate::sys::fd::Fd;
use crate::sys::spawn::Spawn;
use crate::{Error, Result};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags,
    SocketType,
};
use std::io::{self, IoSliceMut, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use tokio::task::JoinHandle;

/// A process that has done everything but run its program.
pub(super) struct Waiting {
    pub(super) process: Process,
    /// Who it is, if it could be told.
    pub(super) identity: Option<Identity>,
    pub(super) control: Control,
    pub(super) exit: ExitReceiver,
    pub(super) pumps: Pumps,
}

/// What stays known of a process.
#[derive(Debug, Clone)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) pidfd: Arc<OwnedFd>,
    /// The master of its terminal.
    pub(super) master: Option<Arc<OwnedFd>>,
    /// Its own, below the container's, when it is an exec.
    pub(super) cgroup: Option<Arc<Cgroup>>,
}

impl Process {
    /// The process has ended: removes its cgroup when the last of what it has started is gone too.
    pub(super) fn retire(self) -> Option<JoinHandle<()>> {
        let cgroup = self.cgroup?;
        Some(tokio::spawn(async move {
            log(cgroup.empty().await.and_then(|()| cgroup.remove()));
        }))
    }
}

/// Where a process is made.
pub(super) struct Birth<'a> {
    pub(super) namespaces: i32,
    pub(super) pid_namespace: Option<BorrowedFd<'a>>,
    pub(super) cgroup: BorrowedFd<'a>,
    /// Besides stdio, control and plan.
    pub(super) fds: Vec<(BorrowedFd<'a>, RawFd)>,
    pub(super) input_end: InputEnd,
}

/// Makes a process and waits until it is ready. When this fails, or is given up, the process ends:
/// it finds its control socket closed.
pub(super) async fn launch(
    shared: &Shared,
    plan: &Plan,
    stdio: Prepared,
    birth: Birth<'_>,
) -> Result<Waiting> {
    let plan_file = plan_file(plan).context(|| "Cannot write the plan")?;
    let what = || "Cannot make a control socket";
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .context(what)?;
    let mut all: Vec<(BorrowedFd<'_>, RawFd)> =
        stdio.process.iter().map(AsFd::as_fd).zip(0..).collect();
    all.push((theirs.as_fd(), fds::CONTROL));
    all.push((plan_file.as_fd(), fds::PLAN));
    all.extend(&birth.fds);
    let spawn = Spawn {
        program: shared.program.as_fd(),
        namespaces: birth.namespaces,
        pid_namespace: birth.pid_namespace,
        cgroup: birth.cgroup,
        fds: &all,
    };
    let (spawned, mut exit) = shared
        .reaper
        .spawn(&spawn)
        .context(|| "Cannot make a process")?;
    drop(all);
    drop((theirs, plan_file));
    let control = Control(Fd::new(ours).context(what)?);
    let (answer, early) = tokio::select! {
        biased;
        answer = control.receive() => (answer, None),
        // What it said before it ended may not have been noticed yet.
        status = &mut exit => (control.receive_now(), Some(status)),
    };
    let (master, identity) = match (answer, early) {
        (Ok(Answer::Failure(failure)), _) => return Err(failure.into()),
        (Ok(Answer::Ready(master, identity)), None) => (master, identity),
        (_, Some(status)) => return Err(died(status.ok())),
        (_, None) => return Err(died(exit.await.ok())),
    };
    let master = if plan.process.terminal.is_some() {
        master
    } else {
        None
    };
    let pumps = stdio.start(master.as_ref(), birth.input_end)?;
    Ok(Waiting {
        process: Process {
            pid: spawned.pid.as_raw_nonzero().get().unsigned_abs(),
            pidfd: Arc::new(spawned.pidfd),
            master: master.map(Arc::new),
            cgroup: None,
        },
        identity,
        control,
        exit,
        pumps,
    })
}

fn died(status: Option<Status>) -> Error {
    let how = match status {
        Some(Status::Signaled(signal)) => format!("was killed by signal {signal}"),
        Some(Status::Exited(code)) => format!("ended with code {code}"),
        None => "ended".to_owned(),
    };
    Error::Internal(format!("The process {how} while it was prepared"))
}

/// A memory file that nobody can change any more.
fn plan_file(plan: &Plan) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = std::fs::File::from(rustix::fs::memfd_create("plan", flags)?);
    file.write_all(&serde_json::to_vec(plan)?)?;
    file.rewind()?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// The agent's end of a control socket.
pub(super) struct Control(Fd);

/// What a process said.
pub(super) enum Answer {
    /// All is prepared; the master of its terminal came along, and who it is.
    Ready(Option<OwnedFd>, Option<Identity>),
    /// It does not run its program.
    Failure(Failure),
    /// The socket is closed: the program runs, or the process has ended.
    Closed,
}

impl Control {
    /// Lets the program run.
    pub(super) fn go(&self) {
        // A process that has ended is noticed elsewhere.
        let _ = rustix::net::send(&self.0, GO, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }

    /// The next answer.
    pub(super) async fn receive(&self) -> io::Result<Answer> {
        self.0.readable(receive).await
    }

    /// The answer that is there now.
    pub(super) fn receive_now(&self) -> io::Result<Answer> {
        receive(self.0.as_fd())
    }
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Answer> {
    match receive_message(socket)? {
        // Linux looks for a message first and for the end afterwards (unix_dgram_recvmsg): a process
        // that says why it fails and ends between the two has ended with that still there. Nothing
        // comes after the end, so a second look is the last.
        Answer::Closed => receive_message(socket),
        answer => Ok(answer),
    }
}

fn receive_message(socket: BorrowedFd<'_>) -> io::Result<Answer> {
    let mut buffer = vec![0; MAX_ANSWER];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut buffer)],
        &mut ancillary,
        flags,
    )?;
    let received = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let text = buffer.get(..message.bytes).unwrap_or_default();
    if let Some(identity) = text.strip_prefix(READY) {
        return Ok(Answer::Ready(
            received,
            serde_json::from_slice(identity).ok(),
        ));
    }
    Ok(match text {
        [] => Answer::Closed,
        text => Answer::Failure(Failure::parse(text)),
    })
}

#[cfg(test)]
#[path = "launch/tests.rs"]
mod tests;
