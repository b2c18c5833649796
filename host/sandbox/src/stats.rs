//! Figures of pods and containers.
//!
//! Those of a pod as a whole are the host's, from the pod's cgroup: the VM's memory and time, with
//! all that its guest's kernel and agent use. Those of containers and interfaces are the guest's
//! word. All guests are asked at once, each by one call with a deadline; one that did not answer is
//! asked in the background from then on, so that it delays nobody a second time.

mod rate;

use crate::agent::{Agent, STATS_DEADLINE};
use crate::container::Container;
use crate::error::Kind;
use crate::phases::{monotonic_ns, wall_clock_ns};
use crate::record::{ContainerRecord, ContainerState, SandboxRecord, SandboxState};
use crate::sandbox::Sandbox;
use crate::{Result, SandboxError, Sandboxes};
use bulkhead_agent_api::agent::{ContainerStats, InterfaceCounters, StatsResponse};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

pub(crate) use rate::Rate;

/// How long a guest may take when many are asked.
const LIST_DEADLINE: Duration = Duration::from_secs(2);
/// Between two questions to a guest that does not answer.
const PROBE_PAUSE: Duration = Duration::from_secs(5);
/// Guests that are asked at the same time by one call.
const AT_ONCE: usize = 64;
/// Interfaces of a pod that are told; a guest can have made any number.
const MAX_INTERFACES: usize = 64;
/// The longest name of an interface, IFNAMSIZ without its end.
const MAX_INTERFACE_NAME: usize = 15;

/// The figures of a container that runs.
#[derive(Debug, Clone)]
pub struct ContainerFigures {
    /// Whose.
    pub record: ContainerRecord,
    /// As the agent tells them.
    pub stats: ContainerStats,
    /// Billionths of a CPU that it used between the newest two samples.
    pub nano_cores: Option<u64>,
}

/// The figures of a pod that is ready.
#[derive(Debug, Clone)]
pub struct PodFigures {
    /// Whose.
    pub record: SandboxRecord,
    /// When the host's figures were read, nanoseconds since the epoch.
    pub at: i64,
    /// Those of the pod's cgroup on the host. What its controllers do not count is absent.
    pub host: ContainerStats,
    /// Billionths of a CPU that the pod used between the newest two samples.
    pub nano_cores: Option<u64>,
    /// What the guest says; nothing if it did not answer.
    pub guest: Option<GuestFigures>,
}

/// What a guest says of itself.
#[derive(Debug, Clone, Default)]
pub struct GuestFigures {
    /// Its running containers.
    pub containers: Vec<ContainerFigures>,
    /// Its network interfaces.
    pub interfaces: Vec<InterfaceCounters>,
}

/// Whether a guest has failed to answer, and is asked in the background.
#[derive(Debug, Default)]
pub(crate) struct Silence {
    silent: AtomicBool,
}

impl Sandboxes {
    /// The figures of those of these containers that run. A pod that does not answer is left out,
    /// for the others are asked for too.
    pub async fn container_figures(
        &self,
        containers: Vec<Arc<Container>>,
    ) -> Vec<ContainerFigures> {
        let mut pods: BTreeMap<String, Vec<Arc<Container>>> = BTreeMap::new();
        for container in containers {
            if matches!(container.state(), ContainerState::Running { .. }) {
                let pod = container.sandbox.id();
                pods.entry(pod).or_default().push(container);
            }
        }
        let asked = pods.into_values().map(async |containers| {
            let first = containers.first()?;
            let answer = ask_quickly(&first.sandbox, ids(&containers)).await?;
            Some(of_containers(&containers, answer.containers))
        });
        let answers = all_at_once(asked).await;
        answers.into_iter().flatten().flatten().collect()
    }

    /// The figures of those of these pods that are ready.
    pub async fn pod_figures(&self, pods: Vec<Arc<Sandbox>>) -> Vec<PodFigures> {
        let ready = pods
            .into_iter()
            .filter(|pod| pod.record().state == SandboxState::Ready);
        let asked = ready.map(async |pod| {
            let answer = ask_quickly(&pod, Vec::new()).await;
            pod.figures_with(answer).await
        });
        all_at_once(asked).await
    }
}

impl Container {
    /// Its figures.
    ///
    /// # Errors
    /// [`SandboxError::WrongState`] unless it runs, those of the agent.
    pub async fn figures(self: &Arc<Self>) -> Result<ContainerFigures> {
        if !matches!(self.state(), ContainerState::Running { .. }) {
            return Err(self.wrong_state("only a running container has figures"));
        }
        let asked = [Arc::clone(self)];
        let agent = &self.sandbox.running()?.agent;
        let answer = agent.stats(ids(&asked), STATS_DEADLINE).await?;
        let found = of_containers(&asked, answer.containers);
        found.into_iter().next().ok_or(SandboxError::NotFound {
            what: "container",
            id: self.id().to_owned(),
        })
    }
}

impl Sandbox {
    /// Its figures; without those of the guest if it does not answer.
    ///
    /// # Errors
    /// [`SandboxError::WrongState`] unless it is ready.
    pub async fn figures(self: &Arc<Self>) -> Result<PodFigures> {
        self.running()?;
        let answer = ask_quickly(self, Vec::new()).await;
        Ok(self.figures_with(answer).await)
    }

    async fn figures_with(&self, answer: Option<StatsResponse>) -> PodFigures {
        let host = self.cgroup().figures().await;
        let used = host.cpu.as_ref().map(|cpu| cpu.usage_us);
        PodFigures {
            record: self.record(),
            at: wall_clock_ns(),
            nano_cores: used.and_then(|used| self.rate.nano_cores(monotonic_ns(), used)),
            host,
            guest: answer.map(|answer| GuestFigures {
                containers: of_containers(&self.containers(), answer.containers),
                interfaces: told(answer.interfaces),
            }),
        }
    }
}

/// Runs all, no more than [`AT_ONCE`] at the same time; the answers are in the order of the
/// questions.
async fn all_at_once<T: Send + 'static>(
    questions: impl Iterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let tasks: Vec<_> = questions
        .map(|question| {
            let permits = Arc::clone(&permits);
            tokio::spawn(async move {
                // The semaphore is never closed.
                let _permit = permits.acquire().await;
                question.await
            })
        })
        .collect();
    let mut answers = Vec::with_capacity(tasks.len());
    for task in tasks {
        match task.await {
            Ok(answer) => answers.push(answer),
            Err(error) => tracing::error!(%error, "A task that reads figures failed"),
        }
    }
    answers
}

/// Asks a guest unless it is known not to answer.
async fn ask_quickly(sandbox: &Arc<Sandbox>, ids: Vec<String>) -> Option<StatsResponse> {
    if sandbox.silence.silent.load(Ordering::Acquire) {
        return None;
    }
    let agent = sandbox.running().ok()?.agent.clone();
    match agent.stats(ids, LIST_DEADLINE).await {
        Ok(answer) => Some(answer),
        Err(error) => {
            let pod = sandbox.id();
            tracing::warn!(pod, %error, "The guest tells no figures");
            if error.kind() == Kind::DeadlineExceeded
                && !sandbox.silence.silent.swap(true, Ordering::AcqRel)
            {
                tokio::spawn(probe(Arc::clone(sandbox), agent));
            }
            None
        }
    }
}

/// Asks a silent guest until it answers or is gone.
async fn probe(sandbox: Arc<Sandbox>, agent: Agent) {
    while sandbox.running().is_ok() {
        let none = vec![String::from("none")];
        match agent.stats(none, STATS_DEADLINE).await {
            Err(error) if error.kind() == Kind::DeadlineExceeded => {}
            _ => break,
        }
        tokio::time::sleep(PROBE_PAUSE).await;
    }
    sandbox.silence.silent.store(false, Ordering::Release);
}

fn ids(containers: &[Arc<Container>]) -> Vec<String> {
    containers.iter().map(|one| one.id().to_owned()).collect()
}

/// Figures of the containers of one pod that run. What the agent says of others is dropped.
fn of_containers(
    containers: &[Arc<Container>],
    figures: Vec<ContainerStats>,
) -> Vec<ContainerFigures> {
    let mut figures: HashMap<String, ContainerStats> = figures
        .into_iter()
        .map(|stats| (stats.container_id.clone(), stats))
        .collect();
    let now = monotonic_ns();
    let found = containers.iter().filter_map(|one| {
        if !matches!(one.state(), ContainerState::Running { .. }) {
            return None;
        }
        let stats = figures.remove(one.id())?;
        let used = stats.cpu.as_ref().map(|cpu| cpu.usage_us);
        Some(ContainerFigures {
            record: one.record(),
            nano_cores: used.and_then(|used| one.rate.nano_cores(now, used)),
            stats,
        })
    });
    found.collect()
}

/// The interfaces that can be real.
fn told(interfaces: Vec<InterfaceCounters>) -> Vec<InterfaceCounters> {
    let plausible = interfaces.into_iter().filter(|one| {
        let name = one.name.as_bytes();
        (1..=MAX_INTERFACE_NAME).contains(&name.len()) && name.iter().all(u8::is_ascii_graphic)
    });
    plausible.take(MAX_INTERFACES).collect()
}

#[cfg(test)]
mod tests {
    use super::{AT_ONCE, MAX_INTERFACES, all_at_once, told};
    use bulkhead_agent_api::agent::InterfaceCounters;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn questions_are_asked_together_but_not_too_many() {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let questions = (0..3 * AT_ONCE).map(|number| {
            let (now, most) = (now.clone(), most.clone());
            async move {
                let count = now.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(count, Ordering::SeqCst);
                tokio::task::yield_now().await;
                now.fetch_sub(1, Ordering::SeqCst);
                number
            }
        });
        let answers = all_at_once(questions).await;
        assert_eq!(answers, (0..3 * AT_ONCE).collect::<Vec<_>>());
        assert!((2..=AT_ONCE).contains(&most.load(Ordering::SeqCst)));
    }

    #[test]
    fn a_guest_cannot_tell_of_any_interface() {
        let named = |name: &str| {
            let mut interface = InterfaceCounters::new();
            interface.name = name.to_owned();
            interface
        };
        let bad = ["", "a name", "0123456789abcdef", "a\nb"]
            .map(named)
            .to_vec();
        assert!(told(bad).is_empty());
        let many = (0..1000).map(|number| named(&format!("eth{number}")));
        assert_eq!(told(many.collect()).len(), MAX_INTERFACES);
    }
}
