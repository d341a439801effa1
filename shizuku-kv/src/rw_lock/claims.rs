//! Requests of callers to the coordinator of a lock, and the progress of their claims.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::error::LockLoss;
use super::record::{Claim, ClaimId};
use super::session::SessionUse;
use super::transition::{Change, Outcome};
use crate::store::{FencingToken, KvError};

/// A request to a coordinator.
#[derive(Debug)]
pub(super) enum Command {
    Claim {
        claim: Claim,
        waits: bool,
        session: SessionUse,
        /// Set once the claim is in the queue.
        in_line: Arc<AtomicBool>,
        hope: Hope,
        reply: oneshot::Sender<Result<Granted, Refusal>>,
    },
    Leave {
        id: ClaimId,
        reply: Option<oneshot::Sender<Result<Outcome, Refusal>>>,
    },
    Downgrade {
        id: ClaimId,
        reply: oneshot::Sender<Result<Outcome, Refusal>>,
    },
    Break {
        reply: oneshot::Sender<Result<Outcome, Refusal>>,
    },
    /// The connection is about to be shut down. Everything is released, and later claims are
    /// rejected.
    Close {
        reply: oneshot::Sender<()>,
    },
}

impl Command {
    /// Answers a command that comes after [`Close`](Self::Close).
    pub(super) fn refuse_closed(self) {
        // A caller that is gone needs no answer.
        match self {
            Self::Claim { reply, .. } => drop(reply.send(Err(Refusal::closed()))),
            Self::Downgrade { reply, .. } | Self::Break { reply } => {
                drop(reply.send(Err(Refusal::closed())))
            }
            Self::Leave { reply, .. } => {
                if let Some(reply) = reply {
                    let _ = reply.send(Err(Refusal::closed()));
                }
            }
            Self::Close { reply } => drop(reply.send(())),
        }
    }
}

/// Notifies a claimant whether waiting for longer than it wanted to is useful. All sessions in its
/// way may be dead, and are found dead soon.
#[derive(Clone, Debug)]
pub(super) struct Hope {
    pub(super) is_there: watch::Sender<bool>,
    /// Whether the claimant does not wait for as long as it takes to find a session dead.
    pub(super) is_hasty: bool,
}

/// A claim that was granted.
#[derive(Debug)]
pub(super) struct Granted {
    pub(super) token: FencingToken,
    /// Reason for losing the grant while its session lives: it was removed from the record, or the
    /// connection was shut down.
    pub(super) broken: watch::Receiver<Option<LockLoss>>,
}

/// Reason for rejecting a request.
#[derive(Clone, Debug)]
pub(super) enum Refusal {
    Busy,
    Full,
    /// The session of the claim is over.
    SessionOver,
    Foreign(String),
    Store(KvError),
}

impl Refusal {
    /// Returns the rejection after the connection was shut down.
    pub(super) fn closed() -> Self {
        Self::Store(KvError::Closed { operation: "lock" })
    }
}

/// A change that the next write makes to the record.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) change: Change,
    pub(super) reply: Option<oneshot::Sender<Result<Outcome, Refusal>>>,
    /// Session of the claim that leaves. Once it is over, the claim needs no removal.
    pub(super) session: Option<SessionUse>,
    /// Whether a write with the change had an unknown outcome. The change may then have landed even
    /// if the record does not show its claim.
    pub(super) sent: bool,
}

/// A claim of this process.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) claim: Claim,
    pub(super) session: SessionUse,
    /// Position among the claims of this process for this lock.
    pub(super) arrival: u64,
    pub(super) in_line: Arc<AtomicBool>,
    pub(super) hope: Hope,
    pub(super) state: ClaimState,
}

#[derive(Debug)]
pub(super) enum ClaimState {
    /// The claim is not known to be in the record. If it was sent, it may be there.
    Claiming {
        waits: bool,
        sent: bool,
        /// Whether the claim, which does not wait, is held back until the sessions in its way are
        /// found dead or alive.
        hopes: bool,
        reply: oneshot::Sender<Result<Granted, Refusal>>,
    },
    /// The claim is in the queue.
    Waiting(oneshot::Sender<Result<Granted, Refusal>>),
    Held {
        broken: watch::Sender<Option<LockLoss>>,
        since: Instant,
    },
}

impl Pending {
    pub(super) fn of(
        change: Change,
        reply: Option<oneshot::Sender<Result<Outcome, Refusal>>>,
    ) -> Self {
        Self { change, reply, session: None, sent: false }
    }

    pub(super) fn answer(self, outcome: Result<Outcome, Refusal>) {
        let outcome = match outcome {
            Ok(Outcome::NotThere) if self.sent && matches!(self.change, Change::Leave(_)) => {
                Ok(Outcome::Done)
            }
            outcome => outcome,
        };
        if let Some(reply) = self.reply {
            // A caller that is gone needs no answer.
            let _ = reply.send(outcome);
        }
    }
}

impl Local {
    pub(super) fn is_claiming(&self) -> bool {
        matches!(self.state, ClaimState::Claiming { .. })
    }

    /// Returns whether the next write includes the claim.
    pub(super) fn is_asking(&self) -> bool {
        matches!(self.state, ClaimState::Claiming { hopes: false, .. })
    }

    /// Returns whether the claim waits only until the sessions in its way are found dead.
    pub(super) fn is_hoping(&self) -> bool {
        matches!(self.state, ClaimState::Claiming { hopes: true, .. })
    }

    pub(super) fn set_hoping(&mut self, hopes: bool) {
        if let ClaimState::Claiming { hopes: is_hoping, .. } = &mut self.state {
            *is_hoping = hopes;
        }
        self.tell_hope(hopes);
    }

    pub(super) fn tell_hope(&self, is_there: bool) {
        self.hope.is_there.send_if_modified(|told| std::mem::replace(told, is_there) != is_there);
    }

    /// Returns whether a write with the claim was sent.
    pub(super) fn was_sent(&self) -> bool {
        matches!(self.state, ClaimState::Claiming { sent: true, .. })
    }

    /// Ends the claim with a rejection, or with the loss of its grant.
    pub(super) fn refuse(self, refusal: Refusal) {
        match self.state {
            ClaimState::Claiming { reply, .. } | ClaimState::Waiting(reply) => {
                let _ = reply.send(Err(refusal));
            }
            ClaimState::Held { broken, .. } => {
                let is_closed = matches!(refusal, Refusal::Store(KvError::Closed { .. }));
                broken.send_replace(Some(if is_closed {
                    LockLoss::StoreGone
                } else {
                    LockLoss::Broken
                }));
            }
        }
    }

    pub(super) fn queue(&mut self) {
        self.in_line.store(true, Ordering::Release);
        self.shift(|state| match state {
            ClaimState::Claiming { reply, .. } => ClaimState::Waiting(reply),
            other => other,
        });
    }

    pub(super) fn claim_again(&mut self) {
        self.shift(|state| match state {
            ClaimState::Waiting(reply) => {
                ClaimState::Claiming { waits: true, sent: true, hopes: false, reply }
            }
            other => other,
        });
    }

    pub(super) fn shift(&mut self, to: impl FnOnce(ClaimState) -> ClaimState) {
        let (broken, _) = watch::channel(None);
        let placeholder = ClaimState::Held { broken, since: Instant::now() };
        self.state = to(std::mem::replace(&mut self.state, placeholder));
    }
}
