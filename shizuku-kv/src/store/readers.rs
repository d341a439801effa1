//! Streams that several tasks can read at once, through a shared reference (ADR 0072).

use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::stream::Fuse;
use futures_util::{Stream, StreamExt};

use super::lock;

/// A stream whose `next` takes `&self`: each item goes to one of the waiting tasks.
///
/// Returns `None` again after the end. `Sync` if the stream is `Send`.
pub(crate) struct Readers<S> {
    // Locked for one poll, never across an await, so that a future that is no longer polled blocks
    // no other reader.
    stream: Mutex<Fuse<S>>,
    waiting: Arc<Waiting>,
    /// The only waker that [`next`](Self::next) passes to the stream. It wakes every waiting
    /// reader, so that it does not matter which of them are still polled.
    waker: Waker,
}

impl<S: Stream + Unpin> Readers<S> {
    pub(crate) fn new(stream: S) -> Self {
        let waiting = Arc::<Waiting>::default();
        let waker = Waker::from(Arc::clone(&waiting));
        Self { stream: Mutex::new(stream.fuse()), waiting, waker }
    }

    /// Returns the next item. Returns `None` after the last.
    ///
    /// Cancel safe: no await follows the poll that takes an item.
    pub(crate) async fn next(&self) -> Option<S::Item> {
        let mut reader = Reader { id: None, waiting: &self.waiting };
        poll_fn(|cx| self.poll_item(&mut reader, cx)).await
    }

    /// Returns the next item to a caller with exclusive access to the stream. Takes no lock.
    pub(crate) fn poll_exclusive(&mut self, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        self.stream.get_mut().unwrap_or_else(PoisonError::into_inner).poll_next_unpin(cx)
    }

    fn poll_item(&self, reader: &mut Reader<'_>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let mut stream = lock(&self.stream);
        let wakes = self.waiting.wakes.load(Ordering::Acquire);
        let polled = stream.poll_next_unpin(&mut Context::from_waker(&self.waker));
        if polled.is_pending() && !reader.enter(cx.waker(), wakes) {
            // The stream woke its readers during the poll, before this reader had entered the list.
            cx.waker().wake_by_ref();
        }
        // Readers enter the list while they have the stream, so that the number is exact here.
        let wakes_others = polled.is_ready() && self.waiting.number.load(Ordering::Relaxed) > 0;
        drop(stream);
        if wakes_others {
            reader.leave();
            // The stream has used its waker, and the other readers have to pass it to the stream
            // again.
            self.waiting.wake_all();
        }
        polled
    }
}

impl<S> Readers<S> {
    /// Calls `look` with the stream, between two polls.
    pub(crate) fn with<R>(&self, look: impl FnOnce(&S) -> R) -> R {
        look(lock(&self.stream).get_ref())
    }

    /// Returns the stream, without its readers.
    pub(crate) fn into_inner(self) -> S {
        self.stream.into_inner().unwrap_or_else(PoisonError::into_inner).into_inner()
    }
}

/// The readers that wait for the next item.
#[derive(Default)]
struct Waiting {
    /// Number of times that the readers were woken. Changed under the lock.
    wakes: AtomicU64,
    /// Number of readers in the list. Changed under the lock.
    number: AtomicUsize,
    entered: Mutex<Entered>,
}

#[derive(Default)]
struct Entered {
    last: u64,
    wakers: Vec<(u64, Waker)>,
}

impl Waiting {
    fn wake_all(&self) {
        let wakers = {
            let mut entered = lock(&self.entered);
            self.wakes.fetch_add(1, Ordering::Release);
            self.number.store(0, Ordering::Relaxed);
            std::mem::take(&mut entered.wakers)
        };
        for (_, waker) in wakers {
            waker.wake();
        }
    }
}

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_all();
    }
}

/// One reader, until it is dropped.
struct Reader<'w> {
    /// Its number in the list, if it has entered.
    id: Option<u64>,
    waiting: &'w Waiting,
}

impl Reader<'_> {
    /// Enters the list of waiting readers. Returns `false` if the readers were woken since `wakes`
    /// was read.
    fn enter(&mut self, waker: &Waker, wakes: u64) -> bool {
        // A waker is cloned and dropped without the lock, because that runs the code of an
        // executor.
        let mut waker = waker.clone();
        let mut entered = lock(&self.waiting.entered);
        if self.waiting.wakes.load(Ordering::Relaxed) != wakes {
            return false;
        }
        let id = *self.id.get_or_insert_with(|| {
            entered.last += 1;
            entered.last
        });
        match entered.wakers.iter_mut().find(|(known, _)| *known == id) {
            Some((_, known)) => std::mem::swap(known, &mut waker),
            None => {
                entered.wakers.push((id, waker));
                self.waiting.number.store(entered.wakers.len(), Ordering::Relaxed);
                return true;
            }
        }
        drop(entered);
        drop(waker);
        true
    }

    fn leave(&mut self) {
        let Some(id) = self.id.take() else { return };
        let mut entered = lock(&self.waiting.entered);
        let index = entered.wakers.iter().position(|(known, _)| *known == id);
        let left = index.map(|index| entered.wakers.swap_remove(index));
        self.waiting.number.store(entered.wakers.len(), Ordering::Relaxed);
        drop(entered);
        drop(left);
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports by panicking")]
mod tests;
