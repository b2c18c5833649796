//! emptyDir volumes: directories that are empty when the pod begins and live as long as it, on the scratch disk or
//! in memory.

use super::Scratch;
use crate::error::Context;
use crate::init::plan::EmptyDir;
use crate::{Error, Result};
use rustix::fs::{AtFlags, CWD, Gid, Mode, Uid};
use rustix::mount::MountFlags;
use std::ffi::CString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The most volumes of a pod.
const MAX: usize = 1024;

/// A pod's emptyDir volumes.
#[derive(Debug)]
pub struct EmptyDirs {
    scratch: Arc<Scratch>,
    /// Where those in memory are mounted.
    memory: PathBuf,
    /// Those that are there.
    made: Mutex<Vec<EmptyDir>>,
}

impl EmptyDirs {
    /// None yet. `memory` is a directory for mount points.
    pub fn new(scratch: Arc<Scratch>, memory: PathBuf) -> Self {
        Self {
            scratch,
            memory,
            made: Mutex::default(),
        }
    }

    /// Where a volume is; it is made when it is asked for first, and later as it was made.
    ///
    /// # Errors
    /// [`Error::Precondition`] when the same name was something else, and what making it says.
    pub fn directory(&self, asked: &EmptyDir) -> Result<PathBuf> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let base = match asked.memory {
            Some(_) => self.memory.clone(),
            None => self.scratch.volumes()?,
        };
        let path = base.join(&asked.name);
        if let Some(before) = made.iter().find(|before| before.name == asked.name) {
            if before.memory.is_some() != asked.memory.is_some() {
                return Err(Error::Precondition(format!(
                    "The emptyDir volume {} is there with another medium",
                    asked.name
                )));
            }
            return Ok(path);
        }
        if made.len() >= MAX {
            let text = format!("The pod has {MAX} emptyDir volumes already");
            return Err(Error::Precondition(text));
        }
        let what = || format!("Cannot make the emptyDir volume {}", asked.name);
        fs::create_dir_all(&base).context(what)?;
        // Made by one that failed half way.
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).context(what),
            _ => {}
        }
        fs::create_dir(&path).context(what)?;
        match asked.memory {
            Some(size) => mount_memory(&path, size, asked).context(what)?,
            None => give(&path, asked).context(what)?,
        }
        made.push(asked.clone());
        Ok(path)
    }
}

fn give(path: &Path, asked: &EmptyDir) -> rustix::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(asked.uid), Gid::from_raw(asked.gid));
    rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    rustix::fs::chmod(path, Mode::from_raw_mode(asked.mode))
}

fn mount_memory(path: &Path, size: u64, asked: &EmptyDir) -> std::io::Result<()> {
    let EmptyDir { mode, uid, gid, .. } = asked;
    let options = format!("size={size},mode={mode:o},uid={uid},gid={gid}");
    let options = CString::new(options)?;
    rustix::mount::mount("tmpfs", path, "tmpfs", MountFlags::NODEV, &*options)?;
    Ok(())
}
