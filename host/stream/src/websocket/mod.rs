//! WebSocket (RFC 6455): Kubernetes' channels, each message's first byte being its channel, and SPDY
//! in a tunnel of binary messages.
//!
//! No extension is ever agreed to, so nothing is compressed.

mod channels;
mod connection;
pub(crate) mod port_forward;
pub(crate) mod remote_command;
mod tunnel;

pub(crate) use channels::Protocol;
#[cfg(fuzzing)]
pub(crate) use channels::{Input, encode};
pub(crate) use connection::{ChannelReader, ChannelWriter};
pub(crate) use tunnel::Tunnel;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

/// Port-forward's SPDY in a tunnel (KEP-4006).
pub(crate) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// The largest message. A client may send all of its input in one.
const MAX_MESSAGE: usize = 4 << 20;
const BUFFER: usize = 32 * 1024;

/// Takes a connection whose upgrade has been answered.
pub(crate) async fn start<T>(io: T) -> WebSocketStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(2 * MAX_MESSAGE)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}
