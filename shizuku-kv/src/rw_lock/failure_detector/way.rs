//! Determines which sessions are in the way of a claim, and which of them it watches.
//!
//! Each waiting claim watches the few sessions before it; claims at the front of the queue watch
//! the holders. The number of messages for *n* holders and *m* waiters therefore grows with *n +
//! m*. A session that may be dead does not count: the one before it is watched too. All dead
//! sessions in a queue are therefore detected at the same time.

use std::collections::BTreeSet;

use super::{FailureDetector, KnownSession, Wanted};
use crate::rw_lock::lease;
use crate::rw_lock::record::{LockRecord, SessionId};

/// Number of places before a claim that the claim watches. The holders are one place.
const REACH: usize = 2;

/// Whether a claim may be granted once dead sessions are out of its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Prospect {
    /// No session is in its way.
    Free,
    /// All sessions in its way may be dead. They are found dead once they have been silent for long
    /// enough.
    MayBeDead,
    /// These sessions are unknown so far, and none of the others is alive.
    Unknown(Vec<SessionId>),
    /// A session in its way is alive.
    Alive,
}

/// Returns the places before one in the queue, the nearest first. The holders are the last.
fn places(record: &LockRecord, index: usize) -> impl Iterator<Item = Vec<SessionId>> {
    let line = record.queue[..index.min(record.queue.len())].iter().rev();
    let holders: BTreeSet<_> = record.holders.iter().map(|grant| grant.claim.id.session).collect();
    line.map(|claim| vec![claim.id.session]).chain(std::iter::once(holders.into_iter().collect()))
}

impl FailureDetector {
    /// Returns the sessions that are in the way and are watched.
    pub(super) fn wanted(&self, record: &LockRecord, own: &[SessionId]) -> Vec<Wanted> {
        let in_line = record.queue.iter().enumerate();
        let mut indexes: Vec<_> = in_line
            .filter(|(_, claim)| own.contains(&claim.id.session))
            .map(|(index, _)| index)
            .collect();
        indexes.extend(self.vigil.then_some(record.queue.len()));
        let mut wanted: Vec<Wanted> = Vec::new();
        for index in indexes {
            let mut reach = 0;
            for place in places(record, index) {
                let others: Vec<_> =
                    place.into_iter().filter(|session| !own.contains(session)).collect();
                let is_alive = |session: &SessionId| {
                    self.seen
                        .get(session)
                        .is_none_or(|seen| !seen.is_over && !self.may_be_dead(seen))
                };
                let counts = others.iter().any(is_alive);
                for session in others {
                    let is_next = reach == 0;
                    match wanted.iter_mut().find(|wanted| wanted.session == session) {
                        Some(wanted) => wanted.is_next |= is_next,
                        None => wanted.push(Wanted { session, is_next }),
                    }
                }
                reach += usize::from(counts);
                if reach == REACH {
                    break;
                }
            }
        }
        wanted
    }

    /// Returns whether a session may be dead, as far as is known without having waited for it.
    pub(super) fn may_be_dead(&self, seen: &KnownSession) -> bool {
        // A renewal that came while the session was watched is better evidence than a clock.
        let time = self.time().filter(|_| !seen.renewed);
        let age = time.and_then(|now| now.duration_since(seen.created).ok()).unwrap_or_default();
        seen.version.is_some() && lease::may_be_dead(age, seen.since.elapsed(), seen.lease)
    }

    /// Returns whether a claim at this place in the queue may be granted soon, although others are
    /// before it. A session that could not be ended for a long time is no longer waited for.
    pub(in super::super) fn prospect(
        &self,
        record: &LockRecord,
        index: usize,
        own: &[SessionId],
    ) -> Prospect {
        let mut unknown = Vec::new();
        let mut prospect = Prospect::Free;
        for session in places(record, index).flatten() {
            if own.contains(&session) {
                return Prospect::Alive;
            }
            match self.seen.get(&session) {
                None => unknown.push(session),
                Some(seen) if seen.is_over => {}
                Some(seen) => {
                    let is_tiring = seen.since.elapsed() >= 2 * lease::patience(seen.lease);
                    if is_tiring || !self.may_be_dead(seen) {
                        return Prospect::Alive;
                    }
                    prospect = Prospect::MayBeDead;
                }
            }
        }
        if unknown.is_empty() { prospect } else { Prospect::Unknown(unknown) }
    }
}
