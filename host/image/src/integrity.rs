//! Whether a disk still is what was written: `docs/decisions/image-integrity.md`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// Bytes that are read at a time: few calls, and the second half of a core's cache.
const PIECE: usize = 1 << 20;

/// A BLAKE3 digest of a file's content as hexadecimal digits. The file's position stays.
pub(crate) fn digest(file: &File) -> io::Result<String> {
    // Only a hint: what the disk has to read is read ahead.
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Sequential);
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    loop {
        let count = match file.read_at(&mut piece, at) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            count => count?,
        };
        if count == 0 {
            return Ok(hasher.finalize().to_hex().to_string());
        }
        hasher.update(piece.get(..count).unwrap_or_default());
        at += count as u64;
    }
}

/// Waits until a file is on the disk, and meanwhile computes its digest.
pub(crate) fn seal(file: &File) -> io::Result<String> {
    std::thread::scope(|scope| {
        let digest = scope.spawn(|| digest(file));
        file.sync_all()?;
        digest
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("computing the digest of a disk failed")))
    })
}
