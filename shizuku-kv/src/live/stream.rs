//! Streams of values and statuses, which keep the task that follows the store alive.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::stream::BoxStream;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::status::State;
use crate::store::Readers;

/// Stream of the values or the statuses of a [`Live`](crate::Live) or a
/// [`LiveMap`](crate::LiveMap), as they change. It ends when no task follows the store any more.
#[must_use = "a stream does nothing unless it is polled"]
pub struct LiveStream<I>(Readers<BoxStream<'static, I>>);

impl<I> LiveStream<I> {
    pub(super) fn new(items: impl Stream<Item = I> + Send + 'static) -> Self {
        Self(Readers::new(items.boxed()))
    }

    /// Returns the next item. Returns `None` after the last.
    ///
    /// Cancel safe: no item is lost. Several tasks may call this method: each item goes to one of
    /// them.
    pub async fn next(&self) -> Option<I> {
        self.0.next().await
    }
}

impl<I> Stream for LiveStream<I> {
    type Item = I;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<I>> {
        self.0.poll_exclusive(cx)
    }
}

impl<I> fmt::Debug for LiveStream<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveStream").finish_non_exhaustive()
    }
}

/// Returns the later statuses, each if it is still the newest when the stream is polled.
pub(super) fn statuses<S: Clone + Send + Sync + 'static>(
    states: &watch::Receiver<State<S>>,
    task: &Arc<TaskHandle>,
) -> LiveStream<S> {
    let mut states = states.clone();
    states.mark_unchanged();
    LiveStream::new(stream::unfold((states, Arc::clone(task)), |(mut states, task)| async move {
        states.changed().await.ok()?;
        let status = states.borrow_and_update().status.clone();
        Some((status, (states, task)))
    }))
}

/// The task that follows the store. Dropping the last handle ends the task.
pub(super) struct TaskHandle(AbortHandle);

impl TaskHandle {
    pub(super) fn new(task: AbortHandle) -> Arc<Self> {
        Arc::new(Self(task))
    }

    pub(super) fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for TaskHandle {
    fn drop(&mut self) {
        self.0.abort();
    }
}
