//! The client side of the OCI Distribution Specification: manifests and blobs of one repository,
//! from whichever of its hosts has them.
//!
//! A client lives for one pull, so credentials never serve another pod's pull. Bodies are read
//! with caps; a host that sends nothing for the stall time-out is given up. Nothing is returned
//! before its digest has been checked, so mirrors need not be trusted with contents.

mod blob;
pub(crate) mod challenge;
mod endpoint;
pub(crate) mod hosts;
pub(crate) mod retry;
mod tls;
mod token;

#[cfg(test)]
mod tests;

use crate::auth::Keychain;
use crate::digest::Digest;
use crate::download::{Limiter, Transfers};
use crate::manifest::{
    Configuration, Descriptor, Document, MANIFEST_TYPES, MAX_CONFIGURATION, MAX_DOCUMENT, Manifest,
    choose_platform,
};
use crate::name::{Name, Version};
use crate::{Auth, ImageError, Result, StoreConfig};
#[cfg(any(fuzzing, test))]
pub(crate) use endpoint::error_message;
use endpoint::{Endpoint, Request, body};
use hosts::{Host, Protocol};
use reqwest::header::{HeaderMap, HeaderName};
use reqwest::{Method, redirect};
use retry::{Failure, Rounds};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// An index may have an index as its entry; the image must come in so many steps.
const MAX_INDEXES: usize = 3;
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What a name stands for at its registry.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// Digest of what the name points to: the index, or the manifest when there is no index.
    pub(crate) target: Digest,
    pub(crate) manifest: Manifest,
    pub(crate) configuration: Configuration,
}

/// What all pulls of a store have in common.
pub(crate) struct Remote {
    pub(crate) config: StoreConfig,
    roots: OnceLock<rustls::RootCertStore>,
    tokens: Arc<token::TokenCache>,
    pub(crate) transfers: Transfers,
    pub(crate) limiter: Limiter,
}

impl Remote {
    /// Blobs are downloaded into a directory that the store empties when it is opened.
    pub(crate) fn new(config: StoreConfig, directory: PathBuf) -> Self {
        Self {
            roots: OnceLock::new(),
            tokens: Arc::default(),
            transfers: Transfers::new(directory),
            limiter: Limiter::new(config.bytes_per_second),
            config,
        }
    }
}

/// A registry, as one pull sees it.
pub(crate) struct Registry {
    pub(crate) remote: Arc<Remote>,
    pub(crate) name: Name,
    endpoints: Vec<Endpoint>,
    /// Whose pull this is, for downloads that several pulls share.
    identity: (String, Option<Digest>),
}

impl Registry {
    /// Reads the settings of an image's registry. Sends nothing yet.
    pub(crate) async fn open(remote: &Arc<Remote>, name: Name, auth: Option<Auth>) -> Result<Self> {
        let remote = Arc::clone(remote);
        let opened = tokio::task::spawn_blocking(move || Self::open_blocking(remote, name, auth));
        opened.await.map_err(|error| {
            ImageError::io("reading registry settings", std::io::Error::other(error))
        })?
    }

    fn open_blocking(remote: Arc<Remote>, name: Name, auth: Option<Auth>) -> Result<Self> {
        let config = &remote.config;
        let blame = |path: PathBuf, reason: String| ImageError::RegistrySettings {
            registry: name.registry.clone(),
            path: path.display().to_string(),
            reason,
        };
        let plain_http = config.plain_http.contains(&name.registry);
        let hosts = hosts::find(&config.registry_config_paths, &name.registry, plain_http);
        let hosts = hosts.map_err(|bad| blame(bad.path, bad.reason))?;
        let roots = remote.roots.get_or_init(tls::system_roots);
        let mut endpoints = Vec::with_capacity(hosts.len());
        for host in hosts {
            let tls = tls::client_config(roots, &host.tls);
            let tls = tls.map_err(|(path, reason)| blame(path, reason))?;
            let http = client(config, &host, tls)
                .map_err(|error| blame(PathBuf::from(&host.authority), error.to_string()))?;
            endpoints.push(Endpoint::new(
                http,
                host,
                name.clone(),
                auth.clone(),
                Keychain::new(config.docker_config.clone()),
                Arc::clone(&remote.tokens),
            ));
        }
        let identity = (
            name.familiar_repository(),
            auth.as_ref().map(Auth::fingerprint),
        );
        Ok(Self {
            remote,
            name,
            endpoints,
            identity,
        })
    }

    /// The two see the same blobs: same repository, same credentials.
    pub(crate) fn sees_what(&self, other: &Self) -> bool {
        self.identity == other.identity
    }

    /// Asks what the name stands for and downloads nothing; nothing is known when it can not be
    /// asked so. Registries that count pulls do not count this.
    pub(crate) async fn target(&self) -> Option<Digest> {
        let (reference, wanted) = match &self.name.version {
            Version::Tag(tag) => (tag.as_str(), None),
            Version::Digest(digest) => (digest.as_str(), Some(digest)),
        };
        let request = Request {
            method: Method::HEAD,
            path: &format!("manifests/{reference}"),
            accept: &MANIFEST_TYPES.join(", "),
            offset: 0,
            step: "manifest",
        };
        let able = |host: &Host| host.pull && (wanted.is_some() || host.resolve);
        for endpoint in self.endpoints.iter().filter(|one| able(&one.host)) {
            if let Ok(response) = endpoint.ask(&request).await {
                let announced = announced_digest(response.headers());
                return wanted.cloned().or(announced);
            }
        }
        None
    }

    /// Finds the manifest and the configuration for this node's platform.
    pub(crate) async fn resolve(&self) -> Result<Resolved> {
        let wanted = match &self.name.version {
            Version::Tag(_) => None,
            Version::Digest(digest) => Some(digest),
        };
        let reference = match &self.name.version {
            Version::Tag(tag) => tag.as_str(),
            Version::Digest(digest) => digest.as_str(),
        };
        let (target, bytes) = self.manifest(reference, wanted, None).await?;
        let mut document = self.document(&bytes)?;
        for _ in 0..MAX_INDEXES {
            let entries = match document {
                Document::Manifest(manifest) => {
                    self.check_sizes(&manifest)?;
                    let configuration = self.configuration(&manifest).await?;
                    return Ok(Resolved {
                        target,
                        manifest,
                        configuration,
                    });
                }
                Document::Index(entries) => entries,
            };
            let entry = choose_platform(&entries).map_err(|reason| self.invalid(reason))?;
            let wanted = Some(&entry.digest);
            let fetched = self.manifest(entry.digest.as_str(), wanted, Some(entry.size));
            document = self.document(&fetched.await?.1)?;
        }
        let reason = format!("its index has indexes inside, more than {MAX_INDEXES} deep");
        Err(self.invalid(reason))
    }

    /// Compressed layers are not larger than what they unpack to, or not by much.
    fn check_sizes(&self, manifest: &Manifest) -> Result<()> {
        let most = self.remote.config.max_unpacked_bytes;
        let sizes = manifest.layers.iter().map(|layer| layer.size);
        match sizes.fold(0, u64::saturating_add) {
            size if size > most => Err(self.invalid(format!(
                "its layers have {size} bytes and an image may have {most}"
            ))),
            _ => Ok(()),
        }
    }

    /// Asks whether the registry would let us read a blob. Another pull's download of the same
    /// digest is ours only then: a digest is no secret, a blob may be one.
    pub(crate) async fn may_read(&self, descriptor: &Descriptor) -> Result<()> {
        let request = Request {
            method: Method::HEAD,
            path: &format!("blobs/{}", descriptor.digest),
            accept: "*/*",
            offset: 0,
            step: &layer_step(descriptor),
        };
        let mut rounds = self.rounds(|host| host.pull);
        while let Some(endpoint) = self.next(&mut rounds).await {
            match endpoint.ask(&request).await {
                Ok(_) => return Ok(()),
                Err(failure) => rounds.failed(failure),
            }
        }
        Err(self.given_up(rounds, request.step))
    }

    /// Downloads and checks a manifest or index.
    async fn manifest(
        &self,
        reference: &str,
        wanted: Option<&Digest>,
        size: Option<u64>,
    ) -> Result<(Digest, Vec<u8>)> {
        let path = format!("manifests/{reference}");
        let request = Request {
            method: Method::GET,
            path: &path,
            accept: &MANIFEST_TYPES.join(", "),
            offset: 0,
            step: "manifest",
        };
        let mut rounds = self.rounds(|host| host.pull && (wanted.is_some() || host.resolve));
        while let Some(endpoint) = self.next(&mut rounds).await {
            match self
                .try_document(endpoint, &request, wanted, size, MAX_DOCUMENT)
                .await
            {
                Ok(document) => return Ok(document),
                Err(failure) => rounds.failed(failure),
            }
        }
        Err(self.given_up(rounds, request.step))
    }

    async fn configuration(&self, manifest: &Manifest) -> Result<Configuration> {
        let Descriptor { digest, size, .. } = &manifest.config;
        if *size > MAX_CONFIGURATION {
            return Err(self.invalid(format!(
                "its configuration has more than {MAX_CONFIGURATION} bytes"
            )));
        }
        let request = Request {
            method: Method::GET,
            path: &format!("blobs/{digest}"),
            accept: "*/*",
            offset: 0,
            step: "configuration",
        };
        let mut rounds = self.rounds(|host| host.pull);
        while let Some(endpoint) = self.next(&mut rounds).await {
            let limit = MAX_CONFIGURATION;
            let got = self.try_document(endpoint, &request, Some(digest), Some(*size), limit);
            match got.await {
                Ok((_, bytes)) => {
                    return Configuration::parse(&bytes, manifest.layers.len())
                        .map_err(|reason| self.invalid(reason));
                }
                Err(failure) => rounds.failed(failure),
            }
        }
        Err(self.given_up(rounds, request.step))
    }

    /// One try at one host, within the time in which a download must come further.
    async fn try_document(
        &self,
        endpoint: &Endpoint,
        request: &Request<'_>,
        wanted: Option<&Digest>,
        size: Option<u64>,
        limit: u64,
    ) -> Result<(Digest, Vec<u8>), Failure> {
        let work = async {
            let response = endpoint.ask(request).await?;
            let headers = response.headers().clone();
            let bytes = body(response, size.unwrap_or(limit)).await;
            let bytes = bytes.map_err(|error| endpoint.unreachable(request.step, error))?;
            Ok((headers, bytes))
        };
        let limit_time = self.remote.config.progress_timeout;
        let (headers, bytes) = tokio::time::timeout(limit_time, work)
            .await
            .map_err(|_| Failure::never(self.no_progress(request.step, endpoint)))??;
        let step = format!("{} from registry {}", request.step, endpoint.host.authority);
        let expected = size.unwrap_or(limit);
        let bytes = bytes.ok_or_else(|| {
            Failure::never(self.wrong_size(&step, expected, expected.saturating_add(1)))
        })?;
        if size.is_some_and(|size| size != bytes.len() as u64) {
            let error = self.wrong_size(&step, expected, bytes.len() as u64);
            return Err(Failure::never(error));
        }
        let announced = announced_digest(&headers);
        let got = match wanted.or(announced.as_ref()) {
            Some(digest) => self.compare(&step, digest, digest.of_same_kind(&bytes)),
            None => Ok(Digest::sha256(&bytes)),
        };
        Ok((got.map_err(Failure::never)?, bytes))
    }

    fn document(&self, bytes: &[u8]) -> Result<Document> {
        Document::parse(bytes).map_err(|reason| self.invalid(reason))
    }

    fn rounds(&self, able: impl Fn(&Host) -> bool) -> Rounds {
        let able = |(_, endpoint): &(usize, &Endpoint)| able(&endpoint.host);
        let hosts = self.endpoints.iter().enumerate().filter(able);
        Rounds::new(hosts.map(|(at, _)| at), self.remote.config.retry_delay)
    }

    async fn next(&self, rounds: &mut Rounds) -> Option<&Endpoint> {
        let host = rounds.next().await?;
        self.endpoints.get(host)
    }

    fn given_up(&self, rounds: Rounds, step: &str) -> ImageError {
        rounds
            .into_error()
            .unwrap_or_else(|| ImageError::RegistrySettings {
                registry: self.name.registry.clone(),
                path: "hosts.toml".to_owned(),
                reason: format!("none of its hosts is able to serve a {step}"),
            })
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

    fn no_progress(&self, step: &str, endpoint: &Endpoint) -> ImageError {
        ImageError::NoProgress {
            image: self.name.to_string(),
            registry: endpoint.host.authority.clone(),
            step: step.to_owned(),
            seconds: self.remote.config.progress_timeout.as_secs(),
        }
    }

    fn invalid(&self, reason: String) -> ImageError {
        ImageError::InvalidImage {
            image: self.name.to_string(),
            reason,
        }
    }
}

/// A layer in words.
fn layer_step(descriptor: &Descriptor) -> String {
    format!("layer {}", descriptor.digest)
}

/// The digest that the host says a manifest has; one of an algorithm that we do not know is left
/// out.
fn announced_digest(headers: &HeaderMap) -> Option<Digest> {
    let text = headers.get(CONTENT_DIGEST)?.to_str().ok()?;
    Digest::parse(text.trim())
}

fn client(
    config: &StoreConfig,
    host: &Host,
    tls: rustls::ClientConfig,
) -> Result<reqwest::Client, reqwest::Error> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("bulkhead/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(host.dial_timeout.unwrap_or(config.connect_timeout))
        .read_timeout(config.stall_timeout)
        // They are followed by hand: what is sent along depends on where they lead.
        .redirect(redirect::Policy::none())
        .retry(reqwest::retry::never())
        .https_only(host.protocol == Protocol::Https)
        .tls_backend_preconfigured(tls);
    if let Some(proxy) = &host.proxy {
        builder = builder.proxy(reqwest::Proxy::all(proxy)?);
    }
    builder.build()
}
