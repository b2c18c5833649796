//! What can go wrong before the first request.

use std::fmt::Write;
use std::io;

/// Why the program ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The configuration could not be read or makes no sense.
    #[error("The configuration on standard input is not usable: {0}")]
    Config(String),
    /// The host's kernel refused something.
    #[error("The host refused to {what}")]
    Host {
        /// What was asked of it.
        what: &'static str,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// A mapping was refused.
    #[error("The host refused to map a file in memory: {0}")]
    Memory(String),
    /// vhost-user failed.
    #[error("The connection to the VMM failed: {0}")]
    Connection(String),
}

impl Error {
    /// Names what the host was asked to do.
    pub(crate) fn host<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host {
            what,
            source: source.into(),
        }
    }
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Writing to a string does not fail.
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}
