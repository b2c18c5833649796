//! The control queue (virtio 1.2, 5.1.6.5): how many pairs of queues the driver uses.

use super::features::MQ;
use crate::machine::memory::GuestRam;
use crate::virtio::buffers::Chain;
use crate::virtio::queue::QueueError;

const OK: u8 = 0;
const ERR: u8 = 1;
/// VIRTIO_NET_CTRL_MQ and its command VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET.
const CLASS_MQ: u8 = 4;
const PAIRS_SET: u8 = 0;

/// Obeys one command; `set_pairs` is told the number of pairs and answers whether it is possible. Answers
/// how many bytes were written to the chain.
pub(super) fn obey(
    ram: &GuestRam,
    chain: &mut Chain,
    features: u64,
    set_pairs: impl FnOnce(u16) -> bool,
) -> Result<u32, QueueError> {
    let mut command = [0; 2];
    let data = &mut chain.readable;
    if data.read(ram, &mut command).is_err() || chain.writable.is_empty() {
        return Err(QueueError::Layout);
    }
    let mut number = [0; 2];
    let done = command == [CLASS_MQ, PAIRS_SET]
        && features & MQ != 0
        && data.len() == 2
        && data.read(ram, &mut number).is_ok()
        && set_pairs(u16::from_le_bytes(number));
    let answer = if done { OK } else { ERR };
    match chain.writable.write(ram, &[answer]) {
        Ok(()) => Ok(1),
        Err(_) => Err(QueueError::Layout),
    }
}
