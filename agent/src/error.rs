//! What can go wrong, and the ttrpc status that tells it to the daemon.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io;

/// The result of everything the agent does for the daemon.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error, by what it means to the caller. Messages are sentences without a full stop and name
/// the container, disk or field.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request is wrong in itself.
    #[error("{0}")]
    Invalid(String),
    /// What the request names does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The name or stream id is taken.
    #[error("{0}")]
    Exists(String),
    /// Right in itself, but not in the present state.
    #[error("{0}")]
    Precondition(String),
    /// The specification asks for something the agent does not do.
    #[error("{0}")]
    Unimplemented(String),
    /// The program is not executable for the user.
    #[error("{0}")]
    Denied(String),
    /// The caller's deadline passed first.
    #[error("{0}")]
    Deadline(String),
    /// The event ring no longer holds what was asked for.
    #[error("{0}")]
    OutOfRange(String),
    /// A cap was reached.
    #[error("{0}")]
    Exhausted(String),
    /// The operating system refused.
    #[error("{what}")]
    Os {
        /// What was being done.
        what: String,
        /// Why it failed. Shared, so that one failure can be told to several callers.
        #[source]
        source: std::sync::Arc<io::Error>,
    },
    /// The agent's own fault, or a child that did not keep to the protocol.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// The status code that means this.
    pub fn code(&self) -> ttrpc::Code {
        match self {
            Self::Invalid(_) => ttrpc::Code::INVALID_ARGUMENT,
            Self::NotFound(_) => ttrpc::Code::NOT_FOUND,
            Self::Exists(_) => ttrpc::Code::ALREADY_EXISTS,
            Self::Precondition(_) => ttrpc::Code::FAILED_PRECONDITION,
            Self::Unimplemented(_) => ttrpc::Code::UNIMPLEMENTED,
            Self::Denied(_) => ttrpc::Code::PERMISSION_DENIED,
            Self::Deadline(_) => ttrpc::Code::DEADLINE_EXCEEDED,
            Self::OutOfRange(_) => ttrpc::Code::OUT_OF_RANGE,
            Self::Exhausted(_) => ttrpc::Code::RESOURCE_EXHAUSTED,
            Self::Os { .. } | Self::Internal(_) => ttrpc::Code::INTERNAL,
        }
    }

    /// The whole chain in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = self.source();
        while let Some(error) = next {
            // Writing to a string cannot fail.
            let _ = write!(text, ": {error}");
            next = error.source();
        }
        text
    }

    /// What the ttrpc server answers.
    pub fn to_rpc(&self) -> ttrpc::Error {
        ttrpc::Error::RpcStatus(ttrpc::get_status(self.code(), self.chain()))
    }
}

/// Says what was being done when the operating system refused.
pub trait Context<T> {
    /// Wraps the error; `what` is evaluated only then.
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| Error::Os {
            what: what().into(),
            source: std::sync::Arc::new(error.into()),
        })
    }
}
