//! Downloads of layers: each one a file that is complete and checked before anybody sees it.

use crate::digest::Digest;
use crate::manifest::Descriptor;
use crate::registry::Registry;
use crate::staging::Staging;
use crate::{ImageError, Result};
use futures_util::stream::{self, TryStreamExt as _};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

/// The layers of one image, compressed as they came. The files stay as long as this does.
pub(crate) struct Layers {
    files: BTreeMap<Digest, PathBuf>,
}

impl Layers {
    /// Opens a layer at its beginning. Blocks.
    pub(crate) fn open(&self, digest: &Digest) -> Result<File> {
        let opened = match self.files.get(digest) {
            Some(path) => File::open(path),
            None => Err(std::io::Error::other("the layer was not downloaded")),
        };
        opened.map_err(|error| ImageError::io("opening a downloaded layer", error))
    }
}

/// Downloads the layers of an image, so many at a time. `arrived` is told how many more bytes of
/// which layer there are.
pub(crate) async fn layers(
    registry: &Registry,
    layers: &[Descriptor],
    staging: &Staging,
    parallel: usize,
    arrived: impl Fn(&Digest, u64),
) -> Result<Layers> {
    // A layer can come more than once, mostly the empty one.
    let unique: BTreeMap<&Digest, &Descriptor> =
        layers.iter().map(|layer| (&layer.digest, layer)).collect();
    let path = |digest: &Digest| staging.blob(&digest.file_name());
    stream::iter(unique.values().copied().map(Ok))
        .try_for_each_concurrent(parallel.max(1), |layer| {
            let arrived = |bytes| arrived(&layer.digest, bytes);
            async move {
                let what = format!("layer {}", layer.digest);
                registry
                    .blob_to_file(&what, layer, &path(&layer.digest), arrived)
                    .await
            }
        })
        .await?;
    let files = unique.into_keys();
    Ok(Layers {
        files: files.map(|digest| (digest.clone(), path(digest))).collect(),
    })
}
