//! Records as they change.

use std::fmt;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::stream::Fuse;
use futures_util::{Stream, StreamExt};

use super::entry::TypedUpdate;
use super::read::decode_update;
use super::{ByteDeserialize, KeyValue, KvReadError};
use crate::store::{KvError, KvUpdate, Watch, WatchCursor};

/// A watch of records: the current state, a caught-up marker, then every change.
///
/// It promises what [`Store::watch`](crate::Store::watch) promises. A record that does not decode is an error item and
/// the watch goes on. It ends where its store is deleted or made again, as any watch does; a [`Live`](crate::Live) value
/// and a [`LiveMap`](crate::LiveMap) go on. Dropping it frees everything, on the server too.
///
/// Watches of single keys, and those of a scope that another one has already, read together with others of the store and
/// its clones. What is not read yet waits then: the newest update of each key, deletions included, and no more. The
/// reading is done on the runtime on which the watch was opened, and stands still or ends with it
/// ([`KvError::Unavailable`]). The first watch of a scope, and one from a cursor, hold nothing, and make progress only while
/// they are polled.
///
/// [`next`](Self::next) takes `&self`, so that a watch can be kept in a plain `let` and shared between tasks: each
/// update then goes to one of those that wait. It is a [`Stream`] as well.
#[must_use = "a watch does nothing unless it is polled"]
pub struct TypedWatch<T> {
    // Locked for the length of a poll, never across an await: a `next` that is not polled any more holds up nobody.
    updates: Mutex<Fuse<Watch>>,
    waiters: Arc<Waiters>,
    records: PhantomData<fn() -> T>,
}

impl<T> TypedWatch<T> {
    pub(super) fn new(watch: Watch) -> Self {
        Self { updates: Mutex::new(watch.fuse()), waiters: Arc::default(), records: PhantomData }
    }

    /// The place after the last update that was returned, error items included, from which another watch can go on
    /// ([`watch_scope_from`](crate::KeyValueRead::watch_scope_from)); `None` before the first.
    ///
    /// Where several tasks take updates, it covers those of all of them.
    pub fn cursor(&self) -> Option<WatchCursor> {
        lock(&self.updates).get_ref().cursor()
    }

    fn poll_update(
        &self,
        waiter: &Waiter,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<KvUpdate, KvError>>> {
        let mut updates = lock(&self.updates);
        // Before it is polled, so that no wake-up can come too early.
        waiter.wait(cx.waker());
        let waker = Waker::from(Arc::clone(&self.waiters));
        let update = updates.poll_next_unpin(&mut Context::from_waker(&waker));
        drop(updates);
        if update.is_ready() {
            // The watch has given up its waker: the others have to come and leave it again.
            waiter.leave();
            self.waiters.wake_all();
        }
        update
    }
}

impl<T: KeyValue<Value: ByteDeserialize>> TypedWatch<T> {
    /// The next update. `None` only after an error that ended the watch.
    ///
    /// Dropping the future is safe: no update is lost. Keeping it without polling it holds up no other.
    ///
    /// # Errors
    /// [`KvReadError::Store`] ends the watch; any other is about one record, and the watch goes on.
    pub async fn next(&self) -> Option<Result<TypedUpdate<T>, KvReadError>> {
        let waiter = Waiters::enter(&self.waiters);
        // Without an await after it, so that what was taken is returned.
        let update = poll_fn(|cx| self.poll_update(&waiter, cx)).await;
        update.map(decode)
    }
}

fn decode<T>(update: Result<KvUpdate, KvError>) -> Result<TypedUpdate<T>, KvReadError>
where
    T: KeyValue<Value: ByteDeserialize>,
{
    match update? {
        KvUpdate::CaughtUp => Ok(TypedUpdate::CaughtUp),
        KvUpdate::Put(entry) | KvUpdate::Delete(entry) => decode_update(&entry),
    }
}

impl<T: KeyValue<Value: ByteDeserialize>> Stream for TypedWatch<T> {
    type Item = Result<TypedUpdate<T>, KvReadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // Nobody else waits while this has the watch to itself.
        let updates = self.updates.get_mut().unwrap_or_else(PoisonError::into_inner);
        updates.poll_next_unpin(cx).map(|update| update.map(decode))
    }
}

impl<T> fmt::Debug for TypedWatch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedWatch").field("cursor", &self.cursor()).finish_non_exhaustive()
    }
}

/// Those that wait for the next update. The watch keeps one waker only, which is this: it wakes all of them, so that
/// it does not matter which of them are still polled.
#[derive(Default)]
struct Waiters {
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    entered: u64,
    wakers: Vec<(u64, Waker)>,
}

impl Waiters {
    fn enter(this: &Arc<Self>) -> Waiter {
        let mut waiting = lock(&this.waiting);
        waiting.entered += 1;
        Waiter { id: waiting.entered, waiters: Arc::clone(this) }
    }

    fn wake_all(&self) {
        let wakers = std::mem::take(&mut lock(&self.waiting).wakers);
        for (_, waker) in wakers {
            waker.wake();
        }
    }
}

impl Wake for Waiters {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_all();
    }
}

/// One that waits, until it is dropped.
struct Waiter {
    id: u64,
    waiters: Arc<Waiters>,
}

impl Waiter {
    fn wait(&self, waker: &Waker) {
        // Wakers are cloned and dropped without the lock: that is somebody else's code.
        let mut waker = waker.clone();
        let mut waiting = lock(&self.waiters.waiting);
        match waiting.wakers.iter_mut().find(|(id, _)| *id == self.id) {
            Some((_, known)) => std::mem::swap(known, &mut waker),
            None => {
                waiting.wakers.push((self.id, waker));
                return;
            }
        }
        drop(waiting);
        drop(waker);
    }

    fn leave(&self) {
        let mut waiting = lock(&self.waiters.waiting);
        let place = waiting.wakers.iter().position(|(id, _)| *id == self.id);
        let left = place.map(|place| waiting.wakers.swap_remove(place));
        drop(waiting);
        drop(left);
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.leave();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Count(std::sync::atomic::AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    fn counted() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count(0.into()));
        (Arc::clone(&count), Waker::from(count))
    }

    fn woken(count: &Count) -> u32 {
        count.0.load(std::sync::atomic::Ordering::Relaxed)
    }

    #[test]
    fn all_that_wait_are_woken_once_and_those_that_left_are_forgotten() {
        let waiters = Arc::<Waiters>::default();
        let (first, second, gone) = (counted(), counted(), counted());
        let (one, two) = (Waiters::enter(&waiters), Waiters::enter(&waiters));
        one.wait(&gone.1);
        one.wait(&first.1);
        two.wait(&second.1);
        for _ in 0..1000 {
            Waiters::enter(&waiters).wait(&gone.1);
        }
        assert_eq!(lock(&waiters.waiting).wakers.len(), 2);
        Waker::from(Arc::clone(&waiters)).wake_by_ref();
        Waker::from(Arc::clone(&waiters)).wake();
        assert_eq!([&first, &second, &gone].map(|(count, _)| woken(count)), [1, 1, 0]);
    }
}
