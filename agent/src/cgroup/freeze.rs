//! Pausing all processes of a container.

use super::{Cgroup, field};
use crate::Result;
use crate::error::Context;
use crate::sys::fd::Fd;
use std::fs;

impl Cgroup {
    /// Asks the kernel to stop, or to continue, every process in it and below.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let value = if frozen { "1" } else { "0" };
        fs::write(self.path.join("cgroup.freeze"), value)
            .context(|| format!("Cannot freeze cgroup {}", self.path.display()))
    }

    /// Waits until a line of cgroup.events has this value. `None`: the cgroup is gone.
    pub(super) async fn event(&self, name: &str, value: u64) -> Result<Option<()>> {
        let what = || format!("Cannot watch cgroup {}", self.path.display());
        let file = match fs::File::open(self.path.join("cgroup.events")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file.context(what)?,
        };
        let file = Fd::exceptional(file.into()).context(what)?;
        loop {
            let mut buffer = [0; 256];
            let n = match rustix::io::pread(&file, &mut buffer, 0) {
                Err(rustix::io::Errno::NODEV) => return Ok(None),
                n => n.context(what)?,
            };
            let text = String::from_utf8_lossy(buffer.get(..n).unwrap_or_default());
            if field(&text, name) == value {
                return Ok(Some(()));
            }
            file.changed().await.context(what)?;
        }
    }

    /// Waits until every process has stopped, or continues. A process in an uninterruptible wait
    /// stops when that is over.
    pub async fn frozen(&self, frozen: bool) -> Result<()> {
        self.event("frozen", u64::from(frozen)).await.map(drop)
    }
}
