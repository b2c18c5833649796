//! What follows the end of a file daemon: another one, with the same volumes.

use super::process::FileDaemon;
use super::{Parts, PodVolumes, State, copy};
use crate::store::blocking;
use crate::{Result, SandboxError};
use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

/// Before the second of two file daemons that end soon, and at most.
const PAUSE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];
/// One that has lived for so long did not end of how it began.
const STEADY: Duration = Duration::from_secs(60);
/// The highest number of a file daemon: what the guest is given has 15 bits for it.
const LAST: u16 = 0x7fff;

/// What to wait before the next file daemon.
#[derive(Debug, Default)]
struct Pauses {
    next: Duration,
}

impl Pauses {
    /// One has lived for so long.
    fn ended_after(&mut self, lived: Duration) {
        if lived >= STEADY {
            self.next = Duration::ZERO;
        }
    }

    /// Before the next one is tried.
    fn take(&mut self) -> Duration {
        let [shortest, longest] = PAUSE;
        let longer = (2 * self.next).clamp(shortest, longest);
        std::mem::replace(&mut self.next, longer)
    }
}

impl PodVolumes {
    /// Has each file daemon that ends followed by another one, for as long as this is awaited.
    pub(crate) async fn keep(&self, parts: Parts<'_>) -> Infallible {
        let mut pauses = Pauses::default();
        loop {
            let (cause, lived) = self.end_of_the_last().await;
            tracing::warn!(
                pod = self.pod,
                cause,
                "The file daemon has ended; the pod's shared volumes answer with errors until the next one serves them"
            );
            pauses.ended_after(lived);
            loop {
                tokio::time::sleep(pauses.take()).await;
                match self.replace(parts, &cause).await {
                    Ok(()) => break,
                    Err(error) => {
                        tracing::warn!(pod = self.pod, %error, "No other file daemon could be started");
                    }
                }
            }
        }
    }

    /// Waits until the file daemon has ended, and says why, and how long it had lived.
    pub(super) async fn end_of_the_last(&self) -> (String, Duration) {
        loop {
            let last = match &*self.state.lock().await {
                State::Last(daemon) => Some((daemon.end(), daemon.began)),
                State::None | State::Lost(_) => None,
            };
            let Some((mut end, began)) = last else {
                self.begun.notified().await;
                continue;
            };
            let cause = end.wait_for(Option::is_some).await;
            match cause.ok().and_then(|cause| cause.clone()) {
                Some(cause) => return (cause, began.elapsed()),
                // It cannot be watched, which was said.
                None => pending().await,
            }
        }
    }

    /// Puts another file daemon in the place of one that has ended.
    async fn replace(&self, parts: Parts<'_>, cause: &str) -> Result<()> {
        let mut state = self.state.lock().await;
        let State::Last(old) = &mut *state else {
            return Ok(());
        };
        if old.epoch >= LAST {
            *state = State::Lost(format!("{LAST} have ended, the last because {cause}"));
            let error = self.serving(&state).err();
            return error.map_or(Ok(()), |error| {
                tracing::error!(pod = self.pod, %error, "No other file daemon is started");
                Ok(())
            });
        }
        // None has the number of another one, whatever became of that.
        old.epoch += 1;
        let (new, fds) = FileDaemon::start(&self.pod, parts, old.epoch).await?;
        let (from, to) = (old.namespace()?, new.namespace()?);
        let copied = blocking(move || Ok(copy::all(&from, &to)));
        copied.await?.map_err(SandboxError::io(format!(
            "hand the volumes of pod sandbox {} to another file daemon",
            self.pod
        )))?;
        // Remembered first, as the first one.
        let record = new.record();
        parts.sandbox.remember_file_daemon(Some(record)).await?;
        parts.place.bind_file_daemon(fds).await?;
        *state = State::Last(new);
        tracing::info!(
            pod = self.pod,
            "Another file daemon serves the pod's shared volumes"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Pauses;
    use std::time::Duration;

    #[test]
    fn file_daemons_that_keep_ending_are_waited_for_longer_and_longer() {
        let mut pauses = Pauses::default();
        let mut seconds = || {
            pauses.ended_after(Duration::from_secs(59));
            pauses.take().as_secs()
        };
        let taken: Vec<u64> = (0..9).map(|_| seconds()).collect();
        assert_eq!(taken, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        pauses.ended_after(Duration::from_secs(60));
        assert_eq!(pauses.take(), Duration::ZERO);
        assert_eq!(pauses.take(), Duration::from_secs(1));
    }
}
