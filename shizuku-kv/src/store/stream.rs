//! What arrives in pieces: streams with an inherent `next`, so that no extension trait is needed.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::stream::BoxStream;
use futures_util::{Stream, StreamExt};

use super::{KvError, KvUpdate, WatchCursor};

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
        Self::new(futures_util::stream::once(std::future::ready(Err(error))))
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
}

impl Watch {
    /// A watch over a backend's updates, each with the cursor that continues after it; for authors of backends.
    pub fn new(
        updates: impl Stream<Item = Result<(KvUpdate, WatchCursor), KvError>> + Send + 'static,
    ) -> Self {
        Self { updates: updates.boxed(), cursor: None }
    }

    /// The next update. `None` only after an error that ended the watch.
    ///
    /// Dropping the future is safe: no update is lost.
    ///
    /// # Errors
    /// [`KvError::StoreNotFound`] when the store is gone and [`KvError::CursorExpired`] when the watch cannot go on
    /// without a gap end the watch, and so does any error that trying again cannot mend.
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
