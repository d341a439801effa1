//! The content of the store: the record of one lock, the keys of the sessions, and a register that
//! is written under the lock. The truth is beside it: no process sees it, and the check judges them
//! by it.

use std::sync::Arc;

use super::requests::Request;
use crate::rw_lock::record::{ClaimId, LockMode, LockRecord, SessionId};
use crate::store::{FencingToken, VersionToken};

/// Returns the session of a process.
pub(super) fn session(process: usize) -> SessionId {
    SessionId::alone(process as u128)
}

/// Returns the id of a process's claim.
pub(super) fn claim_id(process: usize, claim: usize) -> ClaimId {
    ClaimId { session: session(process), number: claim as u64 }
}

pub(super) fn process_of(id: ClaimId) -> usize {
    id.session.number() as usize
}

/// Returns the token of a version number. Returns `None` for 0, which stands for no entry.
pub(super) fn token(version: u8) -> Option<VersionToken> {
    (version > 0).then(|| VersionToken::from_u64(version.into()))
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Server {
    pub(super) record: Arc<LockRecord>,
    pub(super) version: u8,
    /// The record before the newest, as long as a reader may be behind.
    pub(super) previous: Option<Arc<LockRecord>>,
    /// The keys of sessions.
    sessions: Vec<SessionKey>,
    /// The index of the key that each process has, or takes over.
    keys: Vec<usize>,
    /// All requests that were ever made.
    pub(super) requests: Vec<Request>,
    pub(super) register: Option<Written>,
    pub(super) truth: Truth,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SessionKey {
    pub(super) version: u8,
    /// Whether the key was deleted, or belongs to another process by now. No version that its
    /// process knows can then be replaced any more.
    pub(super) is_over: bool,
    /// The process whose session uses the key.
    owner: usize,
    /// The version of the tombstone before it, as long as a watch may be behind.
    pub(super) tombstone: Option<u8>,
}

/// A write to the register, with the token of the grant under which it was sent, and the index of
/// that grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Written {
    pub(super) token: FencingToken,
    pub(super) grant: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Truth {
    /// Every claim that was granted, in order. Stored only if writes under the lock are modelled.
    pub(super) grants: Vec<ClaimId>,
    /// The newest token that was given, to a grant or to an operator.
    newest: u64,
    /// The claims whose lock an operator broke.
    pub(super) broken: Vec<ClaimId>,
    pub(super) faults: Faults,
}

/// Events that must not have happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Faults {
    pub(super) token_was_reused: bool,
    pub(super) was_overtaken: bool,
    pub(super) free_lock_was_waited_for: bool,
    pub(super) old_write_was_accepted: bool,
    pub(super) eviction_left_claims: bool,
}

/// The past state that the world still needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    pub(super) previous: bool,
    pub(super) grants: bool,
}

impl Server {
    /// Creates a server on which the session of each process has a key from the beginning, or takes
    /// over the key of another one.
    pub(super) fn new(takes_over: &[Option<usize>]) -> Self {
        let keys: Vec<_> =
            takes_over.iter().enumerate().map(|(own, other)| other.unwrap_or(own)).collect();
        let key = |owner| SessionKey { version: 1, is_over: false, owner, tombstone: None };
        Self {
            record: Arc::default(),
            version: 0,
            previous: None,
            sessions: (0..keys.len()).map(key).collect(),
            keys,
            requests: Vec::new(),
            register: None,
            truth: Truth::default(),
        }
    }

    /// Compares and swaps the record.
    pub(super) fn swap(
        &mut self,
        by: usize,
        expected: u8,
        new: &Arc<LockRecord>,
        memory: Memory,
    ) -> bool {
        let is_expected = self.version == expected;
        if is_expected {
            self.look_at_the_dead(by, new);
            self.replace(new, memory);
        }
        is_expected
    }

    /// Checks that a process that removes a claim of a dead session removes all of them.
    fn look_at_the_dead(&mut self, by: usize, new: &LockRecord) {
        let has = |record: &LockRecord, id: ClaimId| record.claims().any(|claim| claim.id == id);
        for process in 0..self.keys.len() {
            let key = self.session(process);
            let its_own = || {
                self.record.claims().map(|claim| claim.id).filter(|id| process_of(*id) == process)
            };
            let is_evicted = key.is_over && by != process && its_own().any(|id| !has(new, id));
            self.truth.faults.eviction_left_claims |=
                is_evicted && its_own().any(|id| has(new, id));
        }
    }

    /// Replaces the record after an operator has broken the lock.
    pub(super) fn put_broken(&mut self, new: &Arc<LockRecord>, memory: Memory) {
        // The break skips one token, even if no claim is granted next.
        self.truth.newest = self.record.fence + 1;
        let holders: Vec<_> = self.record.holders.iter().map(|grant| grant.claim.id).collect();
        self.truth.broken.retain(|id| !holders.contains(id));
        self.truth.broken.extend(holders);
        self.truth.broken.sort_unstable();
        self.replace(new, memory);
    }

    fn replace(&mut self, new: &Arc<LockRecord>, memory: Memory) {
        self.truth.compare(&self.record, new, memory);
        let old = std::mem::replace(&mut self.record, Arc::clone(new));
        self.previous = memory.previous.then_some(old);
        self.version += 1;
    }

    /// Compares and swaps a session's key.
    pub(super) fn renew(&mut self, process: usize, expected: u8) -> bool {
        let is_expected =
            !self.session(process).is_over && self.session(process).version == expected;
        self.sessions[self.keys[process]].version += u8::from(is_expected);
        is_expected
    }

    /// Returns the key of a process's session, marked as over if it belongs to another session.
    pub(super) fn session(&self, process: usize) -> SessionKey {
        let key = self.sessions[self.keys[process]];
        SessionKey { is_over: key.is_over || key.owner != process, ..key }
    }

    /// Returns whether the key that a process takes over is free.
    pub(super) fn is_free(&self, process: usize) -> bool {
        self.sessions[self.keys[process]].is_over
    }

    /// Takes over a key whose session is over. Returns the version of the new session's first
    /// entry.
    pub(super) fn open(&mut self, process: usize, remembers: bool) -> u8 {
        let key = &mut self.sessions[self.keys[process]];
        let tombstone = remembers.then_some(key.version);
        *key = SessionKey { version: key.version + 1, is_over: false, owner: process, tombstone };
        key.version
    }

    /// Ends a session by deleting its key.
    pub(super) fn end(&mut self, process: usize) {
        let key = &mut self.sessions[self.keys[process]];
        key.version += u8::from(!key.is_over);
        key.is_over = true;
    }

    /// Drops the tombstones, because no watch is behind any more.
    pub(super) fn forget_tombstones(&mut self) {
        self.sessions.iter_mut().for_each(|key| key.tombstone = None);
    }

    /// Delivers a write under the lock to the register. Returns whether it is accepted.
    pub(super) fn write(&mut self, write: Written) -> bool {
        let newest = self.register.map(|newest| newest.token);
        let is_taken = write.token.rejected_by(newest).is_none();
        if is_taken {
            let is_old = self.register.is_some_and(|newest| write.grant < newest.grant);
            self.truth.faults.old_write_was_accepted |= is_old;
            self.register = Some(write);
        }
        is_taken
    }

    /// Returns whether a process has a claim in the record.
    pub(super) fn has(&self, process: usize) -> bool {
        self.record.claims().any(|claim| process_of(claim.id) == process)
    }
}

impl Truth {
    /// Returns the index of a claim's newest grant.
    pub(super) fn grant_of(&self, id: ClaimId) -> usize {
        self.grants.iter().rposition(|granted| *granted == id).unwrap_or_default()
    }

    /// Judges a change of the record only by the purpose of a lock.
    fn compare(&mut self, old: &LockRecord, new: &LockRecord, memory: Memory) {
        let waited = |id: ClaimId| old.queue.iter().position(|claim| claim.id == id);
        let waits = |id: ClaimId| new.queue.iter().any(|claim| claim.id == id);
        for grant in new.holders.iter().filter(|grant| old.grant(grant.claim.id).is_none()) {
            let id = grant.claim.id;
            let number = grant.token.as_u64();
            self.faults.token_was_reused |= number <= self.newest;
            self.newest = self.newest.max(number);
            // All claims that were queued before it, or the whole queue if it was not queued.
            let before = &old.queue[..waited(id).unwrap_or(old.queue.len())];
            self.faults.was_overtaken |= before.iter().any(|claim| waits(claim.id));
            self.broken.retain(|broken| *broken != id);
            if memory.grants {
                self.grants.push(id);
            }
        }
        let stayed = old.queue.iter().filter(|claim| waits(claim.id));
        let is_in_order = stayed.zip(&new.queue).all(|(old, new)| old.id == new.id);
        self.faults.was_overtaken |= !is_in_order;
        let is_shared = new.holders.iter().all(|grant| grant.claim.mode == LockMode::Read);
        self.faults.free_lock_was_waited_for |=
            new.queue.first().is_some_and(|next| match next.mode {
                LockMode::Read => is_shared,
                LockMode::Write => new.holders.is_empty(),
            });
    }
}
