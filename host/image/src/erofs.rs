//! Makes one EROFS file of a tree, with `mkfs.erofs`.
//!
//! The file is uncompressed, so that pods share its pages in the host's page cache as they are,
//! and depends on nothing but the tree and the image's id.

use crate::digest::Digest;
use crate::{ImageError, Result};
use std::io;
use std::path::Path;
use std::process::Stdio;
use tokio::process::Command;

/// The file's size is a multiple of this, which every block device size divides.
pub(crate) const BLOCK: u64 = 4096;
/// The time of the file system itself: later than any file, as `mkfs.erofs` lowers later times
/// to it. Seconds since 1970, the last of the year 9999.
const EPOCH: &str = "253402300799";
const MAX_MESSAGE: usize = 1000;

/// Makes `file` from `tree` and writes it to the disk. Returns its size in bytes.
pub(crate) async fn make(
    program: &Path,
    image: &str,
    id: &Digest,
    tree: &Path,
    file: &Path,
) -> Result<u64> {
    let failed = |reason: String| ImageError::MakeDisk {
        image: image.to_owned(),
        reason,
    };
    let output = Command::new(program)
        .args(["--quiet", "-U", &uuid(id)])
        .arg(file)
        .arg(tree)
        .env("SOURCE_DATE_EPOCH", EPOCH)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => failed(format!(
                "{} is not on this node; install the package erofs-utils",
                program.display()
            )),
            _ => ImageError::io("starting mkfs.erofs", error),
        })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        if text.contains("No space left on device") || text.contains("Disk quota exceeded") {
            return Err(ImageError::NoSpace {
                doing: format!("making the EROFS file of {image}"),
            });
        }
        // With wrong arguments it prints pages of help after its error.
        let message: String = text.lines().take(3).collect::<Vec<_>>().join("; ");
        let message: String = message.escape_debug().take(MAX_MESSAGE).collect();
        return Err(failed(format!(
            "mkfs.erofs ended with {}: {message}",
            output.status
        )));
    }
    let path = file.to_owned();
    tokio::task::spawn_blocking(move || complete(&path))
        .await
        .map_err(io::Error::other)
        .and_then(|result| result)
        .map_err(|error| ImageError::io(format!("writing the EROFS file of {image}"), error))
}

/// Fills the last block and waits until the file is on the disk.
fn complete(path: &Path) -> io::Result<u64> {
    let file = std::fs::File::options().write(true).open(path)?;
    let length = file.metadata()?.len();
    let size = length.next_multiple_of(BLOCK);
    if size == 0 {
        return Err(io::Error::other("mkfs.erofs wrote an empty file"));
    }
    if size != length {
        file.set_len(size)?;
    }
    file.sync_all()?;
    Ok(size)
}

/// A UUID made of the image's id (RFC 9562, version 8).
fn uuid(id: &Digest) -> String {
    let hex = id.hex();
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    format!(
        "{}-{}-8{}-8{}-{}",
        part(0, 8),
        part(8, 12),
        part(13, 16),
        part(17, 20),
        part(20, 32)
    )
}
