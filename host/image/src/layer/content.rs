//! The uncompressed bytes of a layer: decompressed, hashed and counted on the way.

use crate::digest::{Digest, Hasher};
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};

const BUFFER: usize = 256 << 10;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The largest zstd window, as a power of two: what `zstd` itself accepts without options.
const ZSTD_WINDOW_LOG: u32 = 27;

/// Reads a layer. The compression is known by its first bytes, as builders do not always tell the
/// right media type.
pub(super) struct Content {
    reader: Box<dyn Read>,
    hasher: Option<Hasher>,
    /// Bytes that may still come.
    budget: u64,
}

impl Content {
    pub(super) fn open(file: File, diff_id: &Digest, budget: u64) -> io::Result<Self> {
        let mut file = BufReader::with_capacity(BUFFER, file);
        let start = file.fill_buf()?;
        let reader: Box<dyn Read> = if start.starts_with(&GZIP_MAGIC) {
            Box::new(MultiGzDecoder::new(file))
        } else if start.starts_with(&ZSTD_MAGIC) {
            let mut decoder = zstd::Decoder::with_buffer(file)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        } else {
            Box::new(file)
        };
        Ok(Self {
            // Tar headers are 512 bytes: without a buffer each costs a call of the decoder.
            reader: Box::new(BufReader::with_capacity(BUFFER, reader)),
            hasher: Some(diff_id.hasher()),
            budget,
        })
    }

    /// Reads what is left and returns the digest of everything and the budget that is left.
    pub(super) fn finish(mut self) -> io::Result<(Option<Digest>, u64)> {
        let mut buffer = vec![0; BUFFER];
        while self.read(&mut buffer)? > 0 {}
        Ok((self.hasher.take().map(Hasher::finish), self.budget))
    }

    pub(super) fn budget(&self) -> u64 {
        self.budget
    }
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.budget = self
            .budget
            .checked_sub(count as u64)
            .ok_or_else(|| io::Error::other("it unpacks to more bytes than an image may have"))?;
        if let (Some(hasher), Some(bytes)) = (&mut self.hasher, buffer.get(..count)) {
            hasher.update(bytes);
        }
        Ok(count)
    }
}
