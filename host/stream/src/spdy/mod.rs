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

/// Takes a connection's streams through these steps, for the fuzzer.
#[cfg(fuzzing)]
pub(crate) fn exercise(steps: &[crate::fuzzing::Step]) {
    use crate::fuzzing::Step;
    use table::{SESSION_WINDOW, STREAM_WINDOW, Table};
    let mut table = Table::new(4);
    for step in steps {
        let broken = match *step {
            Step::Open(id, fin) => table.open(id.into(), fin).is_err(),
            Step::Data(id, fin, length) => {
                let bytes = vec![0; usize::from(length) / 2].into();
                table.data(id.into(), fin, bytes).is_err()
            }
            Step::Read(id) => {
                table.read(id.into());
                false
            }
            Step::Send(id, wanted) => {
                let sent = table.send(id.into(), wanted.into());
                assert!(sent.is_none_or(|sent| sent <= usize::from(wanted)));
                false
            }
            Step::Window(id, delta) => table.window_update(id.into(), delta >> 1).is_err(),
            Step::Initial(size) => table.initial_window(size).is_err(),
            Step::Reset(id) => {
                table.reset(id.into());
                false
            }
            Step::DropReader(id) => {
                table.drop_reader(id.into());
                false
            }
            Step::DropWriter(id) => {
                table.drop_writer(id.into());
                false
            }
        };
        let (bytes, streams) = table.held();
        let piece = frame::MAX_PIECE;
        assert!(bytes < (SESSION_WINDOW.max(STREAM_WINDOW) as usize) + piece && streams <= 4);
        if broken {
            return;
        }
    }
}

/// The value of the `Upgrade` header.
pub(crate) const UPGRADE: &str = "SPDY/3.1";
