//! The uncompressed bytes of a layer: decompressed, hashed and counted on the way, each step in a
//! thread of its own.
//!
//! ```text
//! blob -> decompress -> hash -> archive
//!             ^                    |
//!             \____ used buffers __/
//! ```

use super::{LayerError, LayerResult, Limits, Stop, invalid};
use crate::digest::{Digest, Hasher};
use flate2::bufread::MultiGzDecoder;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};

const BUFFER: usize = 256 << 10;
/// Full buffers between two threads.
const QUEUE: usize = 2;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
pub(super) const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The largest zstd window, as a power of two: 8 MiB, what RFC 8878 asks of every decoder and no
/// usual level of a builder exceeds. It is the largest part of a pull's memory.
const ZSTD_WINDOW_LOG: u32 = 23;

/// A layer as it is read.
pub(super) struct Content<'scope> {
    buffers: Receiver<Step>,
    used: Sender<Vec<u8>>,
    hasher: Option<ScopedJoinHandle<'scope, Digest>>,
    current: Vec<u8>,
    at: usize,
    budget: &'scope Budget,
    blob_error: Arc<Mutex<Option<io::Error>>>,
}

enum Step {
    Bytes(Vec<u8>),
    Failed(LayerError),
    /// The complete end: a thread that panics does not send it.
    End,
}

/// What all layers of an image may still unpack to.
pub(super) struct Budget {
    bytes: AtomicU64,
    entries: AtomicU64,
    limits: Limits,
}

impl Budget {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            bytes: AtomicU64::new(limits.bytes),
            entries: AtomicU64::new(limits.entries),
            limits,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn take_entry(&self) -> LayerResult<()> {
        take(&self.entries, 1, "it has more files than an image may have")
    }

    fn take_bytes(&self, bytes: u64, of: u64, from: u64) -> LayerResult<()> {
        let most = from
            .saturating_mul(self.limits.ratio)
            .saturating_add(self.limits.ratio_free);
        if of > most {
            return invalid(format!(
                "it unpacks to more than {} times its size",
                self.limits.ratio
            ));
        }
        let reason = "it unpacks to more bytes than an image may have";
        take(&self.bytes, bytes, reason)
    }
}

fn take(from: &AtomicU64, count: u64, reason: &str) -> LayerResult<()> {
    let take = |left: u64| left.checked_sub(count);
    match from.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
        Ok(_) => Ok(()),
        Err(_) => invalid(reason),
    }
}

/// Counts what is read of a blob and keeps the error, which decoders change.
struct Counted<'a> {
    blob: Box<dyn Read + Send + 'a>,
    count: Arc<AtomicU64>,
    arrived: &'a (dyn Fn(u64) + Sync),
    error: Arc<Mutex<Option<io::Error>>>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.blob.read(buffer) {
            Ok(count) => {
                self.count.fetch_add(count as u64, Ordering::Relaxed);
                (self.arrived)(count as u64);
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let kind = error.kind();
                *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                Err(kind.into())
            }
        }
    }
}

impl<'scope> Content<'scope> {
    /// Starts to read a blob. The compression is known by its first bytes, as builders do not
    /// always tell the right media type. `arrived` is told how many bytes of the blob were read.
    pub(super) fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        blob: Box<dyn Read + Send + 'scope>,
        diff_id: &Digest,
        budget: &'scope Budget,
        stop: &'scope Stop<'scope>,
        arrived: &'scope (dyn Fn(u64) + Sync),
    ) -> Self {
        let count = Arc::new(AtomicU64::new(0));
        let blob_error = Arc::new(Mutex::new(None));
        let blob = Counted {
            blob,
            count: Arc::clone(&count),
            arrived,
            error: Arc::clone(&blob_error),
        };
        let (used, free) = channel();
        let (to_hasher, plain) = sync_channel(QUEUE);
        let (to_archive, buffers) = sync_channel(QUEUE);
        scope.spawn(move || {
            let mut left = QUEUE.saturating_mul(2).saturating_add(2);
            let last = match decompress(blob, &count, budget, stop, &to_hasher, || {
                left = left.saturating_sub(1);
                match left {
                    0 => free.recv().ok(),
                    _ => Some(Vec::new()),
                }
            }) {
                Ok(()) => Step::End,
                Err(error) => Step::Failed(error),
            };
            // Nobody listens any more when the archive was at fault.
            let _ = to_hasher.send(last);
        });
        let hasher = diff_id.hasher();
        let hasher = scope.spawn(move || hash(hasher, &plain, &to_archive));
        Self {
            buffers,
            used,
            hasher: Some(hasher),
            current: Vec::new(),
            at: 0,
            budget,
            blob_error,
        }
    }

    /// The next bytes, as many as there are at hand; nothing at the end.
    pub(super) fn fill(&mut self) -> LayerResult<&[u8]> {
        if self.at >= self.current.len() && self.hasher.is_some() {
            let empty = std::mem::take(&mut self.current);
            if empty.capacity() > 0 {
                // The other end is gone when everything has been read.
                let _ = self.used.send(empty);
            }
            self.at = 0;
            match self.buffers.recv() {
                Ok(Step::Bytes(bytes)) => self.current = bytes,
                Ok(Step::End) => return Ok(&[]),
                Ok(Step::Failed(error)) => return Err(self.blame(error)),
                Err(_) => {
                    return Err(LayerError::Io {
                        doing: "decompressing a layer".to_owned(),
                        source: io::Error::other("a thread has ended early"),
                    });
                }
            }
        }
        Ok(self.current.get(self.at..).unwrap_or_default())
    }

    pub(super) fn consume(&mut self, count: usize) {
        self.at = self.at.saturating_add(count).min(self.current.len());
    }

    /// Bytes that may still come.
    pub(super) fn budget(&self) -> u64 {
        let here = self.current.len().saturating_sub(self.at) as u64;
        let ahead = (BUFFER as u64).saturating_mul(8);
        self.budget
            .bytes()
            .saturating_add(here)
            .saturating_add(ahead)
    }

    /// Reads what is left and returns the digest of everything.
    pub(super) fn finish(mut self) -> LayerResult<Digest> {
        loop {
            match self.fill()?.len() {
                0 => break,
                count => self.consume(count),
            }
        }
        match self.hasher.take().map(ScopedJoinHandle::join) {
            Some(Ok(digest)) => Ok(digest),
            _ => Err(LayerError::Io {
                doing: "hashing a layer".to_owned(),
                source: io::Error::other("the thread has ended early"),
            }),
        }
    }

    /// A blob that can not be read is not the layer's fault.
    fn blame(&self, error: LayerError) -> LayerError {
        let mut cause = self
            .blob_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match cause.take() {
            Some(source) => LayerError::Io {
                doing: "reading a layer".to_owned(),
                source,
            },
            None => error,
        }
    }
}

fn hash(mut hasher: Hasher, plain: &Receiver<Step>, to_archive: &SyncSender<Step>) -> Digest {
    for step in plain {
        if let Step::Bytes(bytes) = &step {
            hasher.update(bytes);
        }
        let last = !matches!(step, Step::Bytes(_));
        if to_archive.send(step).is_err() || last {
            break;
        }
    }
    hasher.finish()
}

fn decompress(
    blob: Counted<'_>,
    count: &AtomicU64,
    budget: &Budget,
    stop: &Stop<'_>,
    to_hasher: &SyncSender<Step>,
    mut free: impl FnMut() -> Option<Vec<u8>>,
) -> LayerResult<()> {
    let mut blob = BufReader::with_capacity(BUFFER, blob);
    let start = loop {
        match blob.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other.map_err(unreadable)?,
        }
    };
    let mut reader: Box<dyn Read> = if start.starts_with(&GZIP_MAGIC) {
        Box::new(MultiGzDecoder::new(blob))
    } else if start.starts_with(&ZSTD_MAGIC) {
        let mut decoder = zstd::Decoder::with_buffer(blob).map_err(unreadable)?;
        decoder
            .window_log_max(ZSTD_WINDOW_LOG)
            .map_err(unreadable)?;
        Box::new(decoder)
    } else {
        Box::new(blob)
    };
    let mut total = 0_u64;
    loop {
        let Some(mut buffer) = free() else {
            return Ok(());
        };
        buffer.resize(BUFFER, 0);
        let mut filled = 0_usize;
        let mut ended = false;
        while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
            stop.check()?;
            match reader.read(room) {
                Ok(0) => {
                    ended = true;
                    break;
                }
                Ok(more) => {
                    filled = filled.saturating_add(more);
                    total = total.saturating_add(more as u64);
                    budget.take_bytes(more as u64, total, count.load(Ordering::Relaxed))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unreadable(error)),
            }
        }
        buffer.truncate(filled);
        if filled > 0 && to_hasher.send(Step::Bytes(buffer)).is_err() {
            return Ok(());
        }
        if ended {
            return Ok(());
        }
    }
}

/// A layer has been checked against its digest, so what can not be read is the layer's fault.
pub(super) fn unreadable(error: io::Error) -> LayerError {
    LayerError::Invalid(format!("it can not be read ({error})"))
}
