//! Image indexes, manifests and configurations, of the OCI and of Docker.
//!
//! Both families have the same JSON fields; only the media types differ (OCI Image Format
//! Specification, "Compatibility Matrix").

use crate::digest::Digest;
use crate::image::ImageConfig;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

mod platform;

pub(crate) use platform::{architecture, choose_platform};

#[cfg(test)]
mod tests;

/// What a manifest request accepts.
pub(crate) const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

const CONFIG_TYPES: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];

const LAYER_TYPES: [&str; 9] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

const INDEX_TYPES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// The most bytes of a manifest or an index.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;
/// The most bytes of a configuration.
pub(crate) const MAX_CONFIGURATION: u64 = 8 << 20;
const MAX_LAYERS: usize = 512;

/// A pointer to a blob.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    platform: Option<platform::Platform>,
}

/// What a manifest URL answers.
#[derive(Debug)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

/// One image for one platform.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    #[serde(default)]
    schema_version: u64,
    #[serde(default)]
    media_type: String,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

impl Document {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let raw: RawDocument = object(bytes)
            .map_err(|error| format!("its manifest can not be understood ({error})"))?;
        if raw.schema_version == 1 {
            return Err(
                "it is in Docker's schema 1, which no runtime takes any more; push it again with a \
                 builder of today"
                    .to_owned(),
            );
        }
        let is_index = INDEX_TYPES.contains(&raw.media_type.as_str());
        let is_other = raw.media_type.is_empty();
        match raw {
            RawDocument {
                manifests: Some(manifests),
                config: None,
                layers: None,
                ..
            } if is_index || is_other => Ok(Self::Index(manifests)),
            RawDocument {
                manifests: None,
                config: Some(config),
                layers: Some(layers),
                ..
            } if !is_index => {
                let manifest = Manifest { config, layers };
                manifest.check()?;
                Ok(Self::Manifest(manifest))
            }
            // A document that is both would mean one thing here and another thing elsewhere.
            _ => Err("its manifest is neither an image index nor an image manifest".to_owned()),
        }
    }
}

impl Manifest {
    fn check(&self) -> Result<(), String> {
        if self.layers.len() > MAX_LAYERS {
            return Err(format!("it has more than {MAX_LAYERS} layers"));
        }
        let known = |types: &[&str], of: &str| of.is_empty() || types.contains(&of);
        if !known(&CONFIG_TYPES, &self.config.media_type) {
            let kind = self.config.media_type.escape_debug();
            return Err(format!("it is not a container image but {kind}"));
        }
        for layer in &self.layers {
            if !known(&LAYER_TYPES, &layer.media_type) {
                let kind = layer.media_type.escape_debug();
                return Err(format!("a layer has the unknown type {kind}"));
            }
        }
        Ok(())
    }
}

/// An image configuration: what the store needs to unpack and what a container needs to start.
#[derive(Debug, Clone)]
pub(crate) struct Configuration {
    /// As it came.
    pub(crate) bytes: Vec<u8>,
    pub(crate) diff_ids: Vec<Digest>,
    pub(crate) config: ImageConfig,
}

#[derive(Deserialize)]
struct RawConfiguration {
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    architecture: Option<String>,
    rootfs: RootFs,
    #[serde(default)]
    config: Option<RawConfig>,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default, deserialize_with = "nullable")]
    diff_ids: Vec<Digest>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawConfig {
    #[serde(deserialize_with = "nullable")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    env: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    working_dir: String,
    #[serde(deserialize_with = "nullable")]
    user: String,
    stop_signal: Option<String>,
    #[serde(deserialize_with = "nullable")]
    volumes: BTreeMap<String, serde_json::Value>,
    #[serde(deserialize_with = "nullable")]
    exposed_ports: BTreeMap<String, serde_json::Value>,
    #[serde(deserialize_with = "nullable")]
    labels: BTreeMap<String, String>,
}

/// Reads a JSON object; serde would take a list for a struct, which other readers do not.
fn object<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, String> {
    match bytes.trim_ascii_start().first() {
        Some(b'{') => serde_json::from_slice(bytes).map_err(|error| error.to_string()),
        _ => Err("it is no JSON object".to_owned()),
    }
}

/// Builders write `null` for what is empty.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The digest of layers one above the other (OCI Image Format Specification, "Layer ChainID").
pub(crate) fn chain_id(diff_ids: &[Digest]) -> Option<Digest> {
    let (first, rest) = diff_ids.split_first()?;
    Some(rest.iter().fold(first.clone(), |below, diff_id| {
        Digest::sha256(format!("{below} {diff_id}").as_bytes())
    }))
}

impl Configuration {
    /// The layers' digests of a configuration that has been parsed before.
    pub(crate) fn diff_ids_of(bytes: &[u8]) -> Vec<Digest> {
        let parsed = serde_json::from_slice::<RawConfiguration>(bytes);
        parsed.map_or_else(|_| Vec::new(), |raw| raw.rootfs.diff_ids)
    }

    /// Reads the configuration of an image with so many layers.
    pub(crate) fn parse(bytes: &[u8], layers: usize) -> Result<Self, String> {
        let raw: RawConfiguration = object(bytes)
            .map_err(|error| format!("its configuration can not be understood ({error})"))?;
        let fits = |value: &Option<String>, want: &str| {
            value.as_deref().is_none_or(|v| v.is_empty() || v == want)
        };
        if !fits(&raw.os, "linux") || !fits(&raw.architecture, architecture()) {
            return Err(format!(
                "it is for {}/{} and this node is linux/{}",
                raw.os.unwrap_or_default().escape_debug(),
                raw.architecture.unwrap_or_default().escape_debug(),
                architecture()
            ));
        }
        if raw.rootfs.diff_ids.len() != layers {
            return Err(format!(
                "its manifest has {layers} layers and its configuration {}",
                raw.rootfs.diff_ids.len()
            ));
        }
        let config = raw.config.unwrap_or_default();
        Ok(Self {
            bytes: bytes.to_owned(),
            diff_ids: raw.rootfs.diff_ids,
            config: ImageConfig {
                entrypoint: config.entrypoint,
                cmd: config.cmd,
                env: config.env,
                working_dir: config.working_dir,
                user: config.user,
                stop_signal: config.stop_signal.filter(|signal| !signal.is_empty()),
                volumes: config.volumes.into_keys().collect(),
                exposed_ports: config.exposed_ports.into_keys().collect(),
                labels: config.labels,
            },
        })
    }
}
