//! A daemon of one's own, with its directories, and clients of its socket.

use crate::artifacts::artifact;
use crate::leaks::Snapshot;
use anyhow::{Context, Result, bail, ensure};
use bulkhead_cri::v1::image_service_client::ImageServiceClient;
use bulkhead_cri::v1::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// Puts the daemon's command line behind something, such as `unshare`.
pub type Wrapper = fn(&Path) -> Command;

/// Changes a configuration.
pub type Configure = Box<dyn FnOnce(&mut toml::Table)>;

/// A node: a running daemon.
pub struct Node {
    directory: TempDir,
    daemon: Option<Child>,
    channel: Channel,
    before: Snapshot,
}

/// How a node is to differ from the usual.
#[derive(Default)]
pub struct Options {
    /// Changes the configuration.
    pub configure: Option<Configure>,
    /// Runs the daemon behind another program.
    pub wrapper: Option<Wrapper>,
}

impl Options {
    /// Pods of processes instead of VMs: quick, and many fit on a machine. They isolate nothing and have no
    /// network; see `tests/src/bin/process_vm/main.rs`.
    #[must_use]
    pub fn processes() -> Self {
        let program = artifact("bin/bulkhead-vmm-process").display().to_string();
        let configure: Configure = Box::new(|config| {
            config.insert("vmm".to_owned(), toml::Value::String(program));
        });
        Self {
            configure: Some(configure),
            wrapper: None,
        }
    }
}

impl Node {
    /// Starts a daemon with the usual configuration.
    ///
    /// # Errors
    /// It does not start; its own words are in the error.
    pub async fn start() -> Result<Self> {
        Self::start_with(Options::default()).await
    }

    /// Starts a daemon.
    ///
    /// # Errors
    /// It does not start; its own words are in the error.
    pub async fn start_with(options: Options) -> Result<Self> {
        let before = Snapshot::take(None, None);
        let directory = TempDir::with_prefix("bulkhead-node-")?;
        let mut config = default_config(directory.path());
        if let Some(configure) = options.configure {
            configure(&mut config);
        }
        std::fs::write(
            directory.path().join("config.toml"),
            toml::to_string(&config)?,
        )?;
        let daemon = start_daemon(directory.path(), options.wrapper)?;
        let channel = connect(&directory.path().join("bulkhead.sock")).await?;
        Ok(Self {
            directory,
            daemon: Some(daemon),
            channel,
            before,
        })
    }

    /// A client of the runtime service.
    #[must_use]
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        // As the kubelet's client.
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(16 << 20)
    }

    /// A client of the image service.
    #[must_use]
    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone())
    }

    /// A connection to its socket.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A directory of this node's that goes with it.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The command line tool, as a client of this daemon.
    #[must_use]
    pub fn cli(&self) -> Command {
        let mut command = Command::new(artifact("bin/bulkhead"));
        command.env("BULKHEAD_SOCKET", self.path().join("bulkhead.sock"));
        command
    }

    /// The daemon's process id; nothing once it has ended.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// What the daemon has logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("daemon.log")).unwrap_or_default()
    }

    /// What pods have left on the node since it was started.
    #[must_use]
    pub fn leaks(&self) -> Vec<String> {
        let state = self.path().join("state");
        let daemon = self.daemon.as_ref().map(Child::id);
        Snapshot::take(Some(&state), daemon).since(&self.before)
    }

    /// Ends the daemon as a service manager does; its pods go on.
    ///
    /// # Errors
    /// It did not end well.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.terminate()?;
        ensure!(status.success(), "The daemon ended with {status}");
        Ok(())
    }

    /// Starts the daemon again after [`Node::stop`].
    ///
    /// # Errors
    /// It does not start.
    pub async fn restart(&mut self) -> Result<()> {
        self.daemon = Some(start_daemon(self.directory.path(), None)?);
        self.channel = connect(&self.path().join("bulkhead.sock")).await?;
        Ok(())
    }

    /// Kills the daemon as `kill -9` does and starts it again.
    ///
    /// # Errors
    /// It does not start again.
    pub async fn kill_and_restart(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("The daemon is gone")?;
        daemon.kill()?;
        daemon.wait()?;
        self.daemon = Some(start_daemon(self.directory.path(), None)?);
        self.channel = connect(&self.path().join("bulkhead.sock")).await?;
        Ok(())
    }

    /// Ends the daemon as a service manager does, and checks that nothing of a pod is left and that no
    /// VMM made a system call that its filter forbids.
    ///
    /// # Errors
    /// Something is left, a filter struck, or the daemon did not end well.
    pub fn finish(self) -> Result<()> {
        ensure!(
            !self.log().contains("seccomp"),
            "A seccomp filter killed a VMM:\n{}",
            self.log()
        );
        self.finish_after_seccomp_violation()
    }

    /// As [`Node::finish`], after a test in which a filter was to strike.
    ///
    /// # Errors
    /// Something is left, or the daemon did not end well.
    pub fn finish_after_seccomp_violation(mut self) -> Result<()> {
        let leaks = self.leaks();
        ensure!(
            leaks.is_empty(),
            "Left behind:\n{}\n{}",
            leaks.join("\n"),
            self.log()
        );
        let status = self.terminate()?;
        ensure!(
            status.success(),
            "The daemon ended with {status}:\n{}",
            self.log()
        );
        Ok(())
    }

    fn terminate(&mut self) -> Result<ExitStatus> {
        let mut daemon = self.daemon.take().context("The daemon is gone")?;
        let pid = rustix::process::Pid::from_child(&daemon);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        Ok(daemon.wait()?)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Only after a test that failed: take everything along, so that the next one starts clean.
        if let Some(mut daemon) = self.daemon.take() {
            eprintln!("--- the daemon's log\n{}---", self.log());
            let _ = daemon.kill();
            let _ = daemon.wait();
            for leak in Snapshot::take(None, None).since(&self.before) {
                if let Some(path) = leak.strip_prefix("cgroup ") {
                    let _ = std::fs::write(Path::new(path).join("cgroup.kill"), "1");
                }
            }
        }
    }
}

/// A configuration with everything below one directory and from `out/`.
#[must_use]
pub fn default_config(directory: &Path) -> toml::Table {
    let text = |path: PathBuf| toml::Value::String(path.display().to_string());
    let runtime: toml::Table = [
        ("kernel".to_owned(), text(artifact("vmlinux"))),
        ("initramfs".to_owned(), text(artifact("initramfs"))),
        ("boot_timeout_seconds".to_owned(), toml::Value::Integer(60)),
    ]
    .into_iter()
    .collect();
    let runtimes: toml::Table = [("bulkhead".to_owned(), toml::Value::Table(runtime))]
        .into_iter()
        .collect();
    // The tests of networks bring their own.
    let network: toml::Table = [("mode".to_owned(), toml::Value::String("none".to_owned()))]
        .into_iter()
        .collect();
    [
        ("network".to_owned(), toml::Value::Table(network)),
        ("root".to_owned(), text(directory.join("root"))),
        ("state".to_owned(), text(directory.join("state"))),
        ("socket".to_owned(), text(directory.join("bulkhead.sock"))),
        ("vmm".to_owned(), text(artifact("bin/bulkhead-vmm"))),
        ("file_daemon".to_owned(), text(artifact("bin/bulkhead-fs"))),
        ("kubelet".to_owned(), text(directory.join("kubelet"))),
        ("runtimes".to_owned(), toml::Value::Table(runtimes)),
    ]
    .into_iter()
    .collect()
}

fn start_daemon(directory: &Path, wrapper: Option<Wrapper>) -> Result<Child> {
    let program = artifact("bin/bulkhead");
    let mut command = match wrapper {
        Some(wrapper) => wrapper(&program),
        None => Command::new(&program),
    };
    let mut daemon = command
        .arg("serve")
        .arg("--config")
        .arg(directory.join("config.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("Cannot start {}", program.display()))?;
    let stderr = daemon
        .stderr
        .take()
        .context("The daemon has no standard error")?;
    let log = directory.join("daemon.log");
    let (sender, served) = mpsc::channel();
    std::thread::spawn(move || follow(stderr, &log, &sender));
    match served.recv() {
        Ok(()) => Ok(daemon),
        Err(_) => {
            let status = daemon.wait()?;
            let words = std::fs::read_to_string(directory.join("daemon.log"))?;
            bail!("The daemon ended with {status}: {words}")
        }
    }
}

/// Keeps the daemon's log, and tells when it says that it serves.
fn follow(stderr: impl std::io::Read, log: &Path, serves: &mpsc::Sender<()>) {
    let Ok(mut file) = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
    else {
        return;
    };
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        // A test that does not wait any more is not interested.
        let _ = std::io::Write::write_all(&mut file, format!("{line}\n").as_bytes());
        if line.contains("Serving") {
            let _ = serves.send(());
        }
    }
}

pub(crate) async fn connect(socket: &Path) -> Result<Channel> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Ok(Endpoint::from_static("http://bulkhead")
        .connect_with_connector(connector)
        .await?)
}
