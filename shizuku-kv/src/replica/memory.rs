//! A storage for replicas that start from an empty state in each process.

use std::collections::HashMap;

use super::storage::{Checkpoint, ReplicaStorage, StorageError, StoredVersion};
use crate::store::{Key, KvUpdate};

/// Keeps keys and versions in memory, and no values. For a state that the caller has in memory and
/// rebuilds at each start. A replica needs exactly this to resync after its cursor has expired.
#[derive(Debug, Default)]
pub struct MemoryStorage {
    held: HashMap<Key, StoredVersion>,
    checkpoint: Option<Checkpoint>,
}

impl MemoryStorage {
    /// Returns an empty storage.
    pub fn new() -> Self {
        Self::default()
    }
}

impl ReplicaStorage for MemoryStorage {
    fn checkpoint(&self) -> Result<Option<Checkpoint>, StorageError> {
        Ok(self.checkpoint)
    }

    fn is_empty(&self) -> Result<bool, StorageError> {
        Ok(self.held.is_empty())
    }

    fn len(&self) -> Result<u64, StorageError> {
        Ok(self.held.len() as u64)
    }

    fn held(&self, keys: &[Key]) -> Result<Vec<Option<StoredVersion>>, StorageError> {
        Ok(keys.iter().map(|key| self.held.get(key).copied()).collect())
    }

    fn for_each_key(&self, visit: &mut dyn FnMut(&Key, StoredVersion)) -> Result<(), StorageError> {
        self.held.iter().for_each(|(key, held)| visit(key, *held));
        Ok(())
    }

    fn commit(
        &mut self,
        changes: &[KvUpdate],
        checkpoint: Option<&Checkpoint>,
    ) -> Result<(), StorageError> {
        for change in changes {
            match change {
                KvUpdate::Put(entry) => {
                    self.held.insert(
                        entry.key.clone(),
                        StoredVersion::new(entry.version, entry.created),
                    );
                }
                KvUpdate::Delete(entry) => {
                    self.held.remove(&entry.key);
                }
                KvUpdate::CaughtUp => {}
            }
        }
        self.checkpoint = checkpoint.copied();
        Ok(())
    }
}
