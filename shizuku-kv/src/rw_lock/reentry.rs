//! What a task holds by the processors in whose work it is: so that it can show the token, and so that it does not wait for
//! itself.
//!
//! Only what a processor runs is known to go on in one task: a guard can be moved elsewhere, so that waiting for it may
//! well come to an end.

use std::sync::Arc;

use super::guard::Hold;
use super::locks::Locks;
use super::{DistroRwLock, DistroRwLockError};
use crate::store::{FencingToken, Key};

tokio::task_local! {
    /// The innermost last.
    static HELD: Vec<Held>;
}

#[derive(Clone)]
struct Held {
    /// Of one handle and its clones. Another handle to the same store cannot be told from one to another store.
    handle: usize,
    key: Key,
    token: FencingToken,
}

fn address(locks: &Arc<Locks>) -> usize {
    Arc::as_ptr(locks).addr()
}

/// The token of the lock, or of the leader's term, under which this is called: in the work of the innermost
/// [`LockedResourceWriteProcessor`](super::LockedResourceWriteProcessor),
/// [`LockedResourceReadProcessor`](super::LockedResourceReadProcessor) or
/// [`LeaderGuardProcessor`](super::LeaderGuardProcessor), and in the same task. `None` elsewhere, also in tasks that the work
/// has spawned: give it to them.
pub fn current_fencing_token() -> Option<FencingToken> {
    HELD.try_with(|held| held.last().map(|held| held.token)).ok().flatten()
}

/// Work that is done under a lock.
pub(super) async fn within<O>(hold: &Hold, work: impl Future<Output = O>) -> O {
    let mut held = HELD.try_with(Clone::clone).unwrap_or_default();
    let (handle, key) = (address(&hold.ticket.locks), hold.ticket.place.1.clone());
    held.push(Held { handle, key, token: hold.token });
    HELD.scope(held, work).await
}

/// Whether this task may wait for a lock.
pub(super) fn check(lock: &DistroRwLock) -> Result<(), DistroRwLockError> {
    let is_this = |held: &Held| held.handle == address(&lock.locks) && held.key == lock.key;
    if HELD.try_with(|held| held.iter().any(is_this)).unwrap_or(false) {
        return Err(DistroRwLockError::Reentrant { resource: lock.resource.to_string() });
    }
    Ok(())
}
