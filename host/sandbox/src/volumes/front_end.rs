//! The vhost-user side of a file daemon: its memory, queues and signals, all of which go to the VMM then.

use bulkhead_vmm_api::bounce::{self, QUEUE_SIZE, QUEUES};
use rustix::fs::{MemfdFlags, SealFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// VIRTIO_F_VERSION_1 (virtio 1.2, 6).
const VERSION_1: u64 = 1 << 32;
/// Where the daemon is told that its front end has the memory; any address would do.
const BASE: u64 = 1 << 32;
/// A daemon that says nothing for so long is broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sets a file daemon up. Answers what the VMM needs, in the order of
/// [`Request::BindFileDaemon`](bulkhead_vmm_api::Request::BindFileDaemon).
///
/// # Errors
/// When the daemon does not play its part.
pub(super) fn set_up(socket: UnixStream) -> io::Result<Vec<OwnedFd>> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let kept: OwnedFd = socket.try_clone()?.into();
    let memory = memory()?;
    let broken = io::Error::other::<vhost::Error>;
    let mut daemon = Frontend::from_stream(socket, QUEUES as u64);
    daemon.set_owner().map_err(broken)?;
    let features = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | VERSION_1;
    if daemon.get_features().map_err(broken)? & features != features {
        return Err(io::Error::other("it lacks features of virtio 1"));
    }
    daemon.set_features(features).map_err(broken)?;
    // Asked first, as the protocol wants it.
    let offered = daemon.get_protocol_features().map_err(broken)?;
    let wanted = VhostUserProtocolFeatures::REPLY_ACK & offered;
    daemon.set_protocol_features(wanted).map_err(broken)?;
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: bounce::size(),
        userspace_addr: BASE,
        mmap_offset: 0,
        mmap_handle: memory.as_raw_fd(),
    };
    daemon.set_mem_table(&[region]).map_err(broken)?;
    let events = || -> io::Result<Vec<EventFd>> {
        (0..QUEUES)
            .map(|_| EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK))
            .collect()
    };
    let (kicks, calls) = (events()?, events()?);
    for (queue, (kick, call)) in kicks.iter().zip(&calls).enumerate() {
        let [descriptors, available, used] = bounce::rings(queue);
        let rings = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: BASE + descriptors,
            used_ring_addr: BASE + used,
            avail_ring_addr: BASE + available,
            log_addr: None,
        };
        daemon.set_vring_num(queue, QUEUE_SIZE).map_err(broken)?;
        daemon.set_vring_addr(queue, &rings).map_err(broken)?;
        daemon.set_vring_base(queue, 0).map_err(broken)?;
        daemon.set_vring_call(queue, call).map_err(broken)?;
        daemon.set_vring_kick(queue, kick).map_err(broken)?;
        daemon.set_vring_enable(queue, true).map_err(broken)?;
    }
    let mut all = vec![OwnedFd::from(memory), kept];
    all.extend(kicks.into_iter().chain(calls).map(owned));
    Ok(all)
}

/// The shared memory, whose size is for good.
fn memory() -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create("volumes", flags)?);
    file.set_len(bounce::size())?;
    let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file)
}

#[allow(unsafe_code)]
fn owned(event: EventFd) -> OwnedFd {
    // SAFETY: the eventfd gives its descriptor up.
    unsafe { OwnedFd::from_raw_fd(event.into_raw_fd()) }
}
