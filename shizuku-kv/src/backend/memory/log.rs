//! What a store holds: the retained entries in order, as a plain data structure.
//!
//! Nothing here waits, locks or reads a clock; every method that depends on the time is told it. That makes the rules
//! of the store testable one by one, and against a naive model (`log_model.rs`).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::mem;
use std::ops::Bound;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;

use crate::store::{
    FencingToken, Key, KvEntry, KvOperation, StoreConfig, VersionToken, WatchScope,
};

/// Maximum lifetime of a tombstone in a store that has a maximum age or times to live. A shorter
/// maximum age limits it further. Such a store is expected to receive ever new keys, whose
/// tombstones would otherwise accumulate. Every other store holds tombstones for ever.
pub(super) const MARKER_TTL: Duration = Duration::from_secs(60 * 60);

/// How many entries [`Log::next_after`] looks at in one call, so that the lock around it is held for a short time
/// whatever the scope.
pub(super) const WALK: usize = 1024;

/// How many ends of life [`Log::expire_some`] applies in one call, for the same reason.
pub(super) const EXPIRY: usize = 512;

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
    fn due_of_held(&self, held: &Held, now: Instant) -> Option<Instant> {
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

/// What a write does.
#[derive(Clone)]
pub(super) enum Change {
    /// Stores a value, which ends its life after `ttl` where there is one.
    Put { value: Bytes, ttl: Option<Duration> },
    /// Leaves a tombstone.
    Delete,
    /// Drops the history and leaves a tombstone.
    Purge,
}

/// What has to be true of the key's newest entry for a write to take effect.
#[derive(Clone, Copy, Debug)]
pub(super) enum Condition {
    /// Nothing.
    Any,
    /// There is none, or it is a tombstone.
    Absent,
    /// It has this version; that of a tombstone counts like any other.
    Version(VersionToken),
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

/// An entry that is held.
struct Held {
    sequence: u64,
    entry: KvEntry,
    /// The time to live that a value was written with, whatever its store's maximum age.
    ttl: Option<Duration>,
    /// When its life ends: a value expires, a tombstone is forgotten.
    due: Option<Instant>,
}

impl Held {
    fn size(&self) -> u64 {
        size(&self.entry.key, &self.entry.value)
    }
}

/// What is held of one key: always at least one entry.
struct Versions {
    newest: Held,
    /// The sequence number from which on something has been held of the key.
    since: u64,
    /// The oldest first. Empty, and without an allocation, where the history is 1.
    older: VecDeque<Held>,
}

impl Versions {
    fn iter(&self) -> impl Iterator<Item = &Held> {
        self.older.iter().chain(std::iter::once(&self.newest))
    }
}

/// The sequence-numbered log of a store, with an index by key.
///
/// Each write appends an entry under the next sequence number, which is its version. What is superseded is dropped,
/// so that the log is at the same time the state of the store.
pub(super) struct Log {
    limits: Limits,
    clock: Clock,
    /// The last sequence number that was given out, and when.
    sequence: u64,
    written: SystemTime,
    /// The held entries in order: whose each sequence number is.
    order: BTreeMap<u64, Key>,
    /// The entries themselves, where a read finds them in one step.
    keys: HashMap<Key, Versions>,
    /// The keys of `keys` in order, for scans that go on where they stopped.
    sorted: BTreeSet<Key>,
    /// The ends of life that are to come.
    due: BTreeSet<(Instant, u64)>,
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
            keys: HashMap::new(),
            sorted: BTreeSet::new(),
            due: BTreeSet::new(),
            bytes: 0,
            forgotten: 0,
        }
    }

    /// The last sequence number that was given out; 0 before the first.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// When it was given out; before the first, when the log was made.
    pub(super) fn written(&self) -> SystemTime {
        self.written
    }

    /// When [`expire_some`](Self::expire_some) next has something to do.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|&(due, _)| due)
    }

    /// The newest entry of a key.
    pub(super) fn newest(&self, key: &str) -> Option<&KvEntry> {
        self.keys.get(key).map(|versions| &versions.newest.entry)
    }

    /// What is held of a key, the oldest first.
    pub(super) fn history(&self, key: &str) -> Vec<KvEntry> {
        self.keys.get(key).map_or_else(Vec::new, |versions| {
            versions.iter().map(|held| held.entry.clone()).collect()
        })
    }

    /// The newest entry of each key, tombstones included, in the order of the keys.
    pub(super) fn newest_from(&self, from: Bound<&str>) -> impl Iterator<Item = &KvEntry> {
        self.sorted.range::<str, _>((from, Bound::Unbounded)).filter_map(|key| self.newest(key))
    }

    /// The first entry in scope after `position`. Up to the sequence number `state`, only what is the newest of its
    /// key counts.
    pub(super) fn next_after(&self, position: u64, state: u64, scope: &WatchScope) -> Next {
        let wanted = |held: &Held, versions: &Versions| {
            held.sequence > position
                && (held.sequence > state || held.sequence == versions.newest.sequence)
        };
        // Most watches of a single key are opened on stores of many.
        if let WatchScope::Key(key) = scope {
            let versions = self.keys.get(key);
            let held =
                versions.and_then(|versions| versions.iter().find(|held| wanted(held, versions)));
            return held.map_or(Next::End, |held| Next::Entry(held.sequence, held.entry.clone()));
        }
        let mut walked = 0;
        for (&sequence, key) in self.order.range((Bound::Excluded(position), Bound::Unbounded)) {
            walked += 1;
            if scope.matches(key)
                && let Some(versions) = self.keys.get(key)
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

    /// The keys in scope of which something was held at the sequence number `start`, and has been superseded by an entry
    /// that a reader at `position` is still to come to.
    pub(super) fn superseded(&self, start: u64, position: u64, scope: &WatchScope) -> HashSet<Key> {
        let superseded = |key: &&Key| {
            self.keys.get(*key).is_some_and(|versions| {
                versions.since <= start && versions.newest.sequence > position
            })
        };
        if let WatchScope::Key(key) = scope {
            return std::iter::once(key).filter(superseded).cloned().collect();
        }
        let to_come =
            self.order.range((Bound::Excluded(position), Bound::Unbounded)).map(|(_, key)| key);
        to_come.filter(|key| scope.matches(key)).filter(superseded).cloned().collect()
    }

    /// Whether what came after `position` is known without a gap.
    ///
    /// # Errors
    /// Why it is not.
    pub(super) fn resume(&self, position: u64) -> Result<(), &'static str> {
        if position > self.sequence {
            return Err("the cursor is ahead of everything that the store has seen");
        }
        // Some of what is missing before the first entry was only superseded. The store cannot tell which, and
        // neither can a server.
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

    /// Writes to a key, after what is due by `now` has been applied. The token, where there is one, is compared before
    /// anything else.
    ///
    /// Deletions are never refused for want of room, so that room can always be made; neither is a value that takes no
    /// more room than what it supersedes.
    pub(super) fn write_with(
        &mut self,
        key: &Key,
        change: Change,
        condition: Condition,
        fence: Option<FencingToken>,
        now: Instant,
    ) -> Result<VersionToken, Refusal> {
        self.expire(now);
        let held = self.keys.get(key);
        let newest = held.map(|versions| &versions.newest.entry);
        if let Some(token) = fence
            && let Some(newest) = token.refused_by(newest.and_then(|entry| entry.fence))
        {
            return Err(Refusal::Fenced { token, newest });
        }
        match (condition, newest) {
            (Condition::Any, _) | (Condition::Absent, None) => {}
            (Condition::Absent, Some(entry)) => {
                if !entry.is_tombstone() {
                    return Err(Refusal::Exists(entry.version));
                }
            }
            (Condition::Version(expected), entry) => {
                let found = entry.map(|entry| entry.version);
                if found != Some(expected) {
                    return Err(Refusal::Mismatch(found));
                }
            }
        }
        if let (Change::Put { value, .. }, Some(limit)) = (&change, self.limits.max_bytes) {
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
        let (operation, value, ttl, life) = match change {
            Change::Put { value, ttl } => (KvOperation::Put, value, ttl, self.limits.life(ttl)),
            Change::Purge if !key.is_of_locks() && self.limits.purges_by_deleting() => {
                (KvOperation::Delete, Bytes::new(), None, self.limits.marker_ttl(key, fence))
            }
            Change::Delete => {
                (KvOperation::Delete, Bytes::new(), None, self.limits.marker_ttl(key, fence))
            }
            Change::Purge => {
                (KvOperation::Purge, Bytes::new(), None, self.limits.marker_ttl(key, fence))
            }
        };
        // An end of life that the clock cannot express never comes.
        let due = life.and_then(|life| now.checked_add(life));
        let version = self.next_version();
        let entry = match operation {
            KvOperation::Put => KvEntry::put(key.clone(), value, version, created),
            _ => KvEntry::tombstone(key.clone(), operation, version, created),
        };
        self.append(entry.with_fence(fence), ttl, due);
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
        let newest = self.keys.get(key).map(|versions| &versions.newest);
        if let Some(fence) =
            newest.and_then(|held| held.entry.fence).filter(|fence| *fence >= token)
        {
            return Ok(fence);
        }
        let change = match newest.filter(|held| !held.entry.is_tombstone()) {
            Some(held) if held.ttl.is_some() => return Err(Refusal::Expires),
            Some(held) => Change::Put { value: held.entry.value.clone(), ttl: None },
            None => Change::Delete,
        };
        self.write_with(key, change, Condition::Any, Some(token), now).map(|_| token)
    }

    /// The log's clock at a moment.
    pub(super) fn time(&self, now: Instant) -> SystemTime {
        self.clock.system(now)
    }

    /// Applies every end of life that is due by `now`.
    pub(super) fn expire(&mut self, now: Instant) {
        while !self.expire_some(now) {}
    }

    /// Applies the next [`EXPIRY`] ends of life that are due by `now`, in the order in which they fall due, and returns
    /// whether none is left. Until then the log shows as living what is not.
    ///
    /// A value that is the newest of its key gives way to a tombstone, an older one is dropped. A tombstone that is
    /// the newest of its key is forgotten together with what is left of the key's history, which would otherwise come
    /// back to life.
    pub(super) fn expire_some(&mut self, now: Instant) -> bool {
        for _ in 0..EXPIRY {
            let Some((due, sequence)) = self.due.first().copied().filter(|&(due, _)| due <= now)
            else {
                return true;
            };
            self.due.pop_first();
            let Some(key) = self.order.get(&sequence).cloned() else { continue };
            let Some(versions) = self.keys.get_mut(&key) else { continue };
            if versions.newest.sequence != sequence {
                if let Some(at) = versions.older.iter().position(|held| held.sequence == sequence)
                    && let Some(held) = versions.older.remove(at)
                {
                    self.release(&held);
                }
            } else if versions.newest.entry.is_tombstone() {
                self.forgotten = self.forgotten.max(sequence);
                self.drop_key(&key);
            } else {
                // The tombstone says when the value's life ended, and is held from when anyone can see it: however
                // late that is, no watch misses it.
                let created = self.clock.system(due);
                let forget =
                    self.limits.marker_ttl(&key, None).and_then(|ttl| now.checked_add(ttl));
                let version = self.next_version();
                self.append(
                    KvEntry::tombstone(key, KvOperation::Expire, version, created),
                    None,
                    forget,
                );
            }
        }
        self.next_due().is_none_or(|due| due > now)
    }

    /// Applies new settings, also to existing entries. A maximum age counts from the write of a
    /// value; an older value expires with the next [`expire_some`](Self::expire_some). A tombstone
    /// with a longer lifetime is held for the new lifetime, counted from `now`.
    pub(super) fn set_limits(&mut self, limits: Limits, now: Instant) {
        self.limits = limits;
        let mut dropped = Vec::new();
        for versions in self.keys.values_mut() {
            let excess = (versions.older.len() + 1).saturating_sub(limits.history);
            dropped.extend(versions.older.drain(..excess));
        }
        for held in &dropped {
            self.release(held);
        }
        for versions in self.keys.values_mut() {
            for held in versions.older.iter_mut().chain(std::iter::once(&mut versions.newest)) {
                let due = if held.entry.is_tombstone() {
                    limits.due_of_held(held, now)
                } else {
                    let written = self.clock.instant(held.entry.created);
                    limits.life(held.ttl).and_then(|life| written.checked_add(life))
                };
                if due == held.due {
                    continue;
                }
                if let Some(before) = held.due {
                    self.due.remove(&(before, held.sequence));
                }
                self.due.extend(due.map(|due| (due, held.sequence)));
                held.due = due;
            }
        }
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
        if let Some(versions) = self.keys.get(&entry.key) {
            entry.key = versions.newest.entry.key.clone();
        }
        let key = entry.key.clone();
        let held = Held { sequence, entry, ttl, due };
        self.bytes += held.size();
        self.order.insert(sequence, key.clone());
        if let Some(due) = due {
            self.due.insert((due, sequence));
        }
        if let Some(versions) = self.keys.get_mut(&key) {
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
            self.sorted.insert(key.clone());
            self.keys
                .insert(key, Versions { newest: held, since: sequence, older: VecDeque::new() });
        }
    }

    fn drop_key(&mut self, key: &Key) {
        if let Some(versions) = self.keys.remove(key) {
            self.sorted.remove(key);
            for held in versions.iter() {
                self.release(held);
            }
        }
    }

    /// Takes an entry that is no longer held out of the indexes.
    fn release(&mut self, held: &Held) {
        self.order.remove(&held.sequence);
        self.bytes = self.bytes.saturating_sub(held.size());
        if let Some(due) = held.due {
            self.due.remove(&(due, held.sequence));
        }
    }
}

/// What an entry counts for against the limit of the store.
fn size(key: &str, value: &Bytes) -> u64 {
    (key.len() as u64).saturating_add(value.len() as u64)
}

/// The store's clock: it starts at the wall clock's time and runs with tokio's, so that it never goes back, and stands
/// still where a test has stopped the time.
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
    /// Writes without a token.
    pub(super) fn write(
        &mut self,
        key: &Key,
        change: Change,
        condition: Condition,
        now: Instant,
    ) -> Result<VersionToken, Refusal> {
        self.write_with(key, change, condition, None, now)
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
        let held: Vec<_> = self.keys.values().flat_map(Versions::iter).collect();
        assert_eq!(held.len(), self.order.len());
        assert_eq!(held.iter().map(|held| held.size()).sum::<u64>(), self.bytes);
        assert_eq!(held.iter().filter(|held| held.due.is_some()).count(), self.due.len());
        for held in &held {
            assert_eq!(self.order.get(&held.sequence), Some(&held.entry.key));
            assert!(held.due.is_none_or(|due| self.due.contains(&(due, held.sequence))));
        }
        let sorted: BTreeSet<_> = self.keys.keys().cloned().collect();
        assert_eq!(sorted, self.sorted);
        for versions in self.keys.values() {
            assert!(versions.older.len() < self.limits.history);
            assert!(versions.iter().is_sorted_by_key(|held| held.sequence));
        }
    }
}

#[cfg(test)]
mod tests;
