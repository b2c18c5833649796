//! One container's actor: see [`super`] for its states.
//!
//! Each process has a [`Supervisor`] that tells the actor how it goes on. Only the actor changes the
//! snapshot and writes events.

mod pause;

use super::create::{self, Joining, Resources};
use super::launch::{Control, Process, Waiting};
use super::stdio::Pumps;
use super::supervisor::{Supervisor, now_ns};
use super::{CreateSpec, Created, ExecSpec, Figures, Shared};
use crate::cgroup::Cgroup;
use crate::deadline::Deadline;
use crate::error::Context;
use crate::id::Id;
use crate::init::plan::Failure;
use crate::reaper::ExitReceiver;
use crate::{Error, Result, sys};
use bulkhead_agent_api::agent::{ContainerPhase, ContainerState, Exit};
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// How many ended execs are remembered, so that signalling them succeeds.
const MAX_ENDED: usize = 1024;
/// The most execs that may be in a container at a time.
const MAX_EXECS: usize = 256;

type Reply<T> = oneshot::Sender<Result<T>>;

/// What an actor can be asked, and told by its own tasks.
pub(super) enum Command {
    Start(Reply<()>),
    Exec(Box<ExecSpec>, Reply<u32>),
    Signal(Target, Reply<()>),
    Resize {
        exec_id: Option<Id>,
        size: (u16, u16),
        reply: Reply<()>,
    },
    Update(Vec<u8>, Reply<()>),
    Pause(Deadline, Reply<()>),
    Resume(Reply<()>),
    /// A pidfd of the container's first process, for another one to be in its pid namespace.
    Target(Reply<Arc<OwnedFd>>),
    Remove(Reply<()>),
    /// The processes have stopped after a pause of this number, or did not in time.
    Paused(u64, Result<()>),
    /// An exec's process waits, or could not be made.
    ExecReady(Id, Result<Waiting>, u64),
    /// A process runs its program, or cannot.
    Launched(Option<Id>, Option<Failure>),
    /// A process has ended. Its last output is still being delivered by these tasks.
    Ended(Option<Id>, Exit, Vec<JoinHandle<()>>),
}

/// Whom a signal is for.
pub(super) struct Target {
    pub(super) exec_id: Option<Id>,
    pub(super) signal: u32,
    pub(super) all: bool,
}

/// What an actor begins with.
pub(super) struct Start {
    pub(super) spec: CreateSpec,
    /// A process in the pid namespace that it is to be in.
    pub(super) target: Option<Arc<OwnedFd>>,
    pub(super) deadline: Deadline,
    pub(super) reply: Reply<Created>,
}

/// A creation that failed, to be answered when the name is free again.
pub(super) struct Failed(pub(super) Reply<Created>, pub(super) Error);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Created,
    Starting,
    Running,
    Exited,
}

enum Exec {
    Starting(Reply<u32>),
    Launching(Process, Reply<u32>),
    Running(Process),
    /// Cannot run its program. The caller is told when the process has ended: then the name is free.
    Failed(Process, Reply<u32>, Failure),
}

struct Actor {
    id: Id,
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    snapshot: Arc<Mutex<ContainerState>>,
    cgroup: Arc<Cgroup>,
    joining: Joining,
    phase: Phase,
    init: Process,
    control: Arc<Control>,
    starters: Vec<Reply<()>>,
    execs: HashMap<Id, Exec>,
    ended: VecDeque<Id>,
    pauses: pause::Pauses,
    removers: Vec<Reply<()>>,
    deliveries: Vec<JoinHandle<()>>,
}

/// Runs a container's actor from its creation to its removal.
pub(super) async fn run(
    shared: Arc<Shared>,
    start: Start,
    commands: mpsc::Sender<Command>,
    mut mailbox: mpsc::Receiver<Command>,
    snapshot: Arc<Mutex<ContainerState>>,
    figures: Arc<OnceLock<Figures>>,
) -> Option<Failed> {
    let mut resources = Resources::default();
    let mut removers = Vec::new();
    let created = {
        let work = create::create(
            &shared,
            &start.spec,
            start.target,
            start.deadline,
            &mut resources,
        );
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                Some(command) = mailbox.recv() => match command {
                    Command::Remove(reply) => {
                        removers.push(reply);
                        break Err(Error::Precondition("The container was removed while it was created".to_owned()));
                    }
                    command => command.refuse(&start.spec.id),
                },
                result = &mut work => break result,
            }
        }
    };
    let (waiting, cgroup) = match (created, resources.cgroup.clone()) {
        (Ok(waiting), Some(cgroup)) => (waiting, cgroup),
        (result, _) => {
            let error = result.err().unwrap_or_else(super::lost);
            log(resources.release().await);
            answer(removers, &Ok(()));
            return Some(Failed(start.reply, error));
        }
    };
    let created = Created {
        pid: waiting.process.pid,
        identity: waiting.identity.clone(),
    };
    if let Some(usage) = resources.usage.take() {
        // Set once, here.
        let _ = figures.set(Figures {
            cgroup: cgroup.clone(),
            usage,
        });
    }
    {
        let mut state = lock(&snapshot);
        state.container_id = start.spec.id.to_string();
        state.phase = ContainerPhase::CREATED.into();
        state.pid = created.pid;
        state.identity = created.identity_message().into();
        state.stdio = Some(start.spec.stdio.to_message()).into();
    }
    let mut actor = Actor {
        id: start.spec.id,
        init: waiting.process.clone(),
        control: Arc::new(waiting.control),
        shared,
        commands,
        snapshot,
        cgroup,
        joining: std::mem::take(&mut resources.joining),
        phase: Phase::Created,
        starters: Vec::new(),
        execs: HashMap::new(),
        ended: VecDeque::new(),
        pauses: pause::Pauses::default(),
        removers: Vec::new(),
        deliveries: Vec::new(),
    };
    actor.supervise(None, actor.control.clone(), waiting.exit, waiting.pumps, 0);
    // The caller may have given up: its daemon finds the container in the list.
    let _ = start.reply.send(Ok(created));
    while let Some(command) = mailbox.recv().await {
        actor.handle(command);
        if !actor.removers.is_empty() && actor.phase == Phase::Exited && actor.execs.is_empty() {
            break;
        }
    }
    for delivery in actor.deliveries.drain(..) {
        delivery.abort();
    }
    let removers = std::mem::take(&mut actor.removers);
    drop(actor);
    answer(removers, &resources.release().await);
    None
}

impl Command {
    /// Answers a command that comes while the container is being created.
    fn refuse(self, id: &Id) {
        let error = || Error::Precondition(format!("Container {id} is still being created"));
        // A caller that has given up needs no answer.
        match self {
            Self::Start(reply)
            | Self::Update(_, reply)
            | Self::Pause(_, reply)
            | Self::Resume(reply)
            | Self::Remove(reply)
            | Self::Signal(_, reply)
            | Self::Resize { reply, .. } => {
                let _ = reply.send(Err(error()));
            }
            Self::Exec(_, reply) => {
                let _ = reply.send(Err(error()));
            }
            Self::Target(reply) => {
                let _ = reply.send(Err(error()));
            }
            Self::Paused(..) | Self::ExecReady(..) | Self::Launched(..) | Self::Ended(..) => {}
        }
    }
}

impl Actor {
    /// Acts on one command. Never waits.
    fn handle(&mut self, command: Command) {
        // Callers may have given up: nobody needs the answer then.
        match command {
            Command::Start(reply) => self.start(reply),
            Command::Exec(spec, reply) => self.exec(*spec, reply),
            Command::Signal(target, reply) => {
                let _ = reply.send(self.signal(&target));
            }
            Command::Resize {
                exec_id,
                size,
                reply,
            } => {
                let _ = reply.send(self.resize(exec_id.as_ref(), size));
            }
            Command::Update(resources, reply) => self.update(resources, reply),
            Command::Pause(deadline, reply) => self.pause(deadline, reply),
            Command::Resume(reply) => self.resume(reply),
            Command::Paused(number, result) => self.paused(number, &result),
            Command::Target(reply) => {
                let ended = Error::Precondition(format!("Container {} has ended", self.id));
                let lives = self.phase != Phase::Exited;
                let _ = reply.send(lives.then(|| self.init.pidfd.clone()).ok_or(ended));
            }
            Command::Remove(reply) => {
                log(self.cgroup.kill());
                self.removers.push(reply);
            }
            Command::ExecReady(exec_id, result, oom_kills) => {
                self.exec_ready(exec_id, result, oom_kills)
            }
            Command::Launched(None, failure) => self.launched(failure),
            Command::Launched(Some(exec_id), failure) => self.exec_launched(&exec_id, failure),
            Command::Ended(exec_id, exit, deliveries) => self.ended(exec_id, exit, deliveries),
        }
    }

    fn start(&mut self, reply: Reply<()>) {
        match self.phase {
            Phase::Created => {
                self.phase = Phase::Starting;
                self.control.go();
                self.starters.push(reply);
            }
            Phase::Starting => self.starters.push(reply),
            Phase::Running | Phase::Exited => {
                let how = if self.phase == Phase::Running {
                    "runs"
                } else {
                    "has ended"
                };
                let _ = reply.send(Err(Error::Precondition(format!(
                    "Container {} {how} already",
                    self.id
                ))));
            }
        }
    }

    /// The container's program runs, or cannot.
    fn launched(&mut self, failure: Option<Failure>) {
        if self.phase != Phase::Starting {
            // Killed before it was started.
            return;
        }
        let result = match failure {
            None => {
                self.phase = Phase::Running;
                let mut state = lock(&self.snapshot);
                state.phase = ContainerPhase::RUNNING.into();
                state.started_ns = now_ns();
                Ok(())
            }
            // It ends by itself now.
            Some(failure) => Err(failure.into()),
        };
        answer(self.starters.drain(..), &result);
    }

    fn exec(&mut self, spec: ExecSpec, reply: Reply<u32>) {
        let refusal = if self.phase != Phase::Running || !self.removers.is_empty() {
            Some(self.does_not_run())
        } else if self.pauses.is_paused() {
            Some(Error::Precondition(format!(
                "Container {} is paused",
                self.id
            )))
        } else if self.execs.contains_key(&spec.exec_id) {
            Some(Error::Exists(format!(
                "Exec {} of container {} exists already",
                spec.exec_id, self.id
            )))
        } else if self.execs.len() >= MAX_EXECS {
            Some(Error::Exhausted(format!(
                "Container {} has {MAX_EXECS} execs already",
                self.id
            )))
        } else {
            None
        };
        if let Some(error) = refusal {
            let _ = reply.send(Err(error));
            return;
        }
        self.ended.retain(|ended| *ended != spec.exec_id);
        self.execs
            .insert(spec.exec_id.clone(), Exec::Starting(reply));
        let (shared, cgroup) = (self.shared.clone(), self.cgroup.clone());
        let joining = self.joining.clone();
        let (container, commands) = (self.init.pidfd.clone(), self.commands.clone());
        tokio::spawn(async move {
            let oom_kills = cgroup.oom_kills();
            let result = create::exec(&shared, &spec, &cgroup, &container, joining).await;
            // An actor that is gone has killed the cgroup.
            let _ = commands
                .send(Command::ExecReady(spec.exec_id, result, oom_kills))
                .await;
        });
    }

    fn exec_ready(&mut self, exec_id: Id, result: Result<Waiting>, oom_kills: u64) {
        let Some(Exec::Starting(reply)) = self.execs.remove(&exec_id) else {
            return;
        };
        match result {
            Err(error) => {
                self.forget(exec_id);
                let _ = reply.send(Err(error));
            }
            Ok(waiting) => {
                waiting.control.go();
                self.execs
                    .insert(exec_id.clone(), Exec::Launching(waiting.process, reply));
                let control = Arc::new(waiting.control);
                self.supervise(
                    Some(exec_id),
                    control,
                    waiting.exit,
                    waiting.pumps,
                    oom_kills,
                );
            }
        }
    }

    fn exec_launched(&mut self, exec_id: &Id, failure: Option<Failure>) {
        match (self.execs.remove(exec_id), failure) {
            (Some(Exec::Launching(process, reply)), None) => {
                let _ = reply.send(Ok(process.pid));
                self.execs.insert(exec_id.clone(), Exec::Running(process));
            }
            (Some(Exec::Launching(process, reply)), Some(failure)) => {
                self.execs
                    .insert(exec_id.clone(), Exec::Failed(process, reply, failure));
            }
            (Some(other), _) => {
                self.execs.insert(exec_id.clone(), other);
            }
            (None, _) => {}
        }
    }

    fn ended(&mut self, exec_id: Option<Id>, exit: Exit, deliveries: Vec<JoinHandle<()>>) {
        self.deliveries.retain(|delivery| !delivery.is_finished());
        self.deliveries.extend(deliveries);
        match exec_id {
            None => {
                self.phase = Phase::Exited;
                let error = Err(self.does_not_run());
                self.pauses.forget(&error);
                {
                    let mut state = lock(&self.snapshot);
                    state.phase = ContainerPhase::EXITED.into();
                    state.paused = false;
                    state.exit = Some(exit.clone()).into();
                }
                self.shared.events.push(exit);
                let error = Err(Error::Precondition(format!(
                    "Container {} has ended",
                    self.id
                )));
                answer(self.starters.drain(..), &error);
            }
            Some(exec_id) => {
                match self.execs.remove(&exec_id) {
                    Some(Exec::Failed(process, reply, failure)) => {
                        let _ = reply.send(Err(failure.into()));
                        self.deliveries.extend(process.retire());
                    }
                    Some(Exec::Launching(process, _) | Exec::Running(process)) => {
                        self.deliveries.extend(process.retire());
                    }
                    Some(Exec::Starting(_)) | None => {}
                }
                self.forget(exec_id);
                // One that could not be run at all was answered so and never was.
                if exit.error.is_empty() {
                    self.shared.events.push(exit);
                }
            }
        }
    }

    fn forget(&mut self, exec_id: Id) {
        if self.ended.len() == MAX_ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back(exec_id);
    }

    fn signal(&self, target: &Target) -> Result<()> {
        if target.all {
            let cgroup = match target.exec_id.as_ref() {
                None => Some(&self.cgroup),
                Some(_) => self
                    .process(target.exec_id.as_ref())?
                    .and_then(|process| process.cgroup.as_ref()),
            };
            // What an exec leaves behind when it ends by itself is the container's.
            let Some(cgroup) = cgroup else {
                return Ok(());
            };
            return if target.signal == libc::SIGKILL.unsigned_abs() {
                cgroup.kill()
            } else {
                cgroup.signal(target.signal)
            };
        }
        let Some(process) = self.process(target.exec_id.as_ref())? else {
            return Ok(());
        };
        match sys::process::signal(&process.pidfd, target.signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            result => result.context(|| format!("Cannot signal container {}", self.id)),
        }
    }

    fn resize(&self, exec_id: Option<&Id>, (ws_col, ws_row): (u16, u16)) -> Result<()> {
        let Some(process) = self.process(exec_id)? else {
            return Ok(());
        };
        let Some(master) = &process.master else {
            return Err(Error::Precondition(format!(
                "The process of container {} has no terminal",
                self.id
            )));
        };
        let size = rustix::termios::Winsize {
            ws_row,
            ws_col,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(master, size)
            .context(|| format!("Cannot resize the terminal of container {}", self.id))
    }

    fn does_not_run(&self) -> Error {
        Error::Precondition(format!("Container {} does not run", self.id))
    }

    /// A process; `None` when it has ended.
    fn process(&self, exec_id: Option<&Id>) -> Result<Option<&Process>> {
        let Some(exec_id) = exec_id else {
            return Ok((self.phase != Phase::Exited).then_some(&self.init));
        };
        match self.execs.get(exec_id) {
            Some(
                Exec::Launching(process, _) | Exec::Running(process) | Exec::Failed(process, ..),
            ) => Ok(Some(process)),
            Some(Exec::Starting(_)) => Err(Error::Precondition(format!(
                "Exec {exec_id} is still being started"
            ))),
            None if self.ended.contains(exec_id) => Ok(None),
            None => Err(Error::NotFound(format!(
                "Container {} has no exec {exec_id}",
                self.id
            ))),
        }
    }

    fn supervise(
        &self,
        exec_id: Option<Id>,
        control: Arc<Control>,
        exit: ExitReceiver,
        pumps: Pumps,
        oom_kills: u64,
    ) {
        let supervisor = Supervisor {
            container_id: self.id.clone(),
            exec_id,
            cgroup: self.cgroup.clone(),
            oom_kills,
            commands: self.commands.clone(),
        };
        tokio::spawn(supervisor.run(control, exit, pumps));
    }
}

/// Gives everybody the same answer.
fn answer(replies: impl IntoIterator<Item = Reply<()>>, result: &Result<()>) {
    for reply in replies {
        // One that has given up needs none.
        let _ = reply.send(result.clone());
    }
}

/// A failure that nobody waits for.
pub(super) fn log(result: Result<()>) {
    if let Err(error) = result {
        tracing::warn!("{}", error.chain());
    }
}

/// The snapshot, whatever happened to a thread that held it.
pub(super) fn lock(snapshot: &Mutex<ContainerState>) -> MutexGuard<'_, ContainerState> {
    snapshot.lock().unwrap_or_else(PoisonError::into_inner)
}
