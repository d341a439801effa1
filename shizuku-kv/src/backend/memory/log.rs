//! What a store holds: the retained entries in order, as a plain data structure.
//!
//! Nothing here waits, locks or reads a clock; every method that depends on the time is told it.
//! That makes the rules of the store testable one by one, and against a naive model
//! (`log_model.rs`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;
use std::ops::Bound;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;

use super::selector::Selector;
use crate::store::{
    FencingToken, Key, KvEntry, KvOperation, StoreConfig, VersionToken, Write, WriteCondition,
    WriteOperation,
};
use crate::table::{Keyed, Table};

mod upkeep;

use upkeep::Settling;

/// Maximum lifetime of a tombstone in a store that has a maximum age or times to live. A shorter
/// maximum age limits it further. Such a store is expected to receive ever new keys, whose
/// tombstones would otherwise accumulate. Every other store holds tombstones for ever.
pub(super) const MARKER_TTL: Duration = Duration::from_secs(60 * 60);

/// Maximum number of entries that [`Log::next_after`] and [`Log::superseded`] look at in one call,
/// so that the lock around it is held for a short time whatever the scope.
pub(super) const WALK: usize = 1024;

/// Maximum number of entries that [`Log::expire_some`] changes in one call, for the same reason.
/// A few in tests, so that small logs need several calls.
pub(super) const EXPIRY: usize = if cfg!(test) { 8 } else { 64 };

/// A value of this many bytes takes as long to free as an entry takes to change.
const FREED: usize = 16 * 1024;

/// The settings of a store that decide what its log holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// How many versions of a key are held.
    pub(super) history: usize,
    /// The most bytes of keys and values that are held.
    pub(super) max_bytes: Option<u64>,
    /// How long a value lives.
    pub(super) max_age: Option<Duration>,
    /// Whether tombstones are forgotten after [`MARKER_TTL`].
    pub(super) forgets: bool,
}

impl Limits {
    /// Those of a configuration in which every field is filled in.
    pub(super) fn of(config: &StoreConfig) -> Self {
        Self {
            history: usize::from(config.history.unwrap_or(1).max(1)),
            max_bytes: config.max_bytes.flatten(),
            max_age: config.max_age.flatten(),
            forgets: config.max_age.flatten().is_some() || config.key_ttl == Some(true),
        }
    }

    /// How long a value lives that was written with `ttl`.
    fn life(&self, ttl: Option<Duration>) -> Option<Duration> {
        [ttl, self.max_age].into_iter().flatten().min()
    }

    /// Lifetime of a tombstone. A tombstone with a token, or of a lock, must never expire. A store
    /// whose values age has neither fenced writes nor locks, so an earlier such tombstone expires
    /// like every other.
    fn marker_ttl(&self, key: &Key, fence: Option<FencingToken>) -> Option<Duration> {
        let forgets = self.forgets && !self.never_forgets(key, fence);
        forgets.then(|| self.max_age.map_or(MARKER_TTL, |age| age.min(MARKER_TTL)))
    }

    fn never_forgets(&self, key: &Key, fence: Option<FencingToken>) -> bool {
        self.max_age.is_none() && (fence.is_some() || key.is_of_locks())
    }

    /// The expiry of a tombstone that already exists when these limits come into force.
    fn due_of_held(&self, held: &StoredEntry, now: Instant) -> Option<Instant> {
        let (key, fence) = (&held.entry.key, held.entry.fence);
        if self.never_forgets(key, fence) {
            return None;
        }
        let due = self.marker_ttl(key, fence).and_then(|life| now.checked_add(life));
        [held.due, due].into_iter().flatten().min()
    }

    /// Whether a purge leaves the tombstone of a deletion, as on NATS: if tombstones expire and
    /// there is no history, the two do the same.
    fn purges_by_deleting(&self) -> bool {
        self.forgets && self.history == 1
    }
}

/// Why a write did not take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The newest entry was written with a newer token than that of the write.
    Fenced { token: FencingToken, newest: FencingToken },
    /// The key had to be absent, and has a value of this version.
    Exists(VersionToken),
    /// The newest entry has another version, or there is none.
    Mismatch(Option<VersionToken>),
    /// More than this many bytes would be held.
    Full(u64),
    /// The value has a time to live, and its token would expire with it.
    Expires,
}

/// What [`Log::next_after`] came upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// An entry in scope, with its sequence number.
    Entry(u64, KvEntry),
    /// Nothing in scope up to this sequence number; there is more to look at.
    More(u64),
    /// Nothing more.
    End,
}

/// Keys that a watch has to deliver before it has caught up.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Owed {
    /// All of them.
    Known(BTreeSet<Key>),
    /// Those up to a key, in the order of keys; all of them if there is no such key yet.
    UpTo(Option<Key>, BTreeSet<Key>),
}

/// An entry that is held.
#[derive(Clone)]
struct StoredEntry {
    sequence: u64,
    entry: KvEntry,
    /// The time to live that a value was written with, whatever its store's maximum age.
    ttl: Option<Duration>,
    /// When its life ends: a value expires, a tombstone is forgotten.
    due: Option<Instant>,
}

impl StoredEntry {
    fn size(&self) -> u64 {
        size(&self.entry.key, &self.entry.value)
    }

    /// The time that it takes to drop, in entries.
    fn effort(&self) -> usize {
        1 + self.entry.value.len() / FREED
    }
}

/// What is held of one key: always at least one entry.
#[derive(Clone)]
struct Versions {
    newest: StoredEntry,
    /// The sequence number from which on something has been held of the key.
    since: u64,
    /// The oldest first. Empty, and without an allocation, where the history is 1.
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

/// The sequence-numbered log of a store, with an index by key.
///
/// Each write appends an entry under the next sequence number, which is its version. What is
/// superseded is dropped, so that the log is at the same time the state of the store.
pub(super) struct Log {
    limits: Limits,
    clock: Clock,
    /// The last sequence number that was given out, and when.
    sequence: u64,
    written: SystemTime,
    /// The held entries in order: whose each sequence number is.
    order: BTreeMap<u64, Key>,
    /// The entries themselves, where a read finds them in one step.
    keys: Table<Versions>,
    /// The keys of `keys` in order, for scans that go on where they stopped.
    sorted: BTreeSet<Key>,
    /// The ends of life that are to come.
    due: BTreeSet<(Instant, u64)>,
    /// New settings that have not been applied to all keys.
    settling: Option<Settling>,
    bytes: u64,
    /// The highest sequence number of a tombstone that was the newest of its key and was forgotten.
    forgotten: u64,
}

impl Log {
    /// An empty log, made at `now`.
    pub(super) fn new(limits: Limits, now: Instant) -> Self {
        let clock = Clock { instant: now, system: SystemTime::now() };
        Self {
            limits,
            clock,
            sequence: 0,
            written: clock.system,
            order: BTreeMap::new(),
            keys: Table::default(),
            sorted: BTreeSet::new(),
            due: BTreeSet::new(),
            settling: None,
            bytes: 0,
            forgotten: 0,
        }
    }

    /// The last sequence number that was given out; 0 before the first.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The time that it takes to drop, in entries.
    pub(super) fn effort(&self) -> usize {
        let freed = usize::try_from(self.bytes).unwrap_or(usize::MAX) / FREED;
        self.order.len().saturating_add(freed)
    }

    /// When it was given out; before the first, when the log was made.
    pub(super) fn written(&self) -> SystemTime {
        self.written
    }

    /// Whether [`expire_some`](Self::expire_some) will ever have something to do.
    pub(super) fn has_due(&self) -> bool {
        self.settling.is_some() || !self.due.is_empty()
    }

    /// When the next life ends.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|&(due, _)| due)
    }

    fn versions(&self, key: &str) -> Option<&Versions> {
        self.keys.get(key.as_bytes())
    }

    /// The newest entry of a key.
    pub(super) fn newest(&self, key: &str) -> Option<&KvEntry> {
        self.versions(key).map(|versions| &versions.newest.entry)
    }

    /// What is held of a key, the oldest first.
    pub(super) fn history(&self, key: &str) -> Vec<KvEntry> {
        self.versions(key).map_or_else(Vec::new, |versions| {
            versions.iter().map(|held| held.entry.clone()).collect()
        })
    }

    /// The newest entry of each key, tombstones included, in the order of the keys.
    pub(super) fn newest_from(&self, from: Bound<&str>) -> impl Iterator<Item = &KvEntry> {
        self.sorted.range::<str, _>((from, Bound::Unbounded)).filter_map(|key| self.newest(key))
    }

    /// The first selected entry after `position`. Up to the sequence number `state`, only what is
    /// the newest of its key counts.
    pub(super) fn next_after(&self, position: u64, state: u64, selector: &Selector) -> Next {
        let wanted = |held: &StoredEntry, versions: &Versions| {
            held.sequence > position
                && (held.sequence > state || held.sequence == versions.newest.sequence)
        };
        // Most watches of a single key are opened on stores of many.
        if let Some(key) = selector.only_key() {
            let versions = self.versions(key);
            let held =
                versions.and_then(|versions| versions.iter().find(|held| wanted(held, versions)));
            return held.map_or(Next::End, |held| Next::Entry(held.sequence, held.entry.clone()));
        }
        let mut walked = 0;
        for (&sequence, key) in self.order.range((Bound::Excluded(position), Bound::Unbounded)) {
            walked += 1;
            if selector.contains(key)
                && let Some(versions) = self.versions(key)
                && let Some(held) = versions.iter().find(|held| held.sequence == sequence)
                && wanted(held, versions)
            {
                return Next::Entry(sequence, held.entry.clone());
            }
            if walked == WALK {
                return Next::More(sequence);
            }
        }
        Next::End
    }

    /// The selected keys of which something was held at the sequence number `start`, and has been
    /// superseded by an entry that a reader at `position` is still to come to. If too many entries
    /// follow `position`, none is known yet, and [`superseded_more`](Self::superseded_more) finds
    /// them.
    pub(super) fn superseded(&self, start: u64, position: u64, selector: &Selector) -> Owed {
        let is_superseded = |key: &&Key| self.is_superseded(key, start, position);
        if let Some(key) = selector.only_key() {
            return Owed::Known(std::iter::once(key).filter(is_superseded).cloned().collect());
        }
        let mut to_come =
            self.order.range((Bound::Excluded(position), Bound::Unbounded)).map(|(_, key)| key);
        let first =
            to_come.by_ref().take(WALK).filter(|key| selector.contains(key)).filter(is_superseded);
        let owed = first.cloned().collect();
        if to_come.next().is_none() { Owed::Known(owed) } else { Owed::UpTo(None, BTreeSet::new()) }
    }

    /// Adds more of the keys of [`superseded`](Self::superseded), for the same reader at the same
    /// position.
    ///
    /// It goes by the order of keys, because a key keeps its place there whatever is written
    /// between two calls. A key that was delivered and written again meanwhile is added too: the
    /// reader will come to it.
    pub(super) fn superseded_more(
        &self,
        start: u64,
        position: u64,
        selector: &Selector,
        after: Option<&Key>,
        mut owed: BTreeSet<Key>,
    ) -> Owed {
        let from = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.as_str()));
        let mut last: Option<&Key> = None;
        for (walked, key) in self.sorted.range::<str, _>((from, Bound::Unbounded)).enumerate() {
            if walked == WALK {
                return Owed::UpTo(last.cloned(), owed);
            }
            last = Some(key);
            if selector.contains(key) && self.is_superseded(key, start, position) {
                owed.insert(key.clone());
            }
        }
        Owed::Known(owed)
    }

    fn is_superseded(&self, key: &str, start: u64, position: u64) -> bool {
        self.versions(key)
            .is_some_and(|versions| versions.since <= start && versions.newest.sequence > position)
    }

    /// Whether what came after `position` is known without a gap.
    ///
    /// # Errors
    /// Why it is not.
    pub(super) fn resume(&self, position: u64) -> Result<(), &'static str> {
        if position > self.sequence {
            return Err("the cursor is ahead of everything that the store has seen");
        }
        // Some of what is missing before the first entry was only superseded. The store cannot tell
        // which, and neither can a server.
        let first = self.order.first_key_value().map_or(self.sequence + 1, |(&first, _)| first);
        if position + 1 < first {
            return Err("the store no longer holds everything that followed the cursor");
        }
        self.remembers(position)
    }

    /// Whether every tombstone after `position` is still held or was superseded.
    ///
    /// # Errors
    /// Why a reader that stands there, and saw something, has a gap before it.
    pub(super) fn remembers(&self, position: u64) -> Result<(), &'static str> {
        if position < self.forgotten {
            return Err("a deletion that followed the cursor has been forgotten");
        }
        Ok(())
    }

    /// Writes to a key, after what is due by `now` has been applied. The token, where there is one,
    /// is compared before anything else.
    ///
    /// Deletions are never refused for want of room, so that room can always be made; neither is a
    /// value that takes no more room than what it supersedes.
    pub(super) fn write(
        &mut self,
        key: &Key,
        write: Write,
        now: Instant,
    ) -> Result<VersionToken, Refusal> {
        let Write { operation, condition, ttl, fence, metadata } = write;
        self.expire(now);
        let held = self.versions(key);
        let newest = held.map(|versions| &versions.newest.entry);
        if let Some(token) = fence
            && let Some(newest) = token.refused_by(newest.and_then(|entry| entry.fence))
        {
            return Err(Refusal::Fenced { token, newest });
        }
        match (condition, newest) {
            (WriteCondition::Any, _) | (WriteCondition::Absent, None) => {}
            (WriteCondition::Absent, Some(entry)) => {
                if !entry.is_tombstone() {
                    return Err(Refusal::Exists(entry.version));
                }
            }
            (WriteCondition::Exactly(expected), entry) => {
                let found = entry.map(|entry| entry.version);
                if found != Some(expected) {
                    return Err(Refusal::Mismatch(found));
                }
            }
        }
        if let (WriteOperation::Put(value), Some(limit)) = (&operation, self.limits.max_bytes) {
            // At most one is dropped for one that comes: the history was within its limit before.
            let dropped = held
                .filter(|versions| versions.older.len() + 1 >= self.limits.history)
                .map_or(0, |versions| versions.older.front().unwrap_or(&versions.newest).size());
            let after = self.bytes.saturating_add(size(key, value)).saturating_sub(dropped);
            if after > limit && after > self.bytes {
                return Err(Refusal::Full(limit));
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
        // An end of life that the clock cannot express never comes.
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
    /// value again; an absent key gets a tombstone. Returns the token that the key has then.
    pub(super) fn raise(
        &mut self,
        key: &Key,
        token: FencingToken,
        now: Instant,
    ) -> Result<FencingToken, Refusal> {
        self.expire(now);
        let newest = self.versions(key).map(|versions| &versions.newest);
        if let Some(fence) =
            newest.and_then(|held| held.entry.fence).filter(|fence| *fence >= token)
        {
            return Ok(fence);
        }
        let mut write = match newest.filter(|held| !held.entry.is_tombstone()) {
            Some(held) if held.ttl.is_some() => return Err(Refusal::Expires),
            Some(held) => Write::put(held.entry.value.clone()),
            None => Write::delete(),
        };
        write.metadata = newest.and_then(|held| held.entry.metadata.clone());
        self.write(key, write.with_fence(token), now).map(|_| token)
    }

    /// The log's clock at a moment.
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
        // All that is held of a key shares one allocation for it.
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
            // Neither what was purged nor a value that expired is history.
            let purged = match operation {
                KvOperation::Purge => mem::take(&mut versions.older),
                _ => VecDeque::new(),
            };
            let ended = matches!(operation, KvOperation::Purge | KvOperation::Expire);
            // With a history of 1 the queue is left alone: using it would allocate.
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

    /// Drops all that is held of a key. Returns the effort.
    fn drop_key(&mut self, key: &Key) -> usize {
        let Some(versions) = self.keys.remove(key.as_bytes()) else { return 0 };
        self.sorted.remove(key);
        versions.iter().map(|held| self.release(held)).sum()
    }

    /// Takes an entry that is no longer held out of the indexes. Returns the effort.
    fn release(&mut self, held: &StoredEntry) -> usize {
        self.order.remove(&held.sequence);
        self.bytes = self.bytes.saturating_sub(held.size());
        if let Some(due) = held.due {
            self.due.remove(&(due, held.sequence));
        }
        held.effort()
    }
}

/// What an entry counts for against the limit of the store.
fn size(key: &str, value: &Bytes) -> u64 {
    (key.len() as u64).saturating_add(value.len() as u64)
}

/// The store's clock: it starts at the wall clock's time and runs with tokio's, so that it never
/// goes back, and stands still where a test has stopped the time.
#[derive(Clone, Copy)]
struct Clock {
    instant: Instant,
    system: SystemTime,
}

impl Clock {
    fn system(&self, at: Instant) -> SystemTime {
        self.system.checked_add(at.saturating_duration_since(self.instant)).unwrap_or(self.system)
    }

    /// The moment at which it was `system`.
    fn instant(&self, system: SystemTime) -> Instant {
        let since = system.duration_since(self.system).unwrap_or_default();
        self.instant.checked_add(since).unwrap_or(self.instant)
    }
}

#[cfg(test)]
impl Log {
    /// [`next_after`](Self::next_after) in a scope.
    pub(super) fn next_in(&self, position: u64, state: u64, scope: &WatchScope) -> Next {
        self.next_after(position, state, &Selector::new(scope))
    }

    /// The sequence numbers that are held, in order.
    pub(super) fn sequences(&self) -> Vec<u64> {
        self.order.keys().copied().collect()
    }

    /// The size of what is held, as the limit counts it.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// That the indexes say the same as the entries.
    pub(super) fn check(&self) {
        let held: Vec<_> = self.keys.iter().flat_map(Versions::iter).collect();
        assert!(self.settling.is_none());
        assert_eq!(held.len(), self.order.len());
        assert_eq!(held.iter().map(|held| held.size()).sum::<u64>(), self.bytes);
        assert_eq!(held.iter().filter(|held| held.due.is_some()).count(), self.due.len());
        for held in &held {
            assert_eq!(self.order.get(&held.sequence), Some(&held.entry.key));
            assert!(held.due.is_none_or(|due| self.due.contains(&(due, held.sequence))));
        }
        let sorted: BTreeSet<_> =
            self.keys.iter().map(|held| held.newest.entry.key.clone()).collect();
        assert_eq!(sorted.len(), self.keys.len());
        assert_eq!(sorted, self.sorted);
        for versions in self.keys.iter() {
            assert!(versions.older.len() < self.limits.history);
            assert!(versions.iter().is_sorted_by_key(|held| held.sequence));
        }
    }
}

#[cfg(test)]
use crate::store::WatchScope;

#[cfg(test)]
mod tests;
