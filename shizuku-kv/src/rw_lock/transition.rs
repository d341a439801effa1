//! The changes of a lock's record: one pure function, which the coordinator calls and the model
//! tries exhaustively.
//!
//! `docs/locks.md` is its specification. It depends on two facts. A record is only ever replaced by
//! compare-and-swap, so that the changes of all processes have one order. A claim in the record
//! lives as long as its session's key, about which the record says nothing.

use super::record::{Claim, ClaimId, Grant, LockMode, LockRecord, SessionId};
use crate::store::FencingToken;

/// Maximum number of waiting claims. The record has to fit into a value, and all of them read it.
pub(super) const LONGEST_QUEUE: usize = 4096;

/// A requested change of a record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Change {
    /// Acquires the resource now, or waits in the queue if `waits` is set. Repeating it changes
    /// nothing.
    Claim { claim: Claim, waits: bool },
    /// Releases the lock of a holder, or removes a waiter.
    Leave(ClaimId),
    /// Turns a writer into a reader, under the same token.
    Downgrade(ClaimId),
    /// Removes all claims and grants of a session that is over.
    Evict(SessionId),
    /// Revokes the resource, for an operator, from the holders whose token is at most `newest`.
    /// Repeating it revokes no later grant. The fence moves on, so that their writes are rejected
    /// once another write has used a later token.
    Break { newest: FencingToken },
}

/// The outcome of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Outcome {
    Granted(FencingToken),
    /// The claim is in the queue.
    Queued,
    /// Another claim holds the resource or comes first, and the claim does not wait.
    Busy,
    /// The queue is full.
    Full,
    /// A claim has left, or was downgraded or evicted.
    Done,
    /// Broken: the token lies between those of the broken holders and those that follow.
    Broken(FencingToken),
    /// The record has no such claim or grant.
    NotThere,
}

impl LockRecord {
    /// Applies a change, then grants the lock to the waiters that can hold it.
    pub(super) fn apply(&mut self, change: &Change) -> Outcome {
        let outcome = match change {
            Change::Claim { claim, waits } => return self.claim(claim, *waits),
            Change::Leave(id) => self.remove(|claim| claim.id == *id),
            Change::Evict(session) => self.remove(|claim| claim.id.session == *session),
            Change::Downgrade(id) => self.downgrade(*id),
            Change::Break { newest } => {
                self.holders.retain(|grant| grant.token > *newest);
                let between = newest.as_u64() + 1;
                self.fence = self.fence.max(between);
                Outcome::Broken(FencingToken::from_u64(between))
            }
        };
        self.grant_waiters();
        outcome
    }

    fn claim(&mut self, claim: &Claim, waits: bool) -> Outcome {
        // A claim whose acknowledgement was lost is requested again.
        if let Some(grant) = self.grant(claim.id) {
            return Outcome::Granted(grant.token);
        }
        if self.queue.iter().any(|waiting| waiting.id == claim.id) {
            return Outcome::Queued;
        }
        // A record that was edited by hand may have a waiter that nothing blocks.
        self.grant_waiters();
        // No waiter is overtaken. The reason for which a waiter waits also holds for a new claim,
        // or the waiter came first.
        if self.queue.is_empty() && self.admits(claim.mode) {
            return Outcome::Granted(self.admit(claim.clone()));
        }
        if !waits {
            return Outcome::Busy;
        }
        if self.queue.len() >= LONGEST_QUEUE {
            return Outcome::Full;
        }
        self.queue.push(claim.clone());
        Outcome::Queued
    }

    fn remove(&mut self, is_meant: impl Fn(&Claim) -> bool) -> Outcome {
        let before = self.holders.len() + self.queue.len();
        self.holders.retain(|grant| !is_meant(&grant.claim));
        self.queue.retain(|claim| !is_meant(claim));
        if self.holders.len() + self.queue.len() < before {
            Outcome::Done
        } else {
            Outcome::NotThere
        }
    }

    fn downgrade(&mut self, id: ClaimId) -> Outcome {
        let Some(grant) = self.holders.iter_mut().find(|grant| grant.claim.id == id) else {
            return Outcome::NotThere;
        };
        grant.claim.mode = LockMode::Read;
        Outcome::Done
    }

    /// Grants the lock to the first waiter, and to those behind it that can hold it together.
    fn grant_waiters(&mut self) {
        while self.queue.first().is_some_and(|next| self.admits(next.mode)) {
            let next = self.queue.remove(0);
            self.admit(next);
        }
    }

    /// Returns whether the holders leave room for a claim.
    fn admits(&self, mode: LockMode) -> bool {
        match mode {
            LockMode::Write => self.holders.is_empty(),
            LockMode::Read => self.holders.iter().all(|grant| grant.claim.mode == LockMode::Read),
        }
    }

    fn admit(&mut self, claim: Claim) -> FencingToken {
        self.fence += 1;
        let token = FencingToken::from_u64(self.fence);
        self.holders.push(Grant { claim, token, since: None });
        token
    }
}

/// The model (`model.rs`) covers the other cases.
#[cfg(test)]
mod tests {
    use super::super::record::Extra;
    use super::*;
    use LockMode::Write;

    fn id(number: u64) -> ClaimId {
        ClaimId { session: SessionId::alone(u128::from(number / 10)), number }
    }

    fn asks(number: u64, mode: LockMode) -> Claim {
        Claim { id: id(number), mode, label: None, extra: Extra::new() }
    }

    fn claim(number: u64, mode: LockMode) -> Change {
        Change::Claim { claim: asks(number, mode), waits: true }
    }

    fn granted(token: u64) -> Outcome {
        Outcome::Granted(FencingToken::from_u64(token))
    }

    fn holders(record: &LockRecord) -> Vec<(u64, u64)> {
        assert!(record.is_sound(), "{record:?}");
        record.holders.iter().map(|grant| (grant.claim.id.number, grant.token.as_u64())).collect()
    }

    #[test]
    fn repeated_change_has_no_effect() {
        let mut lock = LockRecord::default();
        lock.apply(&claim(1, Write));
        lock.apply(&claim(2, Write));
        let before = lock.clone();
        assert_eq!(lock.apply(&claim(1, Write)), granted(1));
        assert_eq!(lock.apply(&claim(2, Write)), Outcome::Queued);
        assert_eq!(lock.apply(&Change::Leave(id(3))), Outcome::NotThere);
        assert_eq!(lock.apply(&Change::Downgrade(id(2))), Outcome::NotThere);
        assert_eq!(lock, before);
    }

    #[test]
    fn break_grants_next_waiter_beyond_returned_token() {
        let mut lock = LockRecord::default();
        lock.apply(&claim(1, Write));
        lock.apply(&claim(2, Write));
        let breaks = |newest| Change::Break { newest: FencingToken::from_u64(newest) };
        let broken = Outcome::Broken(FencingToken::from_u64(2));
        assert_eq!(lock.apply(&breaks(1)), broken);
        assert_eq!(holders(&lock), [(2, 3)]);
        // A break whose acknowledgement was lost is repeated.
        let before = lock.clone();
        assert_eq!(lock.apply(&breaks(1)), broken);
        assert_eq!(lock, before);
        let mut idle = LockRecord { fence: 5, ..LockRecord::default() };
        idle.apply(&breaks(5));
        assert_eq!(idle.fence, 6);
    }

    #[test]
    fn claim_of_a_full_queue_is_rejected() {
        let mut lock = LockRecord::default();
        lock.apply(&claim(0, Write));
        for number in 1..=u64::try_from(LONGEST_QUEUE).unwrap_or_default() {
            assert_eq!(lock.apply(&claim(number, Write)), Outcome::Queued);
        }
        assert_eq!(lock.apply(&claim(99_999, Write)), Outcome::Full);
    }
}
