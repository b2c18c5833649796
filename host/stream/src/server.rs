//! Listening, TLS, and one task for each connection.

use crate::backend::Backend;
use crate::http;
use crate::limits::Limits;
use crate::tls;
use crate::token::{Tokens, Urls};
use crate::{Result, StreamError};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

/// The longest header of a request, and the most fields in it.
const MAX_HEADER: usize = 16 * 1024;
const MAX_FIELDS: usize = 64;
/// How long the listener rests when there are no descriptors.
const REST: Duration = Duration::from_millis(100);

/// A certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain, in PEM form.
    pub certificate: PathBuf,
    /// The key, in PEM form.
    pub key: PathBuf,
}

/// How the server is to be.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where it listens and what its URLs name; port 0 is any free one.
    pub address: SocketAddr,
    /// With these it speaks HTTPS only.
    pub tls: Option<TlsFiles>,
    /// What clients can make it hold.
    pub limits: Limits,
}

/// The server. When it is dropped it takes no more connections; sessions go on.
pub struct Server {
    urls: Urls,
    address: SocketAddr,
    _accepting: AbortOnDropHandle<()>,
}

/// What the connections share.
pub(crate) struct Shared {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) limits: Limits,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) sessions: Arc<Semaphore>,
}

impl Server {
    /// Listens and serves.
    ///
    /// # Errors
    /// [`StreamError::Listen`], [`StreamError::Tls`].
    pub async fn start(config: ServerConfig, backend: Arc<dyn Backend>) -> Result<Self> {
        let ServerConfig {
            address,
            tls,
            limits,
        } = config;
        let acceptor = match &tls {
            Some(files) => Some(TlsAcceptor::from(Arc::new(tls::load(files)?))),
            None => None,
        };
        let listen = |source| StreamError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let tokens = Arc::new(Tokens::new(limits.urls, limits.url_life));
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Arc::new(Shared {
            backend,
            tokens: Arc::clone(&tokens),
            sessions: Arc::new(Semaphore::new(limits.sessions)),
            limits,
        });
        let accepting = tokio::spawn(accept(listener, acceptor, shared));
        Ok(Self {
            urls: Urls::new(format!("{scheme}://{address}"), tokens),
            address,
            _accepting: AbortOnDropHandle::new(accepting),
        })
    }

    /// What gives out URLs of this server.
    #[must_use]
    pub fn urls(&self) -> Urls {
        self.urls.clone()
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn accept(listener: TcpListener, acceptor: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let connections = Arc::new(Semaphore::new(shared.limits.connections));
    loop {
        let Ok(place) = Arc::clone(&connections).acquire_owned().await else {
            return;
        };
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!(%error, "The streaming server can not take a connection");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            // Held until the session's end.
            let place = Arc::new(place);
            // Keystrokes go at once.
            let _ = socket.set_nodelay(true);
            match acceptor {
                Some(acceptor) => {
                    let handshake = acceptor.accept(socket);
                    match tokio::time::timeout(shared.limits.setup, handshake).await {
                        Ok(Ok(socket)) => serve(socket, shared, place).await,
                        Ok(Err(error)) => tracing::debug!(%error, "A TLS handshake failed"),
                        Err(_) => tracing::debug!("A TLS handshake took too long"),
                    }
                }
                None => serve::<TcpStream>(socket, shared, place).await,
            }
        });
    }
}

/// Serves one connection's requests until it is upgraded or ends.
async fn serve<T>(socket: T, shared: Arc<Shared>, place: Arc<tokio::sync::OwnedSemaphorePermit>)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let setup = shared.limits.setup;
    let service = service_fn(|request| {
        let (shared, place) = (Arc::clone(&shared), Arc::clone(&place));
        async move { Ok::<_, std::convert::Infallible>(http::answer(request, shared, place)) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(setup)
        .max_buf_size(MAX_HEADER)
        .max_headers(MAX_FIELDS)
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "A streaming connection ended before its upgrade");
    }
}
