//! How much memory the guest's unread data may take, shared among its connections.
//!
//! What the guest is told that it may send is what has to be kept for it if the host does not read. A pod has
//! a few connections as a rule, and these get large buffers; the more there are, the less is left for a new
//! one. A guest that opens all it can gets small ones, and takes nothing from those that were there before.

/// What is shared, in bytes.
const SHARED: u32 = 4 << 20;
/// A connection gets one of so many parts of what is left.
const PART: u32 = 8;
/// No connection gets more: what Linux gives its own side of one.
pub const LARGEST: u32 = 256 << 10;
/// Every connection gets this, whatever is left.
pub const SMALLEST: u32 = 4 << 10;

/// The buffers that are taken.
#[derive(Debug, Default)]
pub struct Pool {
    taken: u32,
}

impl Pool {
    /// A buffer for a new connection.
    #[must_use]
    pub fn take(&mut self) -> u32 {
        let left = SHARED.saturating_sub(self.taken);
        let buffer = (left / PART).clamp(SMALLEST, LARGEST);
        self.taken = self.taken.saturating_add(buffer);
        buffer
    }

    /// A connection's buffer is free again.
    pub fn give_back(&mut self, buffer: u32) {
        self.taken = self.taken.saturating_sub(buffer);
    }

    /// How many bytes are taken.
    #[must_use]
    pub fn taken(&self) -> u32 {
        self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::{LARGEST, Pool, SHARED, SMALLEST};
    use crate::devices::vsock::muxer::MAX_CONNECTIONS;

    #[test]
    fn the_first_get_much_and_all_together_no_more_than_the_cap() {
        let mut pool = Pool::default();
        let buffers: Vec<u32> = (0..MAX_CONNECTIONS).map(|_| pool.take()).collect();
        assert!(buffers.iter().take(8).all(|buffer| *buffer == LARGEST));
        assert!(buffers.iter().take(28).all(|buffer| *buffer >= 16 << 10));
        assert!(buffers.is_sorted_by(|before, after| before >= after));
        assert_eq!(buffers.last(), Some(&SMALLEST));
        assert!(pool.taken() <= SHARED + SMALLEST * MAX_CONNECTIONS as u32);
        for buffer in buffers {
            pool.give_back(buffer);
        }
        assert_eq!((pool.taken(), pool.take()), (0, LARGEST));
    }
}
