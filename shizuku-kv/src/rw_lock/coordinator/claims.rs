//! The claims of this process for one lock, and the changes that it has requested.

use std::collections::HashMap;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::rw_lock::command::{Granted, Rejection, Reply, Wait};
use crate::rw_lock::error::LockLoss;
use crate::rw_lock::record::{Claim, ClaimId, LockRecord, SessionId};
use crate::rw_lock::session::SessionUse;
use crate::rw_lock::transition::{Change, Outcome};
use crate::store::{FencingToken, KvError};

/// A change that the next write makes to the record.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) change: Change,
    reply: Option<Reply<Outcome>>,
    /// Session of the claim that leaves. Once this session has ended, the claim needs no removal.
    session: Option<SessionUse>,
    /// Whether a write with the change had an unknown outcome, or another process may make the
    /// change. It may then have landed even if the record does not show its claim.
    pub(super) sent: bool,
}

impl Pending {
    pub(super) fn new(change: Change, reply: Option<Reply<Outcome>>) -> Self {
        Self { change, reply, session: None, sent: false }
    }

    pub(super) fn leave(
        id: ClaimId,
        session: Option<SessionUse>,
        reply: Option<Reply<Outcome>>,
    ) -> Self {
        Self { session, ..Self::new(Change::Leave(id), reply) }
    }

    pub(super) fn answer(self, outcome: Result<Outcome, Rejection>) {
        let outcome = match outcome {
            Ok(Outcome::NotThere) if self.sent && self.leaves() => Ok(Outcome::Done),
            outcome => outcome,
        };
        if let Some(reply) = self.reply {
            // A caller that is gone needs no answer.
            let _ = reply.send(outcome);
        }
    }

    pub(super) fn leaves(&self) -> bool {
        matches!(self.change, Change::Leave(_))
    }

    /// Rejects the request of the caller. The change is still made.
    pub(super) fn reject(&mut self, rejection: &Rejection) {
        if let Some(reply) = self.reply.take() {
            // A caller that is gone needs no answer.
            let _ = reply.send(Err(rejection.clone()));
        }
    }

    /// Returns whether the change is retried after a failed write: while its caller waits, or, if a
    /// claim leaves, while the session holds. Otherwise the end of the session removes the claim.
    pub(super) fn is_retried(&self) -> bool {
        let has_caller = self.reply.as_ref().is_some_and(|reply| !reply.is_closed());
        has_caller || self.leaves() && self.session.as_ref().is_some_and(|session| session.holds())
    }
}

/// A claim of this process.
#[derive(Debug)]
pub(super) struct LocalClaim {
    pub(super) claim: Claim,
    pub(super) session: SessionUse,
    /// Position among the claims of this process for this lock.
    arrival: u64,
    pub(super) wait: Wait,
    pub(super) state: ClaimState,
}

#[derive(Debug)]
pub(super) enum ClaimState {
    /// The next write includes the claim. A claim that was `sent` before may be in the record.
    Requested {
        waits: bool,
        sent: bool,
        reply: Reply<Granted>,
    },
    /// The claim does not wait, and is deferred until the sessions ahead of it are found dead or
    /// alive. A claim that was `sent` before may be in the record.
    Deferred {
        sent: bool,
        reply: Reply<Granted>,
    },
    /// The claim is in the queue.
    Queued(Reply<Granted>),
    Granted {
        revoked: watch::Sender<Option<LockLoss>>,
        since: Instant,
    },
}

impl LocalClaim {
    pub(super) fn is_requested(&self) -> bool {
        matches!(self.state, ClaimState::Requested { .. })
    }

    pub(super) fn is_deferred(&self) -> bool {
        matches!(self.state, ClaimState::Deferred { .. })
    }

    pub(super) fn is_queued(&self) -> bool {
        matches!(self.state, ClaimState::Queued(_))
    }

    /// Returns whether the claim was seen in the record.
    pub(super) fn is_recorded(&self) -> bool {
        matches!(self.state, ClaimState::Queued(_) | ClaimState::Granted { .. })
    }

    /// Returns whether the claim is in the record, or may be.
    pub(super) fn may_be_recorded(&self) -> bool {
        match self.state {
            ClaimState::Requested { sent, .. } | ClaimState::Deferred { sent, .. } => sent,
            ClaimState::Queued(_) | ClaimState::Granted { .. } => true,
        }
    }

    /// Records that a write with the claim is being sent.
    pub(super) fn note_sent(&mut self) {
        if let ClaimState::Requested { sent, .. } = &mut self.state {
            *sent = true;
        }
    }

    pub(super) fn defer(&mut self) {
        self.transform(|state| match state {
            ClaimState::Requested { sent, reply, .. } => ClaimState::Deferred { sent, reply },
            other => other,
        });
        self.wait.extend(true);
    }

    /// Requests a deferred claim again.
    pub(super) fn resume(&mut self) {
        self.transform(|state| match state {
            ClaimState::Deferred { sent, reply } => {
                ClaimState::Requested { waits: false, sent, reply }
            }
            other => other,
        });
        self.wait.extend(false);
    }

    pub(super) fn queue(&mut self) {
        self.wait.note_queued();
        self.transform(|state| match state {
            ClaimState::Requested { reply, .. } => ClaimState::Queued(reply),
            other => other,
        });
    }

    /// Requests a claim again that is missing in the queue of the record.
    pub(super) fn request_again(&mut self) {
        self.transform(|state| match state {
            ClaimState::Queued(reply) => ClaimState::Requested { waits: true, sent: true, reply },
            other => other,
        });
    }

    pub(super) fn grant(&mut self, token: FencingToken) {
        self.transform(|state| {
            let reply = match state {
                ClaimState::Requested { reply, .. }
                | ClaimState::Deferred { reply, .. }
                | ClaimState::Queued(reply) => reply,
                ClaimState::Granted { .. } => return state,
            };
            let (revoked, receiver) = watch::channel(None);
            // A caller that was dropped has left already, or will leave. Leaving releases the lock.
            let _ = reply.send(Ok(Granted { token, revoked: receiver }));
            ClaimState::Granted { revoked, since: Instant::now() }
        });
    }

    /// Ends the claim with a rejection, or with the loss of its grant.
    pub(super) fn reject(self, rejection: Rejection) {
        match self.state {
            ClaimState::Requested { reply, .. }
            | ClaimState::Deferred { reply, .. }
            | ClaimState::Queued(reply) => {
                let _ = reply.send(Err(rejection));
            }
            ClaimState::Granted { revoked, .. } => {
                let is_closed = matches!(rejection, Rejection::Store(KvError::Closed { .. }));
                let loss = if is_closed { LockLoss::StoreGone } else { LockLoss::Broken };
                revoked.send_replace(Some(loss));
            }
        }
    }

    fn transform(&mut self, to: impl FnOnce(ClaimState) -> ClaimState) {
        let placeholder = ClaimState::Queued(oneshot::channel().0);
        self.state = to(std::mem::replace(&mut self.state, placeholder));
    }
}

/// The claims of this process for one lock.
#[derive(Debug, Default)]
pub(super) struct LocalClaims {
    claims: HashMap<ClaimId, LocalClaim>,
    /// Number of claims so far.
    arrivals: u64,
}

impl LocalClaims {
    pub(super) fn add(
        &mut self,
        claim: Claim,
        waits: bool,
        session: SessionUse,
        wait: Wait,
        reply: Reply<Granted>,
    ) {
        self.arrivals += 1;
        let state = ClaimState::Requested { waits, sent: false, reply };
        let claim = LocalClaim { claim, session, arrival: self.arrivals, wait, state };
        self.claims.insert(claim.claim.id, claim);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    pub(super) fn get(&self, id: ClaimId) -> Option<&LocalClaim> {
        self.claims.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: ClaimId) -> Option<&mut LocalClaim> {
        self.claims.get_mut(&id)
    }

    pub(super) fn remove(&mut self, id: ClaimId) -> Option<LocalClaim> {
        self.claims.remove(&id)
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = LocalClaim> {
        std::mem::take(&mut self.claims).into_values()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &LocalClaim> {
        self.claims.values()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut LocalClaim> {
        self.claims.values_mut()
    }

    /// Returns the ids of the claims with this property.
    pub(super) fn ids(&self, has: impl Fn(&LocalClaim) -> bool) -> Vec<ClaimId> {
        self.iter().filter(|local| has(local)).map(|local| local.claim.id).collect()
    }

    pub(super) fn any(&self, has: impl Fn(&LocalClaim) -> bool) -> bool {
        self.iter().any(has)
    }

    /// Returns the requested claims, in the order of their arrival.
    pub(super) fn requested(&self) -> Vec<&LocalClaim> {
        let mut claims: Vec<_> = self.iter().filter(|local| local.is_requested()).collect();
        claims.sort_unstable_by_key(|local| local.arrival);
        claims
    }

    /// Returns the sessions of the claims, each once.
    pub(super) fn sessions(&self) -> Vec<SessionId> {
        let mut sessions: Vec<_> = self.claims.keys().map(|id| id.session).collect();
        sessions.sort_unstable();
        sessions.dedup();
        sessions
    }

    /// Returns the positions of the claims that are in the queue of a record.
    pub(super) fn queue_positions(&self, record: &LockRecord) -> HashMap<ClaimId, usize> {
        let queue = record.queue.iter().enumerate().map(|(position, claim)| (claim.id, position));
        queue.filter(|(id, _)| self.claims.contains_key(id)).collect()
    }
}
