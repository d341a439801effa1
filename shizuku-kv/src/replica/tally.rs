//! Counts the keys with an entry in the store, as far as a replica can know, to compare the number
//! with the store's figures.

use crate::store::{KeySet, KvOperation, KvUpdate};

/// The tombstones in the store, beside the values that the storage holds. An upper bound: a
/// tombstone may have expired, or may be unknown by key and overwritten.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Number of tombstones known without their keys; `None` if unknown.
    unnamed: Option<u64>,
    named: KeySet,
}

impl Tally {
    /// Starts from the number stored in a checkpoint.
    pub(super) fn resume(tombstones: Option<u64>) -> Self {
        Self { unnamed: tombstones, named: KeySet::default() }
    }

    /// Starts at zero: the state is read from its beginning, with its tombstones.
    pub(super) fn empty() -> Self {
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
