//! Feature bits (virtio 1.2, 5.1.3).

/// The device checks what the driver sends with a partial checksum.
pub(super) const CSUM: u64 = 1 << 0;
/// The driver takes packets with a partial checksum.
pub(super) const GUEST_CSUM: u64 = 1 << 1;
pub(super) const GUEST_TSO4: u64 = 1 << 7;
pub(super) const GUEST_TSO6: u64 = 1 << 8;
pub(super) const GUEST_ECN: u64 = 1 << 9;
pub(super) const HOST_TSO4: u64 = 1 << 11;
pub(super) const HOST_TSO6: u64 = 1 << 12;
pub(super) const HOST_ECN: u64 = 1 << 13;
/// A packet for the guest may take several buffers.
pub(super) const MRG_RXBUF: u64 = 1 << 15;
/// The configuration space tells whether the link is up.
pub(super) const STATUS: u64 = 1 << 16;
/// There is a control queue.
pub(super) const CTRL_VQ: u64 = 1 << 17;
/// There are several pairs of queues.
pub(super) const MQ: u64 = 1 << 22;
pub(super) const GUEST_USO4: u64 = 1 << 54;
pub(super) const GUEST_USO6: u64 = 1 << 55;
pub(super) const HOST_USO: u64 = 1 << 56;

/// Every offload by which the guest is sent packets longer than its MTU.
pub(super) const GUEST_LARGE: u64 = GUEST_TSO4 | GUEST_TSO6 | GUEST_USO4 | GUEST_USO6;

/// What is offered with so many pairs of queues.
///
/// With one pair there is nothing to control, and a driver that finds no control queue does not wait for
/// an answer on it while it boots.
pub(super) fn offered(pairs: usize, udp_segments: bool) -> u64 {
    let transmit = CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN;
    let receive = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | MRG_RXBUF;
    let udp = if udp_segments {
        GUEST_USO4 | GUEST_USO6 | HOST_USO
    } else {
        0
    };
    let queues = if pairs > 1 { CTRL_VQ | MQ } else { 0 };
    transmit | receive | udp | queues | STATUS
}

/// Whether a tap of this host segments UDP: since Linux 6.2. Asked of the kernel's release, since the tap
/// is not there yet when features are offered.
pub(super) fn host_segments_udp() -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    let mut number = || numbers.next().and_then(|digits| digits.parse::<u32>().ok());
    (number(), number()) >= (Some(6), Some(2))
}
