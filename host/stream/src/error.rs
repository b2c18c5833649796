//! What can go wrong before a session.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why the server can not be started or a URL not be given out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The address can not be listened on.
    #[error("The streaming server can not listen on {address}; set `streaming.address`")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A certificate or key can not be used.
    #[error("The streaming server's {what} {path} can not be used: {reason}")]
    Tls {
        /// "certificate" or "key".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no randomness for a token.
    #[error("The system gives no random bytes for a streaming URL")]
    Random,
    /// Too many URLs wait for their use. gRPC `RESOURCE_EXHAUSTED`.
    #[error(
        "{limit} streaming URLs wait to be used, which is the limit; use or abandon some of them"
    )]
    TooManyUrls {
        /// The limit.
        limit: usize,
    },
}
