//! The disk thread: it serves the queues of all disk slots, bound or empty, and never waits for a disk.
//!
//! A turn takes what the guest has made available, as far as limits and the engine have room, gives it
//! to the engine as one batch, and gives back what has ended, in whatever order that is. Each disk's
//! driver is interrupted at most once a round.

use super::engine::{Done, Engine, MAX_RUNNING};
use super::job::{Job, Next, Origin};
use super::request::{self, Request, Status, Target, Work};
use super::{Disk, EngineKind, State};
use crate::error::Error;
use crate::machine::memory::GuestRam;
use crate::rate::Timer;
use crate::sync::lock;
use crate::virtio::queue::QueueError;
use rustix::event::epoll;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The most requests of one disk before the next disk's turn.
const BATCH: usize = 64;
/// How long the host gets when it has no memory for another operation.
const SHORT_OF_MEMORY: Duration = Duration::from_millis(10);

/// What epoll tells, besides indices of disks.
const TIMER: u64 = u64::MAX;
const ENGINE: u64 = u64::MAX - 1;
const NOBODY: u64 = u64::MAX - 2;

/// Serves disk slots.
#[derive(Debug)]
pub struct Service {
    // Dropped first: it waits for what uses the jobs' files and the guest's memory.
    engine: Engine,
    jobs: Jobs,
    ram: GuestRam,
    disks: Vec<Slot>,
    epoll: OwnedFd,
    timer: Timer,
    /// The disk that is served first in the next round.
    first: usize,
    done: Vec<Done>,
}

#[derive(Debug)]
struct Slot {
    disk: Arc<Disk>,
    /// There may be something to take from the queue.
    ready: bool,
    /// Something was put into the used ring in this round.
    used: bool,
    /// When its limits permit more.
    until: Option<Instant>,
}

/// How far the queue of a disk was served.
enum Served {
    /// The driver will notify of more.
    Empty,
    /// There may be more.
    More,
    /// There is more, but the limits do not permit it for so long.
    Limited(Duration),
}

impl Service {
    /// A service for these slots, with the best engine that the host has or the one that is wanted.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn new(
        ram: GuestRam,
        disks: Vec<Arc<Disk>>,
        engine: Option<EngineKind>,
    ) -> Result<Self, Error> {
        Self::with_engine(ram, disks, Engine::new(engine)?)
    }

    pub(super) fn with_engine(
        ram: GuestRam,
        disks: Vec<Arc<Disk>>,
        engine: Engine,
    ) -> Result<Self, Error> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(Error::host("create an epoll instance"))?;
        let timer = Timer::new()?;
        let watch = |fd, data, flags| {
            epoll::add(&epoll, fd, epoll::EventData::new_u64(data), flags)
                .map_err(Error::host("watch a descriptor"))
        };
        for (index, disk) in (0..).zip(&disks) {
            // Each write to the eventfd is an event, so nobody needs to read it.
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            watch(disk.as_fd(), index, flags)?;
        }
        watch(timer.as_fd(), TIMER, epoll::EventFlags::IN)?;
        watch(engine.fd(), ENGINE, epoll::EventFlags::IN)?;
        let slot = |disk| Slot {
            disk,
            ready: false,
            used: false,
            until: None,
        };
        Ok(Self {
            engine,
            jobs: Jobs::default(),
            ram,
            disks: disks.into_iter().map(slot).collect(),
            epoll,
            timer,
            first: 0,
            done: Vec::with_capacity(MAX_RUNNING),
        })
    }

    /// Which engine does the work.
    #[must_use]
    pub fn engine(&self) -> EngineKind {
        self.engine.kind()
    }

    /// Has [`Service::turn`] come back when this descriptor, which stays open, becomes readable.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn wake_by(&mut self, fd: BorrowedFd<'_>) -> Result<(), Error> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(NOBODY), flags)
            .map_err(Error::host("watch a descriptor"))
    }

    /// Waits once and serves what there is.
    ///
    /// # Errors
    /// [`Error::Host`] when the host cannot go on.
    pub fn turn(&mut self) -> Result<(), Error> {
        self.wait()?;
        while self.round()? {}
        Ok(())
    }

    /// Ends what is running, takes nothing new, and calls `rest`; serves on when that returns.
    ///
    /// # Errors
    /// [`Error::Host`] when the host cannot go on.
    pub fn rest<T>(&mut self, rest: impl FnOnce() -> T) -> Result<(), Error> {
        loop {
            if !self.engine.submit()? {
                self.timer.set(SHORT_OF_MEMORY)?;
            }
            self.reap()?;
            self.tell();
            if self.jobs.is_empty() {
                break;
            }
            self.wait()?;
        }
        rest();
        while self.round()? {}
        Ok(())
    }

    /// Waits once and notes who is ready.
    fn wait(&mut self) -> Result<(), Error> {
        let mut events = Vec::with_capacity(16);
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            None,
        ) {
            // What the engine has to tell can come as an interruption.
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::host("wait for events")(error)),
        }
        for event in events {
            match event.data.u64() {
                ENGINE | NOBODY => {}
                TIMER => {
                    self.timer.clear();
                    for slot in &mut self.disks {
                        if slot.until.take().is_some() {
                            slot.ready |= std::mem::take(&mut lock(&slot.disk.state).limited);
                        }
                    }
                }
                index => {
                    let slot = usize::try_from(index).ok();
                    if let Some(slot) = slot.and_then(|index| self.disks.get_mut(index)) {
                        // The timer will see to a disk that is over its limits, however often its
                        // driver rings.
                        slot.ready |= !lock(&slot.disk.state).limited;
                    }
                }
            }
        }
        Ok(())
    }

    /// One round over all disks. Answers whether there is more to do without waiting.
    fn round(&mut self) -> Result<bool, Error> {
        let count = self.disks.len();
        let mut limited = false;
        for offset in 0..count {
            let index = (self.first + offset) % count;
            let ready = self.disks.get(index).is_some_and(|slot| slot.ready);
            if !ready {
                continue;
            }
            let served = self.serve(index)?;
            let Some(slot) = self.disks.get_mut(index) else {
                continue;
            };
            slot.ready = matches!(served, Served::More);
            if let Served::Limited(wait) = served {
                slot.until = Instant::now().checked_add(wait);
                limited = true;
            }
        }
        self.first = (self.first + 1) % count.max(1);
        if !self.engine.submit()? {
            self.timer.set(SHORT_OF_MEMORY)?;
        } else if limited {
            let first = self.disks.iter().filter_map(|slot| slot.until).min();
            let first = first.map(|until| until.saturating_duration_since(Instant::now()));
            self.timer.set(first.unwrap_or(SHORT_OF_MEMORY))?;
        }
        let ended = self.reap()?;
        self.tell();
        let more = self.disks.iter().any(|slot| slot.ready);
        Ok(ended || (more && !self.jobs.is_full()))
    }

    /// Takes requests from a disk's queue.
    fn serve(&mut self, index: usize) -> Result<Served, Error> {
        let Some(disk) = self.disks.get(index).map(|slot| Arc::clone(&slot.disk)) else {
            return Ok(Served::Empty);
        };
        let mut state = lock(&disk.state);
        for taken in 0..BATCH {
            if self.jobs.is_full() {
                return Ok(Served::More);
            }
            let result = self.serve_one(index, &disk, &mut state, taken > 0)?;
            match result {
                Ok(None) => {}
                Ok(Some(served)) => return Ok(served),
                Err(_) => {
                    state.fail();
                    drop(state);
                    disk.counters.failed();
                    disk.notifier.ask_for_reset();
                    return Ok(Served::Empty);
                }
            }
        }
        Ok(Served::More)
    }

    /// Takes one request; answers when there is none to take. After others in this round the driver is not asked to
    /// notify of more: the next round looks, once these have been given to the engine, and what the driver makes
    /// available meanwhile costs it no exit.
    fn serve_one(
        &mut self,
        index: usize,
        disk: &Arc<Disk>,
        state: &mut State,
        after_others: bool,
    ) -> Result<Result<Option<Served>, QueueError>, Error> {
        let target = Target {
            ram: &self.ram,
            read_only: disk.read_only(),
            sectors: state.sectors(),
        };
        let Some(queue) = state.queue.as_mut() else {
            return Ok(Ok(Some(Served::Empty)));
        };
        let mut chain = match queue.pop(&self.ram) {
            Ok(Some(chain)) => chain,
            Ok(None) if after_others => return Ok(Ok(Some(Served::More))),
            // Ask for a notification, and look once more for what came before the driver saw it.
            Ok(None) => {
                let more = queue.set_notifications(&self.ram, true);
                return Ok(more.map(|more| (!more).then_some(Served::Empty)));
            }
            Err(error) => return Ok(Err(error)),
        };
        let Some(request) = request::parse(&target, &mut chain) else {
            return Ok(Err(QueueError::Layout));
        };
        let bytes = request.work.as_ref().map_or(0, Work::bytes);
        if !state.limiter.is_unlimited()
            && let Err(wait) = state.limiter.take(bytes, Instant::now())
        {
            queue.undo_pop(&chain);
            state.limited = true;
            return Ok(Ok(Some(Served::Limited(wait))));
        }
        self.begin(index, disk, state, request)
    }

    /// Begins a request, or answers it at once.
    fn begin(
        &mut self,
        index: usize,
        disk: &Arc<Disk>,
        state: &mut State,
        request: Request,
    ) -> Result<Result<Option<Served>, QueueError>, Error> {
        let Request { head, status, work } = request;
        let file = state.file();
        let answer = match (work, file) {
            (Err(code), _) => Answer::new(head, status, code),
            (Ok(Work::Identify { mut to }), _) => {
                let written = request::identify(&self.ram, &disk.name, &mut to);
                let code = written.as_ref().map_or(Status::IoError, |_| Status::Ok);
                let filled = written.unwrap_or(0);
                Answer {
                    filled,
                    moved: filled.into(),
                    ..Answer::new(head, status, code)
                }
            }
            // A read-only disk has nothing to flush.
            (Ok(Work::Flush), Some(_)) if disk.read_only() => Answer::new(head, status, Status::Ok),
            (Ok(_), None) => Answer::new(head, status, Status::IoError),
            (Ok(work), Some(file)) => {
                let origin = Origin {
                    disk: index,
                    generation: state.generation,
                    head,
                    status,
                    file,
                    cached: state.cached,
                };
                match Job::new(origin, work) {
                    Ok(job) => {
                        state.running += 1;
                        return self.start(job, state);
                    }
                    Err((code, origin)) => Answer::new(head, origin.status, code),
                }
            }
        };
        Ok(self.answer(index, state, answer).map(|()| None))
    }

    fn start(
        &mut self,
        job: Job,
        state: &mut State,
    ) -> Result<Result<Option<Served>, QueueError>, Error> {
        let (index, token) = (job.disk, self.jobs.insert(job));
        match self.call(token)? {
            None => Ok(Ok(None)),
            Some(code) => {
                // Nothing was started.
                state.running -= 1;
                let Some(job) = self.jobs.remove(token) else {
                    return Ok(Ok(None));
                };
                let answer = Answer::new(job.head, job.status, code);
                Ok(self.answer(index, state, answer).map(|()| None))
            }
        }
    }

    /// Gives a job's next operation to the engine, or tells why there is none.
    fn call(&mut self, token: usize) -> Result<Option<Status>, Error> {
        let Some(job) = self.jobs.get(token) else {
            return Ok(None);
        };
        match job.call(&self.ram) {
            Ok(call) => {
                // SAFETY: the job stays in `jobs`, with its file and unchanged, until the engine has told
                // the operation's end, and `ram` holds the guest's memory longer than the engine: when
                // this service is dropped, `engine` waits for what is running before its other fields go.
                unsafe { self.engine.push(token, call) }?;
                Ok(None)
            }
            Err(code) => Ok(Some(code)),
        }
    }

    /// Takes what has ended. Answers whether that was anything.
    fn reap(&mut self) -> Result<bool, Error> {
        let mut done = std::mem::take(&mut self.done);
        self.engine.reap(&mut done);
        let any = !done.is_empty();
        for Done { token, result } in done.drain(..) {
            let Some(job) = self.jobs.get(token) else {
                continue;
            };
            let code = match job.ended(&result) {
                Next::Call => self.call(token)?,
                Next::End(code) => Some(code),
            };
            if let Some(code) = code
                && let Some(job) = self.jobs.remove(token)
            {
                self.end(job, code);
            }
        }
        self.done = done;
        Ok(any)
    }

    /// Gives back a job's request.
    fn end(&mut self, job: Job, code: Status) {
        let index = job.disk;
        let Some(disk) = self.disks.get(index).map(|slot| Arc::clone(&slot.disk)) else {
            return;
        };
        let generation = job.generation;
        let answer = Answer {
            head: job.head,
            filled: if code == Status::Ok { job.filled } else { 0 },
            moved: if code == Status::Ok { job.moved } else { 0 },
            status: job.status.clone(),
            code,
        };
        // With it goes the file: whoever hears that nothing is running may rely on that.
        drop(job);
        let mut state = lock(&disk.state);
        let mut failed = false;
        // A queue that was reset meanwhile has forgotten the request.
        if state.generation == generation && self.answer(index, &mut state, answer).is_err() {
            state.fail();
            failed = true;
        }
        state.running -= 1;
        if state.running == 0 {
            if let Some(ended) = state.ended.take() {
                let _ = ended.write(1);
            }
            disk.idle.notify_all();
        }
        drop(state);
        if failed {
            disk.notifier.ask_for_reset();
        }
    }

    /// Writes a status and puts the request into the used ring.
    fn answer(
        &mut self,
        index: usize,
        state: &mut State,
        mut answer: Answer,
    ) -> Result<(), QueueError> {
        let Some(slot) = self.disks.get_mut(index) else {
            return Ok(());
        };
        let Some(queue) = state.queue.as_mut() else {
            return Ok(());
        };
        answer
            .status
            .write(&self.ram, &[answer.code as u8])
            .map_err(|_| QueueError::Layout)?;
        slot.disk.counters.served(answer.moved);
        if answer.code != Status::Ok {
            slot.disk.counters.failed();
        }
        slot.used = true;
        queue.put_used(&self.ram, answer.head, answer.filled.saturating_add(1))
    }

    /// Shows the drivers what was used in this round, and interrupts those who want it.
    fn tell(&mut self) {
        for slot in &mut self.disks {
            if !std::mem::take(&mut slot.used) {
                continue;
            }
            let mut state = lock(&slot.disk.state);
            let Some(queue) = state.queue.as_mut() else {
                continue;
            };
            let wanted = queue
                .publish_used(&self.ram)
                .and_then(|()| queue.wants_interrupt(&self.ram));
            if wanted.is_err() {
                state.fail();
            }
            drop(state);
            match wanted {
                Ok(true) => slot.disk.notifier.used(0),
                Ok(false) => {}
                Err(_) => slot.disk.notifier.ask_for_reset(),
            }
        }
    }
}

/// What is answered to a request.
#[derive(Debug)]
struct Answer {
    head: u16,
    status: crate::virtio::buffers::Buffers,
    code: Status,
    filled: u32,
    moved: u64,
}

impl Answer {
    fn new(head: u16, status: crate::virtio::buffers::Buffers, code: Status) -> Self {
        Self {
            head,
            status,
            code,
            filled: 0,
            moved: 0,
        }
    }
}

/// The jobs in the engine, by their tokens.
#[derive(Debug, Default)]
struct Jobs {
    jobs: Vec<Option<Job>>,
    free: Vec<usize>,
}

impl Jobs {
    /// Whether the engine shall get no more.
    fn is_full(&self) -> bool {
        self.jobs.len() - self.free.len() >= MAX_RUNNING
    }

    fn is_empty(&self) -> bool {
        self.jobs.len() == self.free.len()
    }

    fn insert(&mut self, job: Job) -> usize {
        if let Some(token) = self.free.pop()
            && let Some(place) = self.jobs.get_mut(token)
        {
            *place = Some(job);
            return token;
        }
        self.jobs.push(Some(job));
        self.jobs.len() - 1
    }

    fn get(&mut self, token: usize) -> Option<&mut Job> {
        self.jobs.get_mut(token)?.as_mut()
    }

    fn remove(&mut self, token: usize) -> Option<Job> {
        let job = self.jobs.get_mut(token)?.take()?;
        self.free.push(token);
        Some(job)
    }
}
