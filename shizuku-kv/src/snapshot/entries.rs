//! The state in memory: a table of records, in the same bytes as on the disk.

use std::fmt;
use std::hash::BuildHasher;
use std::mem;
use std::time::SystemTime;

use bytes::Bytes;

use super::SnapshotError;
use super::record::Record;
use crate::store::{KvEntry, KvUpdate, VersionToken};
use crate::table::{Iter, KeyHasher, Keyed, Table};

impl Keyed for Record {
    fn key_bytes(&self) -> &[u8] {
        self.key_bytes()
    }
}

/// The live keys, each with its value, version and time, in no particular order.
///
/// Entries that were read from a file are slices of the buffers of that read. Keeping one
/// [`KvEntry`] can keep about 1 MiB in memory. `Debug` shows only the number of keys.
///
/// A clone shares the memory of the entries and copies none of them.
#[derive(Clone, Default)]
pub struct SnapshotEntries {
    table: Table<Record>,
    /// Total length of all records in bytes.
    bytes: u64,
}

impl SnapshotEntries {
    /// Returns the number of live keys.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Returns true if no key is live.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Returns the entry of a key, without copying its value. Returns `None` if the key is absent
    /// or is not a valid key.
    pub fn get(&self, key: &str) -> Option<KvEntry> {
        self.find(key).map(Record::to_entry)
    }

    /// Returns true if the key is live.
    pub fn contains_key(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// Iterates over all entries by reference, without copying or allocating.
    pub fn iter(&self) -> SnapshotIter<'_> {
        SnapshotIter(self.table.iter())
    }

    fn find(&self, key: &str) -> Option<&Record> {
        self.table.get(key.as_bytes())
    }
}

/// Operations of a replica on its state.
impl SnapshotEntries {
    /// Returns the function that hashes keys. It is the same for all clones.
    pub(crate) fn hasher(&self) -> KeyHasher {
        self.table.hasher().clone()
    }

    /// Applies a change. The change then has the superseded record, so that the caller can free it
    /// outside of its lock.
    pub(crate) fn apply(&mut self, change: &mut Change) {
        let (hash, record) = (change.hash, &mut change.record);
        if record.is_deletion() {
            change.removed = self.table.remove_hashed(hash, record.key_bytes());
            let removed = change.removed.as_ref().map_or(0, Record::len);
            self.bytes -= removed as u64;
            return;
        }
        self.bytes += record.len() as u64;
        change.removed = self.table.insert_hashed(hash, mem::take(record));
        self.bytes -= change.removed.as_ref().map_or(0, Record::len) as u64;
    }

    /// Returns the stored version of a key, and its time of creation.
    pub(crate) fn held(&self, key: &str) -> Option<(VersionToken, SystemTime)> {
        self.find(key).map(|held| (held.version(), held.created()))
    }
}

/// Operations of loading.
impl SnapshotEntries {
    /// Returns the length of all records, which is the size of the state on the disk.
    pub(super) fn record_bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns true if this number of additional records makes the table grow.
    pub(super) fn is_full(&self, more: usize) -> bool {
        self.table.len() + more > self.table.capacity()
    }

    /// Resizes the table for many additional records, which moves all records. For a few records
    /// the table grows with each insertion instead.
    pub(super) fn reserve(&mut self, additional: usize) {
        if additional > self.table.len() / 2 {
            self.table.resize(self.table.len() + additional);
        }
    }

    /// Frees unneeded memory after `read` bytes have been read. If most of the bytes are
    /// superseded, moves each live record into an allocation of its own, so that it does not keep
    /// the rest in memory.
    pub(super) fn settle(&mut self, read: u64) {
        if self.bytes < read / 2 {
            self.table.for_each_mut(|held| *held = held.detached());
        }
        if self.table.len() < self.table.capacity() / 4 {
            self.table.resize(self.table.len());
        }
    }
}

/// A record to insert into the table, or a deletion of a key.
pub(crate) struct Change {
    /// Hash of the key, computed with the table's hasher.
    hash: u64,
    record: Record,
    /// The superseded record, after the change was applied.
    removed: Option<Record>,
}

impl Change {
    /// Returns the change of an update, with memory of its own. Returns `None` for the caught-up
    /// marker.
    ///
    /// # Errors
    /// Returns [`SnapshotError::ValueTooLarge`] for a value above about 4 GiB.
    pub(crate) fn of(update: &KvUpdate, hasher: &KeyHasher) -> Result<Option<Self>, SnapshotError> {
        let Some(record) = Record::of(update)? else { return Ok(None) };
        Ok(Some(Self::new(hasher, record)))
    }

    pub(super) fn new(hasher: &KeyHasher, record: Record) -> Self {
        Self { hash: hasher.hash_one(record.key_bytes()), record, removed: None }
    }

    /// Returns the record, before the change is applied.
    pub(super) fn record(&self) -> &Record {
        &self.record
    }
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

/// Iterator over the entries of a [`SnapshotEntries`], in no particular order.
#[derive(Clone)]
pub struct SnapshotIter<'a>(Iter<'a, Record>);

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

/// One entry of a [`SnapshotEntries`], borrowed from it. `Debug` shows the length of the value,
/// never its content.
#[derive(Clone, Copy)]
pub struct SnapshotEntry<'a>(&'a Record);

impl<'a> SnapshotEntry<'a> {
    /// Returns the key.
    pub fn key(&self) -> &'a str {
        self.0.key()
    }

    /// Returns the value.
    pub fn value(&self) -> &'a [u8] {
        self.0.value()
    }

    /// Returns the value as [`Bytes`] that share the memory of the state, without a copy.
    pub fn value_bytes(&self) -> Bytes {
        self.0.bytes().slice_ref(self.0.value())
    }

    /// Returns the version that the write gave to the key.
    pub fn version(&self) -> VersionToken {
        self.0.version()
    }

    /// Returns the time at which the store accepted the write, by the store's clock.
    pub fn created(&self) -> SystemTime {
        self.0.created()
    }

    #[cfg(test)]
    pub(super) fn record_len(&self) -> usize {
        self.0.len()
    }

    /// Returns an owned entry. Its value shares the memory of the state, without a copy.
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
