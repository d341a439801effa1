//! The state in memory: a table of records, each as it is on the disk.

use std::fmt;
use std::hash::BuildHasher;
use std::time::SystemTime;

use bytes::Bytes;
use hashbrown::hash_table::{Entry, HashTable};

use super::record::Record;
use crate::store::{KvEntry, VersionToken};

/// Hashes keys; with a seed of its own for each table, so that nobody who chooses keys can choose collisions.
pub(super) type KeyHasher = hashbrown::DefaultHashBuilder;

/// The keys that live, each with its value, version and time, in no particular order.
///
/// Entries that were read from a file are slices of what was read: a [`KvEntry`] that is kept can keep up to some
/// 1 MiB in memory. `Debug` shows only how many there are.
#[derive(Clone, Default)]
pub struct SnapshotEntries {
    table: HashTable<Record>,
    hasher: KeyHasher,
    /// The length of all records.
    bytes: u64,
}

impl SnapshotEntries {
    /// How many keys live.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether no key lives.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The entry of a key; none if the key is absent, or is no key at all. The value is not copied.
    pub fn get(&self, key: &str) -> Option<KvEntry> {
        self.find(key).map(Record::to_entry)
    }

    /// Whether the key lives.
    pub fn contains_key(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// All entries, borrowed; nothing is copied and nothing allocated.
    pub fn iter(&self) -> SnapshotIter<'_> {
        SnapshotIter(self.table.iter())
    }

    fn find(&self, key: &str) -> Option<&Record> {
        let key = key.as_bytes();
        self.table.find(self.hasher.hash_one(key), |held| held.key_bytes() == key)
    }
}

/// What a replica does to the state that it keeps.
#[allow(dead_code, reason = "replicas are built on this")]
impl SnapshotEntries {
    /// Stores a value, in one allocation of its own. What the key had before is gone.
    pub(crate) fn insert(&mut self, entry: &KvEntry) {
        let hash = self.hasher.hash_one(entry.key.as_bytes());
        self.apply(Change { hash, deletion: false, record: Record::of(entry) });
    }

    /// Forgets a key; whether it was there.
    pub(crate) fn remove(&mut self, key: &str) -> bool {
        let key = key.as_bytes();
        let found =
            self.table.find_entry(self.hasher.hash_one(key), |held| held.key_bytes() == key);
        let Ok(found) = found else { return false };
        let (held, _) = found.remove();
        self.bytes -= held.len() as u64;
        true
    }

    /// Which version of a key is held, and when it was created.
    pub(crate) fn held(&self, key: &str) -> Option<(VersionToken, SystemTime)> {
        self.find(key).map(|held| (held.version(), held.created()))
    }

    /// Calls `visit` with every key.
    pub(crate) fn for_each_key(&self, mut visit: impl FnMut(&str)) {
        self.table.iter().for_each(|held| visit(held.key()));
    }
}

/// What loading does.
impl SnapshotEntries {
    pub(super) fn hasher(&self) -> KeyHasher {
        self.hasher.clone()
    }

    /// The length of all records: what the state takes on the disk.
    pub(super) fn record_bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether one more record of a new key would make the table grow.
    pub(super) fn is_full(&self, more: usize) -> bool {
        self.table.capacity() - self.table.len() < more
    }

    pub(super) fn reserve(&mut self, additional: usize) {
        let hasher = &self.hasher;
        self.table.reserve(additional, |held| hasher.hash_one(held.key_bytes()));
    }

    pub(super) fn apply(&mut self, change: Change) {
        let Change { hash, deletion, record } = change;
        // Read only where it matters: what was read from a file is no longer in the processor's caches.
        let is_same = |held: &Record| held.key_bytes() == record.key_bytes();
        if deletion {
            if let Ok(found) = self.table.find_entry(hash, is_same) {
                let (held, _) = found.remove();
                self.bytes -= held.len() as u64;
            }
            return;
        }
        let hasher = &self.hasher;
        self.bytes += record.len() as u64;
        match self.table.entry(hash, is_same, |held| hasher.hash_one(held.key_bytes())) {
            Entry::Occupied(mut found) => {
                self.bytes -= found.get().len() as u64;
                *found.get_mut() = record;
            }
            Entry::Vacant(place) => {
                place.insert(record);
            }
        }
    }

    /// After `read` bytes were read: frees what is not needed any more. Where most of it is superseded, each record
    /// that lives gets an allocation of its own, so that it does not keep the rest.
    pub(super) fn settle(&mut self, read: u64) {
        if self.bytes < read / 2 {
            for held in self.table.iter_mut() {
                *held = held.detached();
            }
        }
        if self.table.len() < self.table.capacity() / 4 {
            let hasher = &self.hasher;
            self.table.shrink_to_fit(|held| hasher.hash_one(held.key_bytes()));
        }
    }
}

/// A record to be put into the table, or a key to be taken out of it.
pub(super) struct Change {
    /// Of the key, by the table's hasher.
    pub(super) hash: u64,
    pub(super) deletion: bool,
    pub(super) record: Record,
}

impl fmt::Debug for SnapshotEntries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotEntries").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl<'a> IntoIterator for &'a SnapshotEntries {
    type Item = SnapshotEntry<'a>;
    type IntoIter = SnapshotIter<'a>;

    fn into_iter(self) -> SnapshotIter<'a> {
        self.iter()
    }
}

/// The entries of a [`SnapshotEntries`], in no particular order.
#[derive(Clone)]
pub struct SnapshotIter<'a>(hashbrown::hash_table::Iter<'a, Record>);

impl<'a> Iterator for SnapshotIter<'a> {
    type Item = SnapshotEntry<'a>;

    fn next(&mut self) -> Option<SnapshotEntry<'a>> {
        self.0.next().map(SnapshotEntry)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for SnapshotIter<'_> {}

impl fmt::Debug for SnapshotIter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotIter").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// One entry of a [`SnapshotEntries`], borrowed from it. `Debug` shows the length of the value, never its content.
#[derive(Clone, Copy)]
pub struct SnapshotEntry<'a>(&'a Record);

impl<'a> SnapshotEntry<'a> {
    /// The key.
    pub fn key(&self) -> &'a str {
        self.0.key()
    }

    /// The value.
    pub fn value(&self) -> &'a [u8] {
        self.0.value()
    }

    /// The value, sharing the memory of the state instead of being copied.
    pub fn value_bytes(&self) -> Bytes {
        self.0.bytes().slice_ref(self.0.value())
    }

    /// The version that the write gave to the key.
    pub fn version(&self) -> VersionToken {
        self.0.version()
    }

    /// When the store took the write, by the store's clock.
    pub fn created(&self) -> SystemTime {
        self.0.created()
    }

    #[cfg(test)]
    pub(super) fn record_len(&self) -> usize {
        self.0.len()
    }

    /// The entry to be kept; its value shares the memory of the state instead of being copied.
    pub fn to_entry(&self) -> KvEntry {
        self.0.to_entry()
    }
}

impl fmt::Debug for SnapshotEntry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotEntry")
            .field("key", &self.key())
            .field("value", &format_args!("<{} bytes>", self.value().len()))
            .field("version", &self.version())
            .finish_non_exhaustive()
    }
}
