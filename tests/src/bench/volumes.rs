//! Files: Bulkhead's volumes beside a directory of the node with runc, and beside QEMU's `microvm` with the same file
//! daemon over plain vhost-user, and with virtio-blk. All are on one disk of the node, past the guest's page cache.

use super::blk::a_second;
use super::figures::{Figures, table};
use super::file_daemon::{FileDaemon, VOLUME};
use super::peer::Containerd;
use super::servers::{Pod, Server};
use super::vms::{Backend, Guest, Kind, Parts, rounds};
use crate::artifacts::artifact;
use crate::device::Loop;
use crate::disk::Disk;
use crate::node::Node;
use crate::pod;
use crate::registry::Registry;
use crate::setting;
use anyhow::{Context, Result, ensure};
use bulkhead_cri::v1;
use bulkhead_vmm_api::VOLUMES_TAG;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const RUNS: usize = 3;
/// How large the file is, and the node's disk.
const FILE: u64 = 64 << 20;
const DISK: u64 = 2 << 30;
/// How long each of the random measurements takes, in milliseconds.
const LENGTH: u64 = 1500;
/// How many files are made, unless `BULKHEAD_BENCH_FILES` says another number: some milliseconds each where processors are
/// emulated.
const FILES: usize = 500;
/// The file of the image.
const IMAGE_FILE: &str = "/large-file";
/// Where the volume is for who measures.
const PLACE: &str = "/volume";
/// What the benchmark's program is told once its temporary directory is on the disk.
pub const ARGUMENT: &str = "volumes-on-disk";

/// Where the files are.
#[derive(Clone, Copy)]
enum Place {
    NodesDirectory,
    SharedVolume(Limit),
    VhostUser,
    ScratchDisk(Limit),
    Root,
    DirectVolume,
    VirtioBlk,
    ImageOfRunc,
    Image,
}

/// Of the processor: a pod that asks for nothing has one. QEMU has none.
#[derive(Clone, Copy)]
enum Limit {
    Pods,
    None,
}

const PLACES: [(Place, &str); 11] = [
    (Place::NodesDirectory, "directory of the node, runc"),
    (Place::SharedVolume(Limit::Pods), "shared volume, Bulkhead"),
    (Place::SharedVolume(Limit::None), WITHOUT_LIMIT),
    (
        Place::VhostUser,
        "the same file daemon over vhost-user, QEMU microvm",
    ),
    (
        Place::ScratchDisk(Limit::Pods),
        "scratch disk (emptyDir), Bulkhead",
    ),
    (Place::ScratchDisk(Limit::None), WITHOUT_LIMIT),
    (Place::Root, "container's root, Bulkhead"),
    (Place::DirectVolume, "direct volume, Bulkhead"),
    (Place::VirtioBlk, "ext4 on virtio-blk, QEMU microvm"),
    (Place::ImageOfRunc, "a file of the image, runc"),
    (Place::Image, "a file of the image, Bulkhead"),
];

const WITHOUT_LIMIT: &str = "the same without the pod's CPU limit";

const COLUMNS: [(&str, f64); 9] = [
    ("4 KiB random reads, depth 1, thousands/s", 1e3),
    ("depth 32", 1e3),
    ("4 KiB random writes, depth 1, thousands/s", 1e3),
    ("depth 32", 1e3),
    ("1 MiB sequential reads, MB/s", 1e6),
    ("writes and a flush, MB/s", 1e6),
    ("files made, thousands/s", 1e3),
    ("looked at", 1e3),
    ("removed", 1e3),
];

/// What runs the program.
enum Worker {
    Guest {
        guest: Box<Guest>,
        /// Serves it as long as it is there.
        _daemon: Option<FileDaemon>,
    },
    Pod(Box<Pod>),
}

/// Measures, in a process of its own whose temporary directory is on a disk with ext4.
///
/// # Errors
/// The disk cannot be made, or [`work`] fails.
pub fn run() -> Result<String> {
    let disk = Disk::new(DISK)?;
    let output = Command::new(std::env::current_exe()?)
        .arg(ARGUMENT)
        .env("TMPDIR", disk.path())
        .stderr(std::process::Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "The measurements failed");
    Ok(String::from_utf8(output.stdout)?)
}

/// Measures and prints.
///
/// # Errors
/// A pod or VM did not come up, or a program failed.
pub async fn work() -> Result<String> {
    let registry = &Registry::start()?;
    registry.push(&artifact("bench/large-file-image"), "large-file:latest")?;
    let image = format!("{}/large-file:latest", registry.host());
    let files = setting("BULKHEAD_BENCH_FILES", FILES)?;
    let node = Node::start().await?;
    let containerd = Containerd::start(registry).await?;
    let ours = Server {
        channel: node.channel(),
        logs: node.path(),
        image: &image,
        handler: "",
        network: v1::NamespaceMode::Pod,
    };
    let theirs = Server {
        channel: containerd.channel.clone(),
        logs: containerd.path(),
        image: &image,
        handler: "",
        network: v1::NamespaceMode::Node,
    };
    ours.pull().await?;
    theirs.pull().await?;
    let servers = Servers {
        ours,
        theirs,
        kubelet: &node.path().join("kubelet"),
    };
    let mut rows: [[Figures; COLUMNS.len()]; PLACES.len()] = Default::default();
    // The first run of each fills caches and is not counted.
    let runs = rounds(RUNS);
    for round in 0..=runs {
        for (row, (number, (place, name))) in rows.iter_mut().zip(PLACES.iter().enumerate()) {
            eprintln!("volumes: run {round} of {runs}, {name}");
            let directory = TempDir::with_prefix("bulkhead-volume-")?;
            let mut device = None;
            let pod = format!("{number}-{round}");
            let worker = servers
                .worker(*place, &pod, directory.path(), &mut device)
                .await?;
            if let Place::SharedVolume(Limit::None) | Place::ScratchDisk(Limit::None) = place {
                worker.without_limit(&node).await?;
            }
            let figures = match place {
                Place::ImageOfRunc | Place::Image => measure_reads(worker).await?,
                _ => measure(worker, files).await?,
            };
            if round > 0 {
                let both = row.iter_mut().zip(figures);
                both.for_each(|(row, figure)| figure.into_iter().for_each(|it| row.add(it)));
            }
        }
    }
    drop(containerd);
    node.finish()?;
    Ok(printed(&rows, runs, files))
}

fn printed(rows: &[[Figures; COLUMNS.len()]], runs: usize, files: usize) -> String {
    let head = ["median (least to most)"].into_iter();
    let head = head.chain(COLUMNS.map(|(name, _)| name));
    let mut lines = vec![head.map(str::to_owned).collect()];
    for ((_, name), row) in PLACES.iter().zip(rows) {
        let figures = row.iter().zip(COLUMNS);
        let texts = figures.map(|(figures, (_, unit))| figures.text(unit));
        lines.push([(*name).to_owned()].into_iter().chain(texts).collect());
    }
    let title = format!(
        "Volumes, 1 vCPU, a file of {} MiB past the guest's page cache, {files} empty files, {runs} runs in turn",
        FILE >> 20
    );
    table(&title, &lines)
}

/// Who runs the pods.
struct Servers<'a> {
    ours: Server<'a>,
    theirs: Server<'a>,
    kubelet: &'a Path,
}

impl Servers<'_> {
    /// Who measures a place. `directory` is empty and on the disk; `device` lives as long as is measured.
    async fn worker(
        &self,
        place: Place,
        name: &str,
        directory: &Path,
        device: &mut Option<Loop>,
    ) -> Result<Worker> {
        match place {
            Place::NodesDirectory => with_volume(&self.theirs, name, Some(directory)).await,
            Place::SharedVolume(_) => with_volume(&self.ours, name, Some(directory)).await,
            Place::ScratchDisk(_) => {
                let place = directory.join("pods/uid/volumes/kubernetes.io~empty-dir/work");
                std::fs::create_dir_all(&place)?;
                with_volume(&self.ours, name, Some(&place)).await
            }
            Place::Root | Place::Image => with_volume(&self.ours, name, None).await,
            Place::ImageOfRunc => with_volume(&self.theirs, name, None).await,
            Place::DirectVolume => {
                let volume = format!("pods/uid/volumes/kubernetes.io~csi/{name}");
                let volume = self.kubelet.join(volume);
                let over = device.insert(ext4(directory).map(|file| Loop::over(&file))?);
                describe(&volume, &over.device)?;
                with_volume(&self.ours, name, Some(&volume.join("mount"))).await
            }
            Place::VhostUser => tokio::task::block_in_place(|| with_file_daemon(directory)),
            Place::VirtioBlk => tokio::task::block_in_place(|| with_disk(directory)),
        }
    }
}

/// A pod with a directory of the node as its volume, or with nothing but its root.
async fn with_volume(server: &Server<'_>, name: &str, volume: Option<&Path>) -> Result<Worker> {
    let pod = server.run_pod(name).await?;
    let mount = volume.map(|volume| v1::Mount {
        host_path: volume.display().to_string(),
        container_path: PLACE.to_owned(),
        ..Default::default()
    });
    let mut pod = server
        .with_container(pod, mount.into_iter().collect())
        .await?;
    if volume.is_none() {
        pod.run(&["mkdir", PLACE]).await?;
    }
    Ok(Worker::Pod(Box::new(pod)))
}

fn with_file_daemon(directory: &Path) -> Result<Worker> {
    let daemon = FileDaemon::start()?;
    let socket = daemon.socket();
    let parts = Parts {
        file_daemon: Some(&socket),
        ..Parts::default()
    };
    let mut guest = Guest::boot(Kind::Qemu, parts)?;
    daemon.attach(directory)?;
    let mounted = guest.ask(&format!("mount virtiofs {VOLUMES_TAG} /mnt"))?;
    ensure!(mounted == "ok", "{mounted}");
    let linked = guest.ask(&format!("link /mnt/{VOLUME} {PLACE}"))?;
    ensure!(linked == "ok", "{linked}");
    Ok(Worker::Guest {
        guest: Box::new(guest),
        _daemon: Some(daemon),
    })
}

/// A file with a file system.
fn ext4(directory: &Path) -> Result<PathBuf> {
    let image = directory.join("disk");
    std::fs::File::create(&image)?.set_len(FILE * 4)?;
    let made = Command::new("mkfs.ext4").arg("-q").arg(&image).status()?;
    ensure!(made.success(), "mkfs.ext4 failed");
    Ok(image)
}

/// Makes a volume as a CSI driver does that leaves mounting to the guest.
fn describe(volume: &Path, device: &str) -> Result<()> {
    std::fs::create_dir_all(volume.join("mount"))?;
    let text = json!({ "volume-type": "block", "device": device, "fstype": "ext4" });
    std::fs::write(volume.join("direct-volume.json"), text.to_string())?;
    Ok(())
}

fn with_disk(directory: &Path) -> Result<Worker> {
    let image = ext4(directory)?;
    let parts = Parts {
        writable: Some(&image),
        backend: Backend::Alike,
        ..Parts::default()
    };
    let mut guest = Guest::boot(Kind::Qemu, parts)?;
    let mounted = guest.ask(&format!("mount ext4 rw0 {PLACE}"))?;
    ensure!(mounted == "ok", "{mounted}");
    Ok(Worker::Guest {
        guest: Box::new(guest),
        _daemon: None,
    })
}

/// Columns without a value are not measured at that place.
type Row = [Option<f64>; COLUMNS.len()];

async fn measure(mut worker: Worker, files: usize) -> Result<Row> {
    let file = &format!("{PLACE}/file");
    let written = a_second(&worker.ask(&format!("fill-file {file} {FILE}")).await?)?;
    let read_one = worker.random(file, "read", 1).await?;
    let read_many = worker.random(file, "read", 32).await?;
    let write_one = worker.random(file, "write", 1).await?;
    let write_many = worker.random(file, "write", 32).await?;
    let read = a_second(&worker.ask(&format!("sequential {file}")).await?)?;
    let many = worker.ask(&format!("many-files {PLACE} {files}")).await?;
    let times: Vec<f64> = many
        .split(' ')
        .map(str::parse)
        .collect::<Result<_, _>>()
        .context("No figures")?;
    let [made, seen, removed] = times[..] else {
        anyhow::bail!("{many:?} are no figures");
    };
    let rate = |microseconds: f64| files as f64 / microseconds * 1e6;
    worker.end().await?;
    Ok([
        read_one,
        read_many,
        write_one,
        write_many,
        read,
        written,
        rate(made),
        rate(seen),
        rate(removed),
    ]
    .map(Some))
}

/// Of the image's own file, which nobody writes.
async fn measure_reads(mut worker: Worker) -> Result<Row> {
    let one = Some(worker.random(IMAGE_FILE, "read", 1).await?);
    let many = Some(worker.random(IMAGE_FILE, "read", 32).await?);
    let read = worker.ask(&format!("sequential {IMAGE_FILE}")).await?;
    let read = Some(a_second(&read)?);
    worker.end().await?;
    Ok([one, many, None, None, read, None, None, None, None])
}

impl Worker {
    /// QEMU has no limit either.
    async fn without_limit(&self, node: &Node) -> Result<()> {
        if let Self::Pod(pod) = self {
            let info = pod::info(node, &pod.id).await?;
            let cgroup = info["cgroup"].as_str().context("No cgroup")?;
            std::fs::write(format!("/sys/fs/cgroup/{cgroup}/cpu.max"), "max")?;
        }
        Ok(())
    }

    async fn random(&mut self, file: &str, way: &str, depth: usize) -> Result<f64> {
        let command = format!("random-in-file {file} {way} {depth} {LENGTH}");
        a_second(&self.ask(&command).await?)
    }

    async fn end(self) -> Result<()> {
        match self {
            Self::Guest { .. } => Ok(()),
            Self::Pod(pod) => pod.remove().await,
        }
    }

    async fn ask(&mut self, command: &str) -> Result<String> {
        match self {
            Self::Guest { guest, .. } => tokio::task::block_in_place(|| guest.ask(command)),
            Self::Pod(pod) => pod.exec(command).await,
        }
    }
}
