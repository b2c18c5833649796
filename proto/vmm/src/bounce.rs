//! The memory through which a VMM and the pod's file daemon exchange FUSE messages: their virtqueues and room
//! for what the queues refer to. It is a file in memory of this size; guest memory is never lent.
//!
//! ```text
//! 0        queue 0 (high priority): descriptors, +0x1000 available ring, +0x2000 used ring
//! 0x4000   queue 1 (requests): the same
//! 0x8000   slots, small ones first; each takes one request and its reply
//! ```

/// Number of queues: high priority, requests.
pub const QUEUES: usize = 2;
/// Descriptors of each queue: two for each slot, so that no slot ever waits for one.
pub const QUEUE_SIZE: u16 = 128;
/// Classes of slots: how many there are, and bytes of each. A page's worth, Linux's readahead, and the longest
/// request (1 MiB), each with what FUSE needs besides.
pub const CLASSES: [(usize, u64); 3] =
    [(32, 16 << 10), (16, 144 << 10), (4, (1 << 20) + (64 << 10))];
const RINGS: u64 = 0x4000;
const FIRST_SLOT: u64 = QUEUES as u64 * RINGS;

/// Where a queue's descriptor table, available ring and used ring are.
#[must_use]
pub fn rings(queue: usize) -> [u64; 3] {
    let start = queue as u64 * RINGS;
    [start, start + 0x1000, start + 0x2000]
}

/// Start and length of each slot.
pub fn slots() -> impl Iterator<Item = (u64, u64)> {
    let lengths = CLASSES
        .into_iter()
        .flat_map(|(count, length)| std::iter::repeat_n(length, count));
    lengths.scan(FIRST_SLOT, |next, length| {
        let start = *next;
        *next += length;
        Some((start, length))
    })
}

/// Bytes of the whole file.
#[must_use]
pub fn size() -> u64 {
    FIRST_SLOT + slots().map(|(_, length)| length).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::{QUEUE_SIZE, QUEUES, rings, size, slots};

    #[test]
    fn nothing_overlaps_and_every_slot_has_two_descriptors() {
        let mut end = 0;
        for queue in 0..QUEUES {
            let [table, available, used] = rings(queue);
            assert!(table >= end);
            assert!(table + 16 * u64::from(QUEUE_SIZE) <= available);
            assert!(available + 6 + 2 * u64::from(QUEUE_SIZE) <= used);
            end = used + 6 + 8 * u64::from(QUEUE_SIZE);
        }
        for (start, length) in slots() {
            assert!(start >= end && start % 4096 == 0);
            end = start + length;
        }
        assert_eq!(end, size());
        assert!(2 * slots().count() <= usize::from(QUEUE_SIZE));
    }
}
