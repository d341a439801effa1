//! The decisions about time, and about writes of which nobody knows what became of them, on which locks rest. They are
//! pure functions: sessions, the coordinator and the exhaustive model ([`super::model`]) call the same.
//!
//! Why they are right together: a holder counts from before it SENT a renewal, an observer from after it SAW it. Between
//! the two the renewal was written, so the observer's time begins later, and it is longer. Then the observer deletes the
//! version that it saw. That succeeds only if none has been written since, and none can be written afterwards. Nobody's
//! clock is compared with another's; only what they take for a second has to be the same within an eighth.

use std::time::Duration;

use crate::store::VersionToken;

/// Whether a session still has what it was granted, so long after it began to send the newest renewal that was
/// acknowledged, or that was found in the store. Which try that was has to be known: each has a number of its own.
pub(super) fn holds(since_sent: Duration, lease: Duration) -> bool {
    since_sent < lease
}

/// For how long nothing may have been heard of a session before it may be killed.
pub(super) fn patience(lease: Duration) -> Duration {
    lease.saturating_add(lease / 8)
}

/// Whether a session may be killed, so long after its newest version was observed. Whoever does it has to delete exactly
/// that version.
pub(super) fn is_silent(since_observed: Duration, lease: Duration) -> bool {
    since_observed >= patience(lease)
}

/// The meaning of an entry under the key of a session for that session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// Nothing: the entry is older than the session.
    Older,
    /// The session was alive when the entry was written.
    Life,
    /// The session is over: its key was deleted, or serves another session.
    Over,
}

/// Returns the meaning of an entry for a session. `first` is the version of the session's first
/// entry under that key; it is `None` if the key serves no other session. `is_its_own` is false for
/// a tombstone and for the entry of another session.
///
/// Versions of a key only grow. An entry from before `first` is therefore older than the session,
/// whatever it says. A later one that is not of this session was written after the session's key
/// had been deleted.
pub(super) fn sign(first: Option<u64>, version: Option<u64>, is_its_own: bool) -> Sign {
    if first.zip(version).is_some_and(|(first, version)| version < first) {
        Sign::Older
    } else if is_its_own {
        Sign::Life
    } else {
        Sign::Over
    }
}

/// Returns whether a session may be dead, so that waiting until it is silent can be useful. Its
/// newest entry is old enough by the clock of the store, or was seen long enough ago.
///
/// This decides only whether a claim waits a little longer before it is rejected. The clock of the
/// store is that of another machine, and may be wrong: no session is ended because of it.
pub(super) fn may_be_dead(
    age_in_store: Duration,
    since_observed: Duration,
    lease: Duration,
) -> bool {
    age_in_store >= patience(lease) || since_observed >= lease / 2
}

/// Whether a write of which nobody knows what became of it can still land: `expected` is the version that it replaces,
/// `newest` the one that was read since. `None` is a record that is not there yet.
///
/// While it can, a claim that it has in it is not out of the record, even where the record has nothing of it. Something has
/// to be written first that replaces what it expects, even if that changes nothing.
pub(super) fn may_land(expected: Option<VersionToken>, newest: Option<VersionToken>) -> bool {
    expected == newest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clocks that differ by an eighth: the holder's lease is over when the observer's patience is.
    #[test]
    fn a_lease_is_over_before_patience_is() {
        for lease in [1, 7, 8, 999, 1000, 10_000_000_001].map(Duration::from_nanos) {
            let patience = patience(lease);
            assert!(!holds(lease, lease) && holds(lease - Duration::from_nanos(1), lease));
            assert!(
                is_silent(patience, lease) && !is_silent(patience - Duration::from_nanos(1), lease)
            );
            // What the slower clock has counted when the faster one has counted to the end.
            let slower =
                Duration::from_nanos(u64::try_from(patience.as_nanos() * 8 / 9).unwrap_or(0));
            assert!(slower + Duration::from_nanos(2) >= lease);
        }
        assert_eq!(patience(Duration::MAX), Duration::MAX);
    }

    #[test]
    fn an_entry_of_another_session_is_an_end_unless_it_is_older() {
        assert_eq!(sign(Some(5), Some(4), false), Sign::Older);
        assert_eq!(sign(Some(5), Some(5), true), Sign::Life);
        assert_eq!(sign(Some(5), Some(6), false), Sign::Over);
        assert_eq!(sign(None, Some(6), false), Sign::Over);
        assert_eq!(sign(Some(5), None, true), Sign::Life);
    }

    #[test]
    fn a_write_lands_on_what_it_expects_only() {
        let version = |number| Some(VersionToken::from_u64(number));
        assert!(may_land(None, None) && may_land(version(3), version(3)));
        assert!(!may_land(None, version(1)) && !may_land(version(3), version(4)));
    }
}
