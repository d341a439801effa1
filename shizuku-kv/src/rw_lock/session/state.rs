//! The state of a session: whether it holds, until when, and how it ended.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::rw_lock::error::LockLoss;
use crate::rw_lock::lease;
use crate::rw_lock::record::{ClaimId, SessionId};
use crate::store::{Key, KvEntry, KvError, SuspendAwareInstant};

#[derive(Clone, Debug)]
pub(super) enum State {
    Opening,
    Live,
    Over(LockLoss),
    Failed(KvError),
}

/// The session of a process with one length of lease.
#[derive(Debug)]
pub(in crate::rw_lock) struct Session {
    /// Set once the key exists.
    id: OnceLock<SessionId>,
    pub(super) lease: Duration,
    claims: AtomicU64,
    /// Time at which the newest acknowledged renewal was sent.
    proof: Mutex<SuspendAwareInstant>,
    state: watch::Sender<State>,
    use_: Mutex<Use>,
    /// Reason of a requested end.
    end_request: Mutex<Option<LockLoss>>,
    /// Wakes the keep-alive task of the session.
    pub(super) wake: Notify,
    /// Set when that task has ended. If the store was reachable, the key was deleted before.
    is_gone: watch::Sender<bool>,
    /// Record of a lock, read together with the keys of sessions.
    prefetched: Mutex<Option<KvEntry>>,
}

/// The number of users of a session, and the time of its last change.
#[derive(Debug)]
struct Use {
    users: usize,
    since: Instant,
    /// Whether the store is abandoned, so that the session ends with its last user.
    is_abandoned: bool,
}

impl Session {
    pub(super) fn new(lease: Duration) -> Self {
        Self {
            id: OnceLock::new(),
            lease,
            claims: AtomicU64::new(0),
            proof: Mutex::new(SuspendAwareInstant::now()),
            state: watch::Sender::new(State::Opening),
            use_: Mutex::new(Use { users: 0, since: Instant::now(), is_abandoned: false }),
            end_request: Mutex::new(None),
            wake: Notify::new(),
            is_gone: watch::Sender::new(false),
            prefetched: Mutex::new(None),
        }
    }

    /// Begins the session. `sent` is the time at which its first entry was sent, `prefetched` the
    /// record of a lock that was read together with the keys.
    pub(super) fn begin(
        &self,
        id: SessionId,
        sent: SuspendAwareInstant,
        prefetched: Option<KvEntry>,
    ) {
        *lock(&self.proof) = sent;
        *lock(&self.prefetched) = prefetched;
        // A session begins only once.
        let _ = self.id.set(id);
        self.state.send_replace(State::Live);
    }

    /// Ends a session that could not be opened.
    pub(super) fn fail(&self, error: KvError) {
        self.state.send_replace(State::Failed(error));
    }

    pub(in crate::rw_lock) fn holds(&self) -> bool {
        matches!(*self.state.borrow(), State::Live)
            && lease::holds(lock(&self.proof).elapsed(), self.lease)
    }

    /// Extends the session from the moment at which the renewal was sent. Returns false if the
    /// session had expired before the acknowledgement arrived. A lost session stays lost, because
    /// another process may have acted on the loss.
    pub(super) fn prolong(&self, sent: SuspendAwareInstant) -> bool {
        let mut proof = lock(&self.proof);
        let holds = lease::holds(proof.elapsed(), self.lease);
        if holds {
            *proof = sent;
        }
        drop(proof);
        // Wakes the tasks that wait for the end, so that they compute it again.
        self.state.send_if_modified(|state| holds && matches!(state, State::Live));
        holds
    }

    /// Ends the session. Later reasons are ignored.
    pub(super) fn finish(&self, loss: LockLoss) {
        self.state.send_if_modified(|state| {
            let is_open = matches!(state, State::Opening | State::Live);
            if is_open {
                *state = State::Over(loss);
            }
            is_open
        });
    }

    /// Returns the reason why the session no longer holds. Returns `None` if it holds.
    pub(in crate::rw_lock) fn loss(&self) -> Option<LockLoss> {
        match &*self.state.borrow() {
            State::Over(loss) => Some(*loss),
            State::Failed(_) => Some(LockLoss::StoreGone),
            State::Live if !lease::holds(lock(&self.proof).elapsed(), self.lease) => {
                Some(LockLoss::Expired)
            }
            State::Opening | State::Live => None,
        }
    }

    /// Returns the time at which the next renewal is due.
    pub(super) fn next_renewal(&self) -> Instant {
        lock(&self.proof).instant() + self.lease / 3
    }

    /// Returns the time until which the session holds without another renewal.
    pub(in crate::rw_lock) fn end(&self) -> Instant {
        lock(&self.proof).instant() + self.lease
    }

    /// Waits until the session no longer holds.
    pub(in crate::rw_lock) async fn lost(&self) -> LockLoss {
        let mut states = self.state.subscribe();
        loop {
            if let Some(loss) = self.loss() {
                return loss;
            }
            // The end of a session changes the state. The end of the lease is computed again each
            // time a renewal was due.
            let _ = tokio::time::timeout_at(self.end(), states.changed()).await;
        }
    }

    /// Waits until the session is open.
    async fn opened(&self) -> Result<SessionId, KvError> {
        let mut states = self.state.subscribe();
        let state = states.wait_for(|state| !matches!(state, State::Opening)).await;
        if let Ok(State::Failed(error)) = state.as_deref() {
            return Err(error.clone());
        }
        // A claim detects a session that has ended meanwhile.
        self.id().ok_or_else(|| KvError::Unavailable {
            operation: "open a lock session",
            reason: "its task has ended".to_owned(),
            source: None,
        })
    }

    pub(in crate::rw_lock) fn id(&self) -> Option<SessionId> {
        self.id.get().copied()
    }

    /// Requests that the keep-alive task end the session.
    pub(super) fn request_end(&self, loss: LockLoss) {
        lock(&self.end_request).get_or_insert(loss);
        self.wake.notify_one();
    }

    pub(super) fn requested_end(&self) -> Option<LockLoss> {
        *lock(&self.end_request)
    }

    /// Records that the store is abandoned. The last user then wakes the keep-alive task.
    pub(super) fn note_abandoned(&self) {
        lock(&self.use_).is_abandoned = true;
    }

    /// Returns whether the session has had no user for the length of its lease, or has no user and
    /// its store is abandoned.
    pub(super) fn is_unused(&self) -> bool {
        let use_ = lock(&self.use_);
        use_.users == 0 && (use_.is_abandoned || use_.since.elapsed() >= self.lease)
    }

    /// Records that the keep-alive task has ended.
    pub(super) fn mark_gone(&self) {
        self.is_gone.send_replace(true);
    }

    /// Returns whether the keep-alive task has ended.
    pub(super) fn is_gone(&self) -> bool {
        *self.is_gone.borrow()
    }

    /// Waits until the keep-alive task has ended.
    pub(super) async fn gone(&self) {
        // The sender lives in `self`, so waiting does not fail.
        let _ = self.is_gone.subscribe().wait_for(|is_gone| *is_gone).await;
    }
}

/// Counts the users of a session.
#[derive(Debug)]
pub(super) struct InUse(Arc<Session>);

impl InUse {
    pub(super) fn new(session: &Arc<Session>) -> Self {
        lock(&session.use_).users += 1;
        Self(Arc::clone(session))
    }

    pub(super) fn session(&self) -> &Arc<Session> {
        &self.0
    }

    /// Returns the use of a session that is open.
    pub(super) fn of_open_session(self) -> Option<SessionUse> {
        let id = self.0.id()?;
        Some(SessionUse { in_use: self, id })
    }

    /// Waits until the session is open.
    pub(super) async fn opened(self) -> Result<SessionUse, KvError> {
        let id = self.0.opened().await?;
        Ok(SessionUse { in_use: self, id })
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut use_ = lock(&self.0.use_);
        use_.users -= 1;
        use_.since = Instant::now();
        // Otherwise the task checks for users before each renewal.
        if use_.users == 0 && use_.is_abandoned {
            self.0.wake.notify_one();
        }
    }
}

/// A use of a session, which keeps the session from ending as unused. Each clone is a use.
#[derive(Debug)]
pub(in crate::rw_lock) struct SessionUse {
    in_use: InUse,
    id: SessionId,
}

impl SessionUse {
    /// Returns the id of a new claim.
    pub(in crate::rw_lock) fn next_claim(&self) -> ClaimId {
        ClaimId { session: self.id, number: self.claims.fetch_add(1, Ordering::Relaxed) }
    }

    /// Removes and returns the record of this lock, if it was read during the opening of the
    /// session.
    pub(in crate::rw_lock) fn take_prefetched(&self, key: &Key) -> Option<KvEntry> {
        lock(&self.prefetched).take_if(|entry| entry.key == *key)
    }
}

impl Deref for SessionUse {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.in_use.0
    }
}

impl Clone for SessionUse {
    fn clone(&self) -> Self {
        Self { in_use: InUse::new(&self.in_use.0), id: self.id }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn last_user_of_an_abandoned_store_wakes_the_task() {
        let session = Arc::new(Session::new(Duration::from_secs(60)));
        let is_woken = || session.wake.notified().now_or_never().is_some();
        drop(InUse::new(&session));
        assert!(!is_woken() && !session.is_unused());
        let (last, other) = (InUse::new(&session), InUse::new(&session));
        session.note_abandoned();
        drop(other);
        assert!(!is_woken() && !session.is_unused());
        drop(last);
        assert!(is_woken() && session.is_unused());
    }
}
