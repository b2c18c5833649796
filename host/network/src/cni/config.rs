//! Network configuration lists: parsing, and finding the node's one.
//!
//! The directories are read whenever a configuration is needed. They hold a handful of small files, so that
//! costs little, and nobody can act on one that is no longer there.

use super::version::Version;
use crate::{NetworkError, Result};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// The longest configuration file in bytes.
const MAX_FILE: u64 = 1 << 20;
/// The most plugins in a list.
const MAX_PLUGINS: usize = 64;
/// The longest name of a network.
const MAX_NAME: usize = 256;

/// A network configuration list.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkList {
    /// The network's name.
    pub name: String,
    /// The newest version that the list has and this runtime speaks.
    pub version: Version,
    /// CHECK must not be executed.
    pub disable_check: bool,
    /// GC must not be executed.
    pub disable_gc: bool,
    /// In the order of ADD.
    pub plugins: Vec<Plugin>,
}

/// One plugin of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Plugin {
    /// The name of its program.
    pub kind: String,
    /// What it wants to be told, of what the runtime may know.
    pub capabilities: BTreeSet<String>,
    /// Its configuration as the file has it.
    pub config: Map<String, Value>,
}

impl NetworkList {
    /// Parses a list, or the configuration of a single plugin as a list of one.
    ///
    /// # Errors
    /// What is wrong, in a few words.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let value: Value =
            serde_json::from_slice(text).map_err(|error| format!("it is not JSON: {error}"))?;
        let Value::Object(object) = value else {
            return Err("it is not an object".into());
        };
        Self::from_object(object)
    }

    /// As [`NetworkList::parse`] takes it.
    #[must_use]
    pub fn to_object(&self) -> Map<String, Value> {
        let plugins = self.plugins.iter();
        let plugins = plugins.map(|plugin| Value::Object(plugin.config.clone()));
        let mut object = Map::new();
        object.insert("name".into(), self.name.clone().into());
        object.insert("cniVersion".into(), self.version.name().into());
        object.insert("disableCheck".into(), self.disable_check.into());
        object.insert("disableGC".into(), self.disable_gc.into());
        object.insert("plugins".into(), plugins.collect());
        object
    }

    /// From an object.
    ///
    /// # Errors
    /// What is wrong, in a few words.
    pub fn from_object(object: Map<String, Value>) -> Result<Self, String> {
        let name = text_of(&object, "name")?.unwrap_or_default();
        if !name_is_valid(&name) {
            return Err(format!(
                "name is {name:?}; it must begin with a letter or digit, then letters, digits, '_', '.' and '-'"
            ));
        }
        let version = version_of(&object)?;
        let plugins = match object.get("plugins") {
            Some(Value::Array(plugins)) => plugins.clone(),
            Some(_) => return Err("plugins is not a list".into()),
            None => vec![Value::Object(object.clone())],
        };
        if plugins.is_empty() || plugins.len() > MAX_PLUGINS {
            return Err(format!(
                "plugins has {} entries; there must be 1 to {MAX_PLUGINS}",
                plugins.len()
            ));
        }
        Ok(Self {
            name,
            version,
            disable_check: flag_of(&object, "disableCheck")?,
            disable_gc: flag_of(&object, "disableGC")?,
            plugins: plugins
                .into_iter()
                .map(Plugin::parse)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl Plugin {
    fn parse(value: Value) -> Result<Self, String> {
        let Value::Object(config) = value else {
            return Err("an entry of plugins is not an object".into());
        };
        let kind = text_of(&config, "type")?.unwrap_or_default();
        // It becomes the name of a program in the plugins' directories.
        if kind.is_empty() || kind.starts_with('.') || kind.contains(['/', '\0']) {
            return Err(format!(
                "the type of a plugin is {kind:?}; it must be the name of a program"
            ));
        }
        let capabilities = match config.get("capabilities") {
            None | Some(Value::Null) => BTreeSet::new(),
            Some(Value::Object(map)) => map
                .iter()
                .filter(|(_, wanted)| **wanted == Value::Bool(true))
                .map(|(name, _)| name.clone())
                .collect(),
            Some(_) => return Err(format!("capabilities of plugin {kind:?} is not an object")),
        };
        Ok(Self {
            kind,
            capabilities,
            config,
        })
    }
}

/// `cniVersion`, or the newest of `cniVersions` that is known (since 1.1.0).
fn version_of(object: &Map<String, Value>) -> Result<Version, String> {
    let mut names = Vec::new();
    names.extend(text_of(object, "cniVersion")?);
    match object.get("cniVersions") {
        None | Some(Value::Null) => {}
        Some(Value::Array(versions)) => {
            names.extend(versions.iter().filter_map(Value::as_str).map(str::to_owned));
        }
        Some(_) => return Err("cniVersions is not a list".into()),
    }
    let known = names.iter().filter_map(|name| Version::parse(name)).max();
    known.ok_or_else(|| {
        let names = match names.is_empty() {
            true => "missing".to_owned(),
            false => format!("{names:?}"),
        };
        format!("cniVersion is {names}; it must be one from 0.3.0 to 1.1.0")
    })
}

fn text_of(object: &Map<String, Value>, key: &str) -> Result<Option<String>, String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(format!("{key} is not a string")),
    }
}

/// A flag; a string counts too, as for the reference library.
fn flag_of(object: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(format!("{key} is neither true nor false")),
    }
}

fn name_is_valid(name: &str) -> bool {
    let mut characters = name.chars();
    name.len() <= MAX_NAME
        && characters
            .next()
            .is_some_and(|first| first.is_ascii_alphanumeric())
        && characters.all(|one| one.is_ascii_alphanumeric() || matches!(one, '_' | '.' | '-'))
}

/// The node's network: the first file by name in the first directory that has one. A file that cannot be
/// used is an error; the next one is not taken in its place. Blocks.
///
/// # Errors
/// There is none, or it cannot be used.
pub fn find(directories: &[PathBuf]) -> Result<NetworkList> {
    for directory in directories {
        if let Some(path) = first(directory)? {
            return load(&path);
        }
    }
    Err(NetworkError::NoConfiguration {
        directories: names(directories),
    })
}

pub(crate) fn names(paths: &[PathBuf]) -> String {
    let names: Vec<_> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    names.join(", ")
}

fn first(directory: &Path) -> Result<Option<PathBuf>> {
    let mut files = files(directory, &["conflist", "conf", "json"])?;
    files.truncate(1);
    Ok(files.pop())
}

/// Files of these kinds, sorted by name.
fn files(directory: &Path, kinds: &[&str]) -> Result<Vec<PathBuf>> {
    let failed = || NetworkError::io(format!("read the directory {}", directory.display()));
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed()(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed())?.path();
        let kind = path.extension().and_then(|kind| kind.to_str());
        if kind.is_some_and(|kind| kinds.contains(&kind)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn load(path: &Path) -> Result<NetworkList> {
    let unusable = |problem: String| NetworkError::Configuration {
        path: path.to_owned(),
        problem,
    };
    let object = read_object(path)?;
    let only_inlined = flag_of(&object, "loadOnlyInlinedPlugins").map_err(unusable)?;
    let has_list = object.contains_key("plugins");
    let mut object = object;
    // Since 1.1.0: more plugins of the list, each in a file of its own.
    if has_list
        && !only_inlined
        && let (Some(directory), Ok(Some(name))) = (path.parent(), text_of(&object, "name"))
        && name_is_valid(&name)
    {
        let more = files(&directory.join(name), &["conf"])?;
        if let Some(Value::Array(plugins)) = object.get_mut("plugins") {
            for file in more {
                plugins.push(Value::Object(read_object(&file)?));
            }
        }
    }
    NetworkList::from_object(object).map_err(unusable)
}

fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let unusable = |problem: String| NetworkError::Configuration {
        path: path.to_owned(),
        problem,
    };
    let mut text = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut text))
        .map_err(NetworkError::io(format!("read {}", path.display())))?;
    if text.len() as u64 > MAX_FILE {
        return Err(unusable(format!("it is longer than {MAX_FILE} bytes")));
    }
    match serde_json::from_slice(&text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(unusable("it is not an object".into())),
        Err(error) => Err(unusable(format!("it is not JSON: {error}"))),
    }
}
