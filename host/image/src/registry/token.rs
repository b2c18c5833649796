//! Tokens of a registry's token server (the Distribution project's "Token Authentication
//! Specification" and "OAuth2 Token Authentication"), kept until they expire.

use super::endpoint::{Endpoint, body, is_redirection, redirection};
use super::retry::{Again, Failure};
use crate::auth::Secret;
use base64::Engine as _;
use reqwest::header::HeaderValue;
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;

const MAX_BODY: u64 = 1 << 20;
const MAX_SCOPES: usize = 16;
const MAX_REDIRECTIONS: usize = 3;
/// What a token is worth whose server does not say; also the least, as the specification has it.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
const MAX_LIFE: Duration = Duration::from_secs(3600);
/// So long before its end a token is not used any more: a clock may be off, a request slow.
const MARGIN: Duration = Duration::from_secs(10);
const MAX_TOKENS: usize = 1024;

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<u64>,
}

/// The repository at a host and whose credentials got the token.
type Key = (String, Option<String>);

/// Tokens of this node's pulls: the next pull from the same repository with the same credentials
/// spares two requests.
#[derive(Default)]
pub(crate) struct TokenCache {
    tokens: Mutex<HashMap<Key, (HeaderValue, Instant)>>,
}

impl TokenCache {
    /// A token that is good for another while.
    pub(super) fn get(&self, place: &str, account: Option<&str>) -> Option<HeaderValue> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (place.to_owned(), account.map(str::to_owned));
        let (token, end) = tokens.get(&key)?;
        (Instant::now() + MARGIN < *end).then(|| token.clone())
    }

    fn put(&self, place: String, account: Option<&str>, token: HeaderValue, life: Duration) {
        let now = Instant::now();
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= MAX_TOKENS {
            tokens.retain(|_, (_, end)| *end > now);
        }
        if tokens.len() < MAX_TOKENS {
            tokens.insert((place, account.map(str::to_owned)), (token, now + life));
        }
    }
}

impl Endpoint {
    /// Gets a token for what a challenge asks for.
    pub(super) async fn fetch_token(
        &self,
        step: &str,
        secret: Option<&Secret>,
        account: Option<&str>,
        realm: &str,
        service: Option<String>,
        scope: Option<String>,
    ) -> Result<HeaderValue, Failure> {
        let step = &format!("token for the {step}");
        let url = Url::parse(realm)
            .ok()
            .filter(|url| url.scheme() == "https" || (self.is_plain() && url.scheme() == "http"))
            .ok_or_else(|| self.bad(step, "its token server has no https:// address"))?;
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.name.repository));
        let response = match secret {
            Some(Secret::IdentityToken(token)) => {
                let mut fields = vec![
                    ("scope", scope),
                    ("grant_type", "refresh_token".to_owned()),
                    ("refresh_token", token.clone()),
                    ("client_id", "bulkhead".to_owned()),
                ];
                fields.extend(service.map(|service| ("service", service)));
                self.http.post(url).form(&fields).send().await
            }
            other => {
                let mut url = url;
                let service = service.map(|service| ("service", service));
                // Several scopes are separate parameters here.
                let scopes = scope.split_whitespace().take(MAX_SCOPES);
                let scopes = scopes.map(|scope| ("scope", scope.to_owned()));
                url.query_pairs_mut()
                    .extend_pairs(service.into_iter().chain(scopes));
                self.get_token(url, other).await
            }
        };
        let response = response.map_err(|error| self.unreachable(step, error))?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                let failure = self.refused(step, response).await;
                let reason = format!("its token server refused: {}", failure.error);
                return Err(Failure::never(self.unauthorized(step, reason)));
            }
            _ => return Err(self.refused(step, response).await),
        }
        let bytes = body(response, MAX_BODY).await;
        let answer = bytes
            .map_err(|error| self.unreachable(step, error))?
            .and_then(|bytes| serde_json::from_slice::<Answer>(&bytes).ok())
            .ok_or_else(|| self.bad(step, "its token server sent no token"))?;
        let filled = |token: Option<String>| token.filter(|token| !token.is_empty());
        let token = filled(answer.token)
            .or(filled(answer.access_token))
            .ok_or_else(|| self.bad(step, "its token server sent no token"))?;
        let header = self.bearer(step, &token)?;
        let life = answer.expires_in.map(Duration::from_secs);
        let life = life.unwrap_or(DEFAULT_LIFE).clamp(DEFAULT_LIFE, MAX_LIFE);
        if secret.is_none() || account.is_some() {
            self.tokens.put(self.place(), account, header.clone(), life);
        }
        Ok(header)
    }

    /// Follows a few redirections; a password goes to the first host only.
    async fn get_token(
        &self,
        first: Url,
        secret: Option<&Secret>,
    ) -> Result<Response, reqwest::Error> {
        let mut url = first.clone();
        for _ in 0..MAX_REDIRECTIONS {
            let request = match secret {
                Some(Secret::Basic { username, password }) if url.origin() == first.origin() => {
                    self.http.get(url).basic_auth(username, Some(password))
                }
                _ => self.http.get(url),
            };
            let response = request.send().await?;
            url = match redirection(&response).filter(|_| is_redirection(&response)) {
                Some(next) => next,
                None => return Ok(response),
            };
        }
        self.http.get(url).send().await
    }

    fn bad(&self, step: &str, reason: &str) -> Failure {
        let status = format!("401 ({reason})");
        self.answered(step, status, Again::Never)
    }
}

/// The header of HTTP Basic authentication.
pub(super) fn basic(username: &str, password: &str) -> String {
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
    format!("Basic {pair}")
}
