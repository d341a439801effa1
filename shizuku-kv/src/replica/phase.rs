//! The decisions on which the correctness of a replica rests, as pure functions: the driver
//! ([`super::run`]) and the exhaustive model ([`super::model`]) call the same (ADR 0033).
//!
//! Invariants:
//! - A checkpoint is committed only after all updates before its position were applied. Later
//!   entries are delivered again.
//! - After a resync, every key in the storage is in the store.
//! - `apply` receives the deletion of a vanished key before a later value of that key.

use super::storage::{Checkpoint, ScopeId, StoredVersion};
use crate::store::{KvEntry, KvError, WatchCursor};

/// Phase of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// The replica has resumed from a cursor, so every update is new. Cursors are committed.
    Following,
    /// The replica reads the initial state and had no entries before, so no key can have vanished.
    /// Cursors are committed, because a watch from a cursor within the state delivers the rest of
    /// the state.
    Filling,
    /// The replica resyncs, because it has keys and no position to resume from. The initial state
    /// is read again, and then the keys that were not in the state are dropped. No cursor is
    /// committed until then, because a resume from such a cursor would not find the vanished keys.
    Resyncing,
}

/// Returns the first phase of a replica, and the cursor of its first watch.
pub(crate) fn begin(
    checkpoint: Option<Checkpoint>,
    scope: ScopeId,
    holds: bool,
) -> (Phase, Option<WatchCursor>) {
    match checkpoint.filter(|checkpoint| checkpoint.scope() == scope) {
        Some(checkpoint) => (Phase::Following, Some(checkpoint.cursor())),
        None => (without_checkpoint(holds), None),
    }
}

/// Returns the phase of a replica that has no position to resume from.
pub(crate) fn without_checkpoint(holds: bool) -> Phase {
    if holds { Phase::Resyncing } else { Phase::Filling }
}

impl Phase {
    /// Returns whether a delivered entry has to be applied. `held` is the version of its key in the
    /// storage. A known version need not be applied. Deletions always are: after a crash between
    /// applying and committing, the caller's own state may have a key that the storage does not.
    pub(crate) fn is_news(self, entry: &KvEntry, held: Option<StoredVersion>) -> bool {
        match self {
            Self::Following | Self::Filling => true,
            Self::Resyncing => {
                entry.is_tombstone()
                    || held != Some(StoredVersion::new(entry.version, entry.created))
            }
        }
    }

    /// Returns whether the stored versions are read before a batch is applied, and the delivered
    /// keys are recorded.
    pub(crate) fn compares(self) -> bool {
        self == Self::Resyncing
    }

    /// Returns whether stored keys that were not delivered are dropped once the state is complete.
    pub(crate) fn drops_the_rest(self) -> bool {
        self == Self::Resyncing
    }

    /// Returns whether the cursor of the last update in a batch is committed with it. The caught-up
    /// marker is the last item of its batch.
    pub(crate) fn keeps_cursor(self, is_complete: bool) -> bool {
        match self {
            Self::Following | Self::Filling => true,
            Self::Resyncing => is_complete,
        }
    }

    /// Returns the phase after the state is complete, and the keys that were not in it are dropped.
    pub(crate) fn completed(self) -> Self {
        Self::Following
    }
}

/// Returns whether figures of the store agree with a replica at the same position, which has `held`
/// values and knows at most `tombstones` tombstones.
///
/// Every key with an entry is stored, is known to have a tombstone, or has one of the tombstones
/// that are only counted. So if the numbers are equal, every stored key has an entry.
pub(crate) fn agrees(held: u64, tombstones: Option<u64>, keys: u64) -> bool {
    tombstones.and_then(|tombstones| held.checked_add(tombstones)) == Some(keys)
}

/// Returns whether a stored key has to be dropped once the state is complete.
pub(crate) fn has_vanished(has_come: bool) -> bool {
    !has_come
}

/// The reaction to a watch that has ended, or could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Resume from the last committed position.
    Again,
    /// Resync.
    Resync,
    /// End the replica, because a retry cannot succeed.
    End,
}

/// Returns the phase of a replica after a watch, and the cursor of the next watch. `kept` is the
/// cursor of the last commit. An interrupted resync starts over, because only a complete state
/// shows the vanished keys.
pub(crate) fn go_on(
    next: Next,
    phase: Phase,
    kept: Option<WatchCursor>,
    holds: bool,
) -> (Phase, Option<WatchCursor>) {
    match (next, phase, kept) {
        (Next::Again, Phase::Following | Phase::Filling, Some(cursor)) => {
            (Phase::Following, Some(cursor))
        }
        _ => (without_checkpoint(holds), None),
    }
}

/// Returns the reaction to the error with which a watch ended.
pub(crate) fn after(error: &KvError) -> Next {
    match error {
        KvError::CursorExpired { .. } => Next::Resync,
        error if error.is_retryable() => Next::Again,
        _ => Next::End,
    }
}
