//! Downloads of blobs: to a file, checked on the way, taken up where they broke off.

use super::endpoint::{Endpoint, Request};
use super::retry::{Again, Failure};
use super::{Registry, layer_step};
use crate::digest::Hasher;
use crate::manifest::Descriptor;
use crate::{ImageError, Result};
use reqwest::header::CONTENT_RANGE;
use reqwest::{Method, Response, StatusCode};
use std::io::SeekFrom;
use std::sync::Arc;
use tokio::fs::File;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _, BufWriter};
use tokio::time::Instant;

const WRITE_BUFFER: usize = 512 << 10;
/// A connection that brought so much before it broke does not count as a failed try.
const FAR: u64 = 1 << 20;

/// A blob on its way into a file.
struct Download<'a, F> {
    registry: &'a Registry,
    descriptor: &'a Descriptor,
    step: String,
    file: BufWriter<File>,
    hasher: Hasher,
    /// Bytes in the file.
    size: u64,
    /// The hosts that these bytes are from.
    sources: Vec<String>,
    /// The bytes must be from one host, so that it is known who sends something wrong.
    one_source: bool,
    /// The most bytes that the file has ever had.
    furthest: u64,
    /// When the download fails if it does not come further.
    deadline: Instant,
    arrived: F,
}

impl Registry {
    /// Downloads a blob into an empty file, which is complete and checked when this returns.
    /// `arrived` is told how many bytes there are; it can become fewer when a host sent something
    /// wrong.
    pub(crate) async fn download(
        &self,
        descriptor: &Descriptor,
        file: File,
        arrived: impl Fn(u64) + Send,
    ) -> Result<()> {
        let mut download = Download {
            registry: self,
            descriptor,
            step: layer_step(descriptor),
            file: BufWriter::with_capacity(WRITE_BUFFER, file),
            hasher: descriptor.digest.hasher(),
            size: 0,
            sources: Vec::new(),
            one_source: false,
            furthest: 0,
            deadline: Instant::now() + self.remote.config.progress_timeout,
            arrived,
        };
        let mut rounds = self.rounds(|host| host.pull);
        loop {
            let next = tokio::time::timeout_at(download.deadline, self.next(&mut rounds)).await;
            let Ok(next) = next else {
                // The hosts' errors say more than that it takes too long.
                return Err(self.given_up(rounds, &download.step));
            };
            let Some(endpoint) = next else {
                return Err(self.given_up(rounds, &download.step));
            };
            let before = download.size;
            match download.continue_from(endpoint).await {
                Ok(()) => {}
                Err(Broken::Local(error)) => return Err(error),
                Err(Broken::Remote(failure)) if download.size >= before + FAR => {
                    rounds.interrupted(failure);
                    continue;
                }
                Err(Broken::Remote(failure)) => {
                    rounds.failed(failure);
                    continue;
                }
            }
            match download.check().await? {
                None => return Ok(()),
                Some(_) if download.sources.len() > 1 => {
                    download.one_source = true;
                    rounds.restart();
                }
                Some(mismatch) => rounds.failed(Failure::never(mismatch)),
            }
            download.begin_again().await?;
        }
    }
}

/// Why a download did not come to its end.
enum Broken {
    /// At the host: another try may help.
    Remote(Failure),
    /// Here.
    Local(ImageError),
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self::Remote(failure)
    }
}

impl<F: Fn(u64) + Send> Download<'_, F> {
    /// Takes what a host sends, from where the file ends, until the blob is complete.
    async fn continue_from(&mut self, endpoint: &Endpoint) -> Result<(), Broken> {
        let source = &endpoint.host.authority;
        if self.one_source && self.sources.iter().any(|known| known != source) {
            self.begin_again().await.map_err(Broken::Local)?;
        }
        let (response, mut superfluous) = self.open(endpoint).await?;
        if !self.sources.contains(source) {
            self.sources.push(source.clone());
        }
        let mut response = response;
        loop {
            let chunk = self.in_time(endpoint, response.chunk()).await?;
            let chunk = chunk.map_err(|error| endpoint.unreachable(&self.step, error))?;
            let Some(chunk) = chunk else { break };
            let skipped = superfluous.min(chunk.len() as u64);
            superfluous -= skipped;
            let bytes = chunk.get(skipped as usize..).unwrap_or_default();
            if !bytes.is_empty() {
                self.take(endpoint, bytes).await?;
            }
        }
        if self.size == self.descriptor.size {
            return Ok(());
        }
        // Without a length, a cut connection looks like the end.
        let source = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        Err(endpoint
            .broken(&self.step, Arc::new(source), Again::Later)
            .into())
    }

    /// Asks for the rest. Returns the answer and how many of its bytes are there already.
    async fn open(&mut self, endpoint: &Endpoint) -> Result<(Response, u64), Broken> {
        let request = Request {
            method: Method::GET,
            path: &format!("blobs/{}", self.descriptor.digest),
            accept: "*/*",
            offset: self.size,
            step: &self.step,
        };
        // A blob without bytes can not be asked for from where it ends.
        let response = self.in_time(endpoint, endpoint.ask(&request)).await??;
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        if partial && range_start(&response) != Some(self.size) {
            let status = "with another range than we asked for".to_owned();
            return Err(endpoint.answered(&self.step, status, Again::Never).into());
        }
        let start = if partial { self.size } else { 0 };
        let whole = self.descriptor.size;
        match response.content_length() {
            Some(length) if start.saturating_add(length) != whole => {
                let error = self.wrong_size(endpoint, start.saturating_add(length));
                Err(Failure::never(error).into())
            }
            _ => Ok((response, self.size - start)),
        }
    }

    async fn take(&mut self, endpoint: &Endpoint, bytes: &[u8]) -> Result<(), Broken> {
        let size = self.size.saturating_add(bytes.len() as u64);
        if size > self.descriptor.size {
            return Err(Failure::never(self.wrong_size(endpoint, size)).into());
        }
        self.hasher.update(bytes);
        let written = self.file.write_all(bytes).await;
        written.map_err(|error| Broken::Local(self.disk(error)))?;
        self.size = size;
        (self.arrived)(size);
        // A limit of ours is no standstill.
        self.registry.remote.limiter.take(bytes.len() as u64).await;
        if size > self.furthest {
            self.furthest = size;
            self.deadline = Instant::now() + self.registry.remote.config.progress_timeout;
        }
        Ok(())
    }

    /// The error of a complete blob, if it is not what it should be.
    async fn check(&mut self) -> Result<Option<ImageError>> {
        // A tokio file reports a failed write only with the next call.
        let flushed = self.file.flush().await;
        flushed.map_err(|error| self.disk(error))?;
        let hasher = std::mem::replace(&mut self.hasher, self.descriptor.digest.hasher());
        let what = format!("{} from registry {}", self.step, self.sources.join(" and "));
        let compared = self
            .registry
            .compare(&what, &self.descriptor.digest, hasher.finish());
        Ok(compared.err())
    }

    async fn begin_again(&mut self) -> Result<()> {
        let emptied = async {
            self.file.flush().await?;
            self.file.get_mut().set_len(0).await?;
            self.file.seek(SeekFrom::Start(0)).await
        };
        let emptied = emptied.await;
        emptied.map_err(|error| self.disk(error))?;
        self.hasher = self.descriptor.digest.hasher();
        self.size = 0;
        self.sources.clear();
        (self.arrived)(0);
        Ok(())
    }

    async fn in_time<T>(
        &self,
        endpoint: &Endpoint,
        work: impl Future<Output = T>,
    ) -> Result<T, Broken> {
        tokio::time::timeout_at(self.deadline, work)
            .await
            .map_err(|_| {
                let error = self.registry.no_progress(&self.step, endpoint);
                Broken::Local(error)
            })
    }

    fn wrong_size(&self, endpoint: &Endpoint, got: u64) -> ImageError {
        let what = format!("{} from registry {}", self.step, endpoint.host.authority);
        self.registry.wrong_size(&what, self.descriptor.size, got)
    }

    fn disk(&self, error: std::io::Error) -> ImageError {
        let doing = format!("writing the {} of {}", self.step, self.registry.name);
        ImageError::io(doing, error)
    }
}

/// Where the content of a 206 begins: `bytes 30-99/100`.
fn range_start(response: &Response) -> Option<u64> {
    let text = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    let range = text.strip_prefix("bytes ")?;
    range.split('-').next()?.trim().parse().ok()
}
