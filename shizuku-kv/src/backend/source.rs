//! Streams whose items are usually available at once.
//!
//! A stream made of an `async` function builds a future for each item, with timers that most items
//! do not need (ADR 0078).

use std::task::{Context, Poll, ready};

use futures_core::Stream;
use futures_core::future::BoxFuture;
use futures_util::{FutureExt, stream};

use crate::store::KvResult;

/// A source of items.
pub(crate) trait Source: Send + Sized + 'static {
    type Item: Send + 'static;

    /// Returns the next item if it is available without a wait, otherwise `None`.
    ///
    /// # Errors
    /// Returns the error that ends the stream.
    fn next_at_once(&mut self) -> KvResult<Option<Self::Item>>;

    /// Waits for the next item. Returns `None` after the last.
    ///
    /// # Errors
    /// Returns the error that ends the stream.
    fn next(&mut self) -> impl Future<Output = KvResult<Option<Self::Item>>> + Send;
}

enum State<S: Source> {
    Ready(S),
    Waiting(BoxFuture<'static, (S, KvResult<Option<S::Item>>)>),
    Ended,
}

/// Returns the items of a source, until its end or its first error.
///
/// `turn` is called before each attempt without a wait. It returns `Pending` after it has arranged
/// for another poll, to let other tasks run first.
pub(crate) fn items<S: Source>(
    source: S,
    turn: fn(&Context<'_>) -> Poll<()>,
) -> impl Stream<Item = KvResult<S::Item>> + Send {
    let mut state = State::Ready(source);
    stream::poll_fn(move |context| {
        loop {
            match &mut state {
                State::Ready(source) => {
                    // Other tasks get their turn, however many items are available.
                    ready!(turn(context));
                    match source.next_at_once() {
                        Ok(Some(item)) => return Poll::Ready(Some(Ok(item))),
                        Ok(None) => {}
                        Err(error) => {
                            state = State::Ended;
                            return Poll::Ready(Some(Err(error)));
                        }
                    }
                    if let State::Ready(mut source) = std::mem::replace(&mut state, State::Ended) {
                        let wait = async move {
                            let item = source.next().await;
                            (source, item)
                        };
                        state = State::Waiting(wait.boxed());
                    }
                }
                State::Waiting(wait) => {
                    let (source, item) = ready!(wait.poll_unpin(context));
                    let item = item.transpose();
                    let is_last = !matches!(item, Some(Ok(_)));
                    state = if is_last { State::Ended } else { State::Ready(source) };
                    return Poll::Ready(item);
                }
                State::Ended => return Poll::Ready(None),
            }
        }
    })
}
