//! The entries of a store in the order of their writes, as a plain data structure.
//!
//! No method waits, locks or reads a clock. A method that depends on the time has the time as a
//! parameter. The rules of the store can therefore be tested one by one, and against a naive model
//! (`log_model.rs`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;
use std::ops::Bound;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;

use self::clock::Clock;
use crate::backend::embedded::{Limits, Newest, Rejection, admit};
use crate::store::{FencingToken, Key, KvEntry, KvOperation, VersionToken, Write, WriteOperation};
use crate::table::{Keyed, Table};

mod clock;
pub(super) mod follow;
mod upkeep;

#[cfg(test)]
mod tests;

/// Approximate number of entries that [`Log::expire_some`] changes in one call, so that the caller
/// locks the store for a short time. Small in tests, so that small logs need several calls.
pub(super) const EXPIRY: usize = if cfg!(test) { 8 } else { 64 };

/// Size of a value, in bytes, whose release takes as long as the change of an entry.
const FREED: usize = 16 * 1024;

/// An entry of the log.
#[derive(Clone)]
struct StoredEntry {
    sequence: u64,
    entry: KvEntry,
    /// The time to live with which a value was written, whatever the maximum age of its store.
    ttl: Option<Duration>,
    /// The time at which the entry expires. A value then becomes a tombstone, and a tombstone is
    /// forgotten.
    due: Option<Instant>,
}

impl StoredEntry {
    fn size(&self) -> u64 {
        size(&self.entry.key, &self.entry.value)
    }

    /// Returns the time that it takes to drop the entry, in entries.
    fn effort(&self) -> usize {
        1 + self.entry.value.len() / FREED
    }
}

/// The stored entries of one key: always at least one.
#[derive(Clone)]
struct Versions {
    newest: StoredEntry,
    /// The sequence number since which the log has had an entry of the key.
    since: u64,
    /// Older entries, the oldest first. Empty, and without an allocation, if the history is 1.
    older: VecDeque<StoredEntry>,
}

impl Keyed for Versions {
    fn key_bytes(&self) -> &[u8] {
        self.newest.entry.key.as_bytes()
    }
}

impl Versions {
    fn iter(&self) -> impl Iterator<Item = &StoredEntry> {
        self.older.iter().chain(std::iter::once(&self.newest))
    }
}

/// New settings that have been applied to some keys.
struct LimitsChange {
    /// The last key to which the settings have been applied, in the order of keys.
    after: Option<Key>,
    /// The time at which the settings were changed.
    since: Instant,
}

/// The sequence-numbered log of a store, with an index by key.
///
/// Each write appends an entry under the next sequence number, which is its version. Superseded
/// entries are dropped, so that the log is also the state of the store.
pub(super) struct Log {
    limits: Limits,
    clock: Clock,
    /// The last sequence number that was assigned. 0 before the first.
    sequence: u64,
    /// Time of the write with that number. Before the first write, the creation of the log.
    written: SystemTime,
    /// The key of each stored entry, by sequence number.
    order: BTreeMap<u64, Key>,
    /// The entries of each key, which a read finds in one step.
    keys: Table<Versions>,
    /// The keys of `keys` in order, for scans that continue at a key.
    sorted: BTreeSet<Key>,
    /// The future expiries.
    due: BTreeSet<(Instant, u64)>,
    /// New settings that have not been applied to all keys.
    limits_change: Option<LimitsChange>,
    bytes: u64,
    /// The highest sequence number of a tombstone that was forgotten as the newest entry of its
    /// key.
    forgotten: u64,
}

impl Log {
    /// Creates an empty log at the time `now`.
    pub(super) fn new(limits: Limits, now: Instant) -> Self {
        let clock = Clock::started(now);
        Self {
            limits,
            clock,
            sequence: 0,
            written: clock.system(now),
            order: BTreeMap::new(),
            keys: Table::default(),
            sorted: BTreeSet::new(),
            due: BTreeSet::new(),
            limits_change: None,
            bytes: 0,
            forgotten: 0,
        }
    }

    /// Returns the last sequence number that was assigned. Returns 0 before the first.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Returns the time at which that number was assigned. Before the first, returns the time at
    /// which the log was created.
    pub(super) fn written(&self) -> SystemTime {
        self.written
    }

    /// Returns the time that it takes to drop the log, in entries.
    pub(super) fn effort(&self) -> usize {
        let freed = usize::try_from(self.bytes).unwrap_or(usize::MAX) / FREED;
        self.order.len().saturating_add(freed)
    }

    /// Returns whether [`expire_some`](Self::expire_some) has work, now or later.
    pub(super) fn has_due(&self) -> bool {
        self.limits_change.is_some() || !self.due.is_empty()
    }

    /// Returns the time of the next expiry.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|&(due, _)| due)
    }

    fn versions(&self, key: &str) -> Option<&Versions> {
        self.keys.get(key.as_bytes())
    }

    /// Returns the newest entry of a key.
    pub(super) fn newest(&self, key: &str) -> Option<&KvEntry> {
        self.versions(key).map(|versions| &versions.newest.entry)
    }

    /// Returns the stored entries of a key, the oldest first.
    pub(super) fn history(&self, key: &str) -> Vec<KvEntry> {
        self.versions(key).map_or_else(Vec::new, |versions| {
            versions.iter().map(|held| held.entry.clone()).collect()
        })
    }

    /// Returns the newest entry of each key, tombstones included, in the order of the keys.
    pub(super) fn newest_from(&self, from: Bound<&str>) -> impl Iterator<Item = &KvEntry> {
        self.sorted.range::<str, _>((from, Bound::Unbounded)).filter_map(|key| self.newest(key))
    }

    /// Writes to a key, after everything that is due by `now` has expired. A token is compared
    /// before anything else.
    ///
    /// A deletion is never rejected for lack of room, so that room can always be made. Nor is a
    /// value that takes no more room than the superseded entry.
    pub(super) fn write(
        &mut self,
        key: &Key,
        write: Write,
        now: Instant,
    ) -> Result<VersionToken, Rejection> {
        let Write { operation, condition, ttl, fence, metadata } = write;
        self.expire(now);
        let held = self.versions(key);
        let newest = held.map(|versions| &versions.newest.entry);
        admit(fence, condition, newest.map(attributes))?;
        if let (WriteOperation::Put(value), Some(limit)) = (&operation, self.limits.max_bytes) {
            // A write drops at most one entry, because the history was within its limit before.
            let dropped = held
                .filter(|versions| versions.older.len() + 1 >= self.limits.history)
                .map_or(0, |versions| versions.older.front().unwrap_or(&versions.newest).size());
            let after = self.bytes.saturating_add(size(key, value)).saturating_sub(dropped);
            if after > limit && after > self.bytes {
                return Err(Rejection::Full(limit));
            }
        }
        let created = self.clock.system(now);
        let (operation, value) = match operation {
            WriteOperation::Put(value) => (KvOperation::Put, value),
            WriteOperation::Purge if key.is_of_locks() || !self.limits.purges_by_deleting() => {
                (KvOperation::Purge, Bytes::new())
            }
            WriteOperation::Delete | WriteOperation::Purge => (KvOperation::Delete, Bytes::new()),
        };
        let (ttl, life) = match operation {
            KvOperation::Put => (ttl, self.limits.life(ttl)),
            _ => (None, self.limits.marker_ttl(key, fence)),
        };
        // An expiry that the clock cannot express is never due.
        let due = life.and_then(|life| now.checked_add(life));
        let version = self.next_version();
        let entry = match operation {
            KvOperation::Put => KvEntry::put(key.clone(), value, version, created),
            _ => KvEntry::tombstone(key.clone(), operation, version, created),
        };
        self.append(entry.with_fence(fence).with_metadata(metadata), ttl, due);
        Ok(version)
    }

    /// Gives the newest entry of a key a token, unless it has that one or a newer one. Writes its
    /// value again; an absent key gets a tombstone. Returns the token that the key then has.
    pub(super) fn raise(
        &mut self,
        key: &Key,
        token: FencingToken,
        now: Instant,
    ) -> Result<FencingToken, Rejection> {
        self.expire(now);
        let newest = self.versions(key).map(|versions| &versions.newest);
        if let Some(fence) =
            newest.and_then(|held| held.entry.fence).filter(|fence| *fence >= token)
        {
            return Ok(fence);
        }
        let mut write = match newest.filter(|held| !held.entry.is_tombstone()) {
            Some(held) if held.ttl.is_some() => return Err(Rejection::Expires),
            Some(held) => Write::put(held.entry.value.clone()),
            None => Write::delete(),
        };
        write.metadata = newest.and_then(|held| held.entry.metadata.clone());
        self.write(key, write.with_fence(token), now).map(|_| token)
    }

    /// Returns the time of the log's clock at an instant.
    pub(super) fn time(&self, now: Instant) -> SystemTime {
        self.clock.system(now)
    }

    fn next_version(&self) -> VersionToken {
        VersionToken::from_u64(self.sequence + 1)
    }

    /// Appends an entry that has the next version.
    fn append(&mut self, mut entry: KvEntry, ttl: Option<Duration>, due: Option<Instant>) {
        self.sequence += 1;
        self.written = entry.created;
        let (sequence, operation) = (self.sequence, entry.operation);
        // All stored entries of a key share one allocation of the key.
        if let Some(versions) = self.versions(&entry.key) {
            entry.key = versions.newest.entry.key.clone();
        }
        let key = entry.key.clone();
        let held = StoredEntry { sequence, entry, ttl, due };
        self.bytes += held.size();
        self.order.insert(sequence, key.clone());
        if let Some(due) = due {
            self.due.insert((due, sequence));
        }
        if let Some(versions) = self.keys.get_mut(key.as_bytes()) {
            let superseded = mem::replace(&mut versions.newest, held);
            // The history includes neither purged entries nor an expired value.
            let purged = match operation {
                KvOperation::Purge => mem::take(&mut versions.older),
                _ => VecDeque::new(),
            };
            let ended = matches!(operation, KvOperation::Purge | KvOperation::Expire);
            // With a history of 1 the queue stays unused, because using it would allocate.
            let dropped = if ended || self.limits.history == 1 {
                Some(superseded)
            } else {
                versions.older.push_back(superseded);
                let excess = versions.older.len() + 1 > self.limits.history;
                if excess { versions.older.pop_front() } else { None }
            };
            for held in purged.iter().chain(&dropped) {
                self.release(held);
            }
        } else {
            self.sorted.insert(key);
            self.keys.insert(Versions { newest: held, since: sequence, older: VecDeque::new() });
        }
    }

    /// Drops all entries of a key. Returns the effort.
    fn drop_key(&mut self, key: &Key) -> usize {
        let Some(versions) = self.keys.remove(key.as_bytes()) else { return 0 };
        self.sorted.remove(key);
        versions.iter().map(|held| self.release(held)).sum()
    }

    /// Removes an entry that is no longer stored from the indexes. Returns the effort.
    fn release(&mut self, held: &StoredEntry) -> usize {
        self.order.remove(&held.sequence);
        self.bytes = self.bytes.saturating_sub(held.size());
        if let Some(due) = held.due {
            self.due.remove(&(due, held.sequence));
        }
        held.effort()
    }
}

/// Returns the number of bytes of an entry that count towards the limit of the store.
fn size(key: &str, value: &Bytes) -> u64 {
    (key.len() as u64).saturating_add(value.len() as u64)
}

/// Returns the attributes with which a write is compared.
fn attributes(entry: &KvEntry) -> Newest {
    Newest { version: entry.version, is_tombstone: entry.is_tombstone(), fence: entry.fence }
}
