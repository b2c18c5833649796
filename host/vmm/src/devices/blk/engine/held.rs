//! A pool that begins an operation only when a test lets it: so tests choose the order of the ends.

use super::Call;
use super::pool::{Pool, Shared};
use crate::sync::lock;
use std::sync::{Arc, Mutex};

/// The engine.
#[derive(Debug)]
pub(in super::super) struct Held {
    pub(super) pool: Pool,
    calls: Arc<Mutex<Vec<(usize, Call)>>>,
}

/// The test's hand on it.
#[derive(Debug, Clone)]
pub(in super::super) struct Gate {
    shared: Arc<Shared>,
    calls: Arc<Mutex<Vec<(usize, Call)>>>,
}

impl Held {
    pub(in super::super) fn new() -> (Self, Gate) {
        let pool = Pool::new().unwrap();
        let calls = Arc::<Mutex<Vec<_>>>::default();
        let gate = Gate {
            shared: pool.shared(),
            calls: Arc::clone(&calls),
        };
        (Self { pool, calls }, gate)
    }

    pub(super) fn push(&mut self, token: usize, call: Call) {
        lock(&self.calls).push((token, call));
    }
}

impl Gate {
    /// How many operations wait.
    pub(in super::super) fn count(&self) -> usize {
        lock(&self.calls).len()
    }

    /// Begins one of the operations that wait, by its place among them.
    pub(in super::super) fn release(&self, place: usize) {
        let (token, call) = lock(&self.calls).remove(place);
        self.shared.push(token, call);
    }
}
