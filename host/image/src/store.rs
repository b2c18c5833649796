//! The store: what is on this node and the operations of the CRI's image service.
//!
//! ```text
//! lock                  held while the store is open
//! index.json            the images and their names
//! disks/sha256-<hex>    the EROFS file of the image with this id
//! configs/sha256-<hex>  its configuration, whose digest the id is
//! staging/              pulls that are under way
//! ```

use crate::digest::Digest;
use crate::index::{Index, Record};
use crate::manifest::{Configuration, chain_id};
use crate::name::Name;
use crate::pull::Flight;
use crate::registry::{Registry, Remote, Resolved};
use crate::staging::remove_all;
use crate::{
    Auth, FsInfo, Image, ImageError, PullPhase, PullProgress, Result, Specification, StoreConfig,
};
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::collections::{HashMap, HashSet};
use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::time::Duration;

mod disks;

/// A pull is tried again when its image was removed before the caller could have it.
const PULL_TRIES: usize = 3;

/// The images of this node. Cheap to clone; clones are the same store.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    root: PathBuf,
    pub(crate) config: StoreConfig,
    /// Normalised.
    pinned: HashSet<String>,
    /// What readers see.
    index: Mutex<Arc<Index>>,
    /// Held by the one who changes the index, from reading it until it is on the disk.
    writing: Mutex<()>,
    flights: Mutex<HashMap<String, Weak<Flight>>>,
    remote: Arc<Remote>,
    /// Locked until the store is closed.
    _lock: OwnedFd,
}

impl ImageStore {
    /// Opens the store in `root`, which is made when it does not exist, and removes what a
    /// predecessor left when it was killed. Blocks: call it before serving.
    ///
    /// # Errors
    /// [`ImageError::InUse`] when another process has it open, [`ImageError::InvalidIndex`],
    /// [`ImageError::InvalidReference`] by a pinned name, [`ImageError::NoSpace`] and
    /// [`ImageError::Io`].
    pub fn open(root: &Path, config: StoreConfig) -> Result<Self> {
        // The whole process may share one; the first one stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let pinned = config
            .pinned
            .iter()
            .map(|name| Ok(Name::parse(name)?.to_string()));
        let pinned = pinned.collect::<Result<HashSet<_>>>()?;
        let opening = |error: std::io::Error| ImageError::io("opening the image store", error);
        let make = |path: &Path| DirBuilder::new().recursive(true).mode(0o700).create(path);
        make(root).map_err(opening)?;
        let lock = lock(root)?;
        remove_all(&root.join("staging")).map_err(opening)?;
        make(&root.join("staging")).map_err(opening)?;
        for directory in [disks::DISKS, disks::CONFIGURATIONS] {
            make(&root.join(directory)).map_err(opening)?;
        }
        let mut index = Index::load(root)?;
        let inner = Inner {
            root: root.to_owned(),
            remote: Arc::new(Remote::new(config.clone(), root.join("staging"))),
            config,
            pinned,
            writing: Mutex::new(()),
            flights: Mutex::new(HashMap::new()),
            _lock: lock,
            index: Mutex::default(),
        };
        if inner.drop_incomplete(&mut index) {
            index.save(root)?;
        }
        inner.drop_strangers(&index)?;
        *locked(&inner.index) = Arc::new(index);
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Pulls an image by tag or digest; a short name gets `docker.io/library/` and `:latest`.
    /// Calls for the same image at the same time share one download; when every caller has dropped
    /// its future, the download stops. `progress` is called when something has changed.
    ///
    /// # Errors
    /// Every variant of [`ImageError`]; none leaves anything in the store.
    pub async fn pull(
        &self,
        reference: &str,
        auth: Option<Auth>,
        mut progress: impl FnMut(&PullProgress) + Send,
    ) -> Result<Image> {
        let name = Name::parse(reference)?;
        progress(&PullProgress::default());
        for _ in 0..PULL_TRIES {
            let registry = Registry::open(&self.inner.remote, name.clone(), auth.clone()).await?;
            // Every caller asks the registry with its own credentials: an image that is here
            // already is not for everybody.
            if let Some(image) = self.inner.unchanged(&registry, &name).await? {
                progress(&PullProgress {
                    phase: PullPhase::Done,
                    layers: Vec::new(),
                });
                return Ok(image);
            }
            let resolved = registry.resolve().await?;
            let id = resolved.manifest.config.digest.clone();
            let target = resolved.target.clone();
            if self.inner.image(&id).is_none() {
                let flight = self.inner.board(Arc::new(registry), &name, resolved);
                flight.wait(&mut progress).await?;
            }
            if let Some(image) = self.inner.name(id, name.clone(), target).await? {
                progress(&PullProgress {
                    phase: PullPhase::Done,
                    layers: Vec::new(),
                });
                return Ok(image);
            }
        }
        Err(ImageError::NotFound {
            image: name.to_string(),
        })
    }

    /// The image that a tag, a digest, an id (with or without `sha256:`) or the unique beginning
    /// of an id stands for; nothing when the store has none.
    ///
    /// # Errors
    /// [`ImageError::InvalidReference`] when it can be none of these or more than one image's id
    /// begins so.
    pub async fn get(&self, reference_or_id: &str) -> Result<Option<Image>> {
        let id = self.inner.snapshot().find(reference_or_id)?;
        Ok(id.and_then(|id| self.inner.image(&id)))
    }

    /// All images, by id.
    ///
    /// # Errors
    /// None yet; kept for a store that has to read.
    pub async fn list(&self) -> Result<Vec<Image>> {
        let index = self.inner.snapshot();
        let images = index.images.iter();
        Ok(images
            .map(|(id, record)| self.inner.describe(id, record))
            .collect())
    }

    /// Removes the image that a name or an id stands for, with all its names: what the CRI calls
    /// RemoveImage, as containerd understands it. Removing what is not there succeeds. Disks that
    /// are open, those behind running containers too, stay usable; their blocks are given back when
    /// the last one is closed.
    ///
    /// # Errors
    /// [`ImageError::InvalidReference`] as [`ImageStore::get`], [`ImageError::Io`].
    pub async fn remove(&self, reference_or_id: &str) -> Result<()> {
        let text = reference_or_id.to_owned();
        self.inner
            .blocking(move |inner| {
                let _writing = locked(&inner.writing);
                let mut index = Index::clone(&inner.snapshot());
                match index.remove(&text)? {
                    Some(id) => inner.remove_image(&id, index),
                    None => Ok(()),
                }
            })
            .await
    }

    /// What the store occupies now, pulls that are under way included.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub async fn fs_info(&self) -> Result<FsInfo> {
        self.inner
            .blocking(|inner| {
                let measured = inner.measure();
                measured.map_err(|error| ImageError::io("measuring the images", error))
            })
            .await
    }

    /// An image's configuration as it came.
    ///
    /// # Errors
    /// [`ImageError::NotFound`], [`ImageError::Damaged`], [`ImageError::Io`].
    pub async fn specification(&self, image_id: &str) -> Result<Specification> {
        let (id, _) = self.inner.find(image_id)?;
        self.inner
            .blocking(move |inner| {
                let bytes = inner.read_configuration(&id)?;
                let diff_ids = Configuration::diff_ids_of(&bytes);
                Ok(Specification {
                    chain_id: chain_id(&diff_ids).map_or_else(String::new, String::from),
                    configuration: bytes,
                })
            })
            .await
    }

    /// Opens an image's EROFS file read-only, after every byte of it has been read and found to be
    /// what was written (`docs/decisions/image-integrity.md`). It stays valid when the image is
    /// removed. Its size is a multiple of 4096 bytes.
    ///
    /// # Errors
    /// [`ImageError::NotFound`], [`ImageError::Damaged`], [`ImageError::Io`].
    pub async fn open_disk(&self, image_id: &str) -> Result<OwnedFd> {
        let (id, record) = self.inner.find(image_id)?;
        self.inner
            .blocking(move |inner| Ok(inner.checked_disk(&id, &record)?.into()))
            .await
    }
}

impl Inner {
    pub(crate) fn staging_path(&self) -> PathBuf {
        self.root.join("staging")
    }

    /// The image that the store has of a name, if the registry says that it is still that.
    async fn unchanged(
        self: &Arc<Self>,
        registry: &Registry,
        name: &Name,
    ) -> Result<Option<Image>> {
        let repository = format!("{}@", name.familiar_repository());
        let is_of = |record: &Record| {
            let mut digests = record.digests.iter();
            digests.any(|digest| digest.starts_with(&repository))
        };
        if !self.snapshot().images.values().any(is_of) {
            return Ok(None);
        }
        let Some(target) = registry.target().await else {
            return Ok(None);
        };
        let by_digest = name.with_digest(target.clone()).to_string();
        match self.snapshot().find(&by_digest)? {
            Some(id) => self.name(id, name.clone(), target).await,
            None => Ok(None),
        }
    }

    /// Joins the flight of an image or starts it.
    fn board(
        self: &Arc<Self>,
        registry: Arc<Registry>,
        name: &Name,
        resolved: Resolved,
    ) -> Arc<Flight> {
        let key = format!(
            "{} {}",
            name.familiar_repository(),
            resolved.manifest.config.digest
        );
        let mut flights = locked(&self.flights);
        flights.retain(|_, flight| flight.strong_count() > 0);
        if let Some(flight) = flights.get(&key).and_then(Weak::upgrade) {
            return flight;
        }
        let flight = Flight::start(Arc::clone(self), registry, name.clone(), resolved);
        let flight = Arc::new(flight);
        flights.insert(key, Arc::downgrade(&flight));
        flight
    }

    /// Gives an image of the store a name; nothing when the store does not have it.
    async fn name(
        self: &Arc<Self>,
        id: Digest,
        name: Name,
        target: Digest,
    ) -> Result<Option<Image>> {
        self.blocking(move |inner| {
            let _writing = locked(&inner.writing);
            let mut index = Index::clone(&inner.snapshot());
            if !index.images.contains_key(&id) {
                return Ok(None);
            }
            index.name(&id, &name, &target);
            inner.publish(index)?;
            Ok(inner.image(&id))
        })
        .await
    }

    fn publish(&self, index: Index) -> Result<()> {
        index.save(&self.root)?;
        *locked(&self.index) = Arc::new(index);
        Ok(())
    }

    fn snapshot(&self) -> Arc<Index> {
        Arc::clone(&locked(&self.index))
    }

    fn find(&self, image_id: &str) -> Result<(Digest, Record)> {
        let index = self.snapshot();
        let found = index.find(image_id)?.and_then(|id| {
            let record = index.images.get(&id)?.clone();
            Some((id, record))
        });
        found.ok_or_else(|| ImageError::NotFound {
            image: image_id.to_owned(),
        })
    }

    fn image(&self, id: &Digest) -> Option<Image> {
        let index = self.snapshot();
        Some(self.describe(id, index.images.get(id)?))
    }

    fn describe(&self, id: &Digest, record: &Record) -> Image {
        Image {
            id: id.to_string(),
            repo_tags: record.tags.iter().cloned().collect(),
            repo_digests: record.digests.iter().cloned().collect(),
            size: record.occupied,
            config: record.config.clone(),
            pinned: record
                .tags
                .union(&record.digests)
                .any(|name| self.pinned.contains(name)),
        }
    }

    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .map_err(|error| ImageError::io("working on the store", std::io::Error::other(error)))?
    }
}

/// How long a predecessor that was killed may still have the store: a child that it was just making
/// (`mkfs.erofs`) holds the lock too until it runs its program.
const PREDECESSOR: Duration = Duration::from_secs(2);

/// Takes the store for this process; the lock ends with the process.
fn lock(root: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let locking = |error: std::io::Error| ImageError::io("locking the image store", error);
    let fd = rustix::fs::open(root.join("lock"), flags, Mode::from_raw_mode(0o600))
        .map_err(|error| locking(error.into()))?;
    let (sender, locked) = mpsc::channel();
    // The kernel has no lock with a time limit, so a thread waits. If it gets the lock when nobody
    // waits for it any more, it drops the descriptor and with it the lock.
    std::thread::spawn(move || {
        let result = rustix::fs::flock(&fd, FlockOperation::LockExclusive);
        let _ = sender.send(result.map(|()| fd));
    });
    match locked.recv_timeout(PREDECESSOR) {
        Ok(result) => result.map_err(|error| locking(error.into())),
        Err(_) => Err(ImageError::InUse {
            root: root.display().to_string(),
        }),
    }
}

/// What these locks guard is replaced as a whole, so a panic leaves nothing half done.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
