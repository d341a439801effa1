//! One watch of the backend for many subscribers (ADR 0025).
//!
//! Live values and typed watches request a watch of a scope here. They receive a [`Watch`] like any
//! other. An *upstream* feeds it: a task with a watch of the backend, whose updates go to all its
//! subscribers.
//!
//! - A subscriber begins with an upstream that was opened after its request. It therefore gets the
//!   current state, in which no acknowledged write is missing. Subscribers that request the same
//!   scope meanwhile share the next upstream.
//! - Each subscriber has a mailbox. A slow subscriber finds the newest update of each key in its
//!   mailbox, and blocks no other subscriber.
//! - Many upstreams of single keys are replaced by one. It is opened beside them, at the earliest
//!   of their positions. Both feed the subscribers meanwhile, and a subscriber skips updates that
//!   were already delivered. When the replacement has caught up, the others end. Up to
//!   [`EXACT_KEYS`](scopes::EXACT_KEYS) keys are requested by name; beyond, prefixes that cover
//!   them.
//! - A subscriber of a key that such an upstream covers listens to it from the start. The upstream
//!   that delivers the subscriber's initial state ends at the marker. The initial state of a live
//!   value is read from the leader instead, if that is possible (ADR 0097).
//! - Upstreams of the same prefixes become one when both have caught up.
//!
//! [`subscriptions`] records which upstream feeds which subscriber: plain data behind one mutex,
//! without tasks. This file runs the tasks.

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod cases;
mod mailbox;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod model;
mod scopes;
mod subscriptions;
mod upkeep;

use std::collections::HashSet;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures_util::future::{Either, select};
use futures_util::stream;
use tokio::runtime;
use tokio::sync::watch;

use self::mailbox::Mailbox;
use self::subscriptions::{
    Ended, Interest, Opening, Read, SubscriberId, Subscriptions, UpstreamId,
};
pub(crate) use self::upkeep::{KeyComparison, Upkeep};
use crate::store::{
    Attached, Deadline, KvError, KvResult, KvStore, KvWatcher, Store, Watch, WatchCursor,
    WatchLink, WatchScope, lock,
};

const OPERATION: &str = "watch";

/// Timeout for opening an upstream for which no subscriber waits.
const REPLACEMENT_LIMIT: Duration = Duration::from_secs(30);

/// Timeout for reading a key as an initial state. After it, an upstream is opened instead.
const READ_LIMIT: Duration = Duration::from_secs(2);

/// Pause before the next opening after one that failed, for all upstreams together.
const REST: Duration = Duration::from_millis(100);

/// The initial state of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// The state of a watch of the backend that was opened after the request.
    Watch,
    /// The entry of the key that the leader has after the request, if another watch covers the key
    /// already (ADR 0097).
    Read,
}

/// Opens a watch that shares an upstream with other watches of the same handle and its clones. A
/// slow subscriber then does not slow its source, but reads only the newest entry of each key.
///
/// # Errors
/// As for [`Store::watch`].
pub(crate) async fn shared_watch(
    store: &Store,
    scope: WatchScope,
    start: Start,
) -> KvResult<Watch> {
    scope.check_prefixes()?;
    let deadline = store.deadline_of(OPERATION, None)?;
    store.attached::<SharedWatches>().watch(store.backend(), scope, start, deadline).await
}

/// Returns the upkeep of the live values of a handle and its clones on this runtime.
pub(crate) fn upkeep(store: &Store) -> Arc<Upkeep> {
    store.attached::<SharedWatches>().upkeep(store.backend(), store.compare_every())
}

/// The upstreams of one store, shared by the clones of a handle.
#[derive(Default)]
struct SharedWatches {
    /// One for each runtime: an upstream ends with the runtime that drives it, and makes no
    /// progress while that runtime is blocked.
    hubs: Mutex<Vec<(runtime::Id, Weak<Hub>)>>,
    /// The upkeep of live values, one for each runtime and interval.
    upkeeps: Mutex<Vec<(runtime::Id, Weak<Upkeep>)>>,
    /// The scopes of the watches that do not share an upstream.
    alone: Mutex<HashSet<WatchScope>>,
}

impl Attached for SharedWatches {}

impl SharedWatches {
    /// Opens a watch of a scope from its current state. The first watch of a scope of several keys
    /// is a watch of the backend itself, without a mailbox. Later ones of the same scope share an
    /// upstream while the first is open. All watches of single keys share upstreams.
    async fn watch(
        self: &Arc<Self>,
        backend: &Arc<dyn KvStore>,
        scope: WatchScope,
        start: Start,
        deadline: Deadline,
    ) -> KvResult<Watch> {
        let runtime = runtime::Handle::try_current().ok();
        let interest = match (scope, runtime) {
            (scope, None) => return open(&**backend, scope, None, deadline).await,
            (WatchScope::Key(key), Some(_)) => Interest::Key(key),
            (scope, Some(_)) => {
                if let Some(alone) = Alone::claim(self, &scope) {
                    return Ok(open(&**backend, scope, None, deadline).await?.with_guard(alone));
                }
                Interest::Scope(scope)
            }
        };
        let can = backend.capabilities();
        let may_read = start == Start::Read && can.ordered_versions && can.linearizable_reads;
        let subscription = self.hub(backend).join(interest, may_read, deadline);
        deadline.bound(OPERATION, None, subscription.mailbox.opened()).await?;
        let link = subscription.mailbox.link();
        let updates = stream::unfold(subscription, |subscription| async move {
            let update = poll_fn(|cx| subscription.mailbox.poll_next(cx)).await?;
            Some((update, subscription))
        });
        Ok(Watch::new(updates).with_link(link))
    }

    /// Returns the upkeep of live values on the caller's runtime.
    fn upkeep(&self, backend: &Arc<dyn KvStore>, interval: Duration) -> Arc<Upkeep> {
        let id = runtime::Handle::current().id();
        let mut upkeeps = lock(&self.upkeeps);
        upkeeps.retain(|(_, upkeep)| upkeep.strong_count() > 0);
        let found = upkeeps.iter().find_map(|(of, upkeep)| {
            upkeep.upgrade().filter(|upkeep| *of == id && upkeep.interval() == interval)
        });
        found.unwrap_or_else(|| {
            let upkeep = Upkeep::start(backend, interval);
            upkeeps.push((id, Arc::downgrade(&upkeep)));
            upkeep
        })
    }

    /// Returns the upstreams of the caller's runtime.
    fn hub(&self, backend: &Arc<dyn KvStore>) -> Arc<Hub> {
        let id = runtime::Handle::current().id();
        let mut hubs = lock(&self.hubs);
        hubs.retain(|(_, hub)| {
            hub.upgrade().is_some_and(|hub| !lock(&hub.subscriptions).is_closed())
        });
        if let Some(hub) = hubs.iter().find_map(|(of, hub)| hub.upgrade().filter(|_| *of == id)) {
            return hub;
        }
        let hub = Arc::new(Hub {
            backend: Arc::clone(backend),
            runtime: runtime::Handle::current(),
            subscriptions: Mutex::default(),
        });
        hubs.push((id, Arc::downgrade(&hub)));
        hub
    }
}

async fn open(
    backend: &dyn KvStore,
    scope: WatchScope,
    from: Option<WatchCursor>,
    deadline: Deadline,
) -> KvResult<Watch> {
    let watcher: &dyn KvWatcher = backend.watcher().ok_or_else(|| KvError::Unsupported {
        operation: OPERATION,
        reason: format!("store {:?} cannot be watched", backend.name()),
    })?;
    deadline.bound(OPERATION, None, watcher.watch(scope, from, deadline)).await
}

/// The right to be the only watch of a scope, until it is dropped.
struct Alone {
    shared: Arc<SharedWatches>,
    scope: WatchScope,
}

impl Alone {
    fn claim(shared: &Arc<SharedWatches>, scope: &WatchScope) -> Option<Self> {
        let is_first = lock(&shared.alone).insert(scope.clone());
        is_first.then(|| Self { shared: Arc::clone(shared), scope: scope.clone() })
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        lock(&self.shared.alone).remove(&self.scope);
    }
}

/// The upstreams that one runtime drives. A hub exists as long as it has subscribers.
struct Hub {
    backend: Arc<dyn KvStore>,
    runtime: runtime::Handle,
    subscriptions: Mutex<Subscriptions>,
}

impl Hub {
    fn join(
        self: Arc<Self>,
        interest: Interest,
        may_read: bool,
        deadline: Deadline,
    ) -> Subscription {
        let mailbox = Arc::new(Mailbox::new());
        let subscriber = self.with(|subscriptions| {
            subscriptions.join(interest, may_read, deadline, Arc::clone(&mailbox))
        });
        Subscription { hub: self, subscriber, mailbox }
    }

    /// Reads the newest entry of a key for a subscriber.
    async fn read(self: Arc<Self>, Read { subscriber, key }: Read) {
        let deadline = Deadline::after(READ_LIMIT);
        let entry = self.backend.leader_entry(&key, deadline);
        let entry = deadline.bound(OPERATION, Some(&key), entry).await;
        if let Err(error) = &entry {
            let store = self.backend.name();
            tracing::debug!(store, %key, %error, "cannot read a key, opening a watch for it");
        }
        self.with(|subscriptions| subscriptions.begin_with(subscriber, entry));
    }

    /// Changes the subscriptions, then opens the due upstreams and wakes subscribers.
    fn with<T>(self: &Arc<Self>, change: impl FnOnce(&mut Subscriptions) -> T) -> T {
        let mut subscriptions = lock(&self.subscriptions);
        let result = change(&mut subscriptions);
        let (wakers, openings, reads) = subscriptions.take_due();
        drop(subscriptions);
        for read in reads {
            self.runtime.spawn(Arc::clone(self).read(read));
        }
        for opening in openings {
            let upstream =
                Upstream { hub: Arc::clone(self), id: opening.upstream, has_ended: false };
            self.runtime.spawn(upstream.run(opening));
        }
        for waker in wakers {
            // A waker runs foreign code. Its panic must not keep the others from being woken.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
        result
    }
}

/// The subscription of a subscriber.
struct Subscription {
    hub: Arc<Hub>,
    subscriber: SubscriberId,
    mailbox: Arc<Mailbox>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.with(|subscriptions| subscriptions.leave(self.subscriber));
    }
}

/// The task of an upstream.
struct Upstream {
    hub: Arc<Hub>,
    id: UpstreamId,
    has_ended: bool,
}

impl Upstream {
    async fn run(mut self, opening: Opening) {
        let stop = Arc::clone(&opening.stop);
        let ended = match select(pin!(stop.notified()), pin!(self.upstream(opening))).await {
            Either::Left(_) => None,
            Either::Right((error, _)) => Some(error),
        };
        self.has_ended = true;
        let Some(error) = ended else { return };
        let store = self.hub.backend.name();
        match self.hub.with(|subscriptions| subscriptions.end(self.id, &error)) {
            Ended::OpeningFailed => tracing::warn!(store, %error, "cannot open a watch"),
            Ended::Nothing => {
                tracing::debug!(store, %error, "lost an unused watch, or cannot open one again")
            }
            Ended::Subscribers(subscribers) => {
                tracing::warn!(store, subscribers, %error, "lost a shared watch")
            }
        }
    }

    /// Passes the updates of the backend on to the subscribers, until the watch ends. Returns the
    /// error.
    async fn upstream(&self, opening: Opening) -> KvError {
        if opening.later {
            tokio::time::sleep(REST).await;
        }
        self.hub.with(|subscriptions| subscriptions.begin(self.id));
        // The time is limited, because an opening without an answer delays others of the same
        // interest.
        let limit = if opening.deadline.is_some() { Deadline::DEFAULT } else { REPLACEMENT_LIMIT };
        let deadline = opening.deadline.filter(|deadline| deadline.remaining() <= limit);
        let deadline = deadline.unwrap_or_else(|| Deadline::after(limit));
        let backend = &*self.hub.backend;
        let mut resumed = opening.from.is_some();
        let mut watch = open(backend, opening.scope.clone(), opening.from, deadline).await;
        if let Err(KvError::CursorExpired { .. }) = watch {
            resumed = false;
            watch = open(backend, opening.scope, None, deadline).await;
        }
        let watch = match watch {
            Ok(watch) => watch,
            Err(error) => return error,
        };
        let mut links = watch.link_changes();
        let link = watch.link();
        self.hub.with(|subscriptions| subscriptions.opened(self.id, link, resumed));
        loop {
            let update = match select(pin!(changed(&mut links)), pin!(watch.next())).await {
                Either::Left(_) => None,
                Either::Right((update, _)) => Some(update),
            };
            match update {
                None => {
                    let link = watch.link();
                    self.hub.with(|subscriptions| subscriptions.relink(self.id, &link));
                }
                Some(Some(Ok(update))) => {
                    let Some(cursor) = watch.cursor() else { continue };
                    self.hub.with(|subscriptions| subscriptions.receive(self.id, update, cursor));
                }
                Some(Some(Err(error))) => return error,
                Some(None) => return KvError::Closed { operation: OPERATION },
            }
            // A scope that changes all the time must not block other tasks of the thread, nor the
            // end of this task.
            tokio::task::consume_budget().await;
        }
    }
}

impl Drop for Upstream {
    /// Closes the hub if the task ends without a result, because its runtime has ended. Subscribers
    /// on other runtimes get the error, and no upstream can be opened here any more.
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let error = KvError::Unavailable {
            operation: OPERATION,
            reason: "the runtime that drove the watch has ended".to_owned(),
            source: None,
        };
        self.hub.with(|subscriptions| subscriptions.close(error));
    }
}

async fn changed(links: &mut Option<watch::Receiver<WatchLink>>) {
    let changes = match links {
        Some(links) => links.changed().await.is_ok(),
        None => false,
    };
    if !changes {
        // The link never changes.
        std::future::pending().await
    }
}
