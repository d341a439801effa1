//! The live sessions of a store's handle: one for each length of lease, and each runtime.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime;

use super::state::{InUse, Session, SessionUse, lock};
use crate::rw_lock::error::LockLoss;
use crate::rw_lock::record::SessionId;
use crate::store::{Key, KvError};

#[derive(Debug, Default)]
pub(in crate::rw_lock) struct Registry {
    sessions: Mutex<Alive>,
    /// Key of the session that was evicted last.
    evicted: Mutex<Option<Key>>,
}

#[derive(Debug, Default)]
struct Alive {
    sessions: HashMap<(runtime::Id, Duration), Arc<Session>>,
    /// All sessions whose keys may exist. A session that has ended stays here until its key is
    /// deleted, so that a shutdown waits for the deletion.
    with_keys: Vec<Arc<Session>>,
    /// Whether the connection is about to be shut down, so that no session is opened any more.
    is_closed: bool,
}

/// A session that gained a user.
pub(super) enum Joined {
    /// Its keep-alive task is running.
    Existing(InUse),
    /// The caller starts its keep-alive task.
    New(InUse),
}

impl Registry {
    /// Returns the live session of a runtime and a length of lease, with one more user. Adds a
    /// session if none is alive.
    pub(super) fn join(&self, runtime: runtime::Id, lease: Duration) -> Result<Joined, KvError> {
        let mut alive = lock(&self.sessions);
        // Removes the sessions of runtimes that have ended, too.
        alive.sessions.retain(|_, session| session.loss().is_none());
        if alive.is_closed {
            return Err(KvError::Closed { operation: "lock" });
        }
        if let Some(session) = alive.sessions.get(&(runtime, lease)) {
            return Ok(Joined::Existing(InUse::new(session)));
        }
        let session = Arc::new(Session::new(lease));
        let in_use = InUse::new(&session);
        alive.with_keys.retain(|session| !session.is_gone());
        alive.with_keys.push(Arc::clone(&session));
        alive.sessions.insert((runtime, lease), session);
        Ok(Joined::New(in_use))
    }

    /// Ends a session of this process, for example after other processes have ended it in the
    /// store.
    pub(in crate::rw_lock) fn end(&self, id: SessionId, loss: LockLoss) {
        let alive = lock(&self.sessions);
        if let Some(session) = alive.sessions.values().find(|session| session.id() == Some(id)) {
            session.finish(loss);
            session.request_end(loss);
        }
    }

    /// Rejects the opening of sessions from now on.
    pub(super) fn close(&self) {
        lock(&self.sessions).is_closed = true;
    }

    /// Ends all sessions, because the connection is about to be shut down. Waits until their keys
    /// are deleted.
    pub(super) async fn end_all(&self) {
        let sessions: Vec<_> = {
            let mut alive = lock(&self.sessions);
            alive.is_closed = true;
            alive.sessions.clear();
            alive.with_keys.clone()
        };
        for session in &sessions {
            session.request_end(LockLoss::StoreGone);
        }
        for session in sessions {
            session.gone().await;
        }
    }

    /// Returns the sessions of a runtime that still hold.
    pub(in crate::rw_lock) fn of_runtime(&self, runtime: runtime::Id) -> Vec<SessionId> {
        let alive = lock(&self.sessions);
        let own = alive.sessions.iter();
        let own = own.filter(|((of, _), session)| *of == runtime && session.holds());
        own.filter_map(|(_, session)| session.id()).collect()
    }

    /// Returns a use of each session of a runtime that still holds.
    pub(in crate::rw_lock) fn uses_of_runtime(&self, runtime: runtime::Id) -> Vec<SessionUse> {
        let alive = lock(&self.sessions);
        let own = alive.sessions.iter();
        let own = own.filter(|((of, _), session)| *of == runtime && session.holds());
        own.filter_map(|(_, session)| InUse::new(session).of_open_session()).collect()
    }

    /// Removes a session that has had no users for the length of its lease, or at once if the store
    /// is abandoned. A removed session cannot gain a user. Returns whether the session was removed.
    pub(super) fn retire(&self, session: &Arc<Session>) -> bool {
        let mut alive = lock(&self.sessions);
        let is_unused = session.is_unused();
        if is_unused {
            alive.sessions.retain(|_, kept| !Arc::ptr_eq(kept, session));
        }
        is_unused
    }

    pub(super) fn note_evicted(&self, key: Key) {
        *lock(&self.evicted) = Some(key);
    }

    pub(super) fn last_evicted(&self) -> Option<Key> {
        lock(&self.evicted).clone()
    }
}
