//! The locks of a store's handle and its clones: which coordinators run, by what their claims live, what is held without
//! a guard.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures_core::future::BoxFuture;
use tokio::runtime;
use tokio::sync::{mpsc, oneshot};

use super::claims::Command;
use super::coordinator::Coordinator;
use super::held::Held;
use super::session::Sessions;
use crate::store::{Attached, Deadline, Key, KvResult, Store};

/// The coordinators of a store's handle, and what their claims live by.
#[derive(Debug, Default)]
pub(super) struct Locks {
    coordinators: Mutex<Coordinators>,
    pub(super) sessions: Arc<Sessions>,
    /// What the functions without guards hold.
    pub(super) held: Held,
    /// Queues of the locks that are being claimed.
    entrances: Mutex<HashMap<Place, Weak<tokio::sync::Mutex<()>>>>,
}

#[derive(Debug, Default)]
struct Coordinators {
    senders: HashMap<Place, mpsc::UnboundedSender<Command>>,
    /// Whether everything was released because the connection is shut down. No lock is claimed any
    /// more.
    is_closed: bool,
}

/// Where a coordinator is: on a runtime, for a record's key.
pub(super) type Place = (runtime::Id, Key);

impl Locks {
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

    /// Asks something of the coordinator of the lock under a key; on this runtime, on which the caller has to be.
    pub(super) fn ask(self: &Arc<Self>, store: &Store, key: &Key, command: Command) -> Place {
        let runtime = runtime::Handle::current();
        let place = (runtime.id(), key.clone());
        // Sent under the lock, under which a coordinator looks for the last time before it ends.
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
                // Its runtime has ended.
                Err(unsent) => unsent.0,
            },
        };
        senders.retain(|_, sender| !sender.is_closed());
        let (sender, commands) = mpsc::unbounded_channel();
        // The receiver is right there.
        let _ = sender.send(command);
        senders.insert(place.clone(), sender);
        drop(coordinators);
        // What each caller can wait for is its own affair.
        let store = store.with_deadline(Deadline::DEFAULT).of_task();
        let coordinator = Coordinator::new(Arc::clone(self), place.clone(), store, commands);
        runtime.spawn(coordinator.run());
        place
    }

    /// Asks something of a coordinator that has a claim; from anywhere. Where it has ended so has its runtime, and the
    /// lease ends what it held.
    pub(super) fn tell(&self, place: &Place, command: Command) {
        if let Some(sender) = self.lock().senders.get(place) {
            let _ = sender.send(command);
        }
    }

    /// Takes out a coordinator that has nothing to do, unless somebody asks for something in this moment.
    pub(super) fn retire(
        &self,
        place: &Place,
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
    /// Dropping the future is safe: the release continues in the background.
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
            // Also answered when the coordinator ends.
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

impl Attached for Locks {
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
