//! The client side of the OCI Distribution Specification: manifests and blobs of one repository.
//!
//! A client lives for one pull, so credentials never serve another pod's pull. Bodies are read
//! with caps; a registry that sends nothing for the stall time-out ends the pull. Nothing is
//! returned before its digest has been checked.

mod token;

use crate::digest::Digest;
use crate::manifest::{
    Configuration, Descriptor, Document, MANIFEST_TYPES, MAX_DOCUMENT, Manifest, choose_platform,
};
use crate::name::{Name, Version};
use crate::{Auth, ImageError, Result, StoreConfig};
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue};
use reqwest::{Response, StatusCode};
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Mutex;

const WRITE_BUFFER: usize = 512 << 10;
const MAX_ERROR_BODY: u64 = 16 << 10;

/// What a name stands for at its registry.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// Digest of what the name points to: the index, or the manifest when there is no index.
    pub(crate) target: Digest,
    pub(crate) manifest: Manifest,
    pub(crate) configuration: Configuration,
}

/// A registry, as one pull sees it.
pub(crate) struct Registry {
    http: reqwest::Client,
    /// `https://host/v2/repository`.
    base: String,
    plain_http: bool,
    name: Name,
    auth: Option<Auth>,
    /// The `Authorization` header that the registry took last.
    authorization: Mutex<Option<HeaderValue>>,
}

impl Registry {
    pub(crate) fn new(config: &StoreConfig, name: Name, auth: Option<Auth>) -> Result<Self> {
        let plain_http = name.is_loopback() || config.plain_http.contains(&name.registry);
        let builder = || {
            reqwest::Client::builder()
                .user_agent(concat!("bulkhead/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(config.connect_timeout)
                .read_timeout(config.stall_timeout)
                // Also forbids that a redirection leaves TLS.
                .https_only(!plain_http)
        };
        let http = builder().build().or_else(|error| {
            // A node without CA certificates can still use a registry without TLS.
            if plain_http {
                builder().tls_certs_only([]).build()
            } else {
                Err(error)
            }
        });
        let scheme = if plain_http { "http" } else { "https" };
        let base = format!("{scheme}://{}/v2/{}", name.host(), name.repository);
        let http = http.map_err(|error| unreachable(&name, error))?;
        let authorization = match &auth {
            Some(Auth::RegistryToken(token)) => Some(token::bearer(&name, token)?),
            _ => None,
        };
        Ok(Self {
            http,
            base,
            plain_http,
            name,
            auth,
            authorization: Mutex::new(authorization),
        })
    }

    /// Finds the manifest and the configuration for this node's platform.
    pub(crate) async fn resolve(&self) -> Result<Resolved> {
        let wanted = match &self.name.version {
            Version::Tag(_) => None,
            Version::Digest(digest) => Some(digest.clone()),
        };
        let reference = match &self.name.version {
            Version::Tag(tag) => tag.clone(),
            Version::Digest(digest) => digest.to_string(),
        };
        let bytes = self.manifest(&reference).await?;
        let target = match &wanted {
            Some(digest) => self.check("manifest", digest, &bytes)?,
            None => Digest::sha256(&bytes),
        };
        let manifest = match self.document(&bytes)? {
            Document::Manifest(manifest) => manifest,
            Document::Index(entries) => {
                let entry = choose_platform(&entries).ok_or_else(|| {
                    self.invalid(format!(
                        "it has no variant for linux/{}",
                        crate::manifest::architecture()
                    ))
                })?;
                let bytes = self.manifest(entry.digest.as_str()).await?;
                self.check("manifest", &entry.digest, &bytes)?;
                match self.document(&bytes)? {
                    Document::Manifest(manifest) => manifest,
                    Document::Index(_) => {
                        return Err(self.invalid("an index is inside its index".to_owned()));
                    }
                }
            }
        };
        let configuration = self.configuration(&manifest).await?;
        Ok(Resolved {
            target,
            manifest,
            configuration,
        })
    }

    /// Downloads a blob into a new file, which is complete and checked when this returns.
    /// `arrived` is told how many more bytes there are.
    pub(crate) async fn blob_to_file(
        &self,
        what: &str,
        descriptor: &Descriptor,
        path: &Path,
        mut arrived: impl FnMut(u64),
    ) -> Result<()> {
        let doing = || format!("writing the {what} of {}", self.name);
        let mut response = self.blob(what, descriptor).await?;
        let file = tokio::fs::File::create_new(path)
            .await
            .map_err(|error| ImageError::io(doing(), error))?;
        let mut file = tokio::io::BufWriter::with_capacity(WRITE_BUFFER, file);
        let mut hasher = descriptor.digest.hasher();
        let mut size = 0_u64;
        while let Some(chunk) = self.chunk(&mut response).await? {
            size = size.saturating_add(chunk.len() as u64);
            if size > descriptor.size {
                return Err(self.wrong_size(what, descriptor.size, size));
            }
            hasher.update(&chunk);
            file.write_all(&chunk)
                .await
                .map_err(|error| ImageError::io(doing(), error))?;
            arrived(chunk.len() as u64);
        }
        // A tokio file reports a failed write only with the next call.
        file.flush()
            .await
            .map_err(|error| ImageError::io(doing(), error))?;
        if size != descriptor.size {
            return Err(self.wrong_size(what, descriptor.size, size));
        }
        self.compare(what, &descriptor.digest, hasher.finish())
            .map(drop)
    }

    async fn configuration(&self, manifest: &Manifest) -> Result<Configuration> {
        let descriptor = &manifest.config;
        if descriptor.size > MAX_DOCUMENT {
            return Err(self.invalid(format!(
                "its configuration has more than {MAX_DOCUMENT} bytes"
            )));
        }
        let response = self.blob("configuration", descriptor).await?;
        let bytes = self
            .body("configuration", response, descriptor.size)
            .await?;
        if bytes.len() as u64 != descriptor.size {
            return Err(self.wrong_size("configuration", descriptor.size, bytes.len() as u64));
        }
        self.check("configuration", &descriptor.digest, &bytes)?;
        Configuration::parse(&bytes, manifest.layers.len()).map_err(|reason| self.invalid(reason))
    }

    async fn manifest(&self, reference: &str) -> Result<Vec<u8>> {
        let accept = MANIFEST_TYPES.join(", ");
        let url = format!("{}/manifests/{reference}", self.base);
        let response = self.get(&url, &accept).await?;
        self.body("manifest", response, MAX_DOCUMENT).await
    }

    fn document(&self, bytes: &[u8]) -> Result<Document> {
        Document::parse(bytes).map_err(|reason| self.invalid(reason))
    }

    async fn blob(&self, what: &str, descriptor: &Descriptor) -> Result<Response> {
        let url = format!("{}/blobs/{}", self.base, descriptor.digest);
        let response = self.get(&url, "*/*").await?;
        match response.content_length() {
            Some(length) if length != descriptor.size => {
                Err(self.wrong_size(what, descriptor.size, length))
            }
            _ => Ok(response),
        }
    }

    /// One GET, with one more try after the registry's challenge has been answered.
    async fn get(&self, url: &str, accept: &str) -> Result<Response> {
        let used = self.authorization.lock().await.clone();
        let mut response = self.send(url, accept, used.clone()).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let authorization = {
                let mut current = self.authorization.lock().await;
                // Another download may have answered the challenge in the meantime.
                if *current == used {
                    *current = Some(self.answer_challenge(response.headers()).await?);
                }
                current.clone()
            };
            response = self.send(url, accept, authorization).await?;
        }
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.unauthorized()),
            StatusCode::NOT_FOUND => Err(ImageError::NotFound {
                image: self.name.to_string(),
            }),
            status => Err(self.refused(status, response).await),
        }
    }

    async fn send(
        &self,
        url: &str,
        accept: &str,
        authorization: Option<HeaderValue>,
    ) -> Result<Response> {
        let mut request = self.http.get(url).header(ACCEPT, accept);
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        request
            .send()
            .await
            .map_err(|error| self.unreachable(error))
    }

    /// Reads a body of at most `limit` bytes.
    async fn body(&self, what: &str, mut response: Response, limit: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk(&mut response).await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > limit {
                return Err(self.wrong_size(what, limit, bytes.len() as u64));
            }
        }
        Ok(bytes)
    }

    async fn chunk(
        &self,
        response: &mut Response,
    ) -> Result<Option<impl Deref<Target = [u8]> + use<>>> {
        response
            .chunk()
            .await
            .map_err(|error| self.unreachable(error))
    }

    fn check(&self, what: &str, expected: &Digest, bytes: &[u8]) -> Result<Digest> {
        self.compare(what, expected, expected.of_same_kind(bytes))
    }

    fn compare(&self, what: &str, expected: &Digest, got: Digest) -> Result<Digest> {
        if got == *expected {
            return Ok(got);
        }
        Err(ImageError::DigestMismatch {
            image: self.name.to_string(),
            what: what.to_owned(),
            expected: expected.to_string(),
            got: got.to_string(),
        })
    }

    fn wrong_size(&self, what: &str, expected: u64, got: u64) -> ImageError {
        ImageError::SizeMismatch {
            image: self.name.to_string(),
            what: what.to_owned(),
            expected,
            got,
        }
    }

    fn invalid(&self, reason: String) -> ImageError {
        ImageError::InvalidImage {
            image: self.name.to_string(),
            reason,
        }
    }

    fn unauthorized(&self) -> ImageError {
        ImageError::Unauthorized {
            image: self.name.to_string(),
        }
    }

    async fn refused(&self, status: StatusCode, response: Response) -> ImageError {
        let body = self.body("answer", response, MAX_ERROR_BODY).await;
        ImageError::RegistryRefused {
            image: self.name.to_string(),
            registry: self.name.registry.clone(),
            status: match body.ok().as_deref().and_then(token::error_message) {
                Some(message) => format!("{status} ({message})"),
                None => status.to_string(),
            },
        }
    }

    fn unreachable(&self, error: reqwest::Error) -> ImageError {
        unreachable(&self.name, error)
    }
}

fn unreachable(name: &Name, error: reqwest::Error) -> ImageError {
    ImageError::RegistryUnreachable {
        image: name.to_string(),
        registry: name.registry.clone(),
        // A redirection's URL may carry a signature that lets its reader download.
        source: Arc::new(error.without_url()),
    }
}
