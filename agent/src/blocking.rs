//! Work that waits for the kernel, which must not hold up the one thread of the agent's tasks.

use crate::{Error, Result};

/// Does it on a thread of its own once it is awaited. From then on it goes on, also if the caller gives up.
///
/// # Errors
/// The work's own; [`Error::Internal`] if it was cut short.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Error::Internal(error.to_string())))
}
