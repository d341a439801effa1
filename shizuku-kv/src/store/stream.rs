//! What arrives in pieces: streams with an inherent `next`, so that no extension trait is needed.

use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_core::stream::BoxStream;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::watch;

use super::timer::timeout_at;
use super::{Deadline, Key, KvError, KvUpdate, WatchCursor, in_runtime};

/// What an item may overrun its deadline by. The backend holds the deadline too, and counts from a moment later; what it
/// has to say then tells more than that the time is over.
const ITEM_GRACE: Duration = Duration::from_millis(10);

/// Items of a store, as they arrive: entries of a scan, keys of a listing.
///
/// The stream ends after its last item or after its first error. Dropping it at any time frees everything, on the
/// server too.
#[must_use = "a stream does nothing unless it is polled"]
pub struct KvStream<T>(BoxStream<'static, Result<T, KvError>>);

impl<T> KvStream<T> {
    /// A stream of a backend's items; for authors of backends.
    pub fn new(items: impl Stream<Item = Result<T, KvError>> + Send + 'static) -> Self {
        Self(items.boxed())
    }

    /// A stream that is nothing but an error; for authors of backends.
    pub fn error(error: KvError) -> Self
    where
        T: Send + 'static,
    {
        Self::new(stream::once(std::future::ready(Err(error))))
    }

    /// The same items, each by the deadline that is made when it is asked for; one that is not there by then is
    /// [`KvError::Timeout`]. Nothing comes after an error.
    pub(super) fn bounded(
        self,
        operation: &'static str,
        key: Option<Key>,
        deadline: impl Fn() -> Deadline + Send + 'static,
    ) -> Self
    where
        T: Send + 'static,
    {
        let items = stream::unfold(Some(self.0), move |items| {
            let (deadline, key) = (deadline(), key.clone());
            async move {
                let mut items = items?;
                if let Err(error) = in_runtime(operation) {
                    return Some((Err(error), None));
                }
                match timeout_at(deadline.instant_and(ITEM_GRACE), items.next()).await {
                    Some(Some(Ok(item))) => Some((Ok(item), Some(items))),
                    Some(Some(Err(error))) => Some((Err(error), None)),
                    Some(None) => None,
                    None => Some((Err(deadline.timeout(operation, key.as_ref())), None)),
                }
            }
        });
        // Who asks again after the end is told again that it is the end.
        Self::new(items.fuse())
    }

    /// The next item; `None` after the last.
    ///
    /// Dropping the future is safe: no item is lost.
    pub async fn next(&mut self) -> Option<Result<T, KvError>> {
        self.0.next().await
    }

    /// All items that are left, in memory at once.
    ///
    /// # Errors
    /// The first error of the stream; the items before it are lost.
    pub async fn try_collect(mut self) -> Result<Vec<T>, KvError> {
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
        self.0.poll_next_unpin(cx)
    }
}

impl<T> fmt::Debug for KvStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvStream").finish_non_exhaustive()
    }
}

/// A watch: the current state of a scope, a caught-up marker, then every change, for as long as it is polled.
///
/// See [`Store::watch`](crate::Store::watch) for what it promises. It makes progress only while it is polled, holds a
/// bounded amount of memory, and frees everything when it is dropped, on the server too.
#[must_use = "a watch does nothing unless it is polled"]
pub struct Watch {
    updates: BoxStream<'static, Result<(KvUpdate, WatchCursor), KvError>>,
    cursor: Option<WatchCursor>,
    link: Option<watch::Receiver<WatchLink>>,
    /// Dropped with the watch.
    guard: Option<Box<dyn Any + Send>>,
}

/// Whether a watch hears from its store. From [`Watch::link`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WatchLink {
    /// It does: what it has delivered is how things are, but for what is on its way.
    #[default]
    Up,
    /// It does not, and is trying to again: what it has delivered may be outdated.
    #[non_exhaustive]
    Down {
        /// When it last heard something, by the local clock.
        since: SystemTime,
        /// What is in the way.
        reason: Arc<str>,
    },
}

impl WatchLink {
    /// A watch that has not heard from its store since then; for authors of backends.
    pub fn down(since: SystemTime, reason: impl Into<Arc<str>>) -> Self {
        Self::Down { since, reason: reason.into() }
    }

    /// Whether it hears from its store.
    pub fn is_up(&self) -> bool {
        *self == Self::Up
    }
}

impl Watch {
    /// A watch over a backend's updates, each with the cursor that continues after it; for authors of backends.
    pub fn new(
        updates: impl Stream<Item = Result<(KvUpdate, WatchCursor), KvError>> + Send + 'static,
    ) -> Self {
        Self { updates: updates.boxed(), cursor: None, link: None, guard: None }
    }

    /// A watch that tells whether it hears from its store; for authors of backends. Without this one always does.
    pub fn with_link(mut self, link: watch::Receiver<WatchLink>) -> Self {
        self.link = Some(link);
        self
    }

    /// A watch with which something else ends.
    pub(super) fn with_guard(mut self, guard: impl Any + Send) -> Self {
        self.guard = Some(Box::new(guard));
        self
    }

    /// Whether the watch hears from its store, as far as it has been polled.
    pub fn link(&self) -> WatchLink {
        self.link.as_ref().map_or(WatchLink::Up, |link| link.borrow().clone())
    }

    /// The same as it changes; none where it never does.
    pub(crate) fn link_changes(&self) -> Option<watch::Receiver<WatchLink>> {
        self.link.clone()
    }

    /// The next update. `None` only after an error that ended the watch.
    ///
    /// Dropping the future is safe: no update is lost.
    ///
    /// # Errors
    /// Returns [`KvError::StoreNotFound`] if the store is gone and [`KvError::CursorExpired`] if
    /// the watch cannot resume without a gap. Both end the watch, and so does any error that a
    /// retry cannot resolve. Returns [`KvError::NoRuntime`] outside of a tokio runtime. If no item
    /// follows it, the connection's runtime has ended.
    pub async fn next(&mut self) -> Option<Result<KvUpdate, KvError>> {
        StreamExt::next(self).await
    }

    /// The place after the last update that was returned, from which another watch can go on; `None` before the
    /// first.
    ///
    /// A cursor taken before the caught-up marker continues the rest of the state too.
    pub fn cursor(&self) -> Option<WatchCursor> {
        self.cursor
    }
}

impl Stream for Watch {
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
        f.debug_struct("Watch").field("cursor", &self.cursor).finish_non_exhaustive()
    }
}
