//! Scratch disks: one sparse ext4 image per pod, copied from a template.
//!
//! A template is made once per node and size by `mkfs.ext4`. With tables that are initialised lazily
//! it holds some 200 KiB of data whatever its size, so a copy takes only those blocks (or none on a
//! file system with reflinks), and the guest has nothing to grow.

use crate::store::blocking;
use crate::{Result, SandboxError};
use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How the names of templates begin that are not complete.
const STAGING: &str = ".scratch-";

/// How the names of templates begin.
const TEMPLATE: &str = "scratch-template-";
/// Changes with [`run_mkfs`], so that a template of an earlier version is not used.
const LAYOUT: u32 = 2;

/// Makes scratch disks.
#[derive(Debug, Clone)]
pub(crate) struct ScratchMaker {
    root: PathBuf,
}

impl ScratchMaker {
    /// A maker whose templates are in `root`.
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Removes what a daemon that was killed while it made a template has left, and the templates of
    /// earlier versions. Blocks.
    pub(crate) fn clean(&self) -> Result<()> {
        let failed = || SandboxError::io(format!("clean {}", self.root.display()));
        for entry in std::fs::read_dir(&self.root).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let old = name.starts_with(TEMPLATE) && !name.starts_with(&template_name(""));
            if old || name.starts_with(STAGING) {
                std::fs::remove_file(entry.path()).map_err(failed())?;
            }
        }
        Ok(())
    }

    /// Makes a disk of `bytes` at `path`, which must not exist, and opens it for the VMM.
    pub(crate) async fn make(&self, path: PathBuf, bytes: u64) -> Result<OwnedFd> {
        let template = self.root.join(template_name(bytes));
        blocking(move || {
            let source = match File::open(&template) {
                Ok(file) => file,
                Err(_) => make_template(&template, bytes)?,
            };
            copy(&source, &path, bytes).map_err(SandboxError::io(format!(
                "make the scratch disk {}",
                path.display()
            )))
        })
        .await
    }
}

fn template_name(size: impl std::fmt::Display) -> String {
    format!("{TEMPLATE}{LAYOUT}-{size}")
}

fn make_template(path: &Path, bytes: u64) -> Result<File> {
    let failed = |doing: &str| SandboxError::io(format!("{doing} {}", path.display()));
    // Several pods may find it missing at once: each makes its own, the last rename stands.
    let directory = path.parent().unwrap_or(Path::new("/"));
    let staging = directory.join(format!("{STAGING}{}", crate::id::new_id()?));
    let file = File::create_new(&staging).map_err(failed("make the scratch template"))?;
    let made = file
        .set_len(bytes)
        .map_err(failed("make the scratch template"))
        .and_then(|()| run_mkfs(&staging))
        .and_then(|()| {
            std::fs::rename(&staging, path).map_err(failed("keep the scratch template"))
        });
    if let Err(error) = made {
        // The first error is the one to tell; the next start cleans up.
        let _ = std::fs::remove_file(&staging);
        return Err(error);
    }
    File::open(path).map_err(failed("open the scratch template"))
}

fn run_mkfs(path: &Path) -> Result<()> {
    let output = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-b", "4096", "-m", "0", "-L", "scratch"])
        .args([
            "-O",
            "^has_journal,^resize_inode,project,quota",
            "-i",
            "16384",
        ])
        .args(["-E", "lazy_itable_init=1,nodiscard,quotatype=prjquota"])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(SandboxError::io(
            "run mkfs.ext4; install Debian's e2fsprogs",
        ))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(SandboxError::io("make the scratch template")(
        std::io::Error::other(words),
    ))
}

/// Copies the parts of `source` that hold data; the rest of the new file is a hole.
fn copy(source: &File, path: &Path, bytes: u64) -> std::io::Result<OwnedFd> {
    let mut target = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)?;
    if ioctl_ficlone(&target, source).is_err() {
        copy_data(source, &mut target)?;
    }
    target.set_len(bytes)?;
    Ok(target.into())
}

fn copy_data(source: &File, target: &mut File) -> std::io::Result<()> {
    let mut from = source.try_clone()?;
    let mut end = 0;
    loop {
        let start = match seek(source, SeekFrom::Data(end)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        end = seek(source, SeekFrom::Hole(start))?;
        from.seek(std::io::SeekFrom::Start(start))?;
        target.seek(std::io::SeekFrom::Start(start))?;
        std::io::copy(&mut Read::by_ref(&mut from).take(end - start), target)?;
        target.flush()?;
    }
}

#[cfg(test)]
mod tests {
    use super::{STAGING, ScratchMaker, copy};
    use std::fs::File;
    use std::io::{Seek, SeekFrom, Write};
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_copy_has_the_data_and_the_holes() {
        let directory = tempfile::tempdir().unwrap();
        let source_path = directory.path().join("source");
        let mut source = File::create_new(&source_path).unwrap();
        source.write_all(b"begin").unwrap();
        source.seek(SeekFrom::Start(10 << 20)).unwrap();
        source.write_all(b"far").unwrap();
        source.set_len(20 << 20).unwrap();
        let target = directory.path().join("target");
        copy(&File::open(&source_path).unwrap(), &target, 40 << 20).unwrap();
        let bytes = std::fs::read(&target).unwrap();
        assert_eq!(bytes.len(), 40 << 20);
        assert_eq!(&bytes[..5], b"begin");
        assert_eq!(&bytes[10 << 20..(10 << 20) + 3], b"far");
        assert!(
            std::fs::metadata(&target).unwrap().blocks() * 512 < 1 << 20,
            "stays sparse"
        );
        assert!(
            copy(&source, &target, 1).is_err(),
            "never writes over a file that exists"
        );
    }

    #[test]
    fn unfinished_templates_are_removed_and_finished_ones_kept() {
        let directory = tempfile::tempdir().unwrap();
        let kept = super::template_name(1);
        for name in [&format!("{STAGING}1"), "scratch-template-1.ext4", &kept] {
            File::create_new(directory.path().join(name)).unwrap();
        }
        ScratchMaker::new(directory.path()).clean().unwrap();
        let left = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(left.collect::<Vec<_>>(), [kept]);
    }
}
