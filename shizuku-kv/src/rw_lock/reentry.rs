//! Locks that a task holds through the processors whose work it runs. The task can show their
//! tokens, and does not wait for itself.
//!
//! Only a processor's work is known to stay in one task. A guard can be moved to another task, so a
//! wait for it may well end (ADR 0045).

use std::sync::Arc;

use super::guard::Hold;
use super::lock_manager::LockManager;
use super::{DistroRwLock, DistroRwLockError};
use crate::store::{FencingToken, Key};

tokio::task_local! {
    /// The innermost hold is last.
    static HELD: Vec<TaskHold>;
}

#[derive(Clone)]
struct TaskHold {
    /// Address of one handle and its clones. Another handle to the same store cannot be
    /// distinguished from a handle to another store.
    handle: usize,
    key: Key,
    token: FencingToken,
}

fn address(locks: &Arc<LockManager>) -> usize {
    Arc::as_ptr(locks).addr()
}

/// Returns the token of the lock, or of the leader's term, under which the calling task runs. This
/// is the work of the innermost
/// [`LockedResourceWriteProcessor`](super::LockedResourceWriteProcessor),
/// [`LockedResourceReadProcessor`](super::LockedResourceReadProcessor) or
/// [`LeaderGuardProcessor`](super::LeaderGuardProcessor).
///
/// Returns `None` if the task runs no such work. Tasks that the work has spawned are such tasks:
/// pass the token to them.
pub fn current_fencing_token() -> Option<FencingToken> {
    HELD.try_with(|held| held.last().map(|held| held.token)).ok().flatten()
}

/// Runs work under a lock.
pub(super) async fn within<O>(hold: &Hold, work: impl Future<Output = O>) -> O {
    let mut held = HELD.try_with(Clone::clone).unwrap_or_default();
    let (handle, key) = (address(&hold.ticket.locks), hold.ticket.place.1.clone());
    held.push(TaskHold { handle, key, token: hold.token });
    HELD.scope(held, work).await
}

/// Returns an error if this task would wait for itself.
pub(super) fn check(lock: &DistroRwLock) -> Result<(), DistroRwLockError> {
    let is_this = |held: &TaskHold| held.handle == address(&lock.locks) && held.key == lock.key;
    if HELD.try_with(|held| held.iter().any(is_this)).unwrap_or(false) {
        return Err(DistroRwLockError::Reentrant { resource: lock.resource.to_string() });
    }
    Ok(())
}
