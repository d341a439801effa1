//! A storage for replicas that begin anew with each process.

use std::collections::HashMap;

use super::storage::{Held, ReplicaPlace, ReplicaStorage, StorageError};
use crate::store::{Key, KvUpdate};

/// Keeps keys and versions in memory, and no values: for a state that the caller has in memory and fills anew with each
/// start. It is what a replica needs to repair itself when its cursor has expired, and nothing more.
#[derive(Debug, Default)]
pub struct MemoryStorage {
    held: HashMap<Key, Held>,
    place: Option<ReplicaPlace>,
}

impl MemoryStorage {
    /// One that holds nothing.
    pub fn new() -> Self {
        Self::default()
    }
}

impl ReplicaStorage for MemoryStorage {
    fn place(&self) -> Result<Option<ReplicaPlace>, StorageError> {
        Ok(self.place)
    }

    fn is_empty(&self) -> Result<bool, StorageError> {
        Ok(self.held.is_empty())
    }

    fn len(&self) -> Result<u64, StorageError> {
        Ok(self.held.len() as u64)
    }

    fn held(&self, keys: &[Key]) -> Result<Vec<Option<Held>>, StorageError> {
        Ok(keys.iter().map(|key| self.held.get(key).copied()).collect())
    }

    fn for_each_key(&self, visit: &mut dyn FnMut(&Key, Held)) -> Result<(), StorageError> {
        self.held.iter().for_each(|(key, held)| visit(key, *held));
        Ok(())
    }

    fn commit(
        &mut self,
        changes: &[KvUpdate],
        place: Option<&ReplicaPlace>,
    ) -> Result<(), StorageError> {
        for change in changes {
            match change {
                KvUpdate::Put(entry) => {
                    self.held.insert(entry.key.clone(), Held::new(entry.version, entry.created));
                }
                KvUpdate::Delete(entry) => {
                    self.held.remove(&entry.key);
                }
                KvUpdate::CaughtUp => {}
            }
        }
        self.place = place.copied();
        Ok(())
    }
}
