//! The device for shared volumes, and who serves it.

use super::slots::Slots;
use crate::devices::fs::{BindError, Fs};
use crate::error::Error;
use crate::events::{Events, Handler};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The device with what is called when its queues or its file daemon want attention.
pub struct Volumes {
    device: Arc<Fs>,
    handler: Arc<dyn Handler>,
}

impl std::fmt::Debug for Volumes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.device.fmt(f)
    }
}

impl Volumes {
    pub(super) fn new(slots: &mut Slots<'_>) -> Result<Self, Error> {
        let device = slots.add(Fs::new)?;
        slots.serve(&device, Fs::serve)?;
        let served = Arc::clone(&device);
        let handler = Arc::new(move || served.serve());
        Ok(Self { device, handler })
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Fs {
        &self.device
    }

    /// Takes a file daemon.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(&self, fds: Vec<OwnedFd>, events: &Events) -> Result<(), BindError> {
        self.device.bind(fds, events, &self.handler)
    }
}
