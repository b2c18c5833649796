//! Downloads of layers: each one a file that is complete and checked before anybody sees it, and
//! each blob once, however many pulls want it at the same time.

mod limit;

pub(crate) use limit::Limiter;

use crate::digest::Digest;
use crate::manifest::Descriptor;
use crate::registry::Registry;
use crate::{ImageError, Result};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// A blob that another pull downloads is ours too, but its failure is not: so often we try again
/// on our own account.
const MAX_TRIES: usize = 3;

/// The layers of one image, compressed as they came. The files stay as long as this does.
pub(crate) struct Layers {
    transfers: BTreeMap<Digest, Arc<Transfer>>,
}

impl Layers {
    /// Opens a layer at its beginning. Blocks.
    pub(crate) fn open(&self, digest: &Digest) -> Result<File> {
        let opened = match self.transfers.get(digest) {
            Some(transfer) => File::open(&transfer.path),
            None => Err(std::io::Error::other("the layer was not downloaded")),
        };
        opened.map_err(|error| ImageError::io("opening a downloaded layer", error))
    }
}

/// Downloads the layers of an image, so many at a time. `arrived` is told how many bytes of which
/// layer there are.
pub(crate) async fn layers(
    registry: &Arc<Registry>,
    layers: &[Descriptor],
    arrived: impl Fn(&Digest, u64),
) -> Result<Layers> {
    // A layer can come more than once, mostly the empty one.
    let named = layers
        .iter()
        .map(|layer| (layer.digest.clone(), layer.clone()));
    let unique: BTreeMap<Digest, Descriptor> = named.collect();
    let parallel = registry.remote.config.parallel_downloads.max(1);
    let arrived = &arrived;
    let transfers = stream::iter(unique.into_values())
        .map(|layer: Descriptor| async move {
            let transfer = obtain(registry, &layer, |bytes| arrived(&layer.digest, bytes)).await?;
            Ok((layer.digest, transfer))
        })
        .buffer_unordered(parallel)
        .try_collect()
        .await?;
    Ok(Layers { transfers })
}

/// Waits for a blob that is under way already, or downloads it.
async fn obtain(
    registry: &Arc<Registry>,
    blob: &Descriptor,
    arrived: impl Fn(u64),
) -> Result<Arc<Transfer>> {
    let transfers = &registry.remote.transfers;
    for _ in 0..MAX_TRIES {
        let (transfer, is_ours) = transfers.join(registry, blob)?;
        let is_same = is_ours || transfer.registry.sees_what(registry);
        if !is_same {
            registry.may_read(blob).await?;
        }
        match transfer.wait(&arrived).await {
            Ok(()) => return Ok(transfer),
            Err(error) if is_same => return Err(error),
            // It may be the fault of the other's registry or credentials.
            Err(error) => tracing::debug!(%error, "The download of another pull failed"),
        }
    }
    let transfer = transfers.start(registry, blob)?;
    transfer.wait(&arrived).await.map(|()| transfer)
}

/// The blobs that are under way or still in use.
pub(crate) struct Transfers {
    directory: PathBuf,
    next: AtomicU64,
    running: Mutex<HashMap<(Digest, u64), Weak<Transfer>>>,
}

impl Transfers {
    /// Files are made in this directory, which exists.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            next: AtomicU64::new(0),
            running: Mutex::default(),
        }
    }

    /// The running transfer of a blob, or a new one; says whether it is new.
    fn join(&self, registry: &Arc<Registry>, blob: &Descriptor) -> Result<(Arc<Transfer>, bool)> {
        let key = (blob.digest.clone(), blob.size);
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, transfer| transfer.strong_count() > 0);
        let known = running.get(&key).and_then(Weak::upgrade);
        if let Some(transfer) = known.filter(|transfer| !transfer.has_failed()) {
            return Ok((transfer, false));
        }
        let transfer = self.start(registry, blob)?;
        running.insert(key, Arc::downgrade(&transfer));
        Ok((transfer, true))
    }

    fn start(&self, registry: &Arc<Registry>, blob: &Descriptor) -> Result<Arc<Transfer>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.directory.join(format!("blob-{number}"));
        let making = |error| ImageError::io("making the file of a layer", error);
        let file = File::create_new(&path).map_err(making)?;
        let for_task = file.try_clone().map_err(making)?;
        let (sender, state) = watch::channel(State::default());
        let task = {
            let (registry, blob) = (Arc::clone(registry), blob.clone());
            let file = tokio::fs::File::from_std(for_task);
            async move {
                let arrived = |bytes| sender.send_modify(|state: &mut State| state.bytes = bytes);
                let outcome = registry.download(&blob, file, arrived).await;
                sender.send_modify(|state| state.outcome = Some(outcome));
            }
        };
        Ok(Arc::new(Transfer {
            path,
            file,
            registry: Arc::clone(registry),
            state,
            task: tokio::spawn(task).abort_handle(),
        }))
    }
}

#[derive(Debug, Clone, Default)]
struct State {
    /// Bytes that have arrived.
    bytes: u64,
    outcome: Option<Result<()>>,
}

/// The download of one blob. It stops, and its file goes, with the last who holds it.
pub(crate) struct Transfer {
    path: PathBuf,
    file: File,
    /// The one whose credentials download it.
    registry: Arc<Registry>,
    state: watch::Receiver<State>,
    task: AbortHandle,
}

impl Transfer {
    fn has_failed(&self) -> bool {
        matches!(self.state.borrow().outcome, Some(Err(_)))
    }

    async fn wait(&self, arrived: &impl Fn(u64)) -> Result<()> {
        let mut state = self.state.clone();
        loop {
            let now = state.borrow_and_update().clone();
            arrived(now.bytes);
            if let Some(outcome) = now.outcome {
                return outcome;
            }
            if state.changed().await.is_err() {
                let source = std::io::Error::other("the task that downloaded it has ended");
                return Err(ImageError::io("downloading a layer", source));
            }
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.task.abort();
        // The task may hold its file for a moment longer, and the disk may be full.
        if !matches!(self.state.borrow().outcome, Some(Ok(()))) {
            let _ = self.file.set_len(0);
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            // The next start of the daemon tries again.
            tracing::warn!(path = %self.path.display(), %error, "A downloaded layer stays");
        }
    }
}
