//! Maps that stay current: all records of a type, or of a scope, by key.
//!
//! `table.rs` is the map as a plain data structure, and `changes.rs` the view of one reader of its
//! changes. `open.rs` waits for the initial state, and `drive.rs` follows the store.

mod changes;
mod compare;
mod drive;
#[cfg(test)]
mod model;
mod open;
mod snapshot;
mod status;
mod table;
#[cfg(test)]
mod tests;

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::StreamExt;
use tokio::sync::watch;

pub use changes::{LiveMapChange, LiveMapChanges};
pub(crate) use open::live_map;
pub use snapshot::LiveMapSnapshot;
pub use status::{LiveMapStatus, LiveMapSyncState, LiveRejection};
use table::Table;

use super::snapshot::LiveSnapshot;
use super::status::State;
use super::stream::{LiveStream, TaskHandle, statuses};
use crate::record::{RecordKey, store_key};
use crate::store::KvError;
use crate::watch::Upkeep;

/// The records of a type by key, as a map that stays current, from
/// [`LiveRead::live_map`](crate::LiveRead::live_map). For a part of them it is from
/// [`LiveRead::live_map_scope`](crate::LiveRead::live_map_scope).
///
/// A lookup never waits and takes no lock. [`snapshot`](Self::snapshot) returns the whole map as of
/// one moment, [`changes`](Self::changes) the changes from a moment on. The keys are those of the
/// type, in its order. Equal keys must have the same text.
///
/// For each key it holds the newest good value: one that decodes, that keeps the rule of its type,
/// and that belongs under its key. A rejected value never replaces a good one. It is reported once
/// through `tracing`, without its content, and kept in [`rejections`](Self::rejections) until the
/// key has a good value or none. A deletion removes the key.
///
/// Like a watch it is state sync: values that were superseded before they arrived may be skipped,
/// and the newest one always arrives. Values that arrive together become current together. If the
/// store cannot be reached, the map stays unchanged, and the [`status`](Self::status) shows since
/// when. If the store has to be read again, for example after it was recreated, the map stays until
/// everything is read. Afterwards it has only the keys that exist.
///
/// Clones share one task, which ends with the last of them. It runs on the runtime on which the map
/// was opened.
///
#[cfg_attr(all(feature = "derive", feature = "memory"), doc = "```")]
#[cfg_attr(not(all(feature = "derive", feature = "memory")), doc = "```text")]
/// use serde::{Deserialize, Serialize};
/// use shizuku_kv::{KeyValue, LiveRead};
///
/// #[derive(Serialize, Deserialize, KeyValue)]
/// #[kv(key = "user.{id}", codec = json)]
/// struct User {
///     id: u64,
///     name: String,
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let store = shizuku_kv::connect("memory:").await?.store("users").await?;
/// User { id: 7, name: "Ann".to_owned() }.write_to_anyway(&store).await?;
/// let users = User::live_map(&store).await?;
/// assert_eq!(users.get(&UserKey { id: 7 }).unwrap().name, "Ann");
///
/// let changes = users.changes();
/// User { id: 8, name: "Bob".to_owned() }.write_to_anyway(&store).await?;
/// let change = changes.next().await.unwrap();
/// assert_eq!((change.key.id, change.old.is_none()), (8, true));
/// assert_eq!(change.new.unwrap().name, "Bob");
///
/// let names = users.snapshot();
/// assert!(names.values().map(|user| user.name.as_str()).eq(["Ann", "Bob"]));
/// # Ok(())
/// # }
/// ```
pub struct LiveMap<K, T> {
    current: Arc<ArcSwap<Table<K, T>>>,
    states: watch::Receiver<State<LiveMapStatus>>,
    /// Generation of the last map that [`changed`](Self::changed) of this handle has returned.
    seen: u64,
    task: Arc<TaskHandle>,
    upkeep: Arc<Upkeep>,
}

impl<K: Ord, T> LiveMap<K, T> {
    /// Returns the current value of a key, with its version. Neither waits nor locks.
    pub fn get<Q>(&self, key: &Q) -> Option<Arc<LiveSnapshot<T>>>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.current.load().entries.get(key).cloned()
    }

    /// Returns whether a key has a current value. Neither waits nor locks.
    pub fn contains_key<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.current.load().entries.contains_key(key)
    }

    /// Returns the number of current values. Neither waits nor locks.
    pub fn len(&self) -> usize {
        self.current.load().entries.len()
    }

    /// Returns whether no current value exists. Neither waits nor locks.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the map as of this moment, to be iterated over, kept or sent elsewhere. Neither
    /// waits nor locks, and copies nothing.
    pub fn snapshot(&self) -> LiveMapSnapshot<K, T> {
        self.current.load().entries.clone()
    }

    /// Returns the rejection of the newest version of a key. Returns `None` if it was not rejected,
    /// or if no entry exists. Meanwhile [`get`](Self::get) returns the last good value, if there
    /// was one.
    pub fn rejection(&self, key: &K) -> Option<LiveRejection>
    where
        K: RecordKey,
    {
        self.current.load().rejections.get(&store_key(key).ok()?).cloned()
    }

    /// Returns all entries whose newest version is rejected, ordered by key. The keys are those of
    /// the store, because some of them may not be keys of the type.
    pub fn rejections(&self) -> Vec<LiveRejection> {
        self.current.load().rejections.values().cloned().collect()
    }

    /// Returns each change after this moment, with the value before and after it. The stream begins
    /// with the map as it is now: [`LiveMapChanges::snapshot`].
    ///
    /// Cancel safe: dropping the stream at any time changes nothing.
    pub fn changes(&self) -> LiveMapChanges<K, T>
    where
        K: Clone,
    {
        // The receiver is created before the map is read, so that no change is missed between the
        // two.
        let wakes = LiveStream::new(statuses(&self.states, &self.task).map(drop));
        LiveMapChanges::new(Arc::clone(&self.current), wakes, Arc::clone(&self.task))
    }

    /// Waits for the next change, and returns the map after it. Changes count that came after this
    /// handle was opened or cloned, and after its last call. If changes came meanwhile, it returns
    /// at once.
    ///
    /// Cancel safe: the next call returns the map.
    ///
    /// # Errors
    /// Returns [`KvError::Closed`] if no further change can arrive, because the connection or its
    /// runtime was shut down. Returns [`KvError::Panicked`] if the type's own code has ended the
    /// task that follows the store.
    pub async fn changed(&mut self) -> Result<LiveMapSnapshot<K, T>, KvError> {
        let seen = self.seen;
        let waited =
            self.states.wait_for(|state| state.generation > seen || state.status.is_ended()).await;
        drop(waited);
        // The map may be newer than the notified one. Returning it then covers the later
        // notification too.
        let current = self.current.load();
        if current.generation == seen {
            return Err(self.states.borrow().status.end());
        }
        self.seen = current.generation;
        Ok(current.entries.clone())
    }
}

impl<K, T> LiveMap<K, T> {
    /// Returns how current the map is, and how many entries are rejected, at this moment. The link
    /// is down if no task has run on the map's runtime for 5 seconds. The runtime may be blocked,
    /// or the process was suspended or forked.
    pub fn status(&self) -> LiveMapStatus {
        let state = self.states.borrow();
        // A task that has ended without a reason ended with its runtime.
        let is_ended = state.status.is_ended() || self.task.is_finished();
        if is_ended {
            return state.status.clone().ended();
        }
        LiveMapStatus { link: self.upkeep.pulse.link(&state.status.link), ..state.status.clone() }
    }

    /// Returns the status whenever it or the map changes. It begins with the first change after
    /// now, and skips a status that was superseded before it was polled. The stream ends when
    /// nothing follows the store any more.
    ///
    /// Cancel safe: dropping the stream at any time changes nothing.
    pub fn statuses(&self) -> LiveStream<LiveMapStatus> {
        statuses(&self.states, &self.task)
    }
}

/// Creates a separate handle: its [`changed`](LiveMap::changed) returns changes after this moment.
impl<K, T> Clone for LiveMap<K, T> {
    fn clone(&self) -> Self {
        let (current, states) = (Arc::clone(&self.current), self.states.clone());
        let seen = current.load().generation;
        Self {
            current,
            states,
            seen,
            task: Arc::clone(&self.task),
            upkeep: Arc::clone(&self.upkeep),
        }
    }
}

/// Shows the counts and the status, not the values.
impl<K: Ord, T> fmt::Debug for LiveMap<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveMap")
            .field("len", &self.len())
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}
