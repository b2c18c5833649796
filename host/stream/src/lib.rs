//! The streaming server: what `kubectl exec`, `attach` and `port-forward` end up talking to.
//!
//! The CRI answers Exec, Attach and PortForward with a URL ([`Urls`]). Whoever has it connects once and
//! upgrades the connection to SPDY/3.1 ([`spdy`]) or WebSocket ([`websocket`]); [`session`] then moves
//! bytes between the client's streams and the [`Process`] that a [`Backend`] has started, and
//! [`forward`] between a port's streams and a connection into the pod.
//!
//! Nothing is buffered beyond constant caps: a client that does not read holds the process back, and
//! a process that does not read holds the client back. A client that is gone ends its session, and
//! dropping a [`Process`] frees all that it has.
//!
//! Sources: Kubernetes' remote command and port-forward protocols (`v1` to `v5.channel.k8s.io`,
//! `portforward.k8s.io`, KEP-4006), SPDY protocol draft 3.1, RFC 6455.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod backend;
mod error;
mod forward;
mod http;
mod limits;
mod resize;
mod server;
mod session;
mod spdy;
mod status;
mod streams;
mod tls;
mod token;
mod websocket;

#[cfg(fuzzing)]
pub mod fuzzing;

pub use backend::{
    AttachRequest, Backend, ExecRequest, Exit, ForwardRequest, Process, Reader, Resize, Size,
    Wants, Writer,
};
pub use error::StreamError;
pub use limits::Limits;
pub use server::{Server, ServerConfig, TlsFiles};
pub use token::Urls;

/// What this crate's functions return.
pub type Result<T, E = StreamError> = std::result::Result<T, E>;
