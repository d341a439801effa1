//! Values that stay current: read once, and always the newest good value after.
//!
//! [`Live`] follows one record, in a task of its own over a watch that heals itself. [`load`](Live::load) costs what
//! loading an `Arc` costs, and never waits. [`LiveMap`] does the same for all records of a type or a scope.

mod drive;
mod map;
mod open;
mod status;

use std::fmt;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use arc_swap::{ArcSwap, Guard};
use futures_core::stream::BoxStream;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::store::{KvError, Upkeep, VersionToken};

pub(crate) use map::live_map;
pub use map::{
    LiveMap, LiveMapChange, LiveMapChanges, LiveMapSnapshot, LiveMapStanding, LiveMapStatus,
    LiveRejection,
};
pub(crate) use open::{live, live_optional, live_or};
use status::State;
pub use status::{LiveStanding, LiveStatus};

/// A value that stays current. From [`StaticKeyIndexedValue::live`](crate::StaticKeyIndexedValue::live) and its
/// kin, and for records with a key from [`KeyValueRead::live_at`](crate::KeyValueRead::live_at).
///
/// It holds the newest good value: one that decodes and that its type does not refuse. What is bad never takes the
/// place of what is good; it is reported once through `tracing`, without its content, and in [`status`](Self::status).
/// A deletion leaves the last value in force, or makes it `None` in a `Live<Option<T>>`.
///
/// Like a watch it is state sync: values that were superseded before they arrived may be skipped, the newest one
/// always arrives. Where the store cannot be reached the last value stays in force, and the status says since when.
///
/// Clones share one task, which ends with the last of them. It runs on the runtime on which the value was opened.
///
#[cfg_attr(all(feature = "derive", feature = "memory"), doc = "```")]
#[cfg_attr(not(all(feature = "derive", feature = "memory")), doc = "```text")]
/// use serde::{Deserialize, Serialize};
/// use shizuku_kv::{KeyValue, StaticKeyIndexedValue};
///
/// #[derive(Serialize, Deserialize, StaticKeyIndexedValue)]
/// #[kv(key = "config.limits", codec = json)]
/// struct Limits {
///     connections: u32,
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let store = shizuku_kv::connect("memory:").await?.store("config").await?;
/// Limits { connections: 5 }.write_to_anyway(&store).await?;
/// let mut limits = Limits::live(&store).await?;
/// assert_eq!(limits.load().connections, 5);
///
/// Limits { connections: 10 }.write_to_anyway(&store).await?;
/// limits.changed().await?;
/// assert_eq!(limits.load().connections, 10);
/// # Ok(())
/// # }
/// ```
pub struct Live<T> {
    value: Arc<ArcSwap<LiveSnapshot<T>>>,
    states: watch::Receiver<State>,
    /// The last change that [`changed`](Self::changed) of this handle has told of.
    seen: u64,
    task: Arc<Task>,
    upkeep: Arc<Upkeep>,
}

impl<T> Live<T> {
    /// The value in force. Neither waits nor allocates; hold it for a short time only, and take a
    /// [`snapshot`](Self::snapshot) to keep it.
    pub fn load(&self) -> LiveRef<T> {
        LiveRef(self.value.load())
    }

    /// The value in force with its version, to be kept or sent elsewhere.
    pub fn snapshot(&self) -> Arc<LiveSnapshot<T>> {
        self.value.load_full()
    }

    /// The version of the value in force; `None` for a default, and where there is none in a `Live<Option<T>>`.
    pub fn version(&self) -> Option<VersionToken> {
        self.value.load().version
    }

    /// How current the value is, and what the store has in its place, at this moment. The link is
    /// down if no task has run on the value's runtime for 5 seconds, because it is blocked or the
    /// process was suspended or forked.
    pub fn status(&self) -> LiveStatus {
        let state = self.states.borrow();
        if self.is_ended(&state) {
            return state.status.clone().ended();
        }
        LiveStatus { link: self.upkeep.pulse.link(&state.status.link), ..state.status.clone() }
    }

    /// The next value that comes into force: one that this handle has not told of, or been opened or cloned with.
    /// Values that were superseded meanwhile are skipped.
    ///
    /// Dropping the future is safe: what comes is told of next time.
    ///
    /// # Errors
    /// [`KvError::Closed`] when no value will come any more: the connection was shut down, or the runtime was.
    pub async fn changed(&mut self) -> Result<Arc<LiveSnapshot<T>>, KvError> {
        let seen = self.seen;
        let closed = || KvError::Closed { operation: "live" };
        let waited =
            self.states.wait_for(|state| state.generation > seen || state.status.is_ended()).await;
        drop(waited.map_err(|_| closed()));
        // It may be newer than what was told of, and then that is told by this.
        let value = self.snapshot();
        if value.generation == seen {
            return Err(closed());
        }
        self.seen = value.generation;
        Ok(value)
    }

    /// The status whenever it or the value changes: after the one now, each that is still the newest when it is asked
    /// for. Ends when nothing follows any more.
    ///
    /// Dropping it at any time is safe.
    pub fn statuses(&self) -> LiveStream<LiveStatus> {
        statuses(&self.states, &self.task)
    }

    /// The value in force, then each that comes into force. Ends when no value will come any more. Values that were
    /// superseded before they were asked for are skipped.
    ///
    /// Dropping it at any time is safe.
    pub fn stream(&self) -> LiveStream<Arc<LiveSnapshot<T>>>
    where
        T: Send + Sync + 'static,
    {
        let mut live = self.clone();
        let now = live.snapshot();
        live.seen = now.generation;
        let first = stream::once(std::future::ready(now));
        let rest = stream::unfold(live, |mut live| async move {
            live.changed().await.ok().map(|value| (value, live))
        });
        LiveStream::new(first.chain(rest))
    }

    fn is_ended(&self, state: &State) -> bool {
        // A task that has ended without saying so was ended with its runtime, or by a panic of the type's own code.
        state.status.is_ended() || self.task.0.is_finished()
    }
}

/// A handle of its own: [`changed`](Live::changed) tells of what comes after this moment.
impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        let states = self.states.clone();
        let seen = self.value.load().generation;
        let (task, upkeep) = (Arc::clone(&self.task), Arc::clone(&self.upkeep));
        Self { value: Arc::clone(&self.value), states, seen, task, upkeep }
    }
}

/// The status, not the value.
impl<T> fmt::Debug for Live<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live")
            .field("version", &self.version())
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

/// A value that was in force, with its version.
///
/// Dereferences to the value, and has no fields or methods of its own. Its functions are called by
/// their path, like those of `Rc`, so that none can hide a name of the value.
#[derive(Clone, PartialEq, Eq)]
pub struct LiveSnapshot<T> {
    value: T,
    version: Option<VersionToken>,
    created: Option<SystemTime>,
    /// One more for each value that came into force.
    generation: u64,
}

impl<T> LiveSnapshot<T> {
    /// The value.
    pub fn value(this: &Self) -> &T {
        &this.value
    }

    /// The version of the value; `None` for a default, and for the absence in a `Live<Option<T>>`.
    pub fn version(this: &Self) -> Option<VersionToken> {
        this.version
    }

    /// When the store accepted the value, by the store's clock; `None` if there is no version.
    pub fn created(this: &Self) -> Option<SystemTime> {
        this.created
    }

    /// What is in force and not from the store.
    fn unversioned(value: T) -> Self {
        Self { value, version: None, created: None, generation: 0 }
    }

    /// What the store has.
    fn of(value: T, version: VersionToken, created: SystemTime) -> Self {
        Self { value, version: Some(version), created: Some(created), generation: 0 }
    }

    fn map<V>(self, make: impl FnOnce(T) -> V) -> LiveSnapshot<V> {
        let Self { value, version, created, generation } = self;
        LiveSnapshot { value: make(value), version, created, generation }
    }
}

impl<T> Deref for LiveSnapshot<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// The version, not the value.
impl<T> fmt::Debug for LiveSnapshot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveSnapshot").field("version", &self.version).finish_non_exhaustive()
    }
}

/// The value in force, for a short time. From [`Live::load`].
pub struct LiveRef<T>(Guard<Arc<LiveSnapshot<T>>>);

impl<T> Deref for LiveRef<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

/// The version, not the value.
impl<T> fmt::Debug for LiveRef<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveRef").field("version", &self.0.version).finish_non_exhaustive()
    }
}

/// The values or the statuses of a [`Live`] or a [`LiveMap`], as they change. Ends when nothing follows any more.
#[must_use = "a stream does nothing unless it is polled"]
pub struct LiveStream<I>(BoxStream<'static, I>);

impl<I> LiveStream<I> {
    fn new(items: impl Stream<Item = I> + Send + 'static) -> Self {
        // Who asks again after the end is told again that it is the end.
        Self(items.fuse().boxed())
    }

    /// The next item; `None` after the last.
    ///
    /// Dropping the future is safe: no item is lost.
    pub async fn next(&mut self) -> Option<I> {
        self.0.next().await
    }
}

impl<I> Stream for LiveStream<I> {
    type Item = I;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<I>> {
        self.0.poll_next_unpin(cx)
    }
}

impl<I> fmt::Debug for LiveStream<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveStream").finish_non_exhaustive()
    }
}

/// Each status that comes after this moment and is still the newest when it is asked for.
fn statuses<S: Clone + Send + Sync + 'static>(
    states: &watch::Receiver<State<S>>,
    task: &Arc<Task>,
) -> LiveStream<S> {
    let mut states = states.clone();
    states.mark_unchanged();
    LiveStream::new(stream::unfold((states, Arc::clone(task)), |(mut states, task)| async move {
        states.changed().await.ok()?;
        let status = states.borrow_and_update().status.clone();
        Some((status, (states, task)))
    }))
}

/// The task that follows the store. Ends with the last handle.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
