//! Mutexes whose data is valid after a panic.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex, even after another thread has panicked with the lock, because no such panic
/// leaves the data half changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
