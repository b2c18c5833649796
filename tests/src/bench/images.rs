//! Pulling and removing images: Bulkhead beside containerd with its overlayfs snapshotter.
//!
//! One CRI client for both, one registry, in turn, the kernel's caches dropped before each pull. A
//! pull ends when the image can be used, for both: unpacked, or one disk.

use super::figures::{Figures, table};
use super::peer::Containerd;
use super::usage::{Usage, drop_caches, occupied, peak, reset_peak};
use crate::artifacts::repository;
use crate::node::Node;
use crate::registry::Registry;
use anyhow::{Context, Result, ensure};
use bulkhead_cri::v1;
use bulkhead_cri::v1::image_service_client::ImageServiceClient;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use tokio::task::JoinSet;
use tonic::transport::Channel;

/// A kind of image, as `images/bench/build` knows it.
struct Kind {
    name: &'static str,
    /// Runs of one pull, and of `AT_ONCE` of them.
    rounds: [usize; 2],
}

const AT_ONCE: usize = 8;
const KINDS: [Kind; 5] = [
    Kind::new("tiny", [9, 5]),
    Kind::new("layers", [7, 3]),
    Kind::new("files", [5, 1]),
    Kind::new("large", [5, 1]),
    Kind::new("large-zstd", [3, 0]),
];
const MEASURES: [(&str, f64); 7] = [
    ("wall time of the pull, s", 1.0),
    ("wall time until all is on the disk, s", 1.0),
    ("CPU time, s", 1.0),
    ("written, MiB", MIB),
    ("kept on disk, MiB", MIB),
    ("peak memory, MiB", MIB),
    ("wall time of the removal, ms", 1e-3),
];
const MIB: f64 = 1_048_576.0;

impl Kind {
    const fn new(name: &'static str, rounds: [usize; 2]) -> Self {
        Self { name, rounds }
    }

    /// Builds the images unless they are there, and pushes them.
    fn push(&self, registry: &Registry) -> Result<()> {
        let out = repository().join("out/bench");
        let variants = if self.rounds[1] == 0 { 1 } else { AT_ONCE };
        let layout = out.join(self.name);
        if !layout.exists() {
            let status = Command::new(repository().join("images/bench/build"))
                .args([&layout, &out.join("packages")])
                .args([self.name, &variants.to_string()])
                .status()?;
            ensure!(status.success(), "The images could not be built");
        }
        (1..=variants)
            .try_for_each(|number| registry.push(&layout, &format!("bench/{}:{number}", self.name)))
    }

    fn names(&self, registry: &Registry, count: usize) -> Vec<String> {
        let name = |number| format!("{}/bench/{}:{number}", registry.host(), self.name);
        (1..=count).map(name).collect()
    }
}

/// A CRI server under measurement.
struct Subject {
    channel: Channel,
    pid: u32,
    root: PathBuf,
}

/// Measures and prints, table by table. `wanted` names kinds; empty, all are measured.
///
/// # Errors
/// A call failed.
pub async fn run(node: &Node, registry: &Registry, wanted: &[&str]) -> Result<()> {
    let containerd = Containerd::start(registry).await?;
    let subjects = [
        Subject {
            channel: node.channel(),
            pid: node.pid().context("The daemon is gone")?,
            root: node.path().join("root"),
        },
        Subject {
            channel: containerd.channel.clone(),
            pid: containerd.pid(),
            root: containerd.path().join("root"),
        },
    ];
    let rounds = std::env::var("BULKHEAD_BENCH_ROUNDS").ok();
    let rounds = rounds.map(|text| text.parse::<usize>()).transpose()?;
    for kind in KINDS {
        if !wanted.is_empty() && !wanted.contains(&kind.name) {
            continue;
        }
        kind.push(registry)?;
        for (count, usual) in std::iter::zip([1, AT_ONCE], kind.rounds) {
            let rounds = rounds.map_or(usual, |rounds| rounds.min(usual));
            if rounds > 0 {
                let names = kind.names(registry, count);
                println!("{}", compare(&subjects, kind.name, &names, rounds).await?);
            }
        }
    }
    Ok(())
}

async fn compare(
    subjects: &[Subject; 2],
    kind: &str,
    names: &[String],
    rounds: usize,
) -> Result<String> {
    let mut figures: [[Figures; MEASURES.len()]; 2] = Default::default();
    for round in 0..rounds {
        // Who goes first has the colder machine, or the quieter.
        for turn in 0..2 {
            let which = (round + turn) % 2;
            let measured = subjects[which].round(names).await?;
            for (figure, value) in figures[which].iter_mut().zip(measured) {
                figure.add(value);
            }
        }
    }
    let head = ["median (least to most)", "Bulkhead", "containerd", "ratio"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (index, (what, unit)) in MEASURES.iter().enumerate() {
        let [own, other] = [&figures[0][index], &figures[1][index]];
        rows.push(vec![
            (*what).to_owned(),
            own.text(*unit),
            other.text(*unit),
            format!("{:.2}", own.median() / other.median()),
        ]);
    }
    let count = names.len();
    Ok(table(
        &format!("Images: {kind}, {count} at once, {rounds} runs in turn"),
        &rows,
    ))
}

impl Subject {
    /// Pulls all and removes all; says what `MEASURES` says.
    async fn round(&self, names: &[String]) -> Result<[f64; MEASURES.len()]> {
        drop_caches()?;
        let kept = occupied(&self.root)?;
        reset_peak(self.pid)?;
        let before = Usage::of(self.pid)?;
        let began = Instant::now();
        self.all(names, pull).await?;
        let pulled = began.elapsed();
        sync_all(&self.root)?;
        let synced = began.elapsed();
        let (after, peak) = (Usage::of(self.pid)?, peak(self.pid)?);
        let kept = occupied(&self.root)?.saturating_sub(kept);
        let ids = self.ids(names).await?;
        drop_caches()?;
        let began = Instant::now();
        self.all(&ids, remove).await?;
        let removed = began.elapsed();
        Ok([
            pulled.as_secs_f64(),
            synced.as_secs_f64(),
            (after.cpu - before.cpu).as_secs_f64(),
            (after.written - before.written) as f64,
            kept as f64,
            peak as f64,
            removed.as_secs_f64(),
        ])
    }

    /// The images' ids: what the kubelet removes by. A name alone would leave containerd the image,
    /// with its digest.
    async fn ids(&self, names: &[String]) -> Result<Vec<String>> {
        let mut client = ImageServiceClient::new(self.channel.clone());
        let mut ids = Vec::new();
        for name in names {
            let request = v1::ImageStatusRequest {
                image: Some(spec(name)),
                verbose: false,
            };
            let status = client.image_status(request).await?.into_inner();
            ids.push(status.image.context("The image is not there")?.id);
        }
        Ok(ids)
    }

    async fn all<F>(&self, names: &[String], call: fn(Channel, v1::ImageSpec) -> F) -> Result<()>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let mut calls = JoinSet::new();
        for name in names {
            calls.spawn(call(self.channel.clone(), spec(name)));
        }
        while let Some(result) = calls.join_next().await {
            result??;
        }
        Ok(())
    }
}

fn spec(image: &str) -> v1::ImageSpec {
    v1::ImageSpec {
        image: image.to_owned(),
        ..Default::default()
    }
}

async fn pull(channel: Channel, image: v1::ImageSpec) -> Result<()> {
    let request = v1::PullImageRequest {
        image: Some(image),
        ..Default::default()
    };
    ImageServiceClient::new(channel).pull_image(request).await?;
    Ok(())
}

async fn remove(channel: Channel, image: v1::ImageSpec) -> Result<()> {
    let request = v1::RemoveImageRequest { image: Some(image) };
    ImageServiceClient::new(channel)
        .remove_image(request)
        .await?;
    Ok(())
}

/// Waits until the file system that holds a directory is on the disk.
fn sync_all(path: &Path) -> Result<()> {
    Ok(rustix::fs::syncfs(std::fs::File::open(path)?)?)
}
