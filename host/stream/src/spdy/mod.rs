//! SPDY/3.1, the server's side, as far as Kubernetes uses it: the client opens streams, both send data.
//!
//! ```text
//!  transport -> frame -> table (streams, windows) -> StreamReader
//!  transport <- frame <- queue <------------------- StreamWriter
//! ```
//!
//! **Flow control.** Clients built on Go's spdystream, that is kubectl, the API server and crictl, have
//! none: they neither obey windows nor send WINDOW_UPDATE, and a server that kept to the initial window
//! would stop after 64 KiB. A peer that shows that it does flow control (a WINDOW_UPDATE, or SETTINGS
//! with an initial window) has it enforced both ways from then on. With any other, a stream or
//! connection whose buffer is full is not read from until there is room, so that TCP holds the client
//! back. The caps are the same for both.

mod connection;
mod dictionary;
mod frame;
mod headers;
pub(crate) mod port_forward;
pub(crate) mod remote_command;
mod stream;
mod table;
#[cfg(test)]
mod tests;

#[cfg(fuzzing)]
pub(crate) use frame::{Decoder, Frame};
#[cfg(fuzzing)]
pub(crate) use headers::{Deflater, Inflater};

pub(crate) use connection::Connection;
pub(crate) use stream::{Stream, StreamReader, StreamWriter};

/// The value of the `Upgrade` header.
pub(crate) const UPGRADE: &str = "SPDY/3.1";
