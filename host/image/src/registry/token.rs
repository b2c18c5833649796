//! How a registry's challenge is answered: HTTP Basic, or a token from its token server (the
//! Distribution project's "Token Authentication Specification" and "OAuth2 Token
//! Authentication").

use super::Registry;
use crate::name::Name;
use crate::{Auth, ImageError, Result};
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{StatusCode, Url};
use serde::Deserialize;

#[cfg(test)]
mod tests;

const MAX_TOKEN_BODY: u64 = 1 << 20;
const MAX_MESSAGE: usize = 300;

/// What a `WWW-Authenticate` header asks for.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

impl Registry {
    /// The `Authorization` header that answers the challenge of a 401.
    pub(super) async fn answer_challenge(&self, headers: &HeaderMap) -> Result<HeaderValue> {
        let challenges: Vec<Challenge> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok().and_then(parse_challenge))
            .collect();
        for challenge in challenges {
            match (challenge, &self.auth) {
                (Challenge::Basic, Some(Auth::Basic { username, password })) => {
                    return basic(&self.name, username, password);
                }
                (
                    Challenge::Bearer {
                        realm,
                        service,
                        scope,
                    },
                    None | Some(Auth::Basic { .. } | Auth::IdentityToken(_)),
                ) => return self.fetch_token(&realm, service, scope).await,
                _ => {}
            }
        }
        Err(self.unauthorized())
    }

    async fn fetch_token(
        &self,
        realm: &str,
        service: Option<String>,
        scope: Option<String>,
    ) -> Result<HeaderValue> {
        let url = Url::parse(realm)
            .ok()
            .filter(|url| url.scheme() == "https" || (self.plain_http && url.scheme() == "http"))
            .ok_or_else(|| self.bad_challenge("its token server has no https:// address"))?;
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.name.repository));
        let mut fields = vec![("scope", scope)];
        fields.extend(service.map(|service| ("service", service)));
        let request = match &self.auth {
            Some(Auth::IdentityToken(token)) => {
                fields.push(("grant_type", "refresh_token".to_owned()));
                fields.push(("refresh_token", token.clone()));
                fields.push(("client_id", "bulkhead".to_owned()));
                self.http.post(url).form(&fields)
            }
            Some(Auth::Basic { username, password }) => self
                .http
                .get(url)
                .query(&fields)
                .basic_auth(username, Some(password)),
            _ => self.http.get(url).query(&fields),
        };
        let response = request
            .send()
            .await
            .map_err(|error| self.unreachable(error))?;
        match response.status() {
            StatusCode::OK => {}
            status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => {
                return Err(self.unauthorized());
            }
            status => return Err(self.refused(status, response).await),
        }
        let body = self.body("token", response, MAX_TOKEN_BODY).await?;
        let token = serde_json::from_slice::<TokenAnswer>(&body)
            .ok()
            .and_then(|answer| answer.token.or(answer.access_token))
            .ok_or_else(|| self.bad_challenge("its token server sent no token"))?;
        bearer(&self.name, &token)
    }

    fn bad_challenge(&self, reason: &str) -> ImageError {
        ImageError::RegistryRefused {
            image: self.name.to_string(),
            registry: self.name.registry.clone(),
            status: format!("401 ({reason})"),
        }
    }
}

/// `Authorization: Bearer`.
pub(super) fn bearer(name: &Name, token: &str) -> Result<HeaderValue> {
    secret_header(name, &format!("Bearer {token}"))
}

fn basic(name: &Name, username: &str, password: &str) -> Result<HeaderValue> {
    use base64::Engine as _;
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
    secret_header(name, &format!("Basic {pair}"))
}

fn secret_header(name: &Name, text: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(text).map_err(|_| ImageError::Unauthorized {
        image: name.to_string(),
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Reads one challenge: a scheme and `key="value"` pairs separated by commas (RFC 9110, 11.6.1).
fn parse_challenge(header: &str) -> Option<Challenge> {
    let (scheme, mut rest) = match header.trim().split_once(' ') {
        Some((scheme, rest)) => (scheme, rest.trim()),
        None => (header.trim(), ""),
    };
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service, mut scope) = (None, None, None);
    while let Some((key, tail)) = rest.split_once('=') {
        let (value, tail) = match tail.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => tail.split_once(',').map_or((tail, ""), |(v, t)| (v, t)),
        };
        match key.trim().to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value.to_owned()),
            "service" => service = Some(value.to_owned()),
            "scope" => scope = Some(value.to_owned()),
            _ => {}
        }
        rest = tail.trim_start_matches([',', ' ']);
    }
    Some(Challenge::Bearer {
        realm: realm?,
        service,
        scope,
    })
}

/// The message of an error body (OCI Distribution Specification, "Error Codes"), made harmless
/// for a log.
pub(super) fn error_message(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Error>,
    }
    #[derive(Deserialize)]
    struct Error {
        #[serde(default)]
        message: String,
    }
    let errors: Errors = serde_json::from_slice(body).ok()?;
    let message = &errors.errors.first()?.message;
    (!message.is_empty()).then(|| message.escape_debug().take(MAX_MESSAGE).collect())
}
