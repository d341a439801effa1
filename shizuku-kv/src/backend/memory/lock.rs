//! The lock of a store, which can let a waiting thread acquire the value between two pieces of
//! work.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// A mutex for work that is done in pieces.
///
/// A released mutex of the standard library wakes a waiting thread, but a running thread acquires
/// the mutex sooner. A task that works in pieces therefore acquired it thousands of times before
/// another thread that was already awake. The cause is that each piece takes longer than a waiting
/// thread spins. [`yield_to_waiter`](Self::yield_to_waiter) between two pieces prevents that (ADR
/// 0077).
pub(super) struct Lock<T> {
    value: Mutex<T>,
    /// Locked by the next waiting thread until this thread has acquired the value.
    line: Mutex<()>,
}

impl<T> Lock<T> {
    pub(super) fn new(value: T) -> Self {
        Self { value: Mutex::new(value), line: Mutex::new(()) }
    }

    /// Acquires the value. A free value is acquired ahead of waiting threads. Strict order would
    /// cost a switch of threads for each of many short pieces of work.
    pub(super) fn acquire(&self) -> MutexGuard<'_, T> {
        // The work under the lock does not panic. After a panic, rejecting all later work would not
        // help.
        match self.value.try_lock() {
            Ok(value) => return value,
            Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {}
        }
        let _next = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the next waiting thread has acquired the value. Returns at once if no thread
    /// waits.
    ///
    /// The caller must have released the value. This has woken the waiting thread, so that the call
    /// takes no longer than that thread needs to run.
    pub(super) fn yield_to_waiter(&self) {
        #[cfg(test)]
        tests::YIELDS.set(tests::YIELDS.get() + 1);
        drop(self.line.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use std::cell::Cell;
    use std::thread;

    use super::*;

    thread_local! {
        /// Number of times that this thread has called [`Lock::yield_to_waiter`].
        pub(in super::super) static YIELDS: Cell<usize> = const { Cell::new(0) };
    }

    /// Without `yield_to_waiter`, the waiting thread is rarely awake in time.
    #[test]
    fn waiting_thread_goes_before_the_next_piece() {
        const ROUNDS: usize = 200;
        let lock = Lock::new(0);
        for round in 0..ROUNDS {
            let piece = lock.acquire();
            thread::scope(|scope| {
                scope.spawn(|| *lock.acquire() += 1);
                while lock.line.try_lock().is_ok() {
                    thread::yield_now();
                }
                drop(piece);
                lock.yield_to_waiter();
                assert_eq!(*lock.acquire(), round + 1);
            });
        }
    }

    #[test]
    fn yield_without_a_waiting_thread_returns() {
        let lock = Lock::new(());
        lock.yield_to_waiter();
        drop(lock.acquire());
        lock.yield_to_waiter();
    }

    #[test]
    fn value_is_acquired_after_a_panic() {
        let lock = Lock::new(1);
        let panicked = thread::scope(|scope| {
            let work = || {
                let _value = lock.acquire();
                std::panic::resume_unwind(Box::new(()));
            };
            scope.spawn(work).join().is_err()
        });
        assert!(panicked);
        assert_eq!(*lock.acquire(), 1);
    }
}
