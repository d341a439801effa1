//! Counts the keys that have an entry in the store, as far as a replica can know: to be compared with the store's figures.

use crate::store::{KeySet, KvOperation, KvUpdate};

/// The tombstones in the store, beside the values that the storage holds. An upper bound: a tombstone may be forgotten, or
/// be one of those that are not known by their keys and be written over.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Number of tombstones that are known without their keys; `None` if unknown.
    unnamed: Option<u64>,
    named: KeySet,
}

impl Tally {
    /// What a place says.
    pub(super) fn resume(tombstones: Option<u64>) -> Self {
        Self { unnamed: tombstones, named: KeySet::default() }
    }

    /// The state comes from its beginning, with its tombstones.
    pub(super) fn afresh() -> Self {
        Self::resume(Some(0))
    }

    pub(super) fn take(&mut self, updates: &[KvUpdate]) {
        for update in updates {
            match update {
                KvUpdate::Put(entry) => self.named.remove(&entry.key),
                KvUpdate::Delete(entry) if entry.operation == KvOperation::Vanished => {
                    self.named.remove(&entry.key);
                }
                KvUpdate::Delete(entry) => self.named.insert(&entry.key),
                KvUpdate::CaughtUp => {}
            }
        }
    }

    pub(super) fn tombstones(&self) -> Option<u64> {
        Some(self.unnamed?.saturating_add(self.named.len()))
    }
}
