//! A bucket and a watch of it, as the contract describes them: everything that a backend may do,
//! and nothing that it must not.

use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::replica::StoredVersion;
use crate::store::{Key, KvEntry, KvOperation, VersionToken, WatchCursor};

/// Number of keys. With one key the model would not find that the cursor of one key covers the
/// change of another.
pub(super) const KEYS: usize = 2;

/// All keys.
pub(super) const ALL: Keys = Keys(0b11);

/// A set of keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Keys(pub(super) u8);

impl Keys {
    pub(super) fn has(self, key: usize) -> bool {
        self.0 & 1 << key != 0
    }

    pub(super) fn insert(&mut self, key: usize) {
        self.0 |= 1 << key;
    }

    pub(super) fn remove(&mut self, key: usize) {
        self.0 &= !(1 << key);
    }

    pub(super) fn iter(self) -> impl Iterator<Item = usize> {
        (0..KEYS).filter(move |key| self.has(*key))
    }
}

/// A position in the changes of a bucket. A write has its position as its version. A recreated
/// bucket assigns the same versions again, and the incarnation distinguishes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct At {
    pub(super) incarnation: u8,
    pub(super) position: u8,
}

impl At {
    fn time(self) -> SystemTime {
        SystemTime::UNIX_EPOCH
            + Duration::from_secs(u64::from(self.incarnation) << 8 | u64::from(self.position))
    }

    pub(super) fn held(self) -> StoredVersion {
        StoredVersion::new(VersionToken::from_u64(self.position.into()), self.time())
    }

    pub(super) fn of_held(held: StoredVersion) -> Self {
        let seconds = held.created.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        Self { incarnation: (seconds >> 8) as u8, position: seconds as u8 }
    }

    pub(super) fn cursor(self) -> WatchCursor {
        WatchCursor::new([self.incarnation; 16], self.position.into(), self.time())
    }

    pub(super) fn of_cursor(cursor: WatchCursor) -> Self {
        Self { incarnation: cursor.incarnation()[0], position: cursor.position() as u8 }
    }
}

/// The value of each key.
pub(super) type Values = [Option<At>; KEYS];

/// A write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Write {
    pub(super) key: usize,
    pub(super) at: At,
    pub(super) is_value: bool,
}

impl Write {
    pub(super) fn entry(self) -> KvEntry {
        let StoredVersion { version, created } = self.at.held();
        // The protocol does not distinguish the kinds of deletions, so each key has one kind.
        let operation = if self.key == 0 { KvOperation::Delete } else { KvOperation::Expire };
        if self.is_value {
            KvEntry::put(key(self.key), Bytes::new(), version, created)
        } else {
            KvEntry::tombstone(key(self.key), operation, version, created)
        }
    }
}

pub(super) fn key(number: usize) -> Key {
    thread_local! {
        static NAMES: [Key; KEYS] = ["a", "b"].map(|name| Key::new(name).unwrap());
    }
    NAMES.with(|names| names[number].clone())
}

pub(super) fn number_of(key: &Key) -> usize {
    usize::from(key.as_str() == "b")
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Bucket {
    incarnation: u8,
    /// Everything that was ever written, even if it is no longer held. The replica is checked
    /// against this.
    writes: Vec<(usize, bool)>,
    /// Position from which each key has held entries, or 0 if it has none.
    since: [u8; KEYS],
    /// The last position whose deletion was forgotten.
    forgotten: u8,
    /// Position of the value of each key that vanished without a message, or 0 if none did.
    vanished: [u8; KEYS],
}

impl Bucket {
    pub(super) fn new(incarnation: u8) -> Self {
        Self {
            incarnation,
            writes: Vec::new(),
            since: [0; KEYS],
            forgotten: 0,
            vanished: [0; KEYS],
        }
    }

    pub(super) fn write(&mut self, key: usize, is_value: bool) {
        self.writes.push((key, is_value));
        if self.since[key] == 0 {
            self.since[key] = self.last();
        }
    }

    /// Deletes and recreates the bucket.
    pub(super) fn make_again(&mut self) {
        *self = Self::new(self.incarnation + 1);
    }

    /// Forgets a tombstone.
    pub(super) fn forget(&mut self, key: usize) {
        if let Some(newest) = self.newest(key) {
            self.forgotten = self.forgotten.max(newest.at.position);
            self.since[key] = 0;
        }
    }

    /// Loses the newest entry of a key without a message.
    pub(super) fn vanish(&mut self, key: usize) {
        if let Some(newest) = self.newest(key) {
            self.vanished[key] = newest.at.position;
            self.since[key] = 0;
        }
    }

    /// Returns true if the newest entry of a key vanished without a message.
    pub(super) fn has_vanished(&self, key: usize) -> bool {
        self.vanished[key] > 0 && self.vanished[key] == self.last_write(key)
    }

    /// Returns the number of keys in scope with an entry.
    pub(super) fn keys(&self, scope: Keys) -> u64 {
        scope.iter().filter(|key| self.since[*key] > 0).count() as u64
    }

    pub(super) fn incarnation(&self) -> u8 {
        self.incarnation
    }

    pub(super) fn last(&self) -> u8 {
        self.writes.len() as u8
    }

    /// Returns the newest entry of a key, if it is held.
    pub(super) fn newest(&self, key: usize) -> Option<Write> {
        let index = self.writes.iter().rposition(|&(written, _)| written == key)?;
        let at = At { incarnation: self.incarnation, position: index as u8 + 1 };
        (self.since[key] > 0).then_some(Write { key, at, is_value: self.writes[index].1 })
    }

    /// Returns the position of the last write of a key, even if it is no longer held, or 0 if the
    /// key was never written.
    pub(super) fn last_write(&self, key: usize) -> u8 {
        self.writes
            .iter()
            .rposition(|&(written, _)| written == key)
            .map_or(0, |index| index as u8 + 1)
    }

    /// Returns the value of a key at a position.
    pub(super) fn value_at(&self, key: usize, position: u8) -> Option<At> {
        let index =
            self.writes[..position.into()].iter().rposition(|&(written, _)| written == key)?;
        let at = At { incarnation: self.incarnation, position: index as u8 + 1 };
        self.writes[index].1.then_some(at)
    }

    /// Returns the live values.
    pub(super) fn values(&self, scope: Keys) -> Values {
        let lives = |key: usize| scope.has(key) && !self.has_vanished(key);
        std::array::from_fn(|key| self.value_at(key, self.last()).filter(|_| lives(key)))
    }

    /// Returns true if a key has had a value since a position.
    fn lives_since(&self, key: usize, position: u8) -> bool {
        let later = &self.writes[position.into()..];
        self.value_at(key, position).is_some()
            && !self.has_vanished(key)
            && later.iter().all(|&(written, is_value)| written != key || is_value)
    }

    /// Returns true if a cursor is expired: it belongs to another bucket, or updates after it may
    /// be missing.
    pub(super) fn rejects(&self, cursor: At) -> bool {
        let first = (0..KEYS).filter_map(|key| Some(self.newest(key)?.at.position)).min();
        cursor.incarnation != self.incarnation
            || cursor.position > self.last()
            || cursor.position + 1 < first.unwrap_or(self.last() + 1)
            || cursor.position < self.forgotten
    }
}

/// A watch of a bucket. It skips entries that a newer entry superseded before they were read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Watch {
    incarnation: u8,
    scope: Keys,
    /// True if it began with the initial state, not with a cursor.
    from_state: bool,
    /// The end of the bucket when the watch began.
    start: u8,
    /// Position up to which everything was delivered.
    position: u8,
    caught_up: bool,
    /// The delivered keys.
    came: Keys,
}

impl Watch {
    /// Opens a watch, unless the cursor is expired.
    pub(super) fn open(bucket: &Bucket, scope: Keys, from: Option<At>) -> Option<Self> {
        if from.is_some_and(|cursor| bucket.rejects(cursor)) {
            return None;
        }
        Some(Self {
            incarnation: bucket.incarnation,
            scope,
            from_state: from.is_none(),
            start: bucket.last(),
            position: from.map_or(0, |cursor| cursor.position),
            caught_up: false,
            came: Keys::default(),
        })
    }

    pub(super) fn is_from_state(&self) -> bool {
        self.from_state
    }

    pub(super) fn has_caught_up(&self) -> bool {
        self.caught_up
    }

    pub(super) fn came(&self) -> Keys {
        self.came
    }

    /// Returns true if the watched bucket was deleted.
    pub(super) fn is_orphaned(&self, bucket: &Bucket) -> bool {
        self.incarnation != bucket.incarnation
    }

    /// Returns true if the watch has delivered nothing, so that it reads the state as it is.
    pub(super) fn is_fresh(&self) -> bool {
        self.from_state && self.position == 0
    }

    /// Returns true if a deletion was forgotten that the watch has not delivered.
    pub(super) fn is_behind(&self, bucket: &Bucket) -> bool {
        self.position > 0 && self.position < bucket.forgotten
    }

    /// Returns the next entry to deliver.
    pub(super) fn next(&self, bucket: &Bucket) -> Option<Write> {
        let newest = self.scope.iter().filter_map(|key| bucket.newest(key));
        newest
            .filter(|write| write.at.position > self.position)
            .min_by_key(|write| write.at.position)
    }

    /// Returns true if the watch may leave out this entry: a tombstone of the initial state.
    pub(super) fn may_skip(&self, write: Write) -> bool {
        self.from_state && !write.is_value && write.at.position <= self.start
    }

    /// Returns the position up to which everything was delivered.
    fn reached(&self, bucket: &Bucket) -> u8 {
        self.next(bucket).map_or(bucket.last(), |next| next.at.position - 1)
    }

    /// Returns true if the caught-up marker may come: all keys that were live all the time have
    /// been delivered.
    pub(super) fn may_catch_up(&self, bucket: &Bucket) -> bool {
        let is_pending =
            |key| self.from_state && !self.came.has(key) && bucket.lives_since(key, self.start);
        !self.caught_up && self.reached(bucket) >= self.start && !self.scope.iter().any(is_pending)
    }

    /// Delivers an entry, and returns its cursor.
    pub(super) fn deliver(&mut self, write: Write) -> At {
        self.position = write.at.position;
        self.came.insert(write.key);
        write.at
    }

    pub(super) fn skip(&mut self, write: Write) {
        self.position = write.at.position;
    }

    /// Delivers the marker, and returns its cursor: the highest one that it can have.
    pub(super) fn catch_up(&mut self, bucket: &Bucket) -> At {
        self.caught_up = true;
        self.position = self.reached(bucket);
        At { incarnation: self.incarnation, position: self.position }
    }
}
