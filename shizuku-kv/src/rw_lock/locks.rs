//! The locks of a store's handle and its clones: which coordinators run, by what their claims live, what is held without
//! a guard.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use futures_core::future::BoxFuture;
use tokio::runtime;
use tokio::sync::mpsc;

use super::claims::Command;
use super::coordinator::Coordinator;
use super::held::Held;
use super::session::{SessionUse, Sessions};
use crate::store::{Deadline, Key, KvResult, ShutdownHook, Store};

/// The coordinators of a store's handle, and what their claims live by.
#[derive(Debug, Default)]
pub(super) struct Locks {
    coordinators: Mutex<HashMap<Place, mpsc::UnboundedSender<Command>>>,
    pub(super) sessions: Arc<Sessions>,
    /// What the functions without guards hold.
    pub(super) held: Held,
    /// Whether the connection ends the sessions before it is shut down.
    is_registered: OnceLock<()>,
}

/// Where a coordinator is: on a runtime, for a record's key.
pub(super) type Place = (runtime::Id, Key);

impl Locks {
    /// A session for claims with this lease, made if there is none. `record` is the key of the lock that is claimed.
    ///
    /// Dropping the future is safe.
    pub(super) async fn session(
        self: &Arc<Self>,
        store: &Store,
        lease: Duration,
        record: &Key,
    ) -> KvResult<SessionUse> {
        self.is_registered.get_or_init(|| {
            let hook: Weak<Self> = Arc::downgrade(self);
            store.shutdown_hooks().add(hook);
        });
        self.sessions.get(store, lease, record).await
    }

    /// Asks something of the coordinator of the lock under a key; on this runtime, on which the caller has to be.
    pub(super) fn ask(self: &Arc<Self>, store: &Store, key: &Key, command: Command) -> Place {
        let runtime = runtime::Handle::current();
        let place = (runtime.id(), key.clone());
        // Sent under the lock, under which a coordinator looks for the last time before it ends.
        let mut coordinators = self.lock();
        let command = match coordinators.get(&place) {
            None => command,
            Some(sender) => match sender.send(command) {
                Ok(()) => return place,
                // Its runtime has ended.
                Err(unsent) => unsent.0,
            },
        };
        coordinators.retain(|_, sender| !sender.is_closed());
        let (sender, commands) = mpsc::unbounded_channel();
        // The receiver is right there.
        let _ = sender.send(command);
        coordinators.insert(place.clone(), sender);
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
        if let Some(sender) = self.lock().get(place) {
            let _ = sender.send(command);
        }
    }

    /// Takes out a coordinator that has nothing to do, unless somebody asks for something in this moment.
    pub(super) fn retire(&self, place: &Place, commands: &mut mpsc::UnboundedReceiver<Command>) -> bool {
        let mut coordinators = self.lock();
        let is_over = commands.is_empty();
        if is_over {
            coordinators.remove(place);
            commands.close();
        }
        is_over
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Place, mpsc::UnboundedSender<Command>>> {
        self.coordinators.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ShutdownHook for Locks {
    /// Ends the sessions, so that others need not wait for their leases to be over.
    fn shut_down(self: Arc<Self>, _deadline: Deadline) -> BoxFuture<'static, ()> {
        Box::pin(async move { self.sessions.end_all().await })
    }
}
