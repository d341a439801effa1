//! Keys that were applied but not committed. A resync must include them (ADR 0032).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Batch;
use crate::store::{Key, KvUpdate, VersionToken};

/// Updates that `apply` has received from this replica and the storage does not hold. A run can end
/// between the two, because one of them fails or its future is dropped. The next run delivers all
/// of them again, unchanged or as a deletion. But if that run has to resync, only this record knows
/// that `apply` may have these keys.
#[derive(Clone, Debug, Default)]
pub(super) struct Uncommitted(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// The batch that is being applied.
    in_hand: Option<Batch>,
    /// Uncommitted keys of earlier runs.
    left: HashMap<Key, VersionToken>,
}

impl Uncommitted {
    /// Starts a run.
    pub(super) fn begin(&self) {
        let mut inner = self.lock();
        let batch = inner.in_hand.take();
        for update in batch.iter().flat_map(Batch::updates) {
            if let KvUpdate::Put(entry) = update {
                inner.left.insert(entry.key.clone(), entry.version);
            }
        }
    }

    /// Records that `apply` receives this batch.
    pub(super) fn given(&self, batch: &Batch) {
        self.lock().in_hand = Some(batch.clone());
    }

    /// Records that the batch was committed.
    pub(super) fn kept(&self) {
        self.lock().in_hand = None;
    }

    /// Clears the uncommitted keys after the state is complete. All of them have come again, or as
    /// vanished keys.
    pub(super) fn settled(&self) {
        self.lock().left = HashMap::new();
    }

    /// Returns the uncommitted keys of earlier runs.
    pub(super) fn left(&self) -> HashMap<Key, VersionToken> {
        self.lock().left.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
