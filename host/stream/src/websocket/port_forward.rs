//! Port-forward over WebSocket with channels, the way before the tunnel: a data and an error channel
//! for each of the call's ports, one connection each.

use super::channels::Protocol;
use super::connection::Connection;
use crate::backend::Backend;
use crate::forward;
use crate::limits::Limits;
use crate::streams::{Sink, Source};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

/// The most ports: in base64 a channel is one digit, otherwise it is a byte.
pub(crate) fn max_ports(protocol: Protocol) -> usize {
    if protocol.base64 { 5 } else { 127 }
}

/// Serves a pod's ports over a connection that has been upgraded.
pub(crate) async fn serve<T>(
    io: T,
    (backend, limits): (&dyn Backend, &Limits),
    (pod, ports): (&str, &[u16]),
    protocol: Protocol,
) where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let socket = super::start(io).await;
    let channels: Vec<u8> = (0..=u8::MAX).step_by(2).take(ports.len()).collect();
    let (connection, readers) = Connection::start(socket, protocol, &channels, limits);
    let gone = connection.gone();
    let mut forwards = Vec::new();
    for ((port, channel), reader) in ports.iter().zip(channels).zip(readers) {
        let mut data = connection.writer(channel);
        let mut error = connection.writer(channel + 1);
        // Each channel begins with its port.
        for writer in [&mut data, &mut error] {
            let port = Bytes::copy_from_slice(&port.to_le_bytes());
            if writer.write(port).await.is_err() {
                return;
            }
        }
        let streams = (
            Source::Channel(reader),
            Sink::Channel(data),
            Sink::Channel(error),
        );
        forwards.push(forward::run(backend, (pod, *port), streams));
    }
    tokio::select! {
        _ = futures_util::future::join_all(forwards) => {}
        () = gone.cancelled() => return,
    }
    connection.finish().await;
}
