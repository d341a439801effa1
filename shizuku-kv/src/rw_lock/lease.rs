//! The decisions about time, and about writes of unknown outcome, on which locks depend. They are
//! pure functions: sessions, the coordinator and the exhaustive model (`model.rs`) call the
//! same ones.
//!
//! Their correctness together: a holder counts from before it SENT a renewal, a failure detector
//! from after it SAW it. The renewal was written between the two, so the detector's time begins
//! later, and it is longer. Then the detector deletes the version that it saw. The deletion
//! succeeds only if no version has been written since, and none can be written afterwards. No clock
//! is compared with another one. Only the length of a second on two machines has to be equal within
//! an eighth.

use std::time::Duration;

use crate::store::VersionToken;

/// Returns whether a session still has its grants. `since_sent` counts from the start of sending
/// the newest renewal that was acknowledged, or that was found in the store. The attempt has to be
/// known, so each one has a number of its own (ADR 0043).
pub(super) fn holds(since_sent: Duration, lease: Duration) -> bool {
    since_sent < lease
}

/// Returns the time without a renewal after which a session may be ended.
pub(super) fn patience(lease: Duration) -> Duration {
    lease.saturating_add(lease / 8)
}

/// Returns whether a session may be ended, this long after its newest version was observed. The
/// process that ends it has to delete exactly that version.
pub(super) fn is_silent(since_observed: Duration, lease: Duration) -> bool {
    since_observed >= patience(lease)
}

/// The meaning of an entry under the key of a session for that session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryMeaning {
    /// The entry is older than the session, and says nothing about it.
    Older,
    /// The session was alive when the entry was written.
    Alive,
    /// The session is over: its key was deleted, or serves another session.
    Ended,
}

/// Returns the meaning of an entry for a session. `first` is the version of the session's first
/// entry under that key; it is `None` if the key serves no other session. `is_its_own` is false for
/// a tombstone and for the entry of another session.
///
/// Versions of a key only grow. An entry from before `first` is therefore older than the session,
/// whatever its content. A later one that is not of this session was written after the session's
/// key had been deleted.
pub(super) fn meaning(first: Option<u64>, version: Option<u64>, is_its_own: bool) -> EntryMeaning {
    if first.zip(version).is_some_and(|(first, version)| version < first) {
        EntryMeaning::Older
    } else if is_its_own {
        EntryMeaning::Alive
    } else {
        EntryMeaning::Ended
    }
}

/// Returns whether a session may be dead, so that waiting until it is silent can be useful. Its
/// newest entry is old enough by the clock of the store, or was seen long enough ago.
///
/// This decides only whether a claim waits a little longer before it is rejected. The clock of the
/// store is that of another machine, and may be wrong: no session is ended because of it (ADR
/// 0055).
pub(super) fn may_be_dead(
    age_in_store: Duration,
    since_observed: Duration,
    lease: Duration,
) -> bool {
    age_in_store >= patience(lease) || since_observed >= lease / 2
}

/// Returns whether a write of unknown outcome can still land. `expected` is the version that it
/// replaces, `newest` the one that was read since. `None` stands for a record that does not exist
/// yet.
///
/// Until then, a claim in that write is not out of the record, even if the record does not show it.
/// Another write has to replace the expected version first, even if that write changes nothing.
pub(super) fn may_land(expected: Option<VersionToken>, newest: Option<VersionToken>) -> bool {
    expected == newest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clocks that differ by an eighth: the holder's lease ends before the detector's patience
    /// does.
    #[test]
    fn lease_ends_before_patience_does() {
        for lease in [1, 7, 8, 999, 1000, 10_000_000_001].map(Duration::from_nanos) {
            let patience = patience(lease);
            assert!(!holds(lease, lease) && holds(lease - Duration::from_nanos(1), lease));
            assert!(
                is_silent(patience, lease) && !is_silent(patience - Duration::from_nanos(1), lease)
            );
            // Time on the slower clock when the faster one has counted to the end.
            let slower =
                Duration::from_nanos(u64::try_from(patience.as_nanos() * 8 / 9).unwrap_or(0));
            assert!(slower + Duration::from_nanos(2) >= lease);
        }
        assert_eq!(patience(Duration::MAX), Duration::MAX);
    }
}
