//! The locks of a store's handle and its clones: the running coordinators, the sessions of their
//! claims, and the locks held without a guard.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_core::future::BoxFuture;
use tokio::runtime;
use tokio::sync::oneshot;

use super::channels::{Channels, CoordinatorId, Sent};
use super::command::{Command, Rejection};
use super::coordinator::{Coordinator, Environment};
use super::driver::Driver;
use super::name::HandleId;
use super::process_locks::ProcessLocks;
use super::session::Sessions;
use crate::store::{Attached, Deadline, Key, KvResult, Store};

/// The coordinators of a store's handle, and the sessions of their claims.
#[derive(Debug)]
pub(super) struct LockManager {
    pub(super) handle: HandleId,
    channels: Arc<Channels>,
    pub(super) sessions: Sessions,
    pub(super) process_locks: ProcessLocks,
    /// Queues of the locks that are being claimed.
    command_queues: Mutex<HashMap<CoordinatorId, Weak<tokio::sync::Mutex<()>>>>,
}

impl Default for LockManager {
    fn default() -> Self {
        Self {
            handle: HandleId::unique(),
            channels: Arc::default(),
            sessions: Sessions::default(),
            process_locks: ProcessLocks::default(),
            command_queues: Mutex::default(),
        }
    }
}

impl LockManager {
    /// Returns the queue through which the claims of a lock on this runtime send their commands. It
    /// keeps the order of the calls, even if one claim has to wait for its session and the next has
    /// one.
    pub(super) fn command_queue(&self, key: &Key) -> Arc<tokio::sync::Mutex<()>> {
        let id = (runtime::Handle::current().id(), key.clone());
        let mut command_queues = self.command_queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(command_queue) = command_queues.get(&id).and_then(Weak::upgrade) {
            return command_queue;
        }
        command_queues.retain(|_, command_queue| command_queue.strong_count() > 0);
        let command_queue = Arc::default();
        command_queues.insert(id, Arc::downgrade(&command_queue));
        command_queue
    }

    /// Sends a command to the coordinator of the lock under a key, and starts it if it does not
    /// run. It runs on the caller's runtime. Returns `None` if the command was rejected.
    pub(super) fn send(&self, store: &Store, key: &Key, command: Command) -> Option<Sent> {
        let runtime = runtime::Handle::current();
        let id = (runtime.id(), key.clone());
        let sent = self.channels.send(&id, command, |commands| {
            let environment = Environment {
                id: id.clone(),
                // Each caller has its own deadline; the coordinator uses the default one.
                store: store.with_deadline(Deadline::DEFAULT).of_task(),
                sessions: Arc::clone(self.sessions.registry()),
                channels: Arc::clone(&self.channels),
            };
            Driver::new(id.0, Box::pin(Coordinator::new(environment, commands).run()))
        })?;
        if sent.is_new {
            sent.coordinator.start(&runtime);
        }
        Some(sent)
    }

    /// Releases everything that is held or waited for, and waits until the store has recorded it.
    /// Holders are notified before the release. Later claims are rejected with
    /// [`KvError::Closed`](crate::KvError::Closed).
    ///
    /// Cancel safe: the release continues in the background.
    ///
    /// # Errors
    /// Returns [`KvError::Timeout`](crate::KvError::Timeout) if the store did not answer by the
    /// deadline, and the error of the store if a session ended before a release was recorded.
    /// Leases then end the locks that were not released.
    async fn release_all(&self, deadline: Deadline) -> KvResult<()> {
        let answers: Vec<_> = self
            .channels
            .close()
            .into_iter()
            .map(|coordinator| {
                let (reply, answer) = oneshot::channel();
                coordinator.send(Command::Close { reply });
                answer
            })
            .collect();
        let mut released = Ok(());
        for answer in answers {
            let answer = async {
                match answer.await {
                    Ok(Err(Rejection::Store(error))) => Err(error),
                    // The end of the coordinator counts as an answer too. If its runtime has ended,
                    // it cannot release anything; the lease ends its locks.
                    Ok(_) | Err(_) => Ok(()),
                }
            };
            released = released.and(deadline.bound("shutdown", None, answer).await);
        }
        released
    }
}

impl Attached for LockManager {
    /// Each claim needs a session.
    fn reject(&self) {
        self.sessions.close();
    }

    /// Releases everything, then ends the sessions, so that no other process has to wait until
    /// their leases are over.
    fn close(&self, deadline: Deadline) -> BoxFuture<'_, KvResult<()>> {
        Box::pin(async move {
            let released = self.release_all(deadline).await;
            let ended = async {
                self.sessions.end_all().await;
                Ok(())
            };
            released.and(deadline.bound("shutdown", None, ended).await)
        })
    }
}
