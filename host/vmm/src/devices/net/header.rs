//! `struct virtio_net_hdr_v1` (virtio 1.2, 5.1.6) of packets that the guest sends.
//!
//! The host's kernel acts on this header, so it is not left to the guest's memory, which may change under
//! it: it is copied once, checked, and the copy is what the tap is given.

use super::features::{CSUM, HOST_ECN, HOST_TSO4, HOST_TSO6, HOST_USO};

/// Its length in bytes.
pub(super) const HEADER: usize = 12;
/// Where it says how many buffers a packet for the guest takes.
pub(super) const NUM_BUFFERS: usize = 10;
/// An Ethernet header.
const ETHERNET: usize = 14;
/// The longest packet with its header: what a segmentation offload can make.
pub(super) const MAX_PACKET: usize = HEADER + ETHERNET + 65_535;

/// VIRTIO_NET_HDR_F_NEEDS_CSUM.
const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Whether a packet of `length` bytes, its header included, may leave with this header; what the driver
/// must not say, or has no business saying, is taken out of it.
pub(super) fn admit(header: &mut [u8; HEADER], length: usize, features: u64) -> bool {
    let Some(frame) = length.checked_sub(HEADER) else {
        return false;
    };
    if frame < ETHERNET || length > MAX_PACKET {
        return false;
    }
    let [flags, gso, l0, l1, s0, s1, c0, c1, o0, o1, ..] = *header;
    let number = |low, high| usize::from(u16::from_le_bytes([low, high]));
    let (header_length, segment) = (number(l0, l1), number(s0, s1));
    let partial = flags & NEEDS_CSUM != 0;
    if partial {
        // The sum's two bytes lie within the frame.
        let end = number(c0, c1) + number(o0, o1) + 2;
        if features & CSUM == 0 || end > frame {
            return false;
        }
    }
    let kind = gso & !GSO_ECN;
    if kind != GSO_NONE {
        let needed = match kind {
            GSO_TCPV4 => HOST_TSO4,
            GSO_TCPV6 => HOST_TSO6,
            GSO_UDP_L4 => HOST_USO,
            _ => return false,
        };
        let ecn = gso & GSO_ECN == 0 || features & HOST_ECN != 0 && kind != GSO_UDP_L4;
        let usable = features & needed != 0 && partial && ecn;
        if !usable || segment == 0 || header_length > frame {
            return false;
        }
    }
    let mut clean = [0; HEADER];
    if partial {
        (clean[0], clean[6], clean[7], clean[8], clean[9]) = (NEEDS_CSUM, c0, c1, o0, o1);
    }
    if kind != GSO_NONE {
        (clean[1], clean[2], clean[3], clean[4], clean[5]) = (gso, l0, l1, s0, s1);
    }
    *header = clean;
    true
}
