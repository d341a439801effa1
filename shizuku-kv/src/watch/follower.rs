//! A watch that is reopened after each loss (ADR 0084).

use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use backon::ExponentialBackoff;
use futures_core::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::shared::{Start, shared_watch};
use crate::store::{
    Key, KvError, KvResult, KvUpdate, Store, Watch, WatchCursor, WatchLink, WatchScope, backoff,
    in_runtime, timer,
};

/// First pause between two watches.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Longest pause between two watches of the backend. Each of them costs requests.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Longest pause between two shared watches. A short one detects the end of the connection sooner,
/// and costs little, because waiting followers share one watch of the backend.
const LONGEST_SHARED_PAUSE: Duration = Duration::from_secs(2);

/// Minimum age of a watch at its loss after which the next one is opened after the first pause. A
/// watch that ends soon after its start is not progress, even if the initial state was delivered.
const LASTING: Duration = Duration::from_secs(10);

/// Follows a scope of a store through watches, one after the other, until the connection ends.
pub(crate) struct Follower {
    store: Store,
    scope: WatchScope,
    source: Source,
    state: State,
    link: WatchLink,
    /// `None` if the next loss begins with the first pause.
    pauses: Option<ExponentialBackoff>,
}

/// The kind of the watches.
#[derive(Clone, Copy)]
enum Source {
    /// The watches share an upstream with others, and begin with the initial state.
    Shared,
    /// The same, but the first watch may begin with a read of its key: see [`Start::Read`].
    SharedAfterRead,
    /// The watches belong to this follower alone. The next one resumes from the cursor, or begins
    /// with the initial state.
    Own(Option<WatchCursor>),
}

/// The states, each named by what it waits for.
enum State {
    /// A call of [`Follower::start`].
    Stopped,
    /// The store, which opens a watch.
    Opening(BoxFuture<'static, KvResult<Watch>>),
    /// Updates.
    Open(Box<Open>),
    /// The next call, with which the pause begins. Until then, the owner may reset the pauses.
    Lost,
    /// The end of the pause.
    BackingOff(BoxFuture<'static, ()>),
    /// Nothing, because the connection has ended.
    Closed,
}

/// An open watch.
struct Open {
    watch: Watch,
    since: Instant,
    /// Whether the watch has delivered an update.
    has_delivered: bool,
    links: Option<watch::Receiver<WatchLink>>,
    /// Wakes this task when the connection state changes.
    wakes: Option<BoxFuture<'static, bool>>,
    /// An update that arrived in the same poll as a change of the connection state.
    held_back: Option<Result<KvUpdate, KvError>>,
}

/// A change that a follower reports.
#[derive(Debug)]
pub(crate) enum Event {
    /// A watch is open. The initial state follows, or the changes after the cursor.
    Opened,
    /// An entry was written or deleted, or has expired.
    Update(KvUpdate),
    /// The initial state is complete.
    CaughtUp {
        /// Whether the initial state has no entry. For a scope of one key, the key is absent.
        is_empty: bool,
    },
    /// The connection state of the watch has changed: see [`Follower::link`]. Updates that follow
    /// may be from another server.
    LinkChanged,
    /// The watch ended, or could not be opened. Another one is opened after a pause. The known
    /// state may belong to a deleted store. [`Follower::link`] is down.
    Lost(KvError),
    /// The connection has ended. No event follows.
    Closed(KvError),
}

impl Follower {
    /// Follows a scope over watches that share upstreams with others of the same handle.
    pub(crate) fn shared(store: &Store, scope: WatchScope) -> Self {
        Self::new(store, scope, Source::Shared)
    }

    /// Follows a key like [`shared`](Self::shared), but the first watch may begin with a read of
    /// the key. The owner has to compare the key with the store now and then.
    pub(crate) fn shared_after_read(store: &Store, key: Key) -> Self {
        Self::new(store, WatchScope::Key(key), Source::SharedAfterRead)
    }

    /// Follows a scope over watches of its own. A slow reader slows the source of such a watch.
    pub(crate) fn own(store: &Store, scope: WatchScope, from: Option<WatchCursor>) -> Self {
        Self::new(store, scope, Source::Own(from))
    }

    fn new(store: &Store, scope: WatchScope, source: Source) -> Self {
        let link = WatchLink::down(SystemTime::now(), "the store has not answered yet");
        let (store, state) = (store.clone(), State::Stopped);
        let mut follower = Self { store, scope, source, state, link, pauses: None };
        follower.open();
        follower
    }

    /// Follows a scope over a watch that is already open.
    #[cfg(test)]
    pub(crate) fn over(store: &Store, watch: Watch) -> Self {
        let state = State::Open(Box::new(Open::new(watch)));
        Self { state, ..Self::shared(store, WatchScope::All) }
    }

    /// Returns the connection state: that of the open watch once an update was delivered, otherwise
    /// down since the first of the successive losses.
    pub(crate) fn link(&self) -> &WatchLink {
        &self.link
    }

    /// Updates a copy of the connection state. Returns whether it was different.
    pub(crate) fn update_link(&self, copy: &mut WatchLink) -> bool {
        let is_new = *copy != self.link;
        copy.clone_from(&self.link);
        is_new
    }

    /// Returns the position after the last update. Returns `None` if no watch is open.
    pub(crate) fn cursor(&self) -> Option<WatchCursor> {
        match &self.state {
            State::Open(open) => open.watch.cursor(),
            _ => None,
        }
    }

    /// Replaces the handle of the store, with which the next watches are opened.
    pub(crate) fn set_store(&mut self, store: Store) {
        self.store = store;
    }

    /// Starts to follow, unless the follower was already started.
    pub(crate) fn start(&mut self) {
        if matches!(self.state, State::Stopped) {
            self.open();
        }
    }

    /// Drops the watch, until the next [`start`](Self::start).
    pub(crate) fn stop(&mut self) {
        self.state = State::Stopped;
    }

    pub(crate) fn is_started(&self) -> bool {
        !matches!(self.state, State::Stopped)
    }

    /// Sets the cursor of the next watch, which replaces an open one at once. After a loss, the
    /// next watch is opened when the pause ends.
    pub(crate) fn reopen_from(&mut self, from: Option<WatchCursor>) {
        self.source = Source::Own(from);
        if let State::Open(_) = self.state {
            self.open();
        }
    }

    /// Records progress, so that the next pause is the first one. This also applies between a loss
    /// and its pause.
    pub(crate) fn reset_pauses(&mut self) {
        self.pauses = None;
    }

    fn open(&mut self) {
        let (store, scope, source) = (self.store.clone(), self.scope.clone(), self.source);
        if let Source::SharedAfterRead = source {
            self.source = Source::Shared;
        }
        self.state = State::Opening(Box::pin(async move {
            match source {
                Source::Shared => shared_watch(&store, scope, Start::Watch).await,
                Source::SharedAfterRead => shared_watch(&store, scope, Start::Read).await,
                Source::Own(Some(cursor)) => store.watch_from(scope, cursor).await,
                Source::Own(None) => store.watch(scope).await,
            }
        }));
    }

    /// Returns the next event. Waits forever while the follower is stopped, and after
    /// [`Event::Closed`].
    ///
    /// Cancel safe: the next call continues the wait.
    pub(crate) async fn next(&mut self) -> Event {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        loop {
            match &mut self.state {
                State::Stopped | State::Closed => return Poll::Pending,
                State::Lost => {
                    let until = Instant::now() + self.next_pause();
                    self.state = State::BackingOff(Box::pin(timer::sleep_until(until)));
                }
                State::BackingOff(pause) => {
                    // A timer needs a runtime.
                    if let Err(error) = in_runtime("watch") {
                        return Poll::Ready(self.lose(error));
                    }
                    ready!(pause.poll_unpin(cx));
                    self.open();
                }
                State::Opening(opening) => {
                    return Poll::Ready(match ready!(opening.poll_unpin(cx)) {
                        Ok(watch) => {
                            self.state = State::Open(Box::new(Open::new(watch)));
                            Event::Opened
                        }
                        Err(error) => self.lose(error),
                    });
                }
                State::Open(open) => {
                    // Until a watch has delivered an update, the cached state may be stale.
                    return Poll::Ready(match ready!(open.poll_next(cx)) {
                        None => {
                            if open.has_delivered {
                                self.link = open.watch.link();
                            }
                            Event::LinkChanged
                        }
                        Some(Ok(update)) => {
                            if !open.has_delivered {
                                self.link = open.watch.link();
                            }
                            open.deliver(update)
                        }
                        Some(Err(error)) => self.lose(error),
                    });
                }
            }
        }
    }

    /// Drops the open watch because the store differs from the delivered entries.
    pub(crate) fn lose_after_difference(&mut self) -> Event {
        let reason = "the store differs from the entries that its watch has delivered";
        self.lose(KvError::CursorExpired { store: self.store.name().to_owned(), reason })
    }

    fn lose(&mut self, error: KvError) -> Event {
        if error.is_over() {
            self.state = State::Closed;
            return Event::Closed(error);
        }
        let since = match self.link {
            WatchLink::Down { since, .. } => since,
            WatchLink::Up => SystemTime::now(),
        };
        self.link = WatchLink::down(since, error.to_string());
        if let State::Open(open) = &self.state
            && open.since.elapsed() >= LASTING
        {
            self.pauses = None;
        }
        let (store, scope) = (self.store.name(), &self.scope);
        tracing::debug!(store, ?scope, %error, "lost a watch, reopening it");
        self.state = State::Lost;
        Event::Lost(error)
    }

    fn next_pause(&mut self) -> Duration {
        let longest = match self.source {
            Source::Shared | Source::SharedAfterRead => LONGEST_SHARED_PAUSE,
            Source::Own(_) => LONGEST_PAUSE,
        };
        let pauses = self.pauses.get_or_insert_with(|| backoff(FIRST_PAUSE, longest));
        pauses.next().unwrap_or(longest)
    }
}

impl Open {
    fn new(watch: Watch) -> Self {
        Self {
            since: Instant::now(),
            has_delivered: false,
            links: watch.link_changes(),
            wakes: None,
            held_back: None,
            watch,
        }
    }

    /// Returns the next update. Returns `None` if the connection state has changed.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<KvUpdate, KvError>>> {
        loop {
            if self.link_has_changed() {
                return Poll::Ready(None);
            }
            if let Some(update) = self.held_back.take() {
                return Poll::Ready(Some(update));
            }
            if let Poll::Ready(update) = self.watch.poll_next_unpin(cx) {
                // A watch may lose its connection and resume delivery in one poll. The loss
                // preceded this update.
                self.held_back =
                    Some(update.unwrap_or(Err(KvError::Closed { operation: "watch" })));
                continue;
            }
            let Some(links) = &self.links else { return Poll::Pending };
            let wakes = self.wakes.get_or_insert_with(|| {
                let mut links = links.clone();
                Box::pin(async move { links.changed().await.is_ok() })
            });
            let changes = ready!(wakes.poll_unpin(cx));
            self.wakes = None;
            if !changes {
                self.links = None;
            }
        }
    }

    fn link_has_changed(&mut self) -> bool {
        let Some(links) = &mut self.links else { return false };
        let has_changed = links.has_changed().unwrap_or(false);
        if has_changed {
            links.mark_unchanged();
        }
        has_changed
    }

    fn deliver(&mut self, update: KvUpdate) -> Event {
        let is_first = !std::mem::replace(&mut self.has_delivered, true);
        match update {
            KvUpdate::CaughtUp => Event::CaughtUp { is_empty: is_first },
            update => Event::Update(update),
        }
    }
}

impl KvError {
    /// Returns whether another watch may succeed after one has ended with this error.
    pub(crate) fn is_resolved_by_reopening(&self) -> bool {
        self.is_retryable() || matches!(self, Self::CursorExpired { .. })
    }
}

#[cfg(test)]
#[allow(clippy::panic, clippy::unwrap_used, reason = "a test reports by panicking")]
mod tests;
