//! Which images the store has and what they are called: one JSON file, replaced as a whole.
//!
//! An image's EROFS file is in place before the index names it, and is removed before the index
//! forgets it. So after a kill at any moment an image of the index is complete or has no file, and
//! then it is none; every other file is rubbish.

use crate::digest::Digest;
use crate::image::ImageConfig;
use crate::name::{Name, Version};
use crate::{ImageError, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

#[cfg(test)]
mod tests;

const VERSION: u32 = 1;
const FILE: &str = "index.json";
const NEW_FILE: &str = "index.json.new";

/// The images of a store, by id.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Index {
    version: u32,
    pub(crate) images: BTreeMap<Digest, Record>,
}

/// What the index keeps of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) tags: BTreeSet<String>,
    pub(crate) digests: BTreeSet<String>,
    /// Bytes of the EROFS file, holes included.
    pub(crate) size: u64,
    /// Bytes on disk of the EROFS file.
    #[serde(default)]
    pub(crate) occupied: u64,
    /// BLAKE3 of the EROFS file; versions before 0.2 had none.
    #[serde(default)]
    pub(crate) blake3: String,
    pub(crate) config: ImageConfig,
}

impl Record {
    /// An image without a name.
    pub(crate) fn new(size: u64, occupied: u64, blake3: String, config: ImageConfig) -> Self {
        Self {
            tags: BTreeSet::new(),
            digests: BTreeSet::new(),
            size,
            occupied,
            blake3,
            config,
        }
    }
}

impl Default for Index {
    fn default() -> Self {
        Self {
            version: VERSION,
            images: BTreeMap::new(),
        }
    }
}

impl Index {
    /// Reads the index of a store; a new store has none.
    pub(crate) fn load(root: &Path) -> Result<Self> {
        let path = root.join(FILE);
        let invalid = |reason: String| ImageError::InvalidIndex {
            path: path.display().to_string(),
            reason,
        };
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(ImageError::io("reading the index", error)),
        };
        let index: Self =
            serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
        if index.version != VERSION {
            return Err(invalid(format!("its version is {}", index.version)));
        }
        Ok(index)
    }

    /// Writes the index so that a crash leaves the old one or the new one.
    pub(crate) fn save(&self, root: &Path) -> Result<()> {
        let new = root.join(NEW_FILE);
        let write = || -> io::Result<()> {
            let bytes = serde_json::to_vec(self)?;
            let mut file = File::create(&new)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&new, root.join(FILE))?;
            File::open(root)?.sync_all()
        };
        write().map_err(|error| {
            // On a full disk its bytes are wanted; when it is not there, all is well.
            let _ = std::fs::remove_file(&new);
            ImageError::io("writing the index", error)
        })
    }

    /// Gives an image a name and takes the tag from the image that had it.
    pub(crate) fn name(&mut self, id: &Digest, name: &Name, target: &Digest) {
        if let Version::Tag(_) = name.version {
            for record in self.images.values_mut() {
                record.tags.remove(&name.to_string());
            }
        }
        if let Some(record) = self.images.get_mut(id) {
            if let Version::Tag(_) = name.version {
                record.tags.insert(name.to_string());
            }
            let digest = name.with_digest(target.clone());
            record.digests.insert(digest.to_string());
        }
    }

    /// The id of the image that a text stands for.
    pub(crate) fn find(&self, text: &str) -> Result<Option<Digest>> {
        if let Some(id) = Digest::parse(text) {
            return Ok(self.images.contains_key(&id).then_some(id));
        }
        let name = Name::parse(text).map(|name| name.to_string());
        if let Ok(name) = &name {
            let named =
                |record: &Record| record.tags.contains(name) || record.digests.contains(name);
            if let Some((id, _)) = self.images.iter().find(|(_, record)| named(record)) {
                return Ok(Some(id.clone()));
            }
        }
        let start = text.strip_prefix("sha256:").unwrap_or(text);
        if start.is_empty() || !start.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return name.map(|_| None);
        }
        let mut ids = self.images.keys().filter(|id| id.hex().starts_with(start));
        match (ids.next(), ids.next()) {
            (Some(_), Some(_)) => Err(ImageError::InvalidReference {
                reference: text.to_owned(),
                reason: "more than one image's id begins so; give more digits",
            }),
            (id, _) => Ok(id.cloned()),
        }
    }

    /// Removes the image that a text stands for, with all its names, and tells its id.
    pub(crate) fn remove(&mut self, text: &str) -> Result<Option<Digest>> {
        let id = self.find(text)?;
        if let Some(id) = &id {
            self.images.remove(id);
        }
        Ok(id)
    }
}
