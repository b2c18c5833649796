//! Locking without poison.
//!
//! A panic anywhere ends the process at once (`main` sees to that), so a poisoned lock is never met
//! by anybody; taking the guard out of the error keeps `unwrap` out of the crate.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
