//! What is asked of a tap: Linux `Documentation/networking/tuntap.rst` and `linux/if_tun.h`.

use super::features as f;
use super::header::HEADER;
use crate::error::Error;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUNSETQUEUE: libc::c_ulong = 0x4004_54d9;
const IFF_TAP: u16 = 0x2;
const IFF_MULTI_QUEUE: u16 = 0x100;
const IFF_ATTACH_QUEUE: u16 = 0x200;
const IFF_DETACH_QUEUE: u16 = 0x400;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_TSO4: libc::c_ulong = 0x02;
const TUN_F_TSO6: libc::c_ulong = 0x04;
const TUN_F_TSO_ECN: libc::c_ulong = 0x08;
/// TUN_F_USO4 and TUN_F_USO6, which go together.
const TUN_F_USO: libc::c_ulong = 0x20 | 0x40;

/// Why a tap cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// There is one already.
    #[error("The interface has a tap already")]
    NotEmpty,
    /// No queue, or more than the interface has pairs.
    #[error("The interface takes 1 to {most} queues of a tap, not {count}")]
    Count {
        /// How many came.
        count: usize,
        /// How many pairs of queues there are.
        most: usize,
    },
    /// A limit is not usable.
    #[error("A rate limit has a rate or a burst of 0")]
    Limits,
    /// vhost-net knows no limits.
    #[error("vhost-net cannot limit rates; leave out the limits or vhost-net")]
    Unlimited,
    /// Not a tap, or not one of this kind.
    #[error(
        "The descriptor is not a tap with IFF_VNET_HDR and IFF_NO_PI, or one of several is not of the \
         same tap with IFF_MULTI_QUEUE"
    )]
    Kind,
    /// The tap refused its settings.
    #[error("The tap refused its settings")]
    Settings(#[source] io::Error),
    /// The host refused.
    #[error("The host refused")]
    Host(#[source] Error),
}

/// `struct ifreq` as the requests here use it: name and flags.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

impl Request {
    fn new(flags: u16) -> Self {
        Self {
            name: [0; 16],
            flags,
            rest: [0; 22],
        }
    }
}

/// A tap, as one or several queues.
#[derive(Debug, Default)]
pub(super) struct Tap {
    /// Its queues and whether each takes part.
    queues: Vec<(Arc<OwnedFd>, bool)>,
}

impl Tap {
    /// Checks the queues, sets the length of their header and makes them non-blocking.
    pub(super) fn new(queues: Vec<OwnedFd>) -> Result<Self, TapError> {
        let several = queues.len() > 1;
        let mut first_name = None;
        for queue in &queues {
            let (name, flags) = kind(queue.as_fd())?;
            let same = *first_name.get_or_insert(name) == name;
            if several && (flags & IFF_MULTI_QUEUE == 0 || !same) {
                return Err(TapError::Kind);
            }
            let length = HEADER as libc::c_int;
            // SAFETY: TUNSETVNETHDRSZ reads an `int`.
            let result =
                unsafe { libc::ioctl(queue.as_raw_fd(), TUNSETVNETHDRSZ, &raw const length) };
            if result < 0 {
                return Err(TapError::Settings(io::Error::last_os_error()));
            }
            rustix::io::ioctl_fionbio(queue, true)
                .map_err(|error| TapError::Settings(error.into()))?;
        }
        Ok(Self::unchecked(queues))
    }

    /// Takes any descriptors for a tap.
    pub(super) fn unchecked(queues: Vec<OwnedFd>) -> Self {
        let queues = queues.into_iter().map(|queue| (Arc::new(queue), true));
        Self {
            queues: queues.collect(),
        }
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// The queue on which a pair sends, and whether it is its own to receive on. Pairs without a queue
    /// of their own share those that there are.
    pub(super) fn of_pair(&self, pair: usize) -> Option<(Arc<OwnedFd>, bool)> {
        let own = self.queues.get(pair).map(|(queue, _)| (queue, true));
        let index = pair.checked_rem(self.queues.len())?;
        let shared = || self.queues.get(index).map(|(queue, _)| (queue, false));
        own.or_else(shared)
            .map(|(queue, own)| (Arc::clone(queue), own))
    }

    /// Lets the host leave to the guest what the guest has said that it can do itself.
    pub(super) fn set_offloads(&self, features: u64) -> Result<(), TapError> {
        let Some((queue, _)) = self.queues.first() else {
            return Ok(());
        };
        // They are the whole interface's, so one queue is asked.
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let result = unsafe { libc::ioctl(queue.as_raw_fd(), TUNSETOFFLOAD, offloads(features)) };
        if result < 0 {
            return Err(TapError::Settings(io::Error::last_os_error()));
        }
        Ok(())
    }

    /// Has the host spread packets over the first `count` queues.
    pub(super) fn use_queues(&mut self, count: usize) -> Result<(), TapError> {
        for (index, (queue, used)) in self.queues.iter_mut().enumerate() {
            // The first is always used.
            let wanted = index < count.max(1);
            if *used == wanted {
                continue;
            }
            let request = Request::new(if wanted {
                IFF_ATTACH_QUEUE
            } else {
                IFF_DETACH_QUEUE
            });
            // SAFETY: TUNSETQUEUE reads a `struct ifreq`, which `Request` has the size of.
            let result = unsafe { libc::ioctl(queue.as_raw_fd(), TUNSETQUEUE, &raw const request) };
            if result < 0 {
                return Err(TapError::Settings(io::Error::last_os_error()));
            }
            *used = wanted;
        }
        Ok(())
    }
}

/// A tap's name and flags.
fn kind(tap: BorrowedFd<'_>) -> Result<([u8; 16], u16), TapError> {
    let mut request = Request::new(0);
    // SAFETY: TUNGETIFF writes a `struct ifreq`, which `Request` has the size of (40 bytes); another
    // kind of file refuses the request.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), TUNGETIFF, &raw mut request) };
    let needed = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    if result < 0 || request.flags & needed != needed {
        return Err(TapError::Kind);
    }
    Ok((request.name, request.flags))
}

fn offloads(features: u64) -> libc::c_ulong {
    let has = |wanted: u64| features & wanted == wanted;
    if !has(f::GUEST_CSUM) {
        return 0;
    }
    let mut offloads = TUN_F_CSUM;
    for (feature, offload) in [(f::GUEST_TSO4, TUN_F_TSO4), (f::GUEST_TSO6, TUN_F_TSO6)] {
        if has(feature) {
            offloads |= offload;
        }
    }
    if has(f::GUEST_ECN) && offloads & (TUN_F_TSO4 | TUN_F_TSO6) != 0 {
        offloads |= TUN_F_TSO_ECN;
    }
    if has(f::GUEST_USO4 | f::GUEST_USO6) {
        offloads |= TUN_F_USO;
    }
    offloads
}
