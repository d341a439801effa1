//! Decision whether a watch can resume at a position: a pure function of the stream's figures (ADR
//! 0063).

use std::time::Duration;

/// Position of a watch.
#[derive(Clone, Copy, Debug)]
pub(super) struct CursorState {
    pub(super) same_incarnation: bool,
    pub(super) position: u64,
    /// Another message has this position now, or the last delivered message is lost.
    pub(super) rewritten: bool,
    /// The message at this position is gone, and existed when the position was created. A position
    /// that was created after the removal has a later time than the message.
    pub(super) is_gone: bool,
    /// Time since the watch was last known to miss nothing.
    pub(super) age: Duration,
    /// The position is from a stored cursor. Otherwise the watch itself was at this position a
    /// moment ago.
    pub(super) given_by_user: bool,
    /// The watch has not delivered anything, and reads the current state.
    pub(super) fresh: bool,
}

/// Messages that the stream still holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retained {
    pub(super) first: u64,
    pub(super) last: u64,
    /// Tombstones after an earlier position may have had a shorter life than the settings show.
    pub(super) cursors_from: u64,
    pub(super) tombstone_life: Option<Duration>,
}

/// Reason why a watch cannot resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expiry {
    Recreated,
    Lost,
    Compacted,
    Gone,
    Vanished,
    TombstonesForgotten,
}

impl Expiry {
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Recreated => {
                "it belongs to another store, or to one that was deleted and recreated"
            }
            Self::Lost => {
                "the server has lost acknowledged writes, or an operator has removed them"
            }
            Self::Compacted => "the store no longer holds everything that followed it",
            Self::Gone => "the store no longer holds its entry, which no later one has superseded",
            Self::Vanished => {
                "entries have left the store since without a deletion: an operator purged them"
            }
            Self::TombstonesForgotten => "deletions that followed it may have been forgotten since",
        }
    }
}

/// Returns a reason if a message that followed a position may be missing from the stream.
///
/// A message leaves a bucket because a newer one of its key supersedes it, which a watch may skip.
/// Expired tombstones and messages that an operator removed leave without a successor. A stored
/// cursor knows nothing about the time since, so that any gap at the front counts. A watch that was
/// at the position a moment ago needs only the tombstones since then (ADR 0008).
pub(super) fn expiry(cursor: &CursorState, stream: &Retained) -> Option<Expiry> {
    if cursor.fresh {
        return None;
    }
    if !cursor.same_incarnation {
        return Some(Expiry::Recreated);
    }
    if cursor.position > stream.last || cursor.rewritten {
        return Some(Expiry::Lost);
    }
    if cursor.position == stream.last {
        // A watch that was at this position a moment ago compares the stream's figures instead.
        return (cursor.given_by_user && cursor.is_gone).then_some(Expiry::Gone);
    }
    if cursor.given_by_user && cursor.position + 1 < stream.first {
        return Some(Expiry::Compacted);
    }
    let is_before_the_settings = cursor.given_by_user && cursor.position < stream.cursors_from;
    if is_before_the_settings || stream.tombstone_life.is_some_and(|life| cursor.age >= life) {
        return Some(Expiry::TombstonesForgotten);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANDING: CursorState = CursorState {
        same_incarnation: true,
        position: 10,
        rewritten: false,
        is_gone: false,
        age: Duration::from_secs(60),
        given_by_user: true,
        fresh: false,
    };
    const STREAM: Retained = Retained { first: 5, last: 20, cursors_from: 0, tombstone_life: None };

    #[test]
    fn cursor_expires_if_a_message_may_be_missing() {
        assert_eq!(expiry(&STANDING, &STREAM), None);
        assert_eq!(
            expiry(&CursorState { same_incarnation: false, ..STANDING }, &STREAM),
            Some(Expiry::Recreated)
        );
        assert_eq!(expiry(&CursorState { position: 21, ..STANDING }, &STREAM), Some(Expiry::Lost));
        assert_eq!(
            expiry(&CursorState { rewritten: true, ..STANDING }, &STREAM),
            Some(Expiry::Lost)
        );
        assert_eq!(expiry(&STANDING, &Retained { first: 11, ..STREAM }), None);
        assert_eq!(expiry(&STANDING, &Retained { first: 12, ..STREAM }), Some(Expiry::Compacted));
        // No message followed it, so that none can be missing.
        let at_end = CursorState { position: 20, ..STANDING };
        assert_eq!(expiry(&at_end, &STREAM), None);
        // The message at the position had no successor, so that it was removed.
        let gone = CursorState { is_gone: true, ..at_end };
        assert_eq!(expiry(&gone, &Retained { first: 21, ..STREAM }), Some(Expiry::Gone));
        assert_eq!(expiry(&CursorState { given_by_user: false, ..gone }, &STREAM), None);
        assert_eq!(expiry(&CursorState { is_gone: true, ..STANDING }, &STREAM), None);
        let forgets = |life| Retained { tombstone_life: Some(Duration::from_secs(life)), ..STREAM };
        assert_eq!(expiry(&STANDING, &forgets(61)), None);
        assert_eq!(expiry(&STANDING, &forgets(60)), Some(Expiry::TombstonesForgotten));
        assert_eq!(expiry(&at_end, &forgets(1)), None);
        // Before the present settings were in force.
        let since = |cursors_from| Retained { cursors_from, ..STREAM };
        assert_eq!(expiry(&STANDING, &since(10)), None);
        assert_eq!(expiry(&STANDING, &since(11)), Some(Expiry::TombstonesForgotten));
        assert_eq!(expiry(&at_end, &since(21)), None);
    }

    #[test]
    fn running_watch_resumes_over_compaction() {
        let own = CursorState { given_by_user: false, ..STANDING };
        assert_eq!(expiry(&own, &Retained { first: 15, ..STREAM }), None);
        let fresh = CursorState { fresh: true, same_incarnation: false, position: 0, ..own };
        assert_eq!(expiry(&fresh, &STREAM), None);
    }
}
