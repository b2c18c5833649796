//! One pull: from a resolved name to an image in the store.
//!
//! ```text
//! resolve -> download -> make the EROFS file -> commit
//!            \_________ one flight for all callers _/
//! ```

use crate::digest::Digest;
use crate::image::{ImageConfig, LayerProgress, PullPhase, PullProgress};
use crate::layer::{self, Layer, LayerError, Limits};
use crate::manifest::Descriptor;
use crate::name::Name;
use crate::registry::{Registry, Resolved};
use crate::staging::Staging;
use crate::store::Inner;
use crate::{ImageError, Result};
use futures_util::stream::{self, TryStreamExt as _};
use std::collections::{BTreeMap, BTreeSet};
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
        registry: Registry,
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
    /// Bytes of the EROFS file.
    pub(crate) size: u64,
    pub(crate) config: ImageConfig,
    pub(crate) name: Name,
    pub(crate) target: Digest,
}

struct Pull {
    store: Arc<Inner>,
    registry: Registry,
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
        self.download(staging).await?;
        self.enter(PullPhase::Unpacking);
        let size = self.unpack(staging).await?;
        self.enter(PullPhase::Writing);
        let finished = Finished {
            id: self.resolved.manifest.config.digest.clone(),
            size,
            config: self.resolved.configuration.config.clone(),
            name: self.name.clone(),
            target: self.resolved.target.clone(),
        };
        self.store.commit(finished, Arc::clone(staging)).await
    }

    fn enter(&self, phase: PullPhase) {
        self.progress.send_modify(|progress| progress.phase = phase);
    }

    async fn download(&self, staging: &Staging) -> Result<()> {
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
        // A layer can come more than once, mostly the empty one.
        let unique: BTreeMap<&Digest, &Descriptor> =
            layers.iter().map(|layer| (&layer.digest, layer)).collect();
        stream::iter(unique.into_values().map(Ok))
            .try_for_each_concurrent(self.store.config.parallel_downloads.max(1), |layer| {
                self.download_layer(staging, layer)
            })
            .await
    }

    async fn download_layer(&self, staging: &Staging, layer: &Descriptor) -> Result<()> {
        let path = staging.blob(&layer.digest.file_name());
        let what = format!("layer {}", layer.digest);
        let arrived = |bytes| {
            self.progress.send_modify(|progress| {
                let same = |other: &&mut LayerProgress| other.digest == layer.digest.as_str();
                for entry in progress.layers.iter_mut().filter(same) {
                    entry.done = entry.done.saturating_add(bytes);
                }
            });
        };
        self.registry
            .blob_to_file(&what, layer, &path, arrived)
            .await
    }

    /// Makes the EROFS file of the layers; returns its bytes.
    async fn unpack(&self, staging: &Arc<Staging>) -> Result<u64> {
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
        let work = move || unpack_layers(&image, &staging, &layers, limits, uuid, &cancelled);
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| ImageError::io("unpacking layers", std::io::Error::other(error)))?
    }
}

/// Layers that are unpacked at the same time.
const PARALLEL: usize = 4;

/// Makes the EROFS file of layers (digest and DiffID); returns its bytes.
fn unpack_layers(
    image: &str,
    staging: &Staging,
    layers: &[(Digest, Digest)],
    limits: Limits,
    uuid: [u8; 16],
    cancelled: &AtomicBool,
) -> Result<u64> {
    let failed = |error| ImageError::io("opening a downloaded layer", error);
    let path = |digest: &Digest| staging.blob(&digest.file_name());
    let open = |(digest, diff_id): &(Digest, Digest)| {
        Layer::from_file(std::fs::File::open(path(digest))?, diff_id.clone())
    };
    let opened = layers
        .iter()
        .map(open)
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(failed)?;
    // Each blob's space is free again as soon as its layer has been read.
    let unique: BTreeSet<&Digest> = layers.iter().map(|(digest, _)| digest).collect();
    for digest in unique {
        std::fs::remove_file(path(digest)).map_err(failed)?;
    }
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
    let built = layer::build(opened, &out, &options).map_err(|(number, error)| {
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
    Ok(built.size)
}
