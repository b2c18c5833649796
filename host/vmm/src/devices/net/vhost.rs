//! vhost-net (`linux/vhost.h`): the host's kernel moves the packets of a pair of queues.
//!
//! The kernel thread behind `/dev/vhost-net` reads the rings and the buffers in this process's mapping of
//! guest memory. What is left here is the interrupt, which is the transport's: the kernel signals an eventfd,
//! and the pair's thread interrupts the guest.

use crate::error::Error;
use crate::machine::memory::GuestRam;
use crate::virtio::queue::Queue;
use crate::virtio::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

const GET_FEATURES: libc::c_ulong = 0x8008_af00;
const SET_FEATURES: libc::c_ulong = 0x4008_af00;
const SET_OWNER: libc::c_ulong = 0xaf01;
const SET_MEM_TABLE: libc::c_ulong = 0x4008_af03;
const SET_VRING_NUM: libc::c_ulong = 0x4008_af10;
const SET_VRING_ADDR: libc::c_ulong = 0x4028_af11;
const SET_VRING_BASE: libc::c_ulong = 0x4008_af12;
const SET_VRING_KICK: libc::c_ulong = 0x4008_af20;
const SET_VRING_CALL: libc::c_ulong = 0x4008_af21;
const SET_VRING_ERR: libc::c_ulong = 0x4008_af22;
const NET_SET_BACKEND: libc::c_ulong = 0x4008_af30;

/// What it has to know of; the offloads are the tap's.
const FEATURES: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | super::features::MRG_RXBUF;
/// The most mappings that guest memory has.
const REGIONS: usize = 4;

/// `struct vhost_memory` with room for its regions.
#[repr(C)]
struct Memory {
    count: u32,
    padding: u32,
    regions: [Region; REGIONS],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    guest: u64,
    length: u64,
    host: u64,
    flags: u64,
}

/// `struct vhost_vring_state` and `struct vhost_vring_file`.
#[repr(C)]
struct Value {
    index: u32,
    value: i32,
}

/// `struct vhost_vring_addr`.
#[repr(C)]
struct Addresses {
    index: u32,
    flags: u32,
    descriptors: u64,
    used: u64,
    available: u64,
    log: u64,
}

/// One open `/dev/vhost-net`.
#[derive(Debug)]
pub(super) struct Vhost {
    device: OwnedFd,
    /// Signalled when buffers of the receive and of the transmit queue were used.
    pub(super) calls: [EventFd; 2],
    /// Signalled when the kernel finds nonsense in a ring.
    pub(super) errors: EventFd,
}

impl Vhost {
    /// Takes a freshly opened device for a pair of queues that are notified by `kicks`.
    ///
    /// # Errors
    /// [`Error::Host`], also when it is another kind of file.
    pub(super) fn new(
        device: OwnedFd,
        ram: &GuestRam,
        kicks: [&EventFd; 2],
    ) -> Result<Self, Error> {
        let failed = || Error::host("set up vhost-net");
        let event =
            || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(Error::host("create an eventfd"));
        let vhost = Self {
            device,
            calls: [event()?, event()?],
            errors: event()?,
        };
        // SAFETY: takes no argument.
        check(unsafe { libc::ioctl(vhost.device.as_raw_fd(), SET_OWNER) }).map_err(failed())?;
        let mut offered = 0_u64;
        vhost.call(GET_FEATURES, &mut offered).map_err(failed())?;
        if offered & FEATURES != FEATURES {
            return Err(failed()(io::Error::from(io::ErrorKind::Unsupported)));
        }
        vhost.set_memory(ram).map_err(failed())?;
        for (index, (kick, call)) in (0..).zip(kicks.iter().zip(&vhost.calls)) {
            for (request, event) in [
                (SET_VRING_KICK, *kick),
                (SET_VRING_CALL, call),
                (SET_VRING_ERR, &vhost.errors),
            ] {
                vhost
                    .set(request, index, event.as_raw_fd())
                    .map_err(failed())?;
            }
        }
        Ok(vhost)
    }

    fn set_memory(&self, ram: &GuestRam) -> io::Result<()> {
        let mut memory = Memory {
            count: 0,
            padding: 0,
            regions: [Region::default(); REGIONS],
        };
        for (entry, region) in memory.regions.iter_mut().zip(ram.iter()) {
            *entry = Region {
                guest: region.start_addr().0,
                length: region.len(),
                host: region.as_ptr() as u64,
                flags: 0,
            };
            memory.count += 1;
        }
        if memory.count as usize != ram.num_regions() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.call(SET_MEM_TABLE, &mut memory)
    }

    /// The driver is ready: tells the kernel where the rings are. Nothing moves before
    /// [`Vhost::set_tap`].
    pub(super) fn start(
        &self,
        ram: &GuestRam,
        queues: [&Queue; 2],
        features: u64,
    ) -> io::Result<()> {
        self.call(SET_FEATURES, &mut (features & FEATURES))?;
        for (index, queue) in (0..).zip(queues) {
            let host = |address| {
                ram.get_host_address(address)
                    .map(|pointer| pointer as u64)
                    .map_err(io::Error::other)
            };
            let [descriptors, available, used] = queue.rings();
            let mut addresses = Addresses {
                index,
                flags: 0,
                descriptors: host(descriptors)?,
                used: host(used)?,
                available: host(available)?,
                log: 0,
            };
            self.set(SET_VRING_NUM, index, i32::from(queue.size()))?;
            self.set(SET_VRING_BASE, index, 0)?;
            self.call(SET_VRING_ADDR, &mut addresses)?;
        }
        Ok(())
    }

    /// Connects the transmit queue with a tap, and the receive queue if it is to; from then on packets
    /// move.
    pub(super) fn set_tap(&self, tap: BorrowedFd<'_>, receive: bool) -> io::Result<()> {
        self.set(NET_SET_BACKEND, 1, tap.as_raw_fd())?;
        if receive {
            self.set(NET_SET_BACKEND, 0, tap.as_raw_fd())?;
        }
        Ok(())
    }

    /// Takes the tap away. When this returns the kernel does not touch the rings any more.
    pub(super) fn stop(&self) {
        for index in [0, 1] {
            // Refused only for a queue that there is not.
            let _ = self.set(NET_SET_BACKEND, index, -1);
        }
    }

    fn set(&self, request: libc::c_ulong, index: u32, value: i32) -> io::Result<()> {
        self.call(request, &mut Value { index, value })
    }

    /// A request with the structure that `linux/vhost.h` names for it.
    fn call<T>(&self, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
        let argument = std::ptr::from_mut(argument);
        // SAFETY: every caller passes what the request reads or writes: a `u64` for features, and the
        // structures above. The memory table and the rings' addresses are of guest memory, which is mapped
        // as long as the process lives, and which the kernel checks again whenever it follows them.
        check(unsafe { libc::ioctl(self.device.as_raw_fd(), request, argument) })
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        ..0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
