//! The locks of a store's handle and its clones: the running coordinators, the sessions of their
//! claims, and the locks held without a guard.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures_core::future::BoxFuture;
use tokio::runtime;
use tokio::sync::{mpsc, oneshot};

use super::claims::Command;
use super::coordinator::Coordinator;
use super::held::HeldLocks;
use super::session::Sessions;
use crate::store::{Attached, Deadline, Key, KvResult, Store};

/// The coordinators of a store's handle, and the sessions of their claims.
#[derive(Debug, Default)]
pub(super) struct LockManager {
    coordinators: Mutex<Coordinators>,
    pub(super) sessions: Arc<Sessions>,
    /// Locks held by the functions without guards.
    pub(super) held: HeldLocks,
    /// Queues of the locks that are being claimed.
    entrances: Mutex<HashMap<CoordinatorId, Weak<tokio::sync::Mutex<()>>>>,
}

#[derive(Debug, Default)]
struct Coordinators {
    senders: HashMap<CoordinatorId, mpsc::UnboundedSender<Command>>,
    /// Whether everything was released because the connection is shut down. Later claims are
    /// rejected.
    is_closed: bool,
}

/// The runtime of a coordinator, and the key of its record.
pub(super) type CoordinatorId = (runtime::Id, Key);

impl LockManager {
    /// Returns the queue through which the claims of a lock on this runtime send their commands. It
    /// keeps the order of the calls, even if one claim has to wait for its session and the next has
    /// one.
    pub(super) fn entrance(&self, key: &Key) -> Arc<tokio::sync::Mutex<()>> {
        let place = (runtime::Handle::current().id(), key.clone());
        let mut entrances = self.entrances.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entrance) = entrances.get(&place).and_then(Weak::upgrade) {
            return entrance;
        }
        entrances.retain(|_, entrance| entrance.strong_count() > 0);
        let entrance = Arc::default();
        entrances.insert(place, Arc::downgrade(&entrance));
        entrance
    }

    /// Sends a command to the coordinator of the lock under a key, and starts it if it does not
    /// run. It runs on the caller's runtime.
    pub(super) fn ask(
        self: &Arc<Self>,
        store: &Store,
        key: &Key,
        command: Command,
    ) -> CoordinatorId {
        let runtime = runtime::Handle::current();
        let place = (runtime.id(), key.clone());
        // Sent under the mutex under which a coordinator checks for the last time before it ends.
        let mut coordinators = self.lock();
        if coordinators.is_closed {
            command.refuse_closed();
            return place;
        }
        let senders = &mut coordinators.senders;
        let command = match senders.get(&place) {
            None => command,
            Some(sender) => match sender.send(command) {
                Ok(()) => return place,
                // The runtime of the coordinator has ended.
                Err(unsent) => unsent.0,
            },
        };
        senders.retain(|_, sender| !sender.is_closed());
        let (sender, commands) = mpsc::unbounded_channel();
        // Succeeds, because the receiver exists.
        let _ = sender.send(command);
        senders.insert(place.clone(), sender);
        drop(coordinators);
        // Each caller has its own deadline; the coordinator uses the default one.
        let store = store.with_deadline(Deadline::DEFAULT).of_task();
        let coordinator = Coordinator::new(Arc::clone(self), place.clone(), store, commands);
        runtime.spawn(coordinator.run());
        place
    }

    /// Sends a command to a coordinator that has a claim, from any thread. If the coordinator has
    /// ended, so has its runtime, and the lease ends its locks.
    pub(super) fn tell(&self, place: &CoordinatorId, command: Command) {
        if let Some(sender) = self.lock().senders.get(place) {
            let _ = sender.send(command);
        }
    }

    /// Removes a coordinator that has nothing to do, unless a command arrives in this moment.
    pub(super) fn retire(
        &self,
        place: &CoordinatorId,
        commands: &mut mpsc::UnboundedReceiver<Command>,
    ) -> bool {
        let mut coordinators = self.lock();
        let is_over = commands.is_empty();
        if is_over {
            coordinators.senders.remove(place);
            commands.close();
        }
        is_over
    }

    /// Releases everything that is held or waited for, and waits until the store has recorded it.
    /// Holders are notified before the release. Later claims are rejected with
    /// [`KvError::Closed`](crate::KvError::Closed).
    ///
    /// Cancel safe: the release continues in the background.
    ///
    /// # Errors
    /// Returns [`KvError::Timeout`](crate::KvError::Timeout) if the store did not answer by the
    /// deadline. Leases then end the locks that were not released.
    pub(super) async fn release_all(&self, deadline: Deadline) -> KvResult<()> {
        let senders: Vec<_> = {
            let mut coordinators = self.lock();
            coordinators.is_closed = true;
            coordinators.senders.values().cloned().collect()
        };
        let answers: Vec<_> = senders
            .into_iter()
            .filter_map(|sender| {
                let (reply, answer) = oneshot::channel();
                // A coordinator whose runtime has ended cannot release anything; the lease ends its
                // locks.
                sender.send(Command::Close { reply }).ok().map(|()| answer)
            })
            .collect();
        for answer in answers {
            // The end of the coordinator answers too.
            let answer = async {
                let _ = answer.await;
                Ok(())
            };
            deadline.bound("shutdown", None, answer).await?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Coordinators> {
        self.coordinators.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attached for LockManager {
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
