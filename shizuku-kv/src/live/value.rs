//! The handle of a live value.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::{StreamExt, stream};
use tokio::sync::watch;

use super::snapshot::{LiveRef, LiveSnapshot};
use super::status::{LiveStatus, State};
use super::stream::{LiveStream, TaskHandle, statuses};
use crate::store::{KvError, VersionToken};
use crate::watch::Upkeep;

/// A value that stays current, from [`LiveStatic::live`](crate::LiveStatic::live) and its variants.
/// For records with a key, [`LiveRead::live_at`](crate::LiveRead::live_at) returns it.
///
/// The current value is the newest good one: it decodes, and keeps the rule of its type. A rejected
/// value never replaces a good one. A rejection is reported once through `tracing`, without the
/// content, and in [`status`](Self::status). After a deletion the last value stays current. In a
/// `Live<Option<T>>`, a deletion makes the current value `None`.
///
/// Like a watch, a live value synchronizes state: values that were superseded before their delivery
/// may be skipped, and the newest one is always delivered. If the store cannot be reached, the last
/// value stays current, and the status shows the start of the outage.
///
/// Clones share one task, and values of the same record and type that are opened on one runtime
/// usually do too. The task ends with the last handle that uses it. It runs on the runtime on which
/// the first value was opened. A panic of the type's own code ends all values that share the task.
///
#[cfg_attr(all(feature = "derive", feature = "memory"), doc = "```")]
#[cfg_attr(not(all(feature = "derive", feature = "memory")), doc = "```text")]
/// use serde::{Deserialize, Serialize};
/// use shizuku_kv::{KeyValue, LiveStatic, StaticKeyIndexedValue};
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
    pub(super) value: Arc<ArcSwap<LiveSnapshot<T>>>,
    pub(super) states: watch::Receiver<State>,
    /// Generation of the last value that [`changed`](Self::changed) of this handle has returned.
    pub(super) seen: u64,
    pub(super) task: Arc<TaskHandle>,
    pub(super) upkeep: Arc<Upkeep>,
}

impl<T> Live<T> {
    /// Returns the current value. Neither waits nor allocates. Keep the returned reference for a
    /// short time only, and use a [`snapshot`](Self::snapshot) otherwise.
    pub fn load(&self) -> LiveRef<T> {
        LiveRef(self.value.load())
    }

    /// Returns the current value with its version. The snapshot can be stored or sent to another
    /// task.
    pub fn snapshot(&self) -> Arc<LiveSnapshot<T>> {
        self.value.load_full()
    }

    /// Returns the version of the current value. Returns `None` for a default, and for an absent
    /// value in a `Live<Option<T>>`.
    pub fn version(&self) -> Option<VersionToken> {
        self.value.load().version
    }

    /// Returns the state of the value and of the connection now. The connection state is down if no
    /// task has run on the value's runtime for 5 seconds. The runtime may be blocked, or the
    /// process was suspended or forked.
    pub fn status(&self) -> LiveStatus {
        let state = self.states.borrow();
        if self.is_ended(&state) {
            return state.status.clone().ended();
        }
        LiveStatus { link: self.upkeep.pulse.link(&state.status.link), ..state.status.clone() }
    }

    /// Waits for the next current value, and returns it. This is a value that arrived after this
    /// handle was opened or cloned, and after its last call. Values that were superseded meanwhile
    /// are skipped.
    ///
    /// Cancel safe: the next call returns the value.
    ///
    /// # Errors
    /// Returns [`KvError::Closed`] if no further value can arrive, because the connection or its
    /// runtime was shut down. Returns [`KvError::Panicked`] if the type's own code has ended the
    /// task that follows the store.
    pub async fn changed(&mut self) -> Result<Arc<LiveSnapshot<T>>, KvError> {
        let seen = self.seen;
        let waited =
            self.states.wait_for(|state| state.generation > seen || state.status.is_ended()).await;
        drop(waited);
        // The value may be newer than the notified one. Returning it then covers the later
        // notification too.
        let value = self.snapshot();
        if value.generation == seen {
            return Err(self.states.borrow().status.end());
        }
        self.seen = value.generation;
        Ok(value)
    }

    /// Returns a stream of the statuses, with an item for each change of the status or the value
    /// from now on. A status that was superseded before the stream was polled is skipped. The
    /// stream ends when no task follows the store any more.
    ///
    /// Cancel safe: dropping the stream at any time changes nothing.
    pub fn statuses(&self) -> LiveStream<LiveStatus> {
        statuses(&self.states, &self.task)
    }

    /// Returns a stream of the current value, then each later one. Values that were superseded
    /// before the stream was polled are skipped. The stream ends when no further value can arrive.
    ///
    /// Cancel safe: dropping the stream at any time changes nothing.
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
        // A task that has ended without a reason has ended with its runtime.
        state.status.is_ended() || self.task.is_finished()
    }
}

/// Creates a separate handle, whose [`changed`](Live::changed) returns values that arrive after
/// this call.
impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        let states = self.states.clone();
        let seen = self.value.load().generation;
        let (task, upkeep) = (Arc::clone(&self.task), Arc::clone(&self.upkeep));
        Self { value: Arc::clone(&self.value), states, seen, task, upkeep }
    }
}

/// Shows the status, not the value.
impl<T> fmt::Debug for Live<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live")
            .field("version", &self.version())
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}
