//! The changes of a live map, for one reader.

use std::collections::VecDeque;
use std::fmt::{self, Display};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use arc_swap::ArcSwap;
use futures_util::{Stream, StreamExt};

use super::snapshot::LiveMapSnapshot;
use super::table::{Table, Value, is_same};
use crate::live::snapshot::LiveSnapshot;
use crate::live::stream::{LiveStream, TaskHandle};
use crate::store::Readers;

/// A change of a [`LiveMap`](crate::LiveMap): the value of a key that its reader knew, and the
/// current one. At least one of them exists, and their versions differ.
#[non_exhaustive]
pub struct LiveMapChange<K, T> {
    /// The key.
    pub key: K,
    /// The value that this reader knew. `None` for a key that is new to it.
    pub old: Option<Arc<LiveSnapshot<T>>>,
    /// The current value. `None` for a key that is gone.
    pub new: Option<Arc<LiveSnapshot<T>>>,
}

impl<K: Clone, T> Clone for LiveMapChange<K, T> {
    fn clone(&self) -> Self {
        Self { key: self.key.clone(), old: self.old.clone(), new: self.new.clone() }
    }
}

/// Shows the key and the versions, not the values.
impl<K: Display, T> fmt::Debug for LiveMapChange<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveMapChange")
            .field("key", &format_args!("{}", self.key))
            .field("old", &self.old)
            .field("new", &self.new)
            .finish()
    }
}

/// The changes of a [`LiveMap`](crate::LiveMap) in their order, from
/// [`LiveMap::changes`](crate::LiveMap::changes).
///
/// [`snapshot`](Self::snapshot) is the map from which the changes start, and after each of them
/// their result. Both together are exact. To derive another structure from the map, begin with that
/// snapshot, and then follow the changes.
///
/// A slow reader receives fewer changes. Superseded changes of a key are merged into one, from the
/// value that the reader knew to the current one. The last change is never lost. A change that was
/// reverted is not delivered. Undelivered changes take no more memory than the keys of the map do.
///
/// Changes of different keys are delivered in the order in which they came. If the reader is more
/// than a thousand changes behind, they are delivered in the order of the keys.
#[must_use = "a stream does nothing unless it is polled"]
pub struct LiveMapChanges<K, T>(Readers<Changes<K, T>>);

struct Changes<K, T> {
    reader: Reader<K, T>,
    current: Arc<ArcSwap<Table<K, T>>>,
    /// Wakes after possible changes. It ends when no change will come any more.
    wakes: LiveStream<()>,
    /// Keeps the task alive.
    _task: Arc<TaskHandle>,
}

impl<K: Ord + Clone, T> LiveMapChanges<K, T> {
    pub(super) fn new(
        current: Arc<ArcSwap<Table<K, T>>>,
        wakes: LiveStream<()>,
        task: Arc<TaskHandle>,
    ) -> Self {
        let reader = Reader::new(&current.load());
        Self(Readers::new(Changes { reader, current, wakes, _task: task }))
    }

    /// Returns the map before the first change, with all delivered changes applied.
    pub fn snapshot(&self) -> LiveMapSnapshot<K, T> {
        self.0.with(|changes| changes.reader.known.clone())
    }

    /// Returns the next change. Returns `None` when no change will come any more, because the
    /// connection or the runtime was shut down.
    ///
    /// Cancel safe: no change is lost. Several tasks may call this method: each change goes to one
    /// of them.
    pub async fn next(&self) -> Option<LiveMapChange<K, T>> {
        self.0.next().await
    }
}

impl<K: Ord + Clone, T> Stream for LiveMapChanges<K, T> {
    type Item = LiveMapChange<K, T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_exclusive(cx)
    }
}

impl<K: Ord + Clone, T> Stream for Changes<K, T> {
    type Item = LiveMapChange<K, T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(change) = this.reader.next(&this.current.load()) {
                return Poll::Ready(Some(change));
            }
            if ready!(this.wakes.poll_next_unpin(cx)).is_none() {
                // A change may have come before the end, but after the previous check.
                return Poll::Ready(this.reader.next(&this.current.load()));
            }
        }
    }
}

/// No field is ever pinned.
impl<K, T> Unpin for LiveMapChanges<K, T> {}

/// No field is ever pinned here either.
impl<K, T> Unpin for Changes<K, T> {}

/// Shows the counts, not the values.
impl<K: Ord, T> fmt::Debug for LiveMapChanges<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.with(|changes| {
            f.debug_struct("LiveMapChanges")
                .field("snapshot", &changes.reader.known)
                .finish_non_exhaustive()
        })
    }
}

/// The map that one reader knows, and the keys whose changes are due.
pub(super) struct Reader<K, T> {
    pub(super) known: LiveMapSnapshot<K, T>,
    /// Generation up to which changes were delivered or are due.
    generation: u64,
    /// Keys whose value may differ from the one that the reader knows.
    pub(super) due: VecDeque<K>,
}

impl<K: Ord + Clone, T> Reader<K, T> {
    pub(super) fn new(table: &Table<K, T>) -> Self {
        Self { known: table.entries.clone(), generation: table.generation, due: VecDeque::new() }
    }

    /// Returns the next change, if there is one. New due keys are collected only after all earlier
    /// ones were delivered. The list therefore never grows, and a key that changes all the time
    /// does not block the others.
    pub(super) fn next(&mut self, table: &Table<K, T>) -> Option<LiveMapChange<K, T>> {
        loop {
            while let Some(key) = self.due.pop_front() {
                if let Some(change) = self.change_of(key, table) {
                    return Some(change);
                }
            }
            if self.generation == table.generation {
                return None;
            }
            self.due = table.changed_since(self.generation, &self.known);
            self.generation = table.generation;
        }
    }

    fn change_of(&mut self, key: K, table: &Table<K, T>) -> Option<LiveMapChange<K, T>> {
        let old: Option<Value<T>> = self.known.get(&key).cloned();
        let new = table.entries.get(&key).cloned();
        match (&old, &new) {
            (None, None) => return None,
            (Some(old), Some(new)) if is_same(old, new) => return None,
            (_, Some(new)) => self.known.entries.insert_mut(key.clone(), Arc::clone(new)),
            (Some(_), None) => {
                self.known.entries.remove_mut(&key);
            }
        }
        Some(LiveMapChange { key, old, new })
    }
}
