//! Layers: how blobs become one EROFS file (OCI Image Format Specification, "Image Layer
//! Filesystem Changeset").
//!
//! Layers are read at the same time. Each writes its data and inodes to its part of the file as
//! they come and its names to a log. In the order of the layers the logs are applied to one tree;
//! what a later layer replaces becomes a hole again. Directories are written last.

mod archive;
mod change;
mod content;
mod finish;
mod merge;
mod pager;
mod pax;
mod read;
mod size;
mod sparse;
mod spool;
mod tree;

#[cfg(test)]
mod tests;

use crate::digest::Digest;
use crate::erofs::{BLOCK, DirectoryWriter, ErofsError, Plan, Stream, Superblock};
use content::{Budget, Content};
use merge::Merger;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};

/// Why a layer could not be unpacked.
#[derive(Debug)]
pub(crate) enum LayerError {
    /// The layer's own fault.
    Invalid(String),
    /// What the layer unpacks to has another digest than the image's configuration says.
    WrongDiffId(Digest),
    /// The operating system refused something.
    Io { doing: String, source: io::Error },
    /// Nobody waits for the image any more, or another layer has failed.
    Cancelled,
}

type LayerResult<T> = Result<T, LayerError>;

fn invalid<T>(reason: impl Into<String>) -> LayerResult<T> {
    Err(LayerError::Invalid(reason.into()))
}

impl From<ErofsError> for LayerError {
    fn from(error: ErofsError) -> Self {
        match error {
            ErofsError::Limit(reason) => Self::Invalid(reason),
            ErofsError::Stopped => Self::Cancelled,
            ErofsError::Io(source) => Self::Io {
                doing: "making the EROFS file".to_owned(),
                source,
            },
        }
    }
}

/// Reasons to end early.
#[derive(Clone, Copy)]
struct Stop<'a> {
    cancelled: &'a AtomicBool,
    /// Another layer has failed.
    failed: &'a AtomicBool,
}

impl Stop<'_> {
    fn check(&self) -> LayerResult<()> {
        match self.cancelled.load(Ordering::Relaxed) || self.failed.load(Ordering::Relaxed) {
            true => Err(LayerError::Cancelled),
            false => Ok(()),
        }
    }
}

/// What the layers of one image may unpack to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes of all archives.
    pub(crate) bytes: u64,
    /// Entries of all archives.
    pub(crate) entries: u64,
    /// A layer may unpack to `ratio_free` bytes and besides to so many times what was read of it.
    pub(crate) ratio: u64,
    /// See `ratio`.
    pub(crate) ratio_free: u64,
}

impl Limits {
    /// Limits that no honest layer meets: text compresses to a fiftieth at best, but empty disk
    /// images and the like come in layers too.
    pub(crate) fn new(bytes: u64, entries: u64) -> Self {
        Self {
            bytes,
            entries,
            ratio: 200,
            ratio_free: 1 << 30,
        }
    }
}

/// One layer of an image.
pub(crate) struct Layer<'a> {
    /// The blob: a tar archive, compressed by gzip, zstd or not at all. Whoever gives it checks
    /// its digest.
    pub(crate) blob: Box<dyn Read + Send + 'a>,
    /// How much space the layer will probably take, which lets layers be written at the same
    /// time; 0 when nothing is known. The file's layout depends on it.
    pub(crate) reserve: u64,
    /// The digest of the uncompressed archive.
    pub(crate) diff_id: Digest,
}

impl Layer<'_> {
    /// A layer whose blob is there already; it is read from where the file stands.
    pub(crate) fn from_file(blob: File, diff_id: Digest) -> io::Result<Self> {
        Ok(Self {
            reserve: size::reserve(&blob)?,
            blob: Box::new(blob),
            diff_id,
        })
    }
}

/// How an image is built.
pub(crate) struct Options<'a> {
    pub(crate) limits: Limits,
    /// The file system's UUID.
    pub(crate) uuid: [u8; 16],
    /// Layers that are read at the same time; each takes three threads, which mostly wait for
    /// each other.
    pub(crate) parallel: usize,
    /// For temporary files.
    pub(crate) directory: PathBuf,
    pub(crate) cancelled: &'a AtomicBool,
    /// Told of the bytes that were read of a layer, by the layer's number.
    pub(crate) progress: &'a (dyn Fn(usize, u64) + Sync),
}

/// What was built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Built {
    /// Bytes of the file, holes included; a multiple of 4096.
    pub(crate) size: u64,
    /// Files, directories, links and devices, each counted once however many names it has.
    pub(crate) inodes: u64,
}

/// Makes one EROFS file of layers, lowest first, in an empty file. It may not be on the disk yet
/// when this returns: whoever keeps it syncs it. An error comes with the number of the layer that is at fault.
pub(crate) fn build(
    layers: Vec<Layer<'_>>,
    out: &File,
    options: &Options<'_>,
) -> Result<Built, (usize, LayerError)> {
    let count = layers.len();
    let last = count.saturating_sub(1);
    // A lone layer needs no region: it goes on behind all regions from the start.
    let reserve: Vec<u64> = match count {
        1 => vec![0],
        _ => layers.iter().map(|layer| layer.reserve).collect(),
    };
    let plan = Plan::new(BLOCK, &reserve);
    let budget = Budget::new(options.limits);
    let failed = AtomicBool::new(false);
    let stop = Stop {
        cancelled: options.cancelled,
        failed: &failed,
    };
    let waiting = Mutex::new(layers.into_iter().enumerate());
    let merged = std::thread::scope(|scope| {
        let (done, results) = mpsc::channel();
        for _ in 0..options.parallel.clamp(1, count.max(1)) {
            let (done, plan, budget, waiting) = (done.clone(), &plan, &budget, &waiting);
            let (stop, failed) = (&stop, &failed);
            scope.spawn(move || {
                loop {
                    let next = waiting
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .next();
                    let Some((number, layer)) = next else {
                        return;
                    };
                    let result = read_layer(number, layer, out, plan, budget, options, stop);
                    if result.is_err() {
                        failed.store(true, Ordering::Relaxed);
                        plan.stop();
                    }
                    if done.send((number, result)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        let merged = merge_all(out, count, &results, options);
        if merged.is_err() {
            failed.store(true, Ordering::Relaxed);
            plan.stop();
        }
        merged
    });
    let mut merger = merged?;
    let blame = |error: LayerError| (last, error);
    complete(&mut merger, &plan, out, options).map_err(blame)
}

fn read_layer(
    number: usize,
    layer: Layer<'_>,
    out: &File,
    plan: &Plan,
    budget: &Budget,
    options: &Options<'_>,
    stop: &Stop<'_>,
) -> LayerResult<read::Layer> {
    stop.check()?;
    let arrived = |bytes: u64| (options.progress)(number, bytes);
    let stream = Stream::new(out, plan.region(number));
    std::thread::scope(|scope| {
        let content = Content::start(scope, layer.blob, &layer.diff_id, budget, stop, &arrived);
        read::read(
            content,
            stream,
            &layer.diff_id,
            budget,
            stop,
            &options.directory,
        )
    })
}

/// Applies layers in order as they are complete.
fn merge_all<'a>(
    out: &'a File,
    count: usize,
    results: &mpsc::Receiver<(usize, LayerResult<read::Layer>)>,
    options: &'a Options<'_>,
) -> Result<Merger<'a>, (usize, LayerError)> {
    let entries = options.limits.entries;
    let mut merger = Merger::new(out, entries, &options.directory, options.cancelled)
        .map_err(|error| (0, error))?;
    let mut complete = BTreeMap::new();
    for number in 0..count {
        let layer = loop {
            if let Some(layer) = complete.remove(&number) {
                break layer;
            }
            match results.recv() {
                Ok((other, Ok(layer))) => drop(complete.insert(other, layer)),
                Ok((other, Err(error))) => return Err(at_fault((other, error), results)),
                Err(_) => return Err((number, LayerError::Cancelled)),
            }
        };
        merger
            .apply(layer.log, layer.usage)
            .map_err(|error| (number, error))?;
    }
    Ok(merger)
}

/// The first error that is not only the end of a layer that was stopped because of another.
fn at_fault(
    first: (usize, LayerError),
    results: &mpsc::Receiver<(usize, LayerResult<read::Layer>)>,
) -> (usize, LayerError) {
    let others = results
        .iter()
        .filter_map(|(number, result)| Some((number, result.err()?)));
    let mut all = std::iter::once(first).chain(others);
    let cancelled = |error: &LayerError| matches!(error, LayerError::Cancelled);
    let mut found = (0, LayerError::Cancelled);
    while cancelled(&found.1) {
        match all.next() {
            Some(next) => found = next,
            None => break,
        }
    }
    found
}

/// Writes directories and superblock.
fn complete(
    merger: &mut Merger<'_>,
    plan: &Plan,
    out: &File,
    options: &Options<'_>,
) -> LayerResult<Built> {
    let (files, chunked) = merger.finish()?;
    let mut writer = DirectoryWriter::new(out, plan.end());
    let directories = finish::directories(merger, &mut writer)?;
    let (root, size) = writer.finish()?;
    let inodes = files.saturating_add(directories);
    let superblock = Superblock {
        size,
        inodes,
        uuid: options.uuid,
        chunked,
    };
    superblock.write(out, &root)?;
    out.set_len(size).map_err(|source| LayerError::Io {
        doing: "making the EROFS file".to_owned(),
        source,
    })?;
    Ok(Built { size, inodes })
}
