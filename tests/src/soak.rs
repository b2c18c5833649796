//! Lives of pods, one after another, and what the daemon keeps of them: nothing.

use crate::node::Node;
use crate::pod::{Pod, container, exec};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long what a life has used takes to go: idle threads live for ten seconds, and free memory goes back to the
/// node five seconds after a pod.
const QUIET: Duration = Duration::from_secs(16);
/// How long it may take.
const SETTLE: Duration = Duration::from_secs(40);

/// What the daemon has.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Resident memory that is its own, KiB.
    pub memory_kib: u64,
}

/// What a soak has found.
#[derive(Debug)]
pub struct Report {
    /// After the first lives, which fill caches.
    pub before: Held,
    /// After each quarter of the lives: what grows on and on shows here.
    pub quarters: Vec<Held>,
    /// After all.
    pub after: Held,
    /// What is left on the node.
    pub leaks: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

/// Runs `warm` lives of pods and then `lives` more, `at_once` together: run, create, start, exec, stop,
/// remove.
///
/// # Errors
/// A call failed.
pub async fn run(node: &Node, image: &str, [warm, lives, at_once]: [usize; 3]) -> Result<Report> {
    rounds(node, image, "warm", [warm, at_once]).await?;
    let before = settled(node, None).await?;
    let began = Instant::now();
    let mut quarters = Vec::new();
    for quarter in 0..4 {
        let name = format!("life-{quarter}");
        rounds(node, image, &name, [lives.div_ceil(4), at_once]).await?;
        quarters.push(settled(node, Some(before)).await?);
    }
    let took = began.elapsed();
    let after = *quarters.last().context("There are four")?;
    Ok(Report {
        before,
        quarters,
        after,
        leaks: node.leaks(),
        took,
    })
}

impl Report {
    /// Whether nothing is left, no descriptor and no thread.
    ///
    /// # Errors
    /// Something is; what is more is in the message.
    pub fn check_counts(&self) -> Result<()> {
        let (before, after) = (self.before, self.after);
        ensure!(self.leaks.is_empty(), "Left behind: {:?}", self.leaks);
        ensure!(
            after.descriptors <= before.descriptors && after.threads <= before.threads,
            "The daemon has more than before: {self:?}"
        );
        Ok(())
    }

    /// Whether everything is as it was, memory within a tenth.
    ///
    /// # Errors
    /// It is not; what is more is in the message.
    pub fn check(&self) -> Result<()> {
        self.check_counts()?;
        let most = self.before.memory_kib + self.before.memory_kib / 10;
        ensure!(
            self.after.memory_kib <= most,
            "The daemon has more memory than before: {self:?}"
        );
        Ok(())
    }
}

async fn rounds(node: &Node, image: &str, name: &str, [lives, at_once]: [usize; 2]) -> Result<()> {
    for first in (0..lives).step_by(at_once) {
        let last = lives.min(first + at_once);
        let together = (first..last).map(|number| life(node, image, format!("{name}-{number}")));
        futures::future::try_join_all(together).await?;
        if let Some(pid) = node.pid() {
            println!("{name}: {last} of {lives}, the daemon has {:?}", held(pid)?);
        }
    }
    Ok(())
}

async fn life(node: &Node, image: &str, name: String) -> Result<()> {
    let pod = Pod::run(node, &name).await?;
    let id = pod
        .start(container("app", image, &["sleep", "100000"]))
        .await?;
    let output = exec(node, &id, &["echo", &name], 60).await?;
    ensure!(
        output.stdout == format!("{name}\n").as_bytes(),
        "{output:?}"
    );
    pod.remove().await?;
    Ok(())
}

/// What the daemon has when no more goes away.
async fn settled(node: &Node, before: Option<Held>) -> Result<Held> {
    let pid = node.pid().context("The daemon is gone")?;
    let began = Instant::now();
    loop {
        let now = held(pid)?;
        let enough = before.is_some_and(|before| {
            now.descriptors <= before.descriptors && now.threads <= before.threads
        });
        if began.elapsed() > SETTLE || (before.is_none() || enough) && began.elapsed() >= QUIET {
            return Ok(now);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// What a process has.
///
/// # Errors
/// It is gone.
pub fn held(pid: u32) -> Result<Held> {
    let count = |name: &str| -> Result<usize> {
        Ok(std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join(name))?.count())
    };
    Ok(Held {
        descriptors: count("fd")?,
        threads: count("task")?,
        memory_kib: private_kib(pid)?,
    })
}

/// Memory of a process that it shares with no other.
fn private_kib(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let fields = text.lines().filter(|line| line.starts_with("Private_"));
    let sizes = fields.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    Ok(sizes.sum())
}
