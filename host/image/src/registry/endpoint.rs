//! One host that serves a registry, as one pull sees it: requests, redirections, credentials.

use super::challenge::{self, Challenge};
use super::hosts::{Host, Protocol};
use super::retry::{Again, Failure, again};
use super::token::TokenCache;
use crate::auth::{Keychain, Secret};
use crate::name::Name;
use crate::{Auth, ImageError};
use reqwest::header::{
    ACCEPT, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, LOCATION, RANGE, WWW_AUTHENTICATE,
};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Mutex;

const MAX_REDIRECTIONS: usize = 10;
const MAX_ERROR_BODY: u64 = 16 << 10;
const MAX_MESSAGE: usize = 300;
const MAX_CHALLENGE: usize = 8 << 10;

/// What is asked of a host.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    /// After the repository: `manifests/latest`.
    pub(super) path: &'a str,
    pub(super) accept: &'a str,
    /// Leave out so many bytes.
    pub(super) offset: u64,
    /// In words, for errors.
    pub(super) step: &'a str,
}

/// A host, for one repository and one set of credentials.
pub(super) struct Endpoint {
    pub(super) http: reqwest::Client,
    pub(super) host: Host,
    /// The host does not speak TLS, as far as we know.
    plain: AtomicBool,
    pub(super) name: Name,
    /// The registry's name, if the host is not the registry itself.
    namespace: Option<String>,
    headers: HeaderMap,
    auth: Option<Auth>,
    keychain: Keychain,
    pub(super) tokens: Arc<TokenCache>,
    /// The `Authorization` header that the host took last.
    authorization: Mutex<Option<HeaderValue>>,
}

impl Endpoint {
    pub(super) fn new(
        http: reqwest::Client,
        host: Host,
        name: Name,
        auth: Option<Auth>,
        keychain: Keychain,
        tokens: Arc<TokenCache>,
    ) -> Self {
        let headers = host.header.iter().filter_map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            Some((name, HeaderValue::from_str(value).ok()?))
        });
        Self {
            http,
            plain: AtomicBool::new(host.protocol == Protocol::Http),
            namespace: host
                .is_mirror_of(&name.registry)
                .then(|| name.registry.clone()),
            headers: headers.collect(),
            host,
            name,
            auth,
            keychain,
            tokens,
            authorization: Mutex::new(None),
        }
    }

    /// Neither side of a connection to this host proves who it is.
    pub(super) fn is_plain(&self) -> bool {
        self.plain.load(Ordering::Relaxed)
    }

    /// `https://host/v2/repository`.
    fn base(&self) -> String {
        let scheme = if self.is_plain() { "http" } else { "https" };
        format!("{scheme}://{}", self.place())
    }

    /// The same without the scheme, which may not be known yet.
    pub(super) fn place(&self) -> String {
        let Host {
            authority, path, ..
        } = &self.host;
        format!("{authority}{path}/{}", self.name.repository)
    }

    /// The answer to a request, with one more try after the host's challenge has been answered.
    /// Only 200 and 206 are no failure.
    pub(super) async fn ask(&self, request: &Request<'_>) -> Result<Response, Failure> {
        let known = || self.tokens.get(&self.place(), self.account().as_deref());
        let used = {
            let mut current = self.authorization.lock().await;
            if current.is_none() {
                *current = known();
            }
            current.clone()
        };
        let mut response = self.follow(request, used.as_ref()).await?;
        if response.status() == StatusCode::UNAUTHORIZED && self.is_own(response.url()) {
            let authorization = {
                let mut current = self.authorization.lock().await;
                // Another request may have answered the challenge in the meantime.
                if *current == used {
                    *current = None;
                    *current = Some(self.answer(request.step, response.headers()).await?);
                }
                current.clone()
            };
            response = self.follow(request, authorization.as_ref()).await?;
        }
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            StatusCode::NOT_FOUND if request.path.starts_with("manifests/") => {
                Err(Failure::never(ImageError::NotFound {
                    image: self.name.to_string(),
                }))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let (status, message) = (response.status(), message_of(response).await);
                let reason = message.unwrap_or_else(|| status.to_string());
                Err(Failure::never(self.unauthorized(request.step, reason)))
            }
            _ => Err(self.refused(request.step, response).await),
        }
    }

    /// Sends a request and follows redirections. What the settings and the credentials add goes to
    /// the host itself only, and nothing leaves TLS.
    async fn follow(
        &self,
        request: &Request<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Failure> {
        let mut url = self.url(request)?;
        for _ in 0..=MAX_REDIRECTIONS {
            let response = match self.send(request, &url, authorization).await {
                Err(error) if self.may_be_plain(&error) => {
                    self.plain.store(true, Ordering::Relaxed);
                    url = self.url(request)?;
                    self.send(request, &url, authorization).await
                }
                other => other,
            };
            let response = response.map_err(|error| self.unreachable(request.step, error))?;
            if !is_redirection(&response) {
                return Ok(response);
            }
            url = match redirection(&response) {
                Some(next) => next,
                None => {
                    let status = format!("{} without an address to go on", response.status());
                    return Err(self.answered(request.step, status, Again::Never));
                }
            };
        }
        let status = format!("more than {MAX_REDIRECTIONS} redirections");
        Err(self.answered(request.step, status, Again::Never))
    }

    async fn send(
        &self,
        request: &Request<'_>,
        url: &Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, reqwest::Error> {
        let mut builder = self.http.request(request.method.clone(), url.clone());
        if self.is_own(url) {
            builder = builder.headers(self.headers.clone());
            if let Some(value) = authorization {
                builder = builder.header(AUTHORIZATION, value);
            }
        }
        builder = builder.header(ACCEPT, request.accept);
        if request.offset > 0 {
            builder = builder.header(RANGE, format!("bytes={}-", request.offset));
        }
        builder.send().await
    }

    fn url(&self, request: &Request<'_>) -> Result<Url, Failure> {
        let text = format!("{}/{}", self.base(), request.path);
        let mut url = Url::parse(&text).map_err(|error| {
            let status = format!("nothing, as {text:?} is no address ({error}),");
            self.answered(request.step, status, Again::Never)
        })?;
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    /// The URL is the host itself and not where it sent us.
    fn is_own(&self, url: &Url) -> bool {
        Url::parse(&self.base()).is_ok_and(|own| own.origin() == url.origin())
    }

    /// TLS failed at a host that may do without.
    fn may_be_plain(&self, error: &reqwest::Error) -> bool {
        // A host that waits for a request takes a handshake for the beginning of one.
        self.host.protocol == Protocol::Either && !self.is_plain() && error.is_connect()
    }

    /// The `Authorization` header that answers the challenge of a 401.
    async fn answer(&self, step: &str, headers: &HeaderMap) -> Result<HeaderValue, Failure> {
        let mut challenges: Vec<Challenge> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .filter(|text| text.len() <= MAX_CHALLENGE)
            .flat_map(challenge::parse)
            .collect();
        // A token shows the password to fewer requests.
        challenges.sort_by_key(|challenge| matches!(challenge, Challenge::Basic));
        let secret = self.secret().await?;
        for challenge in challenges {
            match (challenge, &secret) {
                (Challenge::Basic, Some(Secret::Basic { username, password })) => {
                    return self.basic(step, username, password);
                }
                (Challenge::Bearer { .. }, Some(Secret::RegistryToken(token))) => {
                    return self.bearer(step, token);
                }
                (
                    Challenge::Bearer {
                        realm,
                        service,
                        scope,
                    },
                    secret,
                ) => {
                    let account = self.account();
                    return self
                        .fetch_token(
                            step,
                            secret.as_ref(),
                            account.as_deref(),
                            &realm,
                            service,
                            scope,
                        )
                        .await;
                }
                _ => {}
            }
        }
        let reason = match secret {
            None => "it wants credentials and we have none for it",
            Some(_) => "it does not take the kind of credentials that we have",
        };
        Err(Failure::never(self.unauthorized(step, reason.to_owned())))
    }

    /// What this host may see of the caller's credentials, or else what the node has for it.
    async fn secret(&self) -> Result<Option<Secret>, Failure> {
        let given = self.auth.as_ref();
        if let Some(secret) = given.and_then(|auth| auth.for_host(&self.host.authority)) {
            return Ok(Some(secret.clone()));
        }
        let found = self
            .keychain
            .find(&self.host.authority, &self.name.repository)
            .await;
        found.map_err(|reason| {
            Failure::never(ImageError::Credentials {
                image: self.name.to_string(),
                registry: self.host.authority.clone(),
                reason,
            })
        })
    }

    /// Tells apart whose tokens are in the cache. Those of the node's own credentials are not kept,
    /// as the file may change.
    fn account(&self) -> Option<String> {
        let auth = self.auth.as_ref()?;
        auth.for_host(&self.host.authority)
            .map(|_| auth.fingerprint().to_string())
    }

    fn basic(&self, step: &str, username: &str, password: &str) -> Result<HeaderValue, Failure> {
        self.secret_header(step, &super::token::basic(username, password))
    }

    pub(super) fn bearer(&self, step: &str, token: &str) -> Result<HeaderValue, Failure> {
        self.secret_header(step, &format!("Bearer {token}"))
    }

    fn secret_header(&self, step: &str, text: &str) -> Result<HeaderValue, Failure> {
        let mut value = HeaderValue::from_str(text).map_err(|_| {
            let reason = "the credentials have characters that no header can have";
            Failure::never(self.unauthorized(step, reason.to_owned()))
        })?;
        value.set_sensitive(true);
        Ok(value)
    }

    pub(super) fn unauthorized(&self, step: &str, reason: String) -> ImageError {
        ImageError::Unauthorized {
            image: self.name.to_string(),
            registry: self.host.authority.clone(),
            step: step.to_owned(),
            reason,
        }
    }

    /// An answer that is none.
    pub(super) fn answered(&self, step: &str, status: String, again: Again) -> Failure {
        Failure {
            error: ImageError::RegistryRefused {
                image: self.name.to_string(),
                registry: self.host.authority.clone(),
                step: step.to_owned(),
                status,
            },
            again,
        }
    }

    pub(super) async fn refused(&self, step: &str, response: Response) -> Failure {
        let again = again(response.status().as_u16(), response.headers());
        let mut status = response.status().to_string();
        if !self.is_own(response.url()) {
            let host = response.url().host_str().unwrap_or_default();
            status += &format!(" at {host}, where it sent us,");
        }
        if let Some(message) = message_of(response).await {
            status += &format!(" ({message})");
        }
        self.answered(step, status, again)
    }

    pub(super) fn unreachable(&self, step: &str, error: reqwest::Error) -> Failure {
        let again = match error.is_connect() {
            true => Again::Connect,
            false => Again::Later,
        };
        // A redirection's URL may carry a signature that lets its reader download.
        self.broken(step, Arc::new(error.without_url()), again)
    }

    pub(super) fn broken(
        &self,
        step: &str,
        source: Arc<dyn std::error::Error + Send + Sync>,
        again: Again,
    ) -> Failure {
        Failure {
            error: ImageError::RegistryUnreachable {
                image: self.name.to_string(),
                registry: self.host.authority.clone(),
                step: step.to_owned(),
                source,
            },
            again,
        }
    }
}

pub(super) fn is_redirection(response: &Response) -> bool {
    matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where a redirection leads, unless that is out of TLS.
pub(super) fn redirection(response: &Response) -> Option<Url> {
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    let next = response.url().join(location).ok()?;
    let is_plain = next.scheme() == "http" && response.url().scheme() == "http";
    (next.scheme() == "https" || is_plain).then_some(next)
}

/// Reads a body of at most `limit` bytes; `Ok(None)` when it has more.
pub(super) async fn body(
    mut response: Response,
    limit: u64,
) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes))
}

/// The message of an error answer (OCI Distribution Specification, "Error Codes"; a token server's
/// has its own field), made harmless for a log.
async fn message_of(response: Response) -> Option<String> {
    let bytes = body(response, MAX_ERROR_BODY).await.ok()??;
    error_message(&bytes)
}

pub(crate) fn error_message(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(default)]
        errors: Vec<Error>,
        #[serde(default)]
        details: String,
        #[serde(default)]
        error_description: String,
    }
    #[derive(Deserialize)]
    struct Error {
        #[serde(default)]
        message: String,
        #[serde(default)]
        code: String,
    }
    let body: Body = serde_json::from_slice(body).ok()?;
    let first = body.errors.into_iter().next();
    let texts = first.map(|error| [error.message, error.code]);
    let mut texts = texts
        .into_iter()
        .flatten()
        .chain([body.details, body.error_description]);
    let message = texts.find(|text| !text.is_empty())?;
    Some(message.escape_debug().take(MAX_MESSAGE).collect())
}
