//! The requests of callers to the coordinator of a lock, and its answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{oneshot, watch};

use super::error::LockLoss;
use super::record::{Claim, ClaimId};
use super::session::SessionUse;
use super::transition::Outcome;
use crate::store::{FencingToken, KvError};

/// The channel for the answer to a request.
pub(super) type Reply<T> = oneshot::Sender<Result<T, Rejection>>;

/// A request to a coordinator.
#[derive(Debug)]
pub(super) enum Command {
    Claim {
        claim: Claim,
        waits: bool,
        session: SessionUse,
        wait: Wait,
        reply: Reply<Granted>,
    },
    Leave {
        id: ClaimId,
        reply: Option<Reply<Outcome>>,
    },
    Downgrade {
        id: ClaimId,
        reply: Reply<Outcome>,
    },
    Break {
        reply: Reply<Outcome>,
    },
    /// The connection is about to be shut down. All locks are released, and later claims are
    /// rejected. The answer is an error if a release was abandoned because the session ended before
    /// the store recorded the release.
    Close {
        reply: Reply<()>,
    },
}

impl Command {
    /// Answers a command that arrives after [`Close`](Self::Close).
    pub(super) fn reject_closed(self) {
        // A caller that was dropped needs no answer.
        match self {
            Self::Claim { reply, .. } => drop(reply.send(Err(Rejection::closed()))),
            Self::Downgrade { reply, .. } | Self::Break { reply } => {
                drop(reply.send(Err(Rejection::closed())))
            }
            Self::Leave { reply, .. } => {
                if let Some(reply) = reply {
                    let _ = reply.send(Err(Rejection::closed()));
                }
            }
            Self::Close { reply } => drop(reply.send(Ok(()))),
        }
    }
}

/// The wait of a caller for its grant.
#[derive(Clone, Debug)]
pub(super) struct Wait {
    /// Whether the caller waits for less time than the detection of a dead session takes.
    pub(super) is_hasty: bool,
    /// Set once the claim is in the queue.
    was_queued: Arc<AtomicBool>,
    /// Whether the wait is extended beyond the time that the caller specified. All sessions ahead
    /// of the claim may be dead, and dead sessions are found soon.
    is_extended: watch::Sender<bool>,
}

impl Wait {
    pub(super) fn new(is_hasty: bool, was_queued: &Arc<AtomicBool>) -> Self {
        let was_queued = Arc::clone(was_queued);
        Self { is_hasty, was_queued, is_extended: watch::Sender::new(false) }
    }

    pub(super) fn note_queued(&self) {
        self.was_queued.store(true, Ordering::Release);
    }

    pub(super) fn extend(&self, is_extended: bool) {
        let replace = |known: &mut bool| std::mem::replace(known, is_extended) != is_extended;
        self.is_extended.send_if_modified(replace);
    }

    /// Returns once the wait is no longer extended.
    pub(super) async fn not_extended(&self) {
        // The sender lives in `self`, so waiting does not fail.
        let _ = self.is_extended.subscribe().wait_for(|is_extended| !*is_extended).await;
    }
}

/// A claim that was granted.
#[derive(Debug)]
pub(super) struct Granted {
    pub(super) token: FencingToken,
    /// Reason for losing the grant during the session: the grant was removed from the record, or
    /// the connection was shut down.
    pub(super) revoked: watch::Receiver<Option<LockLoss>>,
}

/// Reason for rejecting a request.
#[derive(Clone, Debug)]
pub(super) enum Rejection {
    Busy,
    Full,
    /// The session of the claim is over.
    SessionOver,
    Foreign(String),
    Store(KvError),
}

impl Rejection {
    /// Returns the rejection after the connection was shut down.
    pub(super) fn closed() -> Self {
        Self::Store(KvError::Closed { operation: "lock" })
    }
}
