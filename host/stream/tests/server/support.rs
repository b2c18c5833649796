//! A backend of ordinary processes.

use async_trait::async_trait;
use bulkhead_stream::{
    AttachRequest, Backend, ExecRequest, ForwardRequest, Limits, Process, Reader, Server,
    ServerConfig, Size, Urls, Wants, Writer,
};
use futures_util::FutureExt;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::process::Command;

pub(crate) struct Local;

/// With the terminal's size, which it gets whenever the client says one.
fn terminal(command: &mut Command) -> std::io::Result<OwnedFd> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let slave = || {
        File::options()
            .read(true)
            .write(true)
            .open(name.to_str().unwrap())
    };
    command.stdin(slave()?).stdout(slave()?).stderr(slave()?);
    Ok(master)
}

#[async_trait]
impl Backend for Local {
    async fn exec(&self, request: &ExecRequest) -> Result<Process, String> {
        let wants = request.wants;
        let words = match wants.tty {
            // Who runs the tests in the background of a shell has SIGINT ignored; a terminal's command has not.
            true => "env --default-signal=INT,QUIT setsid --ctty --wait --"
                .split(' ')
                .map(str::to_owned)
                .chain(request.command.iter().cloned())
                .collect(),
            false => request.command.clone(),
        };
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        let pipe = |wanted: bool| {
            if wanted {
                Stdio::piped()
            } else {
                Stdio::null()
            }
        };
        command.kill_on_drop(true);
        command
            .stdin(pipe(wants.stdin))
            .stdout(pipe(wants.stdout))
            .stderr(pipe(wants.stderr));
        let mut master = None;
        if wants.tty {
            master = Some(terminal(&mut command).map_err(|error| error.to_string())?);
        }
        let mut child = command
            .spawn()
            .map_err(|error| format!("{}: {error}", words[0]))?;
        drop(command);
        let file = |fd: &OwnedFd| tokio::fs::File::from_std(fd.try_clone().unwrap().into());
        let (stdin, stdout): (Option<Writer>, Option<Reader>) = match &master {
            Some(fd) => (Some(Box::new(file(fd))), Some(Box::new(file(fd)))),
            None => (
                child.stdin.take().map(|pipe| Box::new(pipe) as Writer),
                child.stdout.take().map(|pipe| Box::new(pipe) as Reader),
            ),
        };
        let stderr = child.stderr.take().map(|pipe| Box::new(pipe) as Reader);
        let set_size = move |Size { width, height }: Size| {
            let size = Winsize {
                ws_row: height,
                ws_col: width,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            master.as_ref().map(|master| tcsetwinsize(master, size));
            std::future::ready(()).boxed()
        };
        let exit = async move {
            let status = child.wait().await.map_err(|error| error.to_string())?;
            let signal = || status.signal().map(|signal| 128 + signal);
            (status.code().or_else(signal)).ok_or_else(|| "it has no status".to_owned())
        };
        Ok(Process {
            stdin: stdin.filter(|_| wants.stdin),
            stdout: stdout.filter(|_| wants.stdout),
            stderr,
            resize: Box::new(set_size),
            exit: exit.boxed(),
        })
    }

    /// "Attaches" to a process that ends with its input, as a session that is detached does.
    async fn attach(&self, request: &AttachRequest) -> Result<Process, String> {
        let command = ["cat"].map(str::to_owned).to_vec();
        let (container, wants) = (request.container.clone(), request.wants);
        self.exec(&ExecRequest {
            container,
            command,
            wants,
        })
        .await
    }

    async fn forward(&self, _: &str, port: u16) -> Result<(Reader, Writer), String> {
        let socket = TcpStream::connect(("127.0.0.1", port)).await;
        let (reader, writer) = socket.map_err(|error| error.to_string())?.into_split();
        Ok((Box::new(reader), Box::new(writer)))
    }
}

pub(crate) struct Running {
    pub(crate) _server: Server,
    pub(crate) urls: Urls,
}

pub(crate) async fn start(limits: Limits) -> Running {
    let address = "127.0.0.1:0".parse().unwrap();
    let config = ServerConfig {
        address,
        tls: None,
        limits,
    };
    let server = Server::start(config, Arc::new(Local)).await.unwrap();
    let urls = server.urls();
    Running {
        _server: server,
        urls,
    }
}

pub(crate) fn wants(streams: &str) -> Wants {
    Wants {
        stdin: streams.contains("stdin"),
        stdout: streams.contains("stdout"),
        stderr: streams.contains("stderr"),
        tty: streams.contains("tty"),
    }
}

impl Running {
    pub(crate) fn exec(&self, streams: &str, command: &[&str]) -> String {
        let request = ExecRequest {
            container: "container".to_owned(),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            wants: wants(streams),
        };
        self.urls.exec(request).unwrap()
    }

    pub(crate) fn shell(&self, streams: &str, script: &str) -> String {
        self.exec(streams, &["sh", "-c", script])
    }

    pub(crate) fn attach(&self, streams: &str) -> String {
        let (container, wants) = ("container".to_owned(), wants(streams));
        self.urls
            .attach(AttachRequest { container, wants })
            .unwrap()
    }

    pub(crate) fn forward(&self, ports: &[u16]) -> String {
        let (pod, ports) = ("pod".to_owned(), ports.to_vec());
        self.urls.forward(ForwardRequest { pod, ports }).unwrap()
    }
}

/// Waits for a process to be gone, however long that takes on a busy machine.
pub(crate) async fn is_gone(pid: &str) {
    let path = format!("/proc/{}", pid.trim());
    let gone = async {
        while std::fs::exists(&path).unwrap() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone)
        .await
        .unwrap();
}
