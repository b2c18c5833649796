//! The engine in a process of its own, for it waits for all its children, and what starts it.

use super::{EXECS, Round, spec};
use crate::artifacts::artifact;
use anyhow::{Context, Result, ensure};
use bulkhead_agent::deadline::Deadline;
use bulkhead_agent::engine::{
    Backing, CreateSpec, Engine, ExecSpec, Image, Paths, PidNamespace, StdioSpec,
};
use bulkhead_agent::id::Id;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The argument that makes the benchmark's program a worker; the next one is the directory.
pub const ARGUMENT: &str = "engine-worker";

/// The other process.
pub(super) struct Worker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Worker {
    pub(super) fn start(base: &Path) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(ARGUMENT)
            .arg(base)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().context("No stdin")?;
        let output = BufReader::new(child.stdout.take().context("No stdout")?);
        Ok(Self {
            child,
            input,
            output,
        })
    }

    pub(super) fn round(&mut self) -> Result<Round> {
        writeln!(self.input, "round")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).context("The engine's worker ended")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Its containers are removed at the end of each round.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Directories(PathBuf);

#[async_trait::async_trait]
impl Backing for Directories {
    async fn image(&self, _: &str, _: Deadline) -> bulkhead_agent::Result<Arc<Image>> {
        Ok(Arc::new(Image::directory(self.0.join("image"))))
    }

    fn scratch(&self) -> bulkhead_agent::Result<PathBuf> {
        Ok(self.0.join("scratch"))
    }
}

/// What the worker does: a round for each line of stdin, its figures to stdout.
///
/// # Errors
/// A container did not run.
pub fn work(base: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        fs::create_dir_all(base.join("scratch"))?;
        let paths = Paths {
            cgroup: "/sys/fs/cgroup/bulkhead-bench".into(),
            mount_point: base.join("mount"),
        };
        let program = fs::File::open(artifact("bin/bulkhead-agent"))?;
        let engine = Engine::new(
            paths,
            program.into(),
            Arc::new(Directories(base.to_owned())),
        )?;
        engine.prepare().await?;
        for (number, line) in std::io::stdin().lines().enumerate() {
            line?;
            let round = round(&engine, number).await?;
            println!("{}", serde_json::to_string(&round)?);
        }
        Ok(())
    })
}

async fn round(engine: &Engine, number: usize) -> Result<Round> {
    let ms = |began: Instant| began.elapsed().as_secs_f64() * 1e3;
    let id = Id::parse("Container", &format!("c{number}"))?;
    let create = CreateSpec {
        id: id.clone(),
        spec: spec(&["sleep", "1000000"])?.to_string().into_bytes(),
        image_disk: String::new(),
        stdio: StdioSpec::default(),
        user: String::new(),
        strict_groups: false,
        pid: PidNamespace::Spec,
        guest_devices: false,
        block_devices: Vec::new(),
    };
    let process = spec(&["true"])?["process"].to_string().into_bytes();
    let began = Instant::now();
    engine.create(create, Deadline::NEVER).await?;
    let create = ms(began);
    let began = Instant::now();
    engine.start(&id).await?;
    let start = ms(began);
    let mut execs = Vec::new();
    for exec in 0..EXECS {
        let spec = ExecSpec {
            exec_id: Id::parse("Exec", &format!("e{exec}"))?,
            process: process.clone(),
            stdio: StdioSpec::default(),
            user: String::new(),
            strict_groups: false,
        };
        let last = engine.events().last();
        let began = Instant::now();
        engine.exec(&id, spec).await?;
        engine.events().wait(last).await;
        execs.push(ms(began));
    }
    let began = Instant::now();
    engine.remove(&id).await?;
    Ok(Round {
        create,
        start,
        execs,
        remove: ms(began),
    })
}

/// Resident memory in bytes of the agent as PID 1 of its own namespaces, when nothing happens.
pub(super) fn idle_memory(agent: &Path, base: &Path) -> Result<u64> {
    let tree = base.join("guest");
    for name in ["dev", "proc", "sys", "run", "tmp", "root"] {
        fs::create_dir_all(tree.join(name))?;
    }
    fs::copy(agent, tree.join("init"))?;
    let mut unshare = Command::new("unshare")
        .args([
            "--fork",
            "--kill-child",
            "--pid",
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "chroot",
        ])
        .arg(&tree)
        .arg("/init")
        .spawn()?;
    // It has made its cgroup when it has done all that it does by itself.
    let cgroup = Path::new("/sys/fs/cgroup/bulkhead");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !cgroup.join("memory.max").exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_secs(1));
    let children = format!("/proc/{0}/task/{0}/children", unshare.id());
    let pid = fs::read_to_string(children)?;
    let status = fs::read_to_string(format!("/proc/{}/status", pid.trim()))
        .context("The agent did not stay")?;
    unshare.kill()?;
    unshare.wait()?;
    ensure!(
        cgroup.join("memory.max").exists(),
        "The agent did not get ready"
    );
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line
        .and_then(|line| line.split_whitespace().next())
        .context("No VmRSS")?;
    Ok(kib.parse::<u64>()? * 1024)
}
