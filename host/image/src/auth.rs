//! Credentials for a registry, in the shapes that the CRI's `AuthConfig` knows.

mod docker;

#[cfg(any(fuzzing, test))]
pub(crate) use docker::DockerConfig;
pub(crate) use docker::Keychain;

use crate::digest::Digest;
use crate::{ImageError, Result};
use base64::Engine as _;
use std::fmt;

#[cfg(test)]
mod tests;

/// Credentials of one pull. They are used for that pull only and never kept.
#[derive(Clone, PartialEq, Eq)]
pub struct Auth {
    secret: Secret,
    /// The only host that may see them, as in `AuthConfig.server_address`.
    server: Option<String>,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Secret {
    Basic { username: String, password: String },
    IdentityToken(String),
    RegistryToken(String),
}

impl Auth {
    /// `AuthConfig.username` and `AuthConfig.password`.
    pub fn basic(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self::of(Secret::Basic {
            username: username.into(),
            password: password.into(),
        })
    }

    /// `AuthConfig.identity_token`: an OAuth 2 refresh token for the registry's token server.
    pub fn identity_token(token: impl Into<String>) -> Self {
        Self::of(Secret::IdentityToken(token.into()))
    }

    /// `AuthConfig.registry_token`: a bearer token that the registry takes as it is.
    pub fn registry_token(token: impl Into<String>) -> Self {
        Self::of(Secret::RegistryToken(token.into()))
    }

    /// Reads `AuthConfig.auth`: `username:password` in Base64.
    ///
    /// # Errors
    /// [`ImageError::InvalidAuth`] when it is not that.
    pub fn from_base64(text: &str) -> Result<Self> {
        let text = text.trim_end_matches(['\0', '\n']);
        base64::engine::general_purpose::STANDARD
            .decode(text)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .and_then(|pair| {
                let (username, password) = pair.split_once(':')?;
                Some(Self::basic(username, password.trim_end_matches('\0')))
            })
            .ok_or(ImageError::InvalidAuth)
    }

    /// Only the host of this address (`https://host:port/…` or `host:port`) may see them; without
    /// that, every host that serves the image's registry may, its mirrors too, as with containerd.
    /// An empty address changes nothing.
    #[must_use]
    pub fn only_for(mut self, server_address: &str) -> Self {
        self.server = Some(server_host(server_address).to_owned()).filter(|host| !host.is_empty());
        self
    }

    fn of(secret: Secret) -> Self {
        Self {
            secret,
            server: None,
        }
    }

    /// What this host of a registry may see.
    pub(crate) fn for_host(&self, host: &str) -> Option<&Secret> {
        match &self.server {
            Some(server) if canonical(server) != canonical(host) => None,
            _ => Some(&self.secret),
        }
    }

    /// The same for the same credentials, and tells nothing about them.
    pub(crate) fn fingerprint(&self) -> Digest {
        let parts = match &self.secret {
            Secret::Basic { username, password } => ["basic", username, password],
            Secret::IdentityToken(token) => ["identity", token, ""],
            Secret::RegistryToken(token) => ["registry", token, ""],
        };
        let text = parts.map(|part| format!("{}:{part}", part.len())).concat();
        Digest::sha256(text.as_bytes())
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.secret {
            Secret::Basic { .. } => "Basic(hidden)",
            Secret::IdentityToken(_) => "IdentityToken(hidden)",
            Secret::RegistryToken(_) => "RegistryToken(hidden)",
        })
    }
}

/// The `host` or `host:port` of an address with or without scheme and path.
fn server_host(address: &str) -> &str {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

/// Docker Hub has many names, of which Docker's own tools write several.
fn canonical(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}
