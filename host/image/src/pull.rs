//! One pull: from a resolved name to an image in the store.
//!
//! ```text
//! resolve -> download -> make the EROFS file -> commit
//!            \_________ one flight for all callers _/
//! ```

use crate::digest::Digest;
use crate::download::{self, Layers};
use crate::image::{LayerProgress, PullPhase, PullProgress};
use crate::layer::{self, Layer, LayerError, Limits};
use crate::manifest::Configuration;
use crate::name::Name;
use crate::registry::{Registry, Resolved};
use crate::staging::Staging;
use crate::store::Inner;
use crate::{ImageError, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// A download that several callers may wait for. It stops when the last one has dropped it.
pub(crate) struct Flight {
    progress: watch::Receiver<PullProgress>,
    outcome: watch::Receiver<Option<Result<()>>>,
    cancelled: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Flight {
    pub(crate) fn start(
        store: Arc<Inner>,
        registry: Arc<Registry>,
        name: Name,
        resolved: Resolved,
    ) -> Self {
        let (progress_sender, progress) = watch::channel(PullProgress::default());
        let (outcome_sender, outcome) = watch::channel(None);
        let cancelled = Arc::new(AtomicBool::new(false));
        let pull = Pull {
            store,
            registry,
            name,
            resolved,
            progress: progress_sender,
            cancelled: Arc::clone(&cancelled),
        };
        let task = tokio::spawn(async move {
            let outcome = pull.run().await;
            outcome_sender.send_replace(Some(outcome));
        });
        Self {
            progress,
            outcome,
            cancelled,
            task: task.abort_handle(),
        }
    }

    /// Waits for the end and tells about the way there.
    pub(crate) async fn wait(&self, mut tell: impl FnMut(&PullProgress) + Send) -> Result<()> {
        let mut progress = self.progress.clone();
        let mut outcome = self.outcome.clone();
        loop {
            tokio::select! {
                biased;
                changed = progress.changed() => match changed {
                    Ok(()) => tell(&progress.borrow_and_update().clone()),
                    Err(_) => break,
                },
                _ = outcome.wait_for(Option::is_some) => break,
            }
        }
        let outcome = match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            Err(_) => None,
        };
        outcome.unwrap_or_else(|| {
            let source = std::io::Error::other("the task that pulled the image has ended");
            Err(ImageError::io("pulling an image", source))
        })
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.task.abort();
    }
}

/// An image whose EROFS file is complete in its staging directory.
pub(crate) struct Finished {
    pub(crate) id: Digest,
    pub(crate) configuration: Configuration,
    pub(crate) name: Name,
    pub(crate) target: Digest,
}

struct Pull {
    store: Arc<Inner>,
    registry: Arc<Registry>,
    name: Name,
    resolved: Resolved,
    progress: watch::Sender<PullProgress>,
    cancelled: Arc<AtomicBool>,
}

impl Pull {
    async fn run(self) -> Result<()> {
        // Blocking work keeps the directory until it has noticed that nobody waits.
        let staging = Arc::new(Staging::new(&self.store.staging_path())?);
        let result = self.stages(&staging).await;
        staging.remove().await;
        result
    }

    async fn stages(&self, staging: &Arc<Staging>) -> Result<()> {
        let layers = self.download().await?;
        self.enter(PullPhase::Unpacking);
        self.unpack(staging, layers).await?;
        self.enter(PullPhase::Writing);
        let finished = Finished {
            id: self.resolved.manifest.config.digest.clone(),
            configuration: self.resolved.configuration.clone(),
            name: self.name.clone(),
            target: self.resolved.target.clone(),
        };
        self.store.commit(finished, Arc::clone(staging)).await
    }

    fn enter(&self, phase: PullPhase) {
        self.progress.send_modify(|progress| progress.phase = phase);
    }

    async fn download(&self) -> Result<Layers> {
        let layers = &self.resolved.manifest.layers;
        self.progress.send_modify(|progress| {
            progress.phase = PullPhase::Downloading;
            progress.layers = layers
                .iter()
                .map(|layer| LayerProgress {
                    digest: layer.digest.to_string(),
                    done: 0,
                    total: layer.size,
                })
                .collect();
        });
        let arrived = |digest: &Digest, bytes: u64| {
            self.progress.send_modify(|progress| {
                let same = |other: &&mut LayerProgress| other.digest == digest.as_str();
                for entry in progress.layers.iter_mut().filter(same) {
                    entry.done = bytes;
                }
            });
        };
        download::layers(&self.registry, layers, arrived).await
    }

    async fn unpack(&self, staging: &Arc<Staging>, blobs: Layers) -> Result<()> {
        let staging = Arc::clone(staging);
        let cancelled = Arc::clone(&self.cancelled);
        let image = self.name.to_string();
        let config = &self.store.config;
        let limits = Limits::new(config.max_unpacked_bytes, config.max_entries);
        let uuid = self.resolved.manifest.config.digest.uuid();
        let layers: Vec<(Digest, Digest)> = std::iter::zip(
            self.resolved
                .manifest
                .layers
                .iter()
                .map(|layer| layer.digest.clone()),
            self.resolved.configuration.diff_ids.iter().cloned(),
        )
        .collect();
        let work =
            move || unpack_layers(&image, &staging, blobs, &layers, limits, uuid, &cancelled);
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| ImageError::io("unpacking layers", std::io::Error::other(error)))?
    }
}

/// Layers that are unpacked at the same time.
const PARALLEL: usize = 4;

/// Makes the EROFS file of layers (digest and DiffID).
fn unpack_layers(
    image: &str,
    staging: &Staging,
    blobs: Layers,
    layers: &[(Digest, Digest)],
    limits: Limits,
    uuid: [u8; 16],
    cancelled: &AtomicBool,
) -> Result<()> {
    let opened = layers.iter().map(|(digest, diff_id)| {
        Layer::from_file(blobs.open(digest)?, diff_id.clone())
            .map_err(|error| ImageError::io("opening a downloaded layer", error))
    });
    let opened = opened.collect::<Result<Vec<_>>>()?;
    // Each blob's space is free again as soon as its layer has been read.
    drop(blobs);
    let out = std::fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(staging.disk())
        .map_err(|error| ImageError::io("making the EROFS file", error))?;
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let options = layer::Options {
        limits,
        uuid,
        parallel: cpus.min(PARALLEL),
        directory: staging.directory(),
        cancelled,
        progress: &|_, _| {},
    };
    layer::build(opened, &out, &options).map_err(|(number, error)| {
        let layer = layers.get(number);
        let name = |digest: fn(&(Digest, Digest)) -> &Digest| {
            layer.map_or_else(
                || "of no layer".to_owned(),
                |layer| digest(layer).to_string(),
            )
        };
        match error {
            LayerError::Io { doing, source } => ImageError::io(doing, source),
            LayerError::Cancelled => ImageError::io(
                "unpacking layers",
                std::io::Error::from(std::io::ErrorKind::Interrupted),
            ),
            LayerError::Invalid(reason) => ImageError::InvalidLayer {
                image: image.to_owned(),
                layer: name(|(digest, _)| digest),
                reason,
            },
            LayerError::WrongDiffId(got) => ImageError::DigestMismatch {
                image: image.to_owned(),
                what: format!("content of layer {}", name(|(digest, _)| digest)),
                expected: name(|(_, diff_id)| diff_id),
                got: got.to_string(),
            },
        }
    })?;
    Ok(())
}
