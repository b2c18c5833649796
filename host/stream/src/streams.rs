//! A client's streams, whatever protocol carries them.

use crate::spdy::{StreamReader, StreamWriter};
use crate::websocket::{ChannelReader, ChannelWriter};
use bytes::Bytes;
use std::io;

/// Bytes that are copied at a time.
pub(crate) const CHUNK: usize = 32 * 1024;

/// What the client sends.
pub(crate) enum Source {
    Spdy(StreamReader),
    Channel(ChannelReader),
}

/// What the client gets.
pub(crate) enum Sink {
    Spdy(StreamWriter),
    Channel(ChannelWriter),
}

impl Source {
    /// The next bytes; `None` at the end. An error means that the stream was cut off.
    pub(crate) async fn read(&mut self) -> io::Result<Option<Bytes>> {
        match self {
            Self::Spdy(stream) => stream.read().await,
            Self::Channel(channel) => Ok(channel.read().await),
        }
    }
}

impl Sink {
    /// Sends bytes, waiting while the client does not take them.
    pub(crate) async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        match self {
            Self::Spdy(stream) => stream.write(bytes).await,
            Self::Channel(channel) => channel.write(bytes).await,
        }
    }

    /// Ends the stream. One that is dropped instead is cut off.
    pub(crate) async fn finish(self) -> io::Result<()> {
        match self {
            Self::Spdy(stream) => stream.finish().await,
            // A channel has no end of its own.
            Self::Channel(_) => Ok(()),
        }
    }
}
