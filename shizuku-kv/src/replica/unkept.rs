//! What was applied and not kept: what a repair must not forget.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Batch;
use crate::store::{Key, KvUpdate, VersionToken};

/// What `apply` was given by this replica and the storage does not hold: a run can end between the two, because one of them
/// fails or its future is dropped. From the next run all of it comes again, as it is or as a deletion; but where that run
/// has to repair the replica, nobody else knows that `apply` may have these keys.
#[derive(Clone, Debug, Default)]
pub(super) struct Unkept(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// What is being applied.
    in_hand: Option<Batch>,
    /// What earlier runs left behind.
    left: HashMap<Key, VersionToken>,
}

impl Unkept {
    /// A run begins.
    pub(super) fn begin(&self) {
        let mut inner = self.lock();
        let batch = inner.in_hand.take();
        for update in batch.iter().flat_map(Batch::updates) {
            if let KvUpdate::Put(entry) = update {
                inner.left.insert(entry.key.clone(), entry.version);
            }
        }
    }

    /// `apply` is given this.
    pub(super) fn given(&self, batch: &Batch) {
        self.lock().in_hand = Some(batch.clone());
    }

    /// It is kept.
    pub(super) fn kept(&self) {
        self.lock().in_hand = None;
    }

    /// The state is complete: what earlier runs left behind has come again, or was told to have vanished.
    pub(super) fn settled(&self) {
        self.lock().left = HashMap::new();
    }

    /// What earlier runs left behind.
    pub(super) fn left(&self) -> HashMap<Key, VersionToken> {
        self.lock().left.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
