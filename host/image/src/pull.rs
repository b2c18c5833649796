//! One pull: from a resolved name to an image in the store.
//!
//! ```text
//! resolve -> download -> unpack -> make the EROFS file -> commit
//!            \_____________ one flight for all callers ______/
//! ```

use crate::digest::Digest;
use crate::download::{self, Layers};
use crate::erofs;
use crate::image::{LayerProgress, PullPhase, PullProgress};
use crate::layer::{LayerError, Limits, Unpacker};
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
        self.make_disk(staging).await?;
        let finished = Finished {
            id: self.resolved.manifest.config.digest.clone(),
            configuration: self.resolved.configuration.clone(),
            name: self.name.clone(),
            target: self.resolved.target.clone(),
        };
        self.store.commit(finished, Arc::clone(staging)).await
    }

    async fn make_disk(&self, staging: &Staging) -> Result<u64> {
        erofs::make(
            &self.store.config.mkfs_erofs,
            &self.name.to_string(),
            &self.resolved.manifest.config.digest,
            &staging.tree(),
            &staging.disk(),
        )
        .await
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
        let limits = Limits {
            bytes: self.store.config.max_unpacked_bytes,
            entries: self.store.config.max_entries,
        };
        let layers: Vec<(Digest, Digest)> = std::iter::zip(
            self.resolved
                .manifest
                .layers
                .iter()
                .map(|layer| layer.digest.clone()),
            self.resolved.configuration.diff_ids.iter().cloned(),
        )
        .collect();
        let work = move || unpack_layers(&image, &staging, &blobs, &layers, limits, &cancelled);
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| ImageError::io("unpacking layers", std::io::Error::other(error)))?
    }
}

/// Applies layers (digest and DiffID).
fn unpack_layers(
    image: &str,
    staging: &Staging,
    blobs: &Layers,
    layers: &[(Digest, Digest)],
    limits: Limits,
    cancelled: &AtomicBool,
) -> Result<()> {
    let blame = |layer: &Digest, diff_id: &Digest, error| match error {
        LayerError::Io { doing, source } => ImageError::io(doing, source),
        LayerError::Cancelled => ImageError::io(
            "unpacking layers",
            std::io::Error::from(std::io::ErrorKind::Interrupted),
        ),
        LayerError::Invalid(reason) => ImageError::InvalidLayer {
            image: image.to_owned(),
            layer: layer.to_string(),
            reason,
        },
        LayerError::WrongDiffId(got) => ImageError::DigestMismatch {
            image: image.to_owned(),
            what: format!("content of layer {layer}"),
            expected: diff_id.to_string(),
            got: got.to_string(),
        },
    };
    let Some((first, first_diff_id)) = layers.first() else {
        return Ok(());
    };
    let mut unpacker = Unpacker::new(&staging.tree(), limits, cancelled)
        .map_err(|error| blame(first, first_diff_id, error))?;
    for (layer, diff_id) in layers {
        unpacker
            .apply(blobs.open(layer)?, diff_id)
            .map_err(|error| blame(layer, diff_id, error))?;
    }
    unpacker
        .finish()
        .map_err(|error| blame(first, first_diff_id, error))
}
