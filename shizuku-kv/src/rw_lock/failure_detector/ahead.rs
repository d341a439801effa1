//! Determines which sessions are ahead of a claim, and which of them it watches. Pure functions of
//! a record and of the liveness of its sessions.
//!
//! Each waiting claim watches the few sessions before it; claims at the front of the queue watch
//! the holders. The number of messages for *n* holders and *m* waiters therefore grows with *n +
//! m*. A session that may be dead does not count towards this number: the one before it is watched
//! too. All dead sessions in a queue are therefore detected at the same time.

use std::collections::BTreeSet;

use crate::rw_lock::record::{LockRecord, SessionId};

/// Number of positions before a claim that the claim watches. All holders together are one
/// position.
const REACH: usize = 2;

/// A session of another process that is ahead of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ahead {
    pub(super) session: SessionId,
    /// Whether the session is directly before the claim.
    pub(super) is_next: bool,
}

/// Liveness of a session, as far as this process knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Liveness {
    /// The key of the session was not read yet.
    Unknown,
    Alive,
    /// The last renewal is so old that waiting for the end of the session can be useful.
    MayBeDead,
    /// The session may be dead, and could not be ended for a long time.
    Stuck,
    /// The session has ended.
    Over,
}

/// Whether a claim may be granted once dead sessions are evicted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::rw_lock) enum Prospect {
    /// No session is ahead of it.
    Free,
    /// All sessions ahead of it may be dead. Those that are dead are ended after a longer silence.
    MayBeDead,
    /// These sessions are unknown so far, and none of the others is alive.
    Unknown(Vec<SessionId>),
    /// A session ahead of it is alive.
    Alive,
}

/// Returns the positions before an index in the queue, the nearest first. The holders are the last.
fn positions(record: &LockRecord, index: usize) -> impl Iterator<Item = Vec<SessionId>> {
    let line = record.queue[..index.min(record.queue.len())].iter().rev();
    let holders = || {
        let sessions = record.holders.iter().map(|grant| grant.claim.id.session);
        sessions.collect::<BTreeSet<_>>().into_iter().collect()
    };
    line.map(|claim| vec![claim.id.session]).chain(std::iter::once_with(holders))
}

/// Returns the watched sessions: those ahead of the waiting claims of the sessions `own`. If
/// `expects_claim` is set, the sessions ahead of a claim that arrives now are included.
pub(super) fn ahead_of(
    record: &LockRecord,
    own: &[SessionId],
    expects_claim: bool,
    liveness: impl Fn(SessionId) -> Liveness,
) -> Vec<Ahead> {
    let is_own =
        |index: usize| record.queue.get(index).is_some_and(|claim| own.contains(&claim.id.session));
    let in_line = (0..record.queue.len()).filter(|index| is_own(*index));
    let indexes = in_line.chain(expects_claim.then_some(record.queue.len()));
    // A claim directly after another one of this process has the same sessions ahead of it.
    let indexes = indexes.filter(|index| index.checked_sub(1).is_none_or(|before| !is_own(before)));
    let mut found: Vec<Ahead> = Vec::new();
    for index in indexes {
        let mut reach = 0;
        for position in positions(record, index) {
            let others: Vec<_> =
                position.into_iter().filter(|session| !own.contains(session)).collect();
            let may_live = |session: &SessionId| {
                matches!(liveness(*session), Liveness::Unknown | Liveness::Alive)
            };
            let counts = others.iter().any(may_live);
            for session in others {
                let is_next = reach == 0;
                match found.iter_mut().find(|ahead| ahead.session == session) {
                    Some(ahead) => ahead.is_next |= is_next,
                    None => found.push(Ahead { session, is_next }),
                }
            }
            reach += usize::from(counts);
            if reach == REACH {
                break;
            }
        }
    }
    found
}

/// Returns whether a claim at this position in the queue may be granted soon, although others
/// precede it. A stuck session counts as alive, because its end may never come.
pub(super) fn prospect(
    record: &LockRecord,
    index: usize,
    own: &[SessionId],
    liveness: impl Fn(SessionId) -> Liveness,
) -> Prospect {
    let mut unknown = Vec::new();
    let mut prospect = Prospect::Free;
    for session in positions(record, index).flatten() {
        if own.contains(&session) {
            return Prospect::Alive;
        }
        match liveness(session) {
            Liveness::Unknown => unknown.push(session),
            Liveness::Over => {}
            Liveness::MayBeDead => prospect = Prospect::MayBeDead,
            Liveness::Alive | Liveness::Stuck => return Prospect::Alive,
        }
    }
    if unknown.is_empty() { prospect } else { Prospect::Unknown(unknown) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rw_lock::record::{Claim, ClaimId, Extra, LockMode};
    use crate::rw_lock::transition::Change;

    fn session(number: u128) -> SessionId {
        SessionId::alone(number)
    }

    /// Returns a record with a writer and a queue of writers, each with its own session.
    fn line(claims: u128) -> LockRecord {
        let mut record = LockRecord::default();
        for number in 0..claims {
            let id = ClaimId { session: session(number), number: 0 };
            let claim = Claim { id, mode: LockMode::Write, label: None, extra: Extra::new() };
            record.apply(&Change::Claim { claim, waits: true });
        }
        record
    }

    fn watched(record: &LockRecord, own: &[u128], dead: &[u128]) -> Vec<u128> {
        let is_dead = |of: SessionId| dead.contains(&of.number());
        let liveness = |of| if is_dead(of) { Liveness::MayBeDead } else { Liveness::Alive };
        let own: Vec<_> = own.iter().map(|number| session(*number)).collect();
        let ahead = ahead_of(record, &own, false, liveness);
        assert!(ahead.first().is_none_or(|ahead| ahead.is_next));
        ahead.into_iter().map(|ahead| ahead.session.number()).collect()
    }

    /// Dead sessions extend the reach, so that all of them are detected at the same time.
    #[test]
    fn waiter_watches_two_live_positions_and_all_dead_before_them() {
        let record = line(8);
        assert_eq!(watched(&record, &[7], &[]), [6, 5]);
        assert_eq!(watched(&record, &[7], &[6, 4, 3]), [6, 5, 4, 3, 2]);
        assert_eq!(watched(&record, &[1], &[]), [0]);
        assert_eq!(watched(&record, &[0], &[]), [] as [u128; 0]);
    }

    /// A claim directly after another one of its process adds no session.
    #[test]
    fn claims_of_one_process_watch_the_positions_before_all_of_them() {
        let record = line(8);
        assert_eq!(watched(&record, &[6, 7], &[]), [5, 4]);
        assert_eq!(watched(&record, &[3, 7], &[]), [2, 1, 6, 5]);
        assert_eq!(watched(&record, &[0, 1, 2], &[]), [] as [u128; 0]);
    }

    #[test]
    fn prospect_depends_on_the_liveliest_session_ahead() {
        let record = line(3);
        let of = |own: &[SessionId], liveness: [Liveness; 2]| {
            prospect(&record, 1, own, |of| liveness[usize::from(of == session(1))])
        };
        use Liveness::{Alive, MayBeDead, Over, Stuck, Unknown};
        assert_eq!(of(&[], [Over, Over]), Prospect::Free);
        assert_eq!(of(&[], [Over, MayBeDead]), Prospect::MayBeDead);
        assert_eq!(of(&[], [Unknown, MayBeDead]), Prospect::Unknown(vec![session(0)]));
        assert_eq!(of(&[], [Unknown, Alive]), Prospect::Alive);
        assert_eq!(of(&[], [MayBeDead, Stuck]), Prospect::Alive);
        assert_eq!(of(&[session(1)], [MayBeDead, MayBeDead]), Prospect::Alive);
    }
}
