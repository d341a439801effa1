//! What changes in a live map, as one reader is told of it.

use std::collections::VecDeque;
use std::fmt::{self, Display};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use arc_swap::ArcSwap;
use futures_util::{Stream, StreamExt};

use super::snapshot::LiveMapSnapshot;
use super::table::{Table, Value, is_same};
use crate::live::{LiveSnapshot, LiveStream, Task};

/// A change of a [`LiveMap`](crate::LiveMap): what its reader was last told of a key, and what is in force now. At
/// least one of them is there, and they are not the same version.
#[non_exhaustive]
pub struct LiveMapChange<K, T> {
    /// The key.
    pub key: K,
    /// What this reader knew; `None` for a key that is new to it.
    pub old: Option<Arc<LiveSnapshot<T>>>,
    /// What is in force; `None` for a key that is gone.
    pub new: Option<Arc<LiveSnapshot<T>>>,
}

impl<K: Clone, T> Clone for LiveMapChange<K, T> {
    fn clone(&self) -> Self {
        Self { key: self.key.clone(), old: self.old.clone(), new: self.new.clone() }
    }
}

/// The key and the versions, not the values.
impl<K: Display, T> fmt::Debug for LiveMapChange<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveMapChange")
            .field("key", &format_args!("{}", self.key))
            .field("old", &self.old)
            .field("new", &self.new)
            .finish()
    }
}

/// The changes of a [`LiveMap`](crate::LiveMap), as they come. From [`LiveMap::changes`](crate::LiveMap::changes).
///
/// [`snapshot`](Self::snapshot) is the map from which the changes start, and after each of them what they have led to:
/// both together are exact. Whoever builds something out of the map begins with that snapshot, and then follows.
///
/// A reader that is slow is told less often: changes of a key that were superseded before they were told are one,
/// from what the reader knew to what is in force. The last one is never lost. A change that was taken back is not told.
/// What waits to be told takes no more memory than the keys of the map do.
///
/// Changes of different keys are told in the order in which they came, as long as the reader is not more than a
/// thousand behind; then in the order of the keys.
#[must_use = "a stream does nothing unless it is polled"]
pub struct LiveMapChanges<K, T> {
    reader: Reader<K, T>,
    current: Arc<ArcSwap<Table<K, T>>>,
    /// Something may have changed; ends when nothing will any more.
    wakes: LiveStream<()>,
    /// Ends with the last that needs it.
    _task: Arc<Task>,
}

impl<K: Ord + Clone, T> LiveMapChanges<K, T> {
    pub(super) fn new(
        current: Arc<ArcSwap<Table<K, T>>>,
        wakes: LiveStream<()>,
        task: Arc<Task>,
    ) -> Self {
        Self { reader: Reader::new(&current.load()), current, wakes, _task: task }
    }

    /// The map as it was before the first change, with all that were told since.
    pub fn snapshot(&self) -> LiveMapSnapshot<K, T> {
        self.reader.told.clone()
    }

    /// The next change; `None` when nothing will change any more: the connection was shut down, or the runtime was.
    ///
    /// Dropping the future is safe: no change is lost.
    pub async fn next(&mut self) -> Option<LiveMapChange<K, T>> {
        StreamExt::next(self).await
    }
}

impl<K: Ord + Clone, T> Stream for LiveMapChanges<K, T> {
    type Item = LiveMapChange<K, T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(change) = this.reader.next(&this.current.load()) {
                return Poll::Ready(Some(change));
            }
            if ready!(this.wakes.poll_next_unpin(cx)).is_none() {
                // What came before the end, and after it was looked for.
                return Poll::Ready(this.reader.next(&this.current.load()));
            }
        }
    }
}

/// Nothing in it is ever pinned.
impl<K, T> Unpin for LiveMapChanges<K, T> {}

/// The counts, not the values.
impl<K: Ord, T> fmt::Debug for LiveMapChanges<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveMapChanges")
            .field("snapshot", &self.reader.told)
            .finish_non_exhaustive()
    }
}

/// What one reader was told, and what it has to be told next.
pub(super) struct Reader<K, T> {
    pub(super) told: LiveMapSnapshot<K, T>,
    /// Changes up to this generation were told, or are due.
    heard: u64,
    /// Keys that may be something else than what was told.
    pub(super) due: VecDeque<K>,
}

impl<K: Ord + Clone, T> Reader<K, T> {
    pub(super) fn new(table: &Table<K, T>) -> Self {
        Self { told: table.entries.clone(), heard: table.generation, due: VecDeque::new() }
    }

    /// The next change, if there is one. What is due is looked for only when all of it was told, so that it never
    /// grows, and a key that changes all the time does not keep the others from being told.
    pub(super) fn next(&mut self, table: &Table<K, T>) -> Option<LiveMapChange<K, T>> {
        loop {
            while let Some(key) = self.due.pop_front() {
                if let Some(change) = self.tell(key, table) {
                    return Some(change);
                }
            }
            if self.heard == table.generation {
                return None;
            }
            self.due = table.changed_since(self.heard, &self.told);
            self.heard = table.generation;
        }
    }

    fn tell(&mut self, key: K, table: &Table<K, T>) -> Option<LiveMapChange<K, T>> {
        let old: Option<Value<T>> = self.told.get(&key).cloned();
        let new = table.entries.get(&key).cloned();
        match (&old, &new) {
            (None, None) => return None,
            (Some(old), Some(new)) if is_same(old, new) => return None,
            (_, Some(new)) => self.told.entries.insert_mut(key.clone(), Arc::clone(new)),
            (Some(_), None) => {
                self.told.entries.remove_mut(&key);
            }
        }
        Some(LiveMapChange { key, old, new })
    }
}
