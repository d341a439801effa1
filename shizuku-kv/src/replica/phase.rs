//! The decisions on which the correctness of a replica rests, as pure functions: the driver
//! ([`super::run`]) and the exhaustive model ([`super::model`]) call the same (ADR 0033).
//!
//! What has to hold:
//! - A place is kept only when everything up to it was applied. What comes after it will come
//!   again.
//! - After a repair nothing is held that the bucket does not have.
//! - `apply` learns of a key that vanished before it learns of a later value of that key.

use super::storage::{Checkpoint, ScopeId, StoredVersion};
use crate::store::{KvEntry, KvError, WatchCursor};

/// In what a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// It goes on from a cursor: each update is news. Its cursors count.
    Following,
    /// It holds nothing, so that there is nothing that can have vanished, and takes the state. Its
    /// cursors count: from one in the middle of the state a watch brings the rest of it.
    Filling,
    /// It holds something, and has no place from which it could go on: it takes the state anew, and
    /// in the end drops what that did not have. Until then no cursor counts: from one in the middle
    /// nobody would learn of what has vanished.
    Repairing,
}

/// How a replica begins: with which cursor it watches, and in what it is.
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

/// In what it is without a place to go on from.
pub(crate) fn without_checkpoint(holds: bool) -> Phase {
    if holds { Phase::Repairing } else { Phase::Filling }
}

impl Phase {
    /// Whether an entry that comes has to be applied, `held` being what the storage has of its key.
    /// What is known already need not be; deletions always are: a crash can have come between
    /// applying and keeping, and then something of the caller's may hold what the storage does not.
    pub(crate) fn is_news(self, entry: &KvEntry, held: Option<StoredVersion>) -> bool {
        match self {
            Self::Following | Self::Filling => true,
            Self::Repairing => {
                entry.is_tombstone()
                    || held != Some(StoredVersion::new(entry.version, entry.created))
            }
        }
    }

    /// Whether what is held has to be known before a batch is applied, and which keys have come.
    pub(crate) fn compares(self) -> bool {
        self == Self::Repairing
    }

    /// Whether what is held and has not come has to be dropped when the state is complete.
    pub(crate) fn drops_the_rest(self) -> bool {
        self == Self::Repairing
    }

    /// Whether the cursor of the last update in a batch is kept with it. The marker comes last in
    /// its batch.
    pub(crate) fn keeps_cursor(self, is_complete: bool) -> bool {
        match self {
            Self::Following | Self::Filling => true,
            Self::Repairing => is_complete,
        }
    }

    /// In what it is when the state is complete, and what is not in it was dropped.
    pub(crate) fn completed(self) -> Self {
        Self::Following
    }
}

/// Whether figures of the store agree with a replica at the same position: `held` values, and at
/// most `tombstones` tombstones beside them.
///
/// Every key with an entry is a held one, one that is known to have a tombstone, or one that an
/// unnamed tombstone stands for. So if the numbers are equal, each of them has an entry.
pub(crate) fn agrees(held: u64, tombstones: Option<u64>, keys: u64) -> bool {
    tombstones.and_then(|tombstones| held.checked_add(tombstones)) == Some(keys)
}

/// Whether a key that is held has to be dropped when the state is complete.
pub(crate) fn has_vanished(has_come: bool) -> bool {
    !has_come
}

/// What to do when a watch has ended, or could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Watch again from where the replica stands.
    Again,
    /// Take the state anew.
    Afresh,
    /// Nothing will mend it.
    End,
}

/// How a replica goes on after a watch: in what it is then, and with which cursor it watches.
/// `kept` is the cursor of the last commit. What of a repair has been done counts for nothing: what
/// has vanished is found by a whole state only.
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

/// What follows from why a watch ended.
pub(crate) fn after(error: &KvError) -> Next {
    match error {
        KvError::CursorExpired { .. } => Next::Afresh,
        error if error.is_retryable() => Next::Again,
        _ => Next::End,
    }
}
