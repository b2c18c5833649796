//! The device thread: it waits for what devices wait for and lets each serve its queues.
//!
//! One thread serves every device that does not need one of its own. The disks (see
//! [`crate::devices::blk`]) and the network interface (see [`crate::devices::net`]) have theirs.

use crate::error::Error;
use crate::sync::lock;
use rustix::event::epoll;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

/// Something that is served when a descriptor becomes readable.
pub trait Handler: Send + Sync {
    /// The descriptor is readable. It must not block.
    fn ready(&self);
}

impl<F: Fn() + Send + Sync> Handler for F {
    fn ready(&self) {
        self();
    }
}

/// The sources of the device thread.
pub struct Events {
    epoll: OwnedFd,
    handlers: Mutex<Vec<Arc<dyn Handler>>>,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

/// A source of [`Events`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source(u64);

impl Events {
    /// No sources.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn new() -> Result<Self, Error> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(Error::host("create an epoll instance"))?;
        Ok(Self {
            epoll,
            handlers: Mutex::default(),
        })
    }

    /// Adds a source; the descriptor must stay open as long as `self`.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn add(&self, fd: BorrowedFd<'_>, handler: Arc<dyn Handler>) -> Result<Source, Error> {
        let source = self.push(handler);
        self.unmute(source, fd)?;
        Ok(source)
    }

    /// A handler that is known already keeps its place: devices whose descriptors come and go do not add up.
    fn push(&self, handler: Arc<dyn Handler>) -> Source {
        let mut handlers = lock(&self.handlers);
        let known = handlers.iter().position(|one| Arc::ptr_eq(one, &handler));
        let index = known.unwrap_or_else(|| {
            handlers.push(handler);
            handlers.len() - 1
        });
        Source(index as u64)
    }

    /// Stops to watch a source.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn mute(&self, fd: BorrowedFd<'_>) -> Result<(), Error> {
        epoll::delete(&self.epoll, fd).map_err(Error::host("stop to watch a descriptor"))
    }

    /// Watches a source again.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn unmute(&self, source: Source, fd: BorrowedFd<'_>) -> Result<(), Error> {
        let data = epoll::EventData::new_u64(source.0);
        let flags = epoll::EventFlags::IN;
        epoll::add(&self.epoll, fd, data, flags).map_err(Error::host("watch a descriptor"))
    }

    /// Waits once and serves what is ready.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn turn(&self) -> Result<(), Error> {
        let mut ready = Vec::with_capacity(16);
        rustix::io::retry_on_intr(|| {
            epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut ready),
                None,
            )
        })
        .map_err(Error::host("wait for events"))?;
        for event in ready {
            let source = event.data.u64();
            let handler = usize::try_from(source)
                .ok()
                .and_then(|index| lock(&self.handlers).get(index).cloned());
            if let Some(handler) = handler {
                handler.ready();
            }
        }
        Ok(())
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::{Events, Handler};
    use rustix::event::EventfdFlags;
    use std::os::fd::AsFd;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn descriptors_that_come_and_go_share_their_handlers_place() {
        let events = Events::new().unwrap();
        let count = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&count);
        let handler: Arc<dyn Handler> = Arc::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let ready = || {
            let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
            rustix::event::eventfd(1, flags).unwrap()
        };
        let (first, second) = (ready(), ready());
        let one = events.add(first.as_fd(), Arc::clone(&handler)).unwrap();
        let two = events.add(second.as_fd(), Arc::clone(&handler)).unwrap();
        assert_eq!(one, two);
        let other = events.add(ready().as_fd(), Arc::new(|| {})).unwrap();
        assert_ne!(one, other);
        events.turn().unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }
}
