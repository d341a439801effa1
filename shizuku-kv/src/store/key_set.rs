//! A compact set of keys.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

/// A set of keys as hashes: 16 bytes for each, about 40 with the table's overhead. Two keys are
/// confused only if they agree in both of two hashes, whose keys are random for each set
/// (ADR 0034).
#[derive(Clone, Debug, Default)]
pub(crate) struct KeySet {
    keys: HashSet<(u64, u64)>,
    hashers: (RandomState, RandomState),
}

impl KeySet {
    pub(crate) fn insert(&mut self, key: &str) {
        self.keys.insert(self.hash(key));
    }

    pub(crate) fn remove(&mut self, key: &str) {
        if !self.keys.is_empty() {
            self.keys.remove(&self.hash(key));
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.keys.len() as u64
    }

    pub(crate) fn contains(&self, key: &str) -> bool {
        self.keys.contains(&self.hash(key))
    }

    fn hash(&self, key: &str) -> (u64, u64) {
        (self.hashers.0.hash_one(key), self.hashers.1.hash_one(key))
    }
}
