//! Credentials for a registry, in the shapes that the CRI's `AuthConfig` knows.

use crate::{ImageError, Result};
use base64::Engine as _;
use std::fmt;

/// Credentials of one pull. They are used for that pull only and never kept.
#[derive(Clone, PartialEq, Eq)]
pub enum Auth {
    /// `AuthConfig.username` and `AuthConfig.password`.
    Basic {
        /// The account.
        username: String,
        /// Its password or access token.
        password: String,
    },
    /// `AuthConfig.identity_token`: an OAuth 2 refresh token for the registry's token server.
    IdentityToken(String),
    /// `AuthConfig.registry_token`: a bearer token that the registry takes as it is.
    RegistryToken(String),
}

impl Auth {
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
                Some(Self::Basic {
                    username: username.to_owned(),
                    password: password.trim_end_matches('\0').to_owned(),
                })
            })
            .ok_or(ImageError::InvalidAuth)
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(hidden)",
            Self::IdentityToken(_) => "IdentityToken(hidden)",
            Self::RegistryToken(_) => "RegistryToken(hidden)",
        })
    }
}
