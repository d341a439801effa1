//! Noticing that a task waits for what it holds itself.
//!
//! Only what a processor runs is known to go on in one task: a guard can be moved elsewhere, so that waiting for it may
//! well come to an end.

use std::sync::Arc;

use super::{DistroRwLock, DistroRwLockError};
use crate::store::Key;

tokio::task_local! {
    /// The locks that this task holds: of which handle, and which.
    static HELD: Vec<(usize, Key)>;
}

fn place(lock: &DistroRwLock) -> (usize, Key) {
    // Of one handle and its clones. Another handle to the same store cannot be told from one to another store.
    (Arc::as_ptr(&lock.locks).addr(), lock.key.clone())
}

/// Work that is done under a lock.
pub(super) async fn within<O>(lock: &DistroRwLock, work: impl Future<Output = O>) -> O {
    let mut held = HELD.try_with(Clone::clone).unwrap_or_default();
    held.push(place(lock));
    HELD.scope(held, work).await
}

/// Whether this task may wait for a lock.
pub(super) fn check(lock: &DistroRwLock) -> Result<(), DistroRwLockError> {
    let is_held = HELD.try_with(|held| held.contains(&place(lock))).unwrap_or(false);
    if is_held {
        return Err(DistroRwLockError::Reentrant { resource: lock.resource.to_string() });
    }
    Ok(())
}
