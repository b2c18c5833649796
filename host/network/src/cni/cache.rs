//! What has been added, on disk: intent first, the result when there is one. It survives the daemon and a
//! reboot, and is removed when DEL has succeeded.

use super::capability::RuntimeSettings;
use crate::{NetworkError, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// A pod on a network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// The pod sandbox.
    pub pod: String,
    /// The name of the interface in the pod.
    pub interface: String,
    /// The path of the pod's network namespace.
    pub netns: PathBuf,
    /// CNI_ARGS.
    pub args: String,
    /// What plugins may ask for.
    pub runtime: RuntimeSettings,
    /// The list with which it was added.
    pub list: Map<String, Value>,
    /// The last plugin's result, in the list's version; nothing until ADD has succeeded.
    #[serde(default)]
    pub result: Option<Value>,
}

/// The directory of attachments, one file for each pod.
#[derive(Debug, Clone)]
pub struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// In a directory, which is made. Blocks.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)
            .map_err(NetworkError::io(format!("make {}", directory.display())))?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    fn path(&self, pod: &str) -> PathBuf {
        self.directory.join(format!("{pod}.json"))
    }

    /// Remembers an attachment. It is on the disk when this returns. Blocks.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn put(&self, attachment: &Attachment) -> Result<()> {
        let path = self.path(&attachment.pod);
        let failed = || NetworkError::io(format!("write {}", path.display()));
        let bytes = serde_json::to_vec(attachment).map_err(|error| failed()(error.into()))?;
        let new = path.with_extension("new");
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(&bytes)?;
            file.sync_data()?;
            fs::rename(&new, &path)?;
            File::open(&self.directory)?.sync_all()
        };
        write().map_err(failed())
    }

    /// The attachment of a pod. Blocks.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn get(&self, pod: &str) -> Result<Option<Attachment>> {
        let path = self.path(pod);
        let failed = || NetworkError::io(format!("read {}", path.display()));
        match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed()(error)),
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(attachment) => Ok(Some(attachment)),
                Err(error) => Err(failed()(error.into())),
            },
        }
    }

    /// Forgets the attachment of a pod. Blocks.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(&self, pod: &str) -> Result<()> {
        let path = self.path(pod);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(NetworkError::io(format!(
                "remove {}",
                path.display()
            ))(error)),
            _ => Ok(()),
        }
    }

    /// The pods that have one. Blocks.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn pods(&self) -> Result<Vec<String>> {
        let failed = || NetworkError::io(format!("read {}", self.directory.display()));
        let mut pods = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(failed())? {
            let name = entry.map_err(failed())?.file_name();
            let pod = name.to_str().and_then(|name| name.strip_suffix(".json"));
            pods.extend(pod.map(str::to_owned));
        }
        Ok(pods)
    }
}
