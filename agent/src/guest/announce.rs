//! Telling the host that the agent is ready.

use super::boottime_ns;
use crate::sys::net::connect_host;
use bulkhead_agent_api::agent::Announcement;
use bulkhead_agent_api::{ANNOUNCE_PORT, MAX_ANNOUNCEMENT, VERSION};
use protobuf::Message;
use std::io;

/// Connects to the host and sends one announcement. The servers listen already.
pub(super) async fn announce(started_ns: u64) -> io::Result<()> {
    let mut announcement = Announcement::new();
    announcement.version = VERSION;
    announcement.kernel_release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    announcement.init_started_ns = started_ns;
    announcement.ready_ns = boottime_ns();
    let connection = connect_host(ANNOUNCE_PORT).await?;
    connection.write_all(&frame(&announcement)?).await?;
    connection.shutdown_write()
}

/// A message with its length before it: 32 bits, little-endian.
fn frame(announcement: &Announcement) -> io::Result<Vec<u8>> {
    let body = announcement.write_to_bytes().map_err(io::Error::other)?;
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    if length > MAX_ANNOUNCEMENT {
        return Err(io::Error::other("The announcement is too long"));
    }
    Ok([length.to_le_bytes().as_slice(), &body].concat())
}

#[cfg(test)]
#[path = "announce/tests.rs"]
mod tests;
