//! Guesses from a blob how much space a layer will take in the EROFS file.
//!
//! The guess only decides where the next layer starts. If it is too high a hole remains, if it is
//! too low the layer goes on behind all others.

use super::content::ZSTD_MAGIC;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// Nothing unpacks to more than so many times its size, as far as a guess goes: a hostile blob
/// must not make the file large, even if only of holes.
const MAX_RATIO: u64 = 16;
/// A frame of zstd that does not say its size.
const USUAL_RATIO: u64 = 3;
const EXTRA: u64 = 16 << 10;

/// Bytes to reserve for the layer in this blob.
pub(super) fn reserve(blob: &File) -> io::Result<u64> {
    let length = blob.metadata()?.len();
    let mut start = [0; 18];
    let filled = read_some(blob, &mut start, 0)?;
    let start = start.get(..filled).unwrap_or_default();
    let archive = if start.starts_with(&[0x1f, 0x8b]) {
        gzip(blob, length)?
    } else if start.starts_with(&ZSTD_MAGIC) {
        let size = zstd::zstd_safe::get_frame_content_size(start)
            .ok()
            .flatten();
        size.unwrap_or(length.saturating_mul(USUAL_RATIO))
    } else {
        length
    };
    let archive = archive.min(length.saturating_mul(MAX_RATIO));
    // Blocks of data waste more than those of an archive, but a file's header costs less.
    Ok(archive.saturating_add(archive / 8).saturating_add(EXTRA))
}

/// The last four bytes of a gzip file are its size modulo 4 GiB, if it has one member only.
fn gzip(blob: &File, length: u64) -> io::Result<u64> {
    let mut size = [0; 4];
    if read_some(blob, &mut size, length.saturating_sub(4))? < 4 {
        return Ok(length);
    }
    let mut size = u64::from(u32::from_le_bytes(size));
    while size < length {
        size = size.saturating_add(1 << 32);
    }
    Ok(size)
}

fn read_some(blob: &File, out: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0_usize;
    while let Some(rest) = out.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match blob.read_at(rest, at.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(count) => filled = filled.saturating_add(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
