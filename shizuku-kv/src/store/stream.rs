//! Streams with an inherent `next`, so that no extension trait is needed.

use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use futures_core::stream::BoxStream;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::watch;

use super::timer::timeout_at;
use super::{Deadline, Key, KvError, KvUpdate, Readers, WatchCursor, in_runtime};

/// Maximum time by which an item may exceed its deadline. The backend keeps the deadline too, and
/// counts from a moment later. Its error explains more than a timeout here would.
const ITEM_GRACE: Duration = Duration::from_millis(10);

/// Items of a store, as they arrive: entries of a scan, keys of a listing.
///
/// The stream ends after its last item or after its first error. Dropping it at any time frees
/// everything, on the server too. Several tasks may call [`next`](Self::next): each item goes to
/// one of them.
#[must_use = "a stream does nothing unless it is polled"]
pub struct KvStream<T> {
    items: Readers<BoxStream<'static, Result<T, KvError>>>,
    /// Whether the backend itself ends the stream if it makes no progress within the deadline. An
    /// item may take longer, because it may come after many others that are not for the reader.
    measures_progress: bool,
}

impl<T> KvStream<T> {
    /// Creates a stream of a backend's items; for authors of backends.
    pub fn new(items: impl Stream<Item = Result<T, KvError>> + Send + 'static) -> Self {
        Self { items: Readers::new(items.boxed()), measures_progress: false }
    }

    /// Creates a stream of a backend that itself ends it with [`KvError::Timeout`] if it makes no
    /// progress within the deadline. An item may then take longer. For authors of backends.
    pub fn with_progress(items: impl Stream<Item = Result<T, KvError>> + Send + 'static) -> Self {
        Self { measures_progress: true, ..Self::new(items) }
    }

    /// Creates a stream with an error as its only item; for authors of backends.
    pub fn error(error: KvError) -> Self
    where
        T: Send + 'static,
    {
        Self::new(stream::once(std::future::ready(Err(error))))
    }

    /// Bounds the wait for each item by the deadline that `deadline` returns when the item is
    /// requested. An item that is late is [`KvError::Timeout`], unless the backend measures
    /// progress itself. Every error names `operation`, and ends the stream.
    pub(super) fn bounded(
        self,
        operation: &'static str,
        key: Option<Key>,
        deadline: impl Fn() -> Deadline + Send + 'static,
    ) -> Self
    where
        T: Send + 'static,
    {
        if self.measures_progress {
            return self.of_operation(operation);
        }
        let items = stream::unfold(Some(self.items.into_inner()), move |items| {
            let (deadline, key) = (deadline(), key.clone());
            async move {
                let mut items = items?;
                if let Err(error) = in_runtime(operation) {
                    return Some((Err(error), None));
                }
                let next = timeout_at(deadline.instant_and(ITEM_GRACE), items.next()).await;
                match next {
                    Some(Some(Ok(item))) => Some((Ok(item), Some(items))),
                    Some(Some(Err(error))) => Some((Err(error.of_operation(operation)), None)),
                    Some(None) => None,
                    None => Some((Err(deadline.timeout(operation, key.as_ref())), None)),
                }
            }
        });
        Self::new(items)
    }

    /// Sets `operation` in every error, and ends the stream with the first error. Uses neither a
    /// timer nor a clock, because both take longer than most items (ADR 0078).
    fn of_operation(self, operation: &'static str) -> Self
    where
        T: Send + 'static,
    {
        let mut items = Some(self.items.into_inner());
        Self::new(stream::poll_fn(move |cx| {
            let Some(stream) = &mut items else { return Poll::Ready(None) };
            let item = match in_runtime(operation) {
                Ok(()) => ready!(stream.poll_next_unpin(cx)),
                Err(error) => Some(Err(error)),
            };
            let item = item.map(|item| item.map_err(|error| error.of_operation(operation)));
            if !matches!(item, Some(Ok(_))) {
                items = None;
            }
            Poll::Ready(item)
        }))
    }

    /// Returns the next item. Returns `None` after the last.
    ///
    /// Cancel safe: no item is lost.
    pub async fn next(&self) -> Option<Result<T, KvError>> {
        self.items.next().await
    }

    /// Returns all remaining items, in memory at once.
    ///
    /// # Errors
    /// Returns the first error of the stream. The items before it are lost.
    pub async fn try_collect(self) -> Result<Vec<T>, KvError> {
        let mut items = Vec::new();
        while let Some(item) = self.next().await {
            items.push(item?);
        }
        Ok(items)
    }
}

impl<T> Stream for KvStream<T> {
    type Item = Result<T, KvError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.items.poll_exclusive(cx)
    }
}

impl<T> fmt::Debug for KvStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvStream").finish_non_exhaustive()
    }
}

/// A watch: the current state of a scope, a caught-up marker, then every change, for as long as it
/// is polled.
///
/// [`Store::watch`](crate::Store::watch) lists its promises. It makes progress only while it is
/// polled, holds a bounded amount of memory, and frees everything when it is dropped, on the server
/// too.
///
/// [`next`](Self::next) takes `&self`, so that several tasks can share a watch: each update goes to
/// one of them.
#[must_use = "a watch does nothing unless it is polled"]
pub struct Watch {
    updates: Readers<Updates>,
    link: Option<watch::Receiver<WatchLink>>,
    /// Dropped with the watch.
    guard: Option<Box<dyn Any + Send + Sync>>,
}

/// The updates of a backend, and the cursor after the last one.
struct Updates {
    updates: BoxStream<'static, Result<(KvUpdate, WatchCursor), KvError>>,
    cursor: Option<WatchCursor>,
}

/// Connection state of a watch, from [`Watch::link`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WatchLink {
    /// The watch receives updates. Delivered updates are current, except for those in flight.
    #[default]
    Up,
    /// The watch receives nothing, and is reconnecting. Delivered updates may be outdated.
    #[non_exhaustive]
    Down {
        /// Time at which the watch last heard from the store, by the local clock.
        since: SystemTime,
        /// The reason.
        reason: Arc<str>,
    },
}

impl WatchLink {
    /// Returns the state of a watch that has received nothing from its store since then; for
    /// authors of backends.
    pub fn down(since: SystemTime, reason: impl Into<Arc<str>>) -> Self {
        Self::Down { since, reason: reason.into() }
    }

    /// Returns whether the watch receives updates from its store.
    pub fn is_up(&self) -> bool {
        *self == Self::Up
    }
}

impl Watch {
    /// Creates a watch over a backend's updates, each with the cursor that continues after it; for
    /// authors of backends.
    pub fn new(
        updates: impl Stream<Item = Result<(KvUpdate, WatchCursor), KvError>> + Send + 'static,
    ) -> Self {
        let updates = Updates { updates: updates.boxed(), cursor: None };
        Self { updates: Readers::new(updates), link: None, guard: None }
    }

    /// Sets the source of the connection state; for authors of backends. A watch without it is
    /// always up.
    pub fn with_link(mut self, link: watch::Receiver<WatchLink>) -> Self {
        self.link = Some(link);
        self
    }

    /// Attaches a guard, which is dropped with the watch.
    pub(crate) fn with_guard(mut self, guard: impl Any + Send + Sync) -> Self {
        self.guard = Some(Box::new(guard));
        self
    }

    /// Returns the connection state of the watch, as far as it has been polled.
    pub fn link(&self) -> WatchLink {
        self.link.as_ref().map_or(WatchLink::Up, |link| link.borrow().clone())
    }

    /// Returns the changes of the connection state. Returns `None` if it never changes.
    pub(crate) fn link_changes(&self) -> Option<watch::Receiver<WatchLink>> {
        self.link.clone()
    }

    /// Returns the next update. Returns `None` only after an error that ended the watch.
    ///
    /// Cancel safe: no update is lost.
    ///
    /// # Errors
    /// Returns [`KvError::StoreNotFound`] if the store is gone and [`KvError::CursorExpired`] if
    /// the watch cannot resume without a gap. Both end the watch, and so does any error that a
    /// retry cannot resolve. Returns [`KvError::NoRuntime`] outside of a tokio runtime. If no item
    /// follows it, the connection's runtime has ended.
    pub async fn next(&self) -> Option<Result<KvUpdate, KvError>> {
        self.updates.next().await
    }

    /// Returns the position after the last update that was returned, from which another watch can
    /// resume. Returns `None` before the first update.
    ///
    /// A cursor from before the caught-up marker also resumes within the initial state. If several
    /// tasks read the watch, the cursor covers the updates of all of them.
    pub fn cursor(&self) -> Option<WatchCursor> {
        self.updates.with(|updates| updates.cursor)
    }
}

impl Stream for Watch {
    type Item = Result<KvUpdate, KvError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.updates.poll_exclusive(cx)
    }
}

impl Stream for Updates {
    type Item = Result<KvUpdate, KvError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Err(error) = in_runtime("watch") {
            return Poll::Ready(Some(Err(error)));
        }
        self.updates.poll_next_unpin(cx).map(|item| {
            item.map(|result| {
                result.map(|(update, cursor)| {
                    self.cursor = Some(cursor);
                    update
                })
            })
        })
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("cursor", &self.cursor()).finish_non_exhaustive()
    }
}
