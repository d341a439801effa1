//! The cached record of a lock, from reads, from this process's own writes and from the watch. An
//! older version never replaces the newest known one, unless the store is proven to be another one.
//!
//! Plain data: the coordinator reads, writes and watches, and reports the results here.

use tokio::time::Instant;

use crate::rw_lock::lease;
use crate::rw_lock::record::LockRecord;
use crate::rw_lock::session::{is_later, is_older};
use crate::store::{Deadline, KvEntry, KvOperation, VersionToken};

/// A record with the version under which it can be replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CachedRecord {
    pub(super) record: LockRecord,
    /// `None` if no entry exists.
    pub(super) version: Option<VersionToken>,
    /// Whether the entry has expired, because the store was given a maximum age. Creating another
    /// entry makes the store check whether the maximum age is still set.
    pub(super) has_expired: bool,
}

/// State of the cache.
#[derive(Debug)]
pub(super) enum Cached {
    /// No record is known, or a later one may exist.
    Unknown,
    /// The newest entry is not a lock record that this version can read. The next request reads the
    /// entry again.
    Foreign,
    /// Reads return an older version than the newest known one. Either the reads reach a replaced
    /// leader that still answers, or the store was recreated and its versions count from the start.
    /// The initial state of a watch that was opened since then decides, because it contains all
    /// acknowledged writes.
    Contradicted { since: Instant },
    /// The newest known record.
    Known(CachedRecord),
}

/// The initial state of the watch of the record.
#[derive(Debug)]
enum InitialState {
    /// The watch is not open. Its initial state will be at least as new as `floor`, the newest
    /// version known before, unless the store was recreated.
    Awaited {
        floor: Option<VersionToken>,
    },
    /// The watch has delivered the initial state up to `found`.
    Arriving {
        floor: Option<VersionToken>,
        found: Option<KvEntry>,
    },
    Complete,
}

/// The effect of an entry from a read or from the watch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum EntryEffect {
    /// No later record.
    Nothing,
    Record,
    /// The entry is not a lock record, for this reason.
    Foreign(String),
}

/// The result of a complete initial state.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CaughtUp {
    /// Whether the store was recreated. The new store has no session of this process.
    pub(super) is_recreated: bool,
    pub(super) effect: EntryEffect,
}

/// A write of unknown outcome. The write may still land until another one has replaced the expected
/// version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unresolved {
    expected: Option<VersionToken>,
}

#[derive(Debug)]
pub(super) struct RecordCache {
    state: Cached,
    /// The newest known version of the record.
    newest: Option<VersionToken>,
    unresolved: Option<Unresolved>,
    initial: InitialState,
    /// Whether the watch was opened after the record was last invalidated. An earlier initial state
    /// may be of a deleted store, whose versions the present store assigns again.
    is_initial_new: bool,
}

impl RecordCache {
    pub(super) fn new() -> Self {
        Self {
            state: Cached::Unknown,
            newest: None,
            unresolved: None,
            initial: InitialState::Awaited { floor: None },
            is_initial_new: false,
        }
    }

    pub(super) fn state(&self) -> &Cached {
        &self.state
    }

    /// Returns the record, if one is known.
    pub(super) fn known(&self) -> Option<&CachedRecord> {
        match &self.state {
            Cached::Known(known) => Some(known),
            Cached::Unknown | Cached::Foreign | Cached::Contradicted { .. } => None,
        }
    }

    /// Returns the time until which the watch decides which version is the newest. Afterwards the
    /// record is read again.
    pub(super) fn contradicted_until(&self) -> Option<Instant> {
        match self.state {
            Cached::Contradicted { since } => Some(since + Deadline::DEFAULT),
            _ => None,
        }
    }

    /// Returns whether the record has to be written even if no request changes it, because a write
    /// of unknown outcome may still land.
    pub(super) fn has_unresolved(&self, known: &CachedRecord) -> bool {
        self.unresolved.is_some_and(|write| lease::may_land(write.expected, known.version))
    }

    /// Records that a newer record may exist.
    pub(super) fn invalidate(&mut self) {
        self.state = Cached::Unknown;
        self.is_initial_new = false;
    }

    /// Returns whether an entry from a read is older than the newest known version.
    pub(super) fn is_stale(&self, found: Option<&KvEntry>) -> bool {
        is_older(found.map(|entry| entry.version), self.newest)
    }

    /// Records that reads return stale entries only, and that the watch is being reopened.
    pub(super) fn contradicted(&mut self) {
        self.watch_started();
        self.state = Cached::Contradicted { since: Instant::now() };
    }

    /// Uses the entry that the leader has returned.
    pub(super) fn read(&mut self, found: Option<KvEntry>) -> EntryEffect {
        self.newest = found.as_ref().map(|entry| entry.version);
        self.learn(found)
    }

    /// Uses an entry that may be stale because it was read before, unless a version is already
    /// known.
    pub(super) fn prefetched(&mut self, entry: KvEntry) -> EntryEffect {
        if self.newest.is_some() {
            return EntryEffect::Nothing;
        }
        self.read(Some(entry))
    }

    /// Records the acknowledgement of a write.
    pub(super) fn written(&mut self, record: LockRecord, version: VersionToken) {
        self.unresolved = None;
        self.newest = Some(version);
        let version = Some(version);
        self.state = Cached::Known(CachedRecord { record, version, has_expired: false });
    }

    /// Records that the outcome of a write is unknown.
    pub(super) fn outcome_unknown(&mut self, expected: Option<VersionToken>) {
        self.unresolved = Some(Unresolved { expected });
        self.invalidate();
    }

    /// Records that the watch is being opened.
    pub(super) fn watch_started(&mut self) {
        self.initial = InitialState::Awaited { floor: self.newest };
        self.is_initial_new = true;
    }

    /// Records that the watch is open.
    pub(super) fn watch_opened(&mut self) {
        if let InitialState::Awaited { floor } = self.initial {
            self.initial = InitialState::Arriving { floor, found: None };
        }
    }

    /// Records that the watch was lost, so that a newer record may exist. The watch is being
    /// reopened.
    pub(super) fn watch_lost(&mut self) {
        self.invalidate();
        self.watch_started();
    }

    /// Uses an entry that the watch has delivered.
    pub(super) fn delivered(&mut self, entry: KvEntry) -> EntryEffect {
        if let InitialState::Arriving { found, .. } = &mut self.initial {
            *found = Some(entry.clone());
        }
        if self.newest.is_some_and(|newest| !is_later(entry.version, newest)) {
            return EntryEffect::Nothing;
        }
        self.read(Some(entry))
    }

    /// Records that the initial state is complete.
    pub(super) fn caught_up(&mut self) -> CaughtUp {
        let initial = std::mem::replace(&mut self.initial, InitialState::Complete);
        let needs_record = matches!(self.state, Cached::Unknown | Cached::Contradicted { .. });
        let is_new = self.is_initial_new;
        if needs_record {
            self.invalidate();
        }
        let InitialState::Arriving { floor, found } = initial else {
            return CaughtUp { is_recreated: false, effect: EntryEffect::Nothing };
        };
        // An initial state that is older than the newest version known before belongs to another
        // store.
        let is_recreated = is_older(found.as_ref().map(|entry| entry.version), floor);
        if is_recreated {
            self.unresolved = None;
        }
        let effect = if is_recreated || needs_record && is_new && !self.is_stale(found.as_ref()) {
            self.read(found)
        } else {
            EntryEffect::Nothing
        };
        CaughtUp { is_recreated, effect }
    }

    fn learn(&mut self, entry: Option<KvEntry>) -> EntryEffect {
        let version = entry.as_ref().map(|entry| entry.version);
        let is_tombstone = entry.as_ref().is_some_and(KvEntry::is_tombstone);
        self.unresolved = match self.unresolved {
            // A write that expects no entry lands over a tombstone too.
            Some(Unresolved { expected: None }) if is_tombstone => {
                Some(Unresolved { expected: version })
            }
            unresolved => unresolved.filter(|write| lease::may_land(write.expected, version)),
        };
        let has_expired =
            entry.as_ref().is_some_and(|entry| entry.operation == KvOperation::Expire);
        let record = match entry.filter(|entry| !entry.is_tombstone()) {
            None => Ok(LockRecord::default()),
            Some(entry) => LockRecord::from_bytes(&entry.value),
        };
        match record {
            Ok(record) => {
                self.state = Cached::Known(CachedRecord { record, version, has_expired });
                EntryEffect::Record
            }
            Err(reason) => {
                self.state = Cached::Foreign;
                EntryEffect::Foreign(reason)
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;
    use crate::store::Key;
    use std::time::SystemTime;

    /// Returns an entry whose record has the version of the entry as its fence.
    fn entry(version: u64) -> KvEntry {
        let record = LockRecord { fence: version, ..LockRecord::default() };
        let (key, version) = (Key::new("rw_lock.r").unwrap(), VersionToken::from_u64(version));
        KvEntry::put(key, record.to_bytes(None).into(), version, SystemTime::UNIX_EPOCH)
    }

    fn fence(cache: &RecordCache) -> Option<u64> {
        cache.known().map(|known| known.record.fence)
    }

    fn opened_after(version: u64) -> RecordCache {
        let mut cache = RecordCache::new();
        assert_eq!(cache.read(Some(entry(version))), EntryEffect::Record);
        cache.watch_started();
        cache.watch_opened();
        cache
    }

    /// The store may have been recreated since, and have assigned the same versions again.
    #[test]
    fn initial_state_from_before_an_invalidation_is_not_adopted() {
        let mut cache = opened_after(5);
        assert_eq!(cache.delivered(entry(5)), EntryEffect::Nothing);
        cache.invalidate();
        assert_eq!(cache.caught_up().effect, EntryEffect::Nothing);
        assert_eq!(fence(&cache), None);
        cache.watch_lost();
        cache.watch_opened();
        assert_eq!(cache.delivered(entry(5)), EntryEffect::Nothing);
        assert_eq!(cache.caught_up().effect, EntryEffect::Record);
        assert_eq!(fence(&cache), Some(5));
    }

    #[test]
    fn older_entry_never_replaces_a_newer_one() {
        let mut cache = opened_after(5);
        assert_eq!(cache.delivered(entry(4)), EntryEffect::Nothing);
        assert_eq!(cache.prefetched(entry(4)), EntryEffect::Nothing);
        assert!(cache.is_stale(Some(&entry(4))) && cache.is_stale(None));
        assert_eq!(fence(&cache), Some(5));
        cache.invalidate();
        assert_eq!(cache.delivered(entry(5)), EntryEffect::Nothing);
        assert_eq!(fence(&cache), None);
        assert_eq!(cache.delivered(entry(6)), EntryEffect::Record);
        assert_eq!(fence(&cache), Some(6));
    }

    /// If reads stay stale because a replaced leader answers them, the watch proves the newest
    /// version, and no further read is needed.
    #[test]
    fn contradiction_ends_with_a_complete_initial_state() {
        let mut cache = opened_after(5);
        cache.contradicted();
        cache.watch_opened();
        assert_eq!(cache.delivered(entry(5)), EntryEffect::Nothing);
        assert!(cache.contradicted_until().is_some() && cache.known().is_none());
        let effect = EntryEffect::Record;
        assert_eq!(cache.caught_up(), CaughtUp { is_recreated: false, effect });
        assert_eq!(fence(&cache), Some(5));
    }

    #[test]
    fn initial_state_before_the_floor_is_of_a_recreated_store() {
        for found in [Some(3), None] {
            let mut cache = opened_after(5);
            cache.outcome_unknown(Some(VersionToken::from_u64(3)));
            cache.contradicted();
            cache.watch_opened();
            if let Some(found) = found {
                assert_eq!(cache.delivered(entry(found)), EntryEffect::Nothing);
            }
            let effect = EntryEffect::Record;
            assert_eq!(cache.caught_up(), CaughtUp { is_recreated: true, effect });
            assert_eq!(fence(&cache), Some(found.unwrap_or_default()));
            assert!(!cache.has_unresolved(cache.known().unwrap()));
        }
    }

    /// A write may be acknowledged while the initial state, which does not contain it, is arriving.
    #[test]
    fn initial_state_before_an_own_write_is_not_used() {
        let mut cache = opened_after(5);
        assert_eq!(cache.delivered(entry(5)), EntryEffect::Nothing);
        let record = LockRecord { fence: 6, ..LockRecord::default() };
        cache.written(record, VersionToken::from_u64(6));
        cache.invalidate();
        let effect = EntryEffect::Nothing;
        assert_eq!(cache.caught_up(), CaughtUp { is_recreated: false, effect });
        assert_eq!(fence(&cache), None);
    }

    #[test]
    fn unresolved_write_is_resolved_by_another_version() {
        let mut cache = opened_after(5);
        let expected = Some(VersionToken::from_u64(5));
        cache.outcome_unknown(expected);
        assert_eq!(cache.read(Some(entry(5))), EntryEffect::Record);
        assert!(cache.has_unresolved(cache.known().unwrap()));
        assert_eq!(cache.read(Some(entry(6))), EntryEffect::Record);
        assert!(!cache.has_unresolved(cache.known().unwrap()));
    }

    #[test]
    fn write_over_no_entry_may_land_over_a_tombstone_only() {
        for operation in [KvOperation::Put, KvOperation::Delete] {
            let mut cache = RecordCache::new();
            cache.outcome_unknown(None);
            assert_eq!(cache.read(Some(KvEntry { operation, ..entry(5) })), EntryEffect::Record);
            let may_land = cache.has_unresolved(cache.known().unwrap());
            assert_eq!(may_land, operation == KvOperation::Delete);
        }
    }

    #[test]
    fn foreign_entry_is_replaced_by_a_later_record() {
        let mut cache = opened_after(5);
        let foreign = KvEntry { value: "x".into(), ..entry(6) };
        assert!(matches!(cache.delivered(foreign), EntryEffect::Foreign(_)));
        assert!(matches!(cache.state(), Cached::Foreign));
        assert_eq!(cache.delivered(entry(7)), EntryEffect::Record);
    }
}
