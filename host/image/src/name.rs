//! Image names: `[registry/]repository[:tag][@digest]`, normalised as containerd does it.

use crate::digest::Digest;
use crate::{ImageError, Result};
use std::fmt;

#[cfg(test)]
mod tests;

const DEFAULT_REGISTRY: &str = "docker.io";
const MAX_REPOSITORY: usize = 255;
const MAX_TAG: usize = 128;

/// A complete image name. With a tag and a digest, the digest counts and the tag is dropped.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Name {
    pub(crate) registry: String,
    pub(crate) repository: String,
    pub(crate) version: Version,
}

/// Which image of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Version {
    Tag(String),
    Digest(Digest),
}

impl Name {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        Self::try_parse(text).map_err(|reason| ImageError::InvalidReference {
            reference: text.chars().take(512).collect(),
            reason,
        })
    }

    fn try_parse(text: &str) -> std::result::Result<Self, &'static str> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = Digest::parse(digest).ok_or("its digest is not well-formed")?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err("its tag is not well-formed");
        }
        let (registry, repository) = match path.split_once('/') {
            Some((first, rest)) if is_registry(first) => (first, rest),
            _ => (DEFAULT_REGISTRY, path),
        };
        if !registry_is_well_formed(registry) {
            return Err("its registry is not a host name with an optional port");
        }
        let registry = match registry {
            "index.docker.io" => DEFAULT_REGISTRY,
            other => other,
        };
        let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository.to_owned()
        };
        if repository.len() > MAX_REPOSITORY {
            return Err("its repository is longer than 255 characters");
        }
        if !repository.split('/').all(is_path_component) {
            return Err(
                "its repository is not lower-case letters and digits, separated by '/', '.', '_' \
                 or '-'",
            );
        }
        if path.len() == 64 && path.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err("64 hexadecimal digits are an image id");
        }
        let version = match (digest, tag) {
            (Some(digest), _) => Version::Digest(digest),
            (None, tag) => Version::Tag(tag.unwrap_or("latest").to_owned()),
        };
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            version,
        })
    }

    /// The name of the same repository's image with this digest.
    pub(crate) fn with_digest(&self, digest: Digest) -> Self {
        Self {
            version: Version::Digest(digest),
            ..self.clone()
        }
    }

    /// `registry/repository`.
    pub(crate) fn familiar_repository(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match &self.version {
            Version::Tag(tag) => write!(f, ":{tag}"),
            Version::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

/// The first component of a path names a registry when no repository could be called so.
fn is_registry(first: &str) -> bool {
    first == "localhost"
        || first.contains(['.', ':'])
        || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn registry_is_well_formed(registry: &str) -> bool {
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else {
                return false;
            };
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            match (port, port.strip_prefix(':')) {
                ("", _) => ("ipv6", None),
                (_, Some(port)) => ("ipv6", Some(port)),
                _ => return false,
            }
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let digits =
        |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
    registry.len() <= MAX_REPOSITORY && host.split('.').all(label) && port.is_none_or(digits)
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// Letters and digits with single separators between them: `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators: Vec<&str> = component.split(letter).filter(|s| !s.is_empty()).collect();
    component.starts_with(letter)
        && component.ends_with(letter)
        && separators
            .iter()
            .all(|s| matches!(*s, "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}
