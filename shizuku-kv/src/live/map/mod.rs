//! Maps that stay current: all records of a type, or of a scope, by key.
//!
//! `table.rs` is the map as a plain data structure, `changes.rs` what a reader of its changes is told; `open.rs` waits
//! for the state, and `drive.rs` follows the store.

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
pub use status::{LiveMapStanding, LiveMapStatus, LiveRejection};
use table::Table;

use super::status::State;
use super::{LiveSnapshot, LiveStream, Task, statuses};
use crate::store::{KvError, Upkeep};
use crate::typed::{RecordKey, store_key};

/// The records of a type by key, as a map that stays current. From
/// [`KeyValueRead::live_map`](crate::KeyValueRead::live_map), and for a part of them from
/// [`KeyValueRead::live_map_scope`](crate::KeyValueRead::live_map_scope).
///
/// Looking something up never waits and takes no lock; [`snapshot`](Self::snapshot) is the whole map as of one moment,
/// [`changes`](Self::changes) what happens to it from a moment on. The keys are those of the type and are ordered as it
/// says; keys that are equal have to be printed alike.
///
/// For each key it holds the newest good value: one that decodes, that its type does not refuse, and that belongs under
/// its key. What is bad never takes the place of what is good: it is reported once through `tracing`, without its
/// content, and kept in [`rejections`](Self::rejections) until the key has a good value or none. A deletion removes the
/// key.
///
/// Like a watch it is state sync: values that were superseded before they arrived may be skipped, the newest one
/// always arrives. What arrives together comes into force together. Where the store cannot be reached the map stays as
/// it was, and the [`status`](Self::status) says since when. Where the store has to be read again, as after it was
/// deleted and made again, the map stays until all is read and then has only what is there.
///
/// Clones share one task, which ends with the last of them. It runs on the runtime on which the map was opened.
///
#[cfg_attr(all(feature = "derive", feature = "memory"), doc = "```")]
#[cfg_attr(not(all(feature = "derive", feature = "memory")), doc = "```text")]
/// use serde::{Deserialize, Serialize};
/// use shizuku_kv::{KeyValue, KeyValueRead};
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
/// let mut changes = users.changes();
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
    /// The last change that [`changed`](Self::changed) of this handle has told of.
    seen: u64,
    task: Arc<Task>,
    upkeep: Arc<Upkeep>,
}

impl<K: Ord, T> LiveMap<K, T> {
    /// The value in force under a key, with its version. Neither waits nor locks.
    pub fn get<Q>(&self, key: &Q) -> Option<Arc<LiveSnapshot<T>>>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.current.load().entries.get(key).cloned()
    }

    /// Whether a value is in force under a key. Neither waits nor locks.
    pub fn contains_key<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.current.load().entries.contains_key(key)
    }

    /// How many values are in force. Neither waits nor locks.
    pub fn len(&self) -> usize {
        self.current.load().entries.len()
    }

    /// Whether no value is in force. Neither waits nor locks.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The map as of this moment, to be iterated over, kept or sent elsewhere. Neither waits nor locks, and copies
    /// nothing.
    pub fn snapshot(&self) -> LiveMapSnapshot<K, T> {
        self.current.load().entries.clone()
    }

    /// Why the newest version under a key was refused; `None` where it was not, or there is none. What
    /// [`get`](Self::get) returns meanwhile is the last good value, if there was one.
    pub fn rejection(&self, key: &K) -> Option<LiveRejection>
    where
        K: RecordKey,
    {
        self.current.load().rejections.get(&store_key(key).ok()?).cloned()
    }

    /// All entries whose newest version is refused, ordered by key. Among them are those whose key is none of the type;
    /// that is why they have the store's.
    pub fn rejections(&self) -> Vec<LiveRejection> {
        self.current.load().rejections.values().cloned().collect()
    }

    /// Each change after this moment, with what was before it and what is after. It begins with the map as it is now:
    /// [`LiveMapChanges::snapshot`].
    ///
    /// Dropping it at any time is safe.
    pub fn changes(&self) -> LiveMapChanges<K, T>
    where
        K: Clone,
    {
        // The receiver before the map, so that nothing can come in between.
        let wakes = LiveStream::new(statuses(&self.states, &self.task).map(drop));
        LiveMapChanges::new(Arc::clone(&self.current), wakes, Arc::clone(&self.task))
    }

    /// The map after the next change: one that this handle has not told of, or been opened or cloned with. Changes that
    /// came meanwhile are told of at once.
    ///
    /// Dropping the future is safe: what comes is told of next time.
    ///
    /// # Errors
    /// [`KvError::Closed`] when nothing will change any more: the connection was shut down, or the runtime was.
    pub async fn changed(&mut self) -> Result<LiveMapSnapshot<K, T>, KvError> {
        let seen = self.seen;
        let closed = || KvError::Closed { operation: "live_map" };
        let waited =
            self.states.wait_for(|state| state.generation > seen || state.status.is_ended()).await;
        drop(waited.map_err(|_| closed()));
        // It may be newer than what was told of, and then that is told by this.
        let current = self.current.load();
        if current.generation == seen {
            return Err(closed());
        }
        self.seen = current.generation;
        Ok(current.entries.clone())
    }
}

impl<K, T> LiveMap<K, T> {
    /// How current the map is, and how many entries are rejected, at this moment. The link is down
    /// if no task has run on the map's runtime for 5 seconds, because it is blocked or the process
    /// was suspended or forked.
    pub fn status(&self) -> LiveMapStatus {
        let state = self.states.borrow();
        // A task that has ended without saying so was ended with its runtime, or by a panic of the type's own code.
        let is_ended = state.status.is_ended() || self.task.0.is_finished();
        if is_ended {
            return state.status.clone().ended();
        }
        LiveMapStatus { link: self.upkeep.pulse.link(&state.status.link), ..state.status.clone() }
    }

    /// The status whenever it or the map changes: after the one now, each that is still the newest when it is asked
    /// for. Ends when nothing follows any more.
    ///
    /// Dropping it at any time is safe.
    pub fn statuses(&self) -> LiveStream<LiveMapStatus> {
        statuses(&self.states, &self.task)
    }
}

/// A handle of its own: [`changed`](LiveMap::changed) tells of what comes after this moment.
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

/// The counts and the status, not the values.
impl<K: Ord, T> fmt::Debug for LiveMap<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveMap")
            .field("len", &self.len())
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}
