//! Pods on a bridge that CNI plugins make: Bulkhead's beside containerd's with runc, and QEMU's `microvm`,
//! whose tap is a port of the same bridge. All of them run the same program against the host.

use super::figures::{Figures, Samples, table};
use super::net::{LENGTH, requests};
use super::peer::Containerd;
use super::servers::{Pod, Server};
use super::vms::{Guest, HOST, Kind, Parts, rounds};
use crate::node::{Node, Options};
use crate::pod;
use crate::registry::Registry;
use anyhow::{Context, Result, ensure};
use bulkhead_cri::v1;
use serde_json::json;
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const RUNS: usize = 5;
const BRIDGE: &str = "bench-bridge";
/// The handler whose packets the node's kernel moves.
const VHOST: &str = "vhost";
/// After this long without a packet no more are expected.
const SILENCE: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Row {
    name: &'static str,
    /// Bytes a second.
    to_host: Figures,
    from_host: Figures,
    /// One at a time, a second.
    requests: Figures,
    connections: Figures,
    /// Datagrams of 64 bytes that arrived at the host, a second.
    packets: Figures,
    /// RunPodSandbox, and the part of it that was CNI's.
    sandbox: Samples,
    plugins: Samples,
}

impl Row {
    fn named(name: &'static str) -> Self {
        Self {
            name,
            ..Self::default()
        }
    }
}

/// What runs the program.
enum Worker {
    Guest(Box<Guest>),
    Pod(Box<Pod>),
}

/// Measures and prints.
///
/// # Errors
/// A pod or VM did not come up, or a program failed.
pub async fn run(registry: &Registry) -> Result<String> {
    let networks = configuration()?;
    let image = registry.demo_image();
    let node = Node::start_with(options(networks.path())).await?;
    let containerd = Containerd::start_with(registry, networks.path()).await?;
    let ours = |handler| Server {
        channel: node.channel(),
        logs: node.path(),
        image: &image,
        handler,
        network: v1::NamespaceMode::Pod,
    };
    let servers = [
        ours(""),
        ours(VHOST),
        Server {
            channel: containerd.channel.clone(),
            logs: containerd.path(),
            image: &image,
            handler: "",
            network: v1::NamespaceMode::Pod,
        },
    ];
    for server in [&servers[0], &servers[2]] {
        server.pull().await?;
    }
    let mut rows = [
        "Bulkhead pod, no vhost",
        "Bulkhead pod, vhost-net",
        "containerd with runc",
        "QEMU microvm, no vhost",
        "QEMU microvm, vhost-net",
    ]
    .map(Row::named);
    let runs = rounds(RUNS);
    // The first run of each fills caches and is not counted.
    for round in 0..=runs {
        let mut unused = Row::default();
        for (number, row) in rows.iter_mut().enumerate() {
            let row = if round == 0 { &mut unused } else { row };
            match servers.get(number) {
                Some(server) => {
                    let began = Instant::now();
                    let pod = server.run_pod(&format!("{number}-{round}")).await?;
                    row.sandbox.add(began.elapsed());
                    if number < 2 {
                        row.plugins.add(cni_phase(&node, &pod).await?);
                    }
                    let mut worker =
                        Worker::Pod(Box::new(server.with_container(pod, Vec::new()).await?));
                    measure(&mut worker, row).await?;
                    worker.remove().await?;
                }
                None => {
                    let parts = Parts {
                        network: Some(number == 4),
                        bridge: Some(BRIDGE),
                        ..Parts::default()
                    };
                    let guest = tokio::task::block_in_place(|| Guest::boot(Kind::Qemu, parts))?;
                    measure(&mut Worker::Guest(Box::new(guest)), row).await?;
                }
            }
        }
    }
    drop(containerd);
    ip(&["link", "delete", BRIDGE])?;
    node.finish()?;
    Ok(format!("{}\n{}", speeds(&rows, runs), starts(&rows, runs)))
}

fn speeds(rows: &[Row], runs: usize) -> String {
    let head = [
        "median (least to most)",
        "TCP stream to host, MB/s",
        "from host, MB/s",
        "1-byte requests and responses, thousands/s",
        "TCP connections, thousands/s",
        "64-byte datagrams to host, thousands/s",
    ];
    let lines = rows.iter().map(|row| {
        vec![
            row.name.to_owned(),
            row.to_host.text(1e6),
            row.from_host.text(1e6),
            row.requests.text(1e3),
            row.connections.text(1e3),
            row.packets.text(1e3),
        ]
    });
    let all: Vec<_> = [head.map(str::to_owned).to_vec()]
        .into_iter()
        .chain(lines)
        .collect();
    let title = format!("Pods' networks on one bridge, 1 vCPU, {runs} runs in turn");
    table(&title, &all)
}

fn starts(rows: &[Row], runs: usize) -> String {
    let head = ["ms, median (least to most)", "RunPodSandbox", "of that CNI"];
    let lines = rows.iter().take(3).enumerate().map(|(number, row)| {
        let plugins = match number {
            0 | 1 => row.plugins.text(),
            _ => "not told".to_owned(),
        };
        vec![row.name.to_owned(), row.sandbox.text(), plugins]
    });
    let all: Vec<_> = [head.map(str::to_owned).to_vec()]
        .into_iter()
        .chain(lines)
        .collect();
    table(
        &format!("RunPodSandbox with a CNI bridge, {runs} runs in turn"),
        &all,
    )
}

/// A bridge that has the address which the programs talk to.
fn configuration() -> Result<TempDir> {
    let directory = TempDir::with_prefix("bulkhead-bench-cni-")?;
    let list = json!({
        "cniVersion": "1.0.0",
        "name": "bench",
        "plugins": [{
            "type": "bridge", "bridge": BRIDGE, "isGateway": true,
            // QEMU's guest has 10.99.0.2.
            "ipam": { "type": "host-local", "ranges": [[{
                "subnet": "10.99.0.0/24", "rangeStart": "10.99.0.10", "gateway": HOST,
            }]] },
        }],
    });
    std::fs::write(directory.path().join("10-bench.conflist"), list.to_string())?;
    Ok(directory)
}

fn options(networks: &Path) -> Options {
    let networks = networks.display().to_string();
    Options {
        configure: Some(Box::new(move |config| {
            let mut network = toml::Table::new();
            for (key, value) in [
                ("config_directories", networks.as_str()),
                ("plugin_directories", "/usr/lib/cni"),
            ] {
                let list = vec![toml::Value::from(value)];
                network.insert(key.to_owned(), list.into());
            }
            config.insert("network".to_owned(), network.into());
            if let Some(toml::Value::Table(runtimes)) = config.get_mut("runtimes")
                && let Some(mut vhost) = runtimes.get("bulkhead").cloned()
            {
                if let toml::Value::Table(vhost) = &mut vhost {
                    vhost.insert("vhost_net".to_owned(), true.into());
                }
                runtimes.insert(VHOST.to_owned(), vhost);
            }
        })),
        ..Default::default()
    }
}

fn ip(words: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(words).status()?;
    ensure!(status.success(), "ip {words:?} failed");
    Ok(())
}

/// What the daemon says that the pod's network took.
async fn cni_phase(node: &Node, pod: &Pod) -> Result<Duration> {
    let info = pod::info(node, &pod.id).await?;
    let mut rows = info["phases"].as_array().into_iter().flatten();
    let network = rows.find(|row| row["phase"] == "network");
    let seconds = network.and_then(|row| row["seconds"].as_f64());
    let seconds = seconds.with_context(|| format!("No phase of the network in {info}"))?;
    Ok(Duration::from_secs_f64(seconds))
}

impl Worker {
    /// Lets the program do something while the host does its part of it. Gives the host's figure, and what
    /// the program said at its end.
    async fn with(
        &mut self,
        command: &str,
        host: impl FnOnce() -> Result<f64> + Send + 'static,
    ) -> Result<(f64, String)> {
        // A thread of its own: if the program fails, nothing comes any more and nobody waits for it.
        let host = std::thread::spawn(host);
        let said = match self {
            Self::Guest(guest) => tokio::task::block_in_place(|| guest.ask(command))?,
            Self::Pod(pod) => pod.exec(command).await?,
        };
        let figure = tokio::task::block_in_place(|| host.join());
        let figure = figure.map_err(|_| anyhow::anyhow!("The host's part of {command:?} failed"));
        Ok((figure??, said))
    }

    async fn remove(self) -> Result<()> {
        match self {
            Self::Pod(pod) => pod.remove().await,
            Self::Guest(_) => Ok(()),
        }
    }
}

async fn measure(worker: &mut Worker, row: &mut Row) -> Result<()> {
    let milliseconds = LENGTH.as_millis();
    let listener = TcpListener::bind((HOST, 0))?;
    let address = listener.local_addr()?;

    let accept = listener.try_clone()?;
    let command = format!("pour {address} {milliseconds}");
    let (rate, _) = worker.with(&command, move || received(&accept)).await?;
    row.to_host.add(rate);

    let accept = listener.try_clone()?;
    let command = format!("drain {address}");
    let (rate, _) = worker.with(&command, move || sent(&accept)).await?;
    row.from_host.add(rate);

    let accept = listener.try_clone()?;
    let command = format!("respond {address}");
    let respond = move || requests(accept.accept()?.0);
    let (rate, _) = worker.with(&command, respond).await?;
    row.requests.add(rate);

    let finished = Arc::new(AtomicBool::new(false));
    let seen = finished.clone();
    let greeter =
        std::thread::spawn(
            move || {
                while !seen.load(Ordering::Acquire) && listener.accept().is_ok() {}
            },
        );
    let command = format!("greet {address} {milliseconds}");
    let (_, said) = worker.with(&command, || Ok(0.0)).await?;
    finished.store(true, Ordering::Release);
    // It waits for one more.
    drop(std::net::TcpStream::connect(address)?);
    ensure!(greeter.join().is_ok(), "The host accepts nothing");
    let (count, micros) = said.split_once(' ').context("An odd answer")?;
    row.connections
        .add(count.parse::<f64>()? / micros.parse::<f64>()? * 1e6);

    let socket = UdpSocket::bind((HOST, 0))?;
    let command = format!("pelt {} {milliseconds}", socket.local_addr()?);
    let (rate, _) = worker.with(&command, move || arrived(&socket)).await?;
    row.packets.add(rate);
    Ok(())
}

fn received(listener: &TcpListener) -> Result<f64> {
    let (mut stream, _) = listener.accept()?;
    let (began, mut total) = (Instant::now(), 0);
    let mut bytes = vec![0; 256 * 1024];
    while let count @ 1.. = stream.read(&mut bytes)? {
        total += count;
    }
    Ok(total as f64 / began.elapsed().as_secs_f64())
}

fn sent(listener: &TcpListener) -> Result<f64> {
    let (mut stream, _) = listener.accept()?;
    let (began, mut total) = (Instant::now(), 0);
    let bytes = vec![0; 256 * 1024];
    while began.elapsed() < LENGTH {
        stream.write_all(&bytes)?;
        total += bytes.len();
    }
    Ok(total as f64 / began.elapsed().as_secs_f64())
}

/// Datagrams a second between the first and the last.
fn arrived(socket: &UdpSocket) -> Result<f64> {
    let mut bytes = [0; 2048];
    socket.recv(&mut bytes)?;
    socket.set_read_timeout(Some(SILENCE))?;
    let began = Instant::now();
    let (mut count, mut last) = (0, began);
    while socket.recv(&mut bytes).is_ok() {
        (count, last) = (count + 1, Instant::now());
    }
    Ok(f64::from(count) / (last - began).as_secs_f64())
}
