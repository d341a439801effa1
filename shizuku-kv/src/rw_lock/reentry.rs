//! Locks that a task holds through the processors whose work it runs. The task can show their
//! tokens, and does not wait for itself.
//!
//! Only a processor's work is known to stay in one task. A guard can be moved to another task, so a
//! wait for it may well end (ADR 0045).

use super::error::DistroRwLockError;
use super::guard::Hold;
use super::name::LockName;
use crate::store::FencingToken;

tokio::task_local! {
    /// The innermost lock is last.
    static LOCKS_OF_TASK: Vec<LockOfTask>;
}

#[derive(Clone)]
struct LockOfTask {
    name: LockName,
    token: FencingToken,
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
    LOCKS_OF_TASK.try_with(|locks| locks.last().map(|lock| lock.token)).ok().flatten()
}

/// Runs work under a lock.
pub(super) async fn within<O>(hold: &Hold, work: impl Future<Output = O>) -> O {
    let mut locks = LOCKS_OF_TASK.try_with(Clone::clone).unwrap_or_default();
    locks.push(LockOfTask { name: hold.name.clone(), token: hold.token });
    LOCKS_OF_TASK.scope(locks, work).await
}

/// Returns an error if this task would wait for itself.
pub(super) fn check(name: &LockName) -> Result<(), DistroRwLockError> {
    let is_this = |lock: &LockOfTask| lock.name.is_same_lock(name);
    if LOCKS_OF_TASK.try_with(|locks| locks.iter().any(is_this)).unwrap_or(false) {
        return Err(DistroRwLockError::Reentrant { resource: name.resource.to_string() });
    }
    Ok(())
}
