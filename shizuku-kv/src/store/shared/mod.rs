//! One watch of the backend for many readers.
//!
//! Values that stay current and typed watches ask for a watch of a scope here. What they get is a [`Watch`] like any
//! other, fed from a *feed*: a task with a watch of the backend, whose updates go to all who asked for them.
//!
//! - A reader begins with a feed that was opened after it asked, so that it gets the state as it is, and nothing that
//!   was acknowledged before is missing. Those who ask for the same meanwhile share the next.
//! - Each reader has a mailbox. A reader that is slow finds the newest update of each key in it; it holds up nobody.
//! - When there are many feeds of single keys they are replaced by one: it is opened beside them, where the first of them
//!   is, its readers are fed by both meanwhile and take from each what is newer than what they have, and when it has
//!   caught up the others end. Up to [`EXACT_KEYS`](scopes::EXACT_KEYS) keys the server is asked for exactly these;
//!   beyond, for prefixes that cover them.
//! - A reader of a key that such a feed has listens to it from the start, and the feed that brings its state ends at the
//!   marker.
//! - Feeds of the same prefixes become one when both have caught up.
//!
//! [`book`] holds who is fed by what: plain data behind one lock, without tasks. This file runs the tasks.

mod book;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod cases;
mod mailbox;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod model;
mod scopes;
mod upkeep;

use std::any::{Any, TypeId};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_core::future::BoxFuture;
use futures_util::future::{Either, select};
use futures_util::stream;
use tokio::runtime;
use tokio::sync::watch;

use self::book::{Book, Ended, FeedId, Interest, Opening, ReaderId};
use self::mailbox::Mailbox;
pub(crate) use self::upkeep::{Follower, Following, Upkeep};
use super::{
    Deadline, KvError, KvResult, KvStore, KvWatcher, Watch, WatchCursor, WatchLink, WatchScope,
};

const OPERATION: &str = "watch";

/// How long opening the feed may take that replaces others.
const REPLACEMENT_LIMIT: Duration = Duration::from_secs(30);

/// The pause before the next is opened after one that could not be, for all together.
const REST: Duration = Duration::from_millis(100);

/// State that a higher layer keeps for a handle and its clones.
pub(crate) trait Attached: Default + Send + Sync + 'static {
    /// Releases its resources in the store, before the connection is shut down.
    fn close(&self, deadline: Deadline) -> BoxFuture<'_, KvResult<()>>;
}

/// Attached state, whose type is not known here.
struct Kept {
    value: Arc<dyn Any + Send + Sync>,
    close: fn(Arc<dyn Any + Send + Sync>, Deadline) -> BoxFuture<'static, KvResult<()>>,
}

impl Kept {
    fn new<T: Attached>() -> Self {
        Self {
            value: Arc::<T>::default(),
            close: |value, deadline| {
                Box::pin(async move {
                    match value.downcast_ref::<T>() {
                        Some(value) => value.close(deadline).await,
                        None => Ok(()),
                    }
                })
            },
        }
    }
}

/// The feeds of one store. Clones of a handle have them in common.
#[derive(Default)]
pub(super) struct Shared {
    /// One for each runtime: a feed ends with the runtime that drives it, and stands still with it.
    hubs: Mutex<Vec<(runtime::Id, Weak<Hub>)>>,
    /// The upkeep of live values, one for each runtime and interval.
    upkeeps: Mutex<Vec<(runtime::Id, Weak<Upkeep>)>>,
    /// The scopes of the watches that have one to themselves.
    alone: Mutex<HashSet<WatchScope>>,
    /// What layers above keep for all clones of a handle, one of each type.
    attached: Mutex<HashMap<TypeId, Kept>>,
    /// Set when users have dropped the last clone of the handle.
    is_abandoned: watch::Sender<bool>,
}

/// The users' clones of a handle. Dropping the last one marks the store as abandoned.
pub(super) struct User(Arc<Shared>);

impl User {
    pub(super) fn of(shared: &Arc<Shared>) -> Self {
        Self(Arc::clone(shared))
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.0.is_abandoned.send_replace(true);
    }
}

impl Shared {
    /// Waits until users have dropped the last clone of the handle.
    pub(super) async fn abandoned(&self) {
        // The sender lives in `self`, so waiting does not fail.
        let _ = self.is_abandoned.subscribe().wait_for(|is_abandoned| *is_abandoned).await;
    }

    /// A watch of a scope from its current state. The first of its prefixes is a watch of the backend itself, which
    /// holds nothing; those that come while it is there share another one, and so do all of single keys.
    pub(super) async fn watch(
        self: &Arc<Self>,
        backend: &Arc<dyn KvStore>,
        scope: WatchScope,
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
        let subscription = self.hub(backend).join(interest, deadline);
        deadline.bound(OPERATION, None, subscription.mailbox.opened()).await?;
        let link = subscription.mailbox.link();
        let updates = stream::unfold(subscription, |subscription| async move {
            let update = poll_fn(|cx| subscription.mailbox.poll_next(cx)).await?;
            Some((update, subscription))
        });
        Ok(Watch::new(updates).with_link(link))
    }

    /// The upkeep of live values on the caller's runtime.
    pub(super) fn upkeep(&self, backend: &Arc<dyn KvStore>, interval: Duration) -> Arc<Upkeep> {
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

    /// What a layer above keeps here; its default until then.
    pub(super) fn attached<T: Attached>(&self) -> Arc<T> {
        let mut attached = lock(&self.attached);
        let kept = attached.entry(TypeId::of::<T>()).or_insert_with(Kept::new::<T>);
        // What is kept for a type is of that type.
        Arc::clone(&kept.value).downcast().unwrap_or_default()
    }

    /// Releases the resources of higher layers in the store.
    pub(super) async fn close(&self, deadline: Deadline) -> KvResult<()> {
        let closing: Vec<_> = {
            let attached = lock(&self.attached);
            attached.values().map(|kept| (kept.close)(Arc::clone(&kept.value), deadline)).collect()
        };
        let mut closed = Ok(());
        for closing in closing {
            closed = closing.await.and(closed);
        }
        closed
    }

    /// The feeds of this runtime, on which the caller is.
    fn hub(&self, backend: &Arc<dyn KvStore>) -> Arc<Hub> {
        let id = runtime::Handle::current().id();
        let mut hubs = lock(&self.hubs);
        hubs.retain(|(_, hub)| hub.upgrade().is_some_and(|hub| !lock(&hub.book).is_closed()));
        if let Some(hub) = hubs.iter().find_map(|(of, hub)| hub.upgrade().filter(|_| *of == id)) {
            return hub;
        }
        let hub = Arc::new(Hub {
            backend: Arc::clone(backend),
            runtime: runtime::Handle::current(),
            book: Mutex::default(),
        });
        hubs.push((id, Arc::downgrade(&hub)));
        hub
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
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
    shared: Arc<Shared>,
    scope: WatchScope,
}

impl Alone {
    fn claim(shared: &Arc<Shared>, scope: &WatchScope) -> Option<Self> {
        let is_first = lock(&shared.alone).insert(scope.clone());
        is_first.then(|| Self { shared: Arc::clone(shared), scope: scope.clone() })
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        lock(&self.shared.alone).remove(&self.scope);
    }
}

/// The feeds that one runtime drives. There as long as it has readers.
struct Hub {
    backend: Arc<dyn KvStore>,
    runtime: runtime::Handle,
    book: Mutex<Book>,
}

impl Hub {
    fn join(self: Arc<Self>, interest: Interest, deadline: Deadline) -> Subscription {
        let mailbox = Arc::new(Mailbox::new());
        let reader = self.with(|book| book.join(interest, deadline, Arc::clone(&mailbox)));
        Subscription { hub: self, reader, mailbox }
    }

    /// Changes the book, then does what follows: opens feeds, and wakes readers.
    fn with<T>(self: &Arc<Self>, change: impl FnOnce(&mut Book) -> T) -> T {
        let mut book = lock(&self.book);
        let result = change(&mut book);
        let (wakers, openings) = book.take_due();
        drop(book);
        for opening in openings {
            let feed = Feed { hub: Arc::clone(self), id: opening.feed, has_ended: false };
            self.runtime.spawn(feed.run(opening));
        }
        for waker in wakers {
            // Somebody else's code: what panics must not keep the others from being woken.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
        result
    }
}

/// What a reader has.
struct Subscription {
    hub: Arc<Hub>,
    reader: ReaderId,
    mailbox: Arc<Mailbox>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.with(|book| book.leave(self.reader));
    }
}

/// The task of a feed.
struct Feed {
    hub: Arc<Hub>,
    id: FeedId,
    has_ended: bool,
}

impl Feed {
    async fn run(mut self, opening: Opening) {
        let stop = Arc::clone(&opening.stop);
        let ended = match select(pin!(stop.notified()), pin!(self.feed(opening))).await {
            Either::Left(_) => None,
            Either::Right((error, _)) => Some(error),
        };
        self.has_ended = true;
        let Some(error) = ended else { return };
        let store = self.hub.backend.name();
        match self.hub.with(|book| book.end(self.id, &error)) {
            Ended::Trouble => tracing::warn!(store, %error, "a watch cannot be opened"),
            Ended::Nothing => {
                tracing::debug!(store, %error, "a watch cannot be opened, or was of no use")
            }
            Ended::Readers(readers) => {
                tracing::warn!(store, readers, %error, "a shared watch has ended")
            }
        }
    }

    /// Passes on what the backend says, until that ends.
    async fn feed(&self, opening: Opening) -> KvError {
        if opening.later {
            tokio::time::sleep(REST).await;
        }
        self.hub.with(|book| book.begin(self.id));
        // One that hangs holds up others of the same interest.
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
        let mut watch = match watch {
            Ok(watch) => watch,
            Err(error) => return error,
        };
        let mut links = watch.link_changes();
        let link = watch.link();
        self.hub.with(|book| book.opened(self.id, link, resumed));
        loop {
            let update = match select(pin!(changed(&mut links)), pin!(watch.next())).await {
                Either::Left(_) => None,
                Either::Right((update, _)) => Some(update),
            };
            match update {
                None => {
                    let link = watch.link();
                    self.hub.with(|book| book.relink(self.id, &link));
                }
                Some(Some(Ok(update))) => {
                    let Some(cursor) = watch.cursor() else { continue };
                    self.hub.with(|book| book.receive(self.id, update, cursor));
                }
                Some(Some(Err(error))) => return error,
                Some(None) => return KvError::Closed { operation: OPERATION },
            }
            // A scope that changes all the time must not keep the thread from others, nor the task from being ended.
            tokio::task::consume_budget().await;
        }
    }
}

impl Drop for Feed {
    /// Where the task ends without a word, its runtime does: whoever reads elsewhere has to learn of it, and nothing more
    /// can be opened here.
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let error = KvError::Unavailable {
            operation: OPERATION,
            reason: "the runtime that drove the watch has ended".to_owned(),
            source: None,
        };
        self.hub.with(|book| book.close(error));
    }
}

async fn changed(links: &mut Option<watch::Receiver<WatchLink>>) {
    let told = match links {
        Some(links) => links.changed().await.is_ok(),
        None => false,
    };
    if !told {
        // Nothing will ever be.
        std::future::pending().await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
