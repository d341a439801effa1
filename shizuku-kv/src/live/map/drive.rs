//! The task that follows the records of a live map.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use futures_util::future::{Either, select};
use tokio::sync::watch;
use tokio::task::unconstrained;

use super::compare::{Comparison, Verdict};
use super::status::{LiveMapStatus, LiveMapSyncState, LiveRejection};
use super::table::{Finding, Table, Unseen};
use crate::live::panics::{catch_panic, guarded, read};
use crate::live::snapshot::LiveSnapshot;
use crate::live::status::State;
use crate::record::{ByteDeserialize, KeyValue, canonical_key, type_name};
use crate::store::{KvEntry, KvError, KvUpdate, Store, WatchScope};
use crate::watch::{Event, Follower};

/// Maximum number of ready updates that are published together. An endless series of ready updates
/// must not keep the map from being published.
const BATCH: usize = 256;

/// Reads the record of an entry.
pub(super) fn read_entry<T: KeyValue<Value: ByteDeserialize>>(
    entry: &KvEntry,
) -> Finding<T::Key, T> {
    let key = entry.key.clone();
    let canonical =
        || guarded::<T, _>(entry, "checked", || canonical_key::<T>(&entry.key)).ok().flatten();
    if entry.is_tombstone() {
        return Finding::Absent { key, own: canonical() };
    }
    match read(entry, T::kv_key) {
        Ok((record, own)) => Finding::Good {
            key,
            own,
            value: LiveSnapshot::of(record, entry.version, entry.created),
        },
        Err(error) => {
            let (version, created, error) = (entry.version, entry.created, Arc::new(error));
            Finding::Bad {
                own: canonical(),
                rejection: LiveRejection { key, version, error, created },
            }
        }
    }
}

/// Logs rejected entries. Errors name the type, the key and the fault, and nothing of the value.
pub(super) fn log_rejections<'a>(rejections: impl IntoIterator<Item = &'a LiveRejection>) {
    for LiveRejection { error, .. } in rejections {
        tracing::warn!(%error, "rejected an entry of a live map, keeping the last good one");
    }
}

/// Follows a scope for as long as it is not aborted.
pub(super) struct LiveMapTask<T: KeyValue> {
    pub(super) store: Store,
    pub(super) scope: WatchScope,
    pub(super) follower: Follower,
    /// The map with all delivered updates. While the store is read again, it is ahead of the
    /// published map.
    pub(super) table: Table<T::Key, T>,
    /// The keys that have not been delivered yet, while the store is read again.
    pub(super) unseen: Option<Unseen<T::Key, T>>,
    /// The rejections that are not logged yet.
    pub(super) rejected: Vec<LiveRejection>,
    pub(super) current: Arc<ArcSwap<Table<T::Key, T>>>,
    pub(super) states: watch::Sender<State<LiveMapStatus>>,
    pub(super) comparison: Comparison,
}

impl<T> LiveMapTask<T>
where
    T: KeyValue<Key: Ord + Clone, Value: ByteDeserialize>,
{
    /// Runs until the connection is closed or the type's own code panics.
    pub(super) async fn run(mut self) {
        let states = self.states.clone();
        let end = |error| {
            states.send_modify(|state| state.status.sync_state = LiveMapSyncState::Ended { error })
        };
        catch_panic::<T>("live_map", async { end(self.follow().await) }, end).await;
    }

    /// Follows the store until the connection is closed. Returns the reason.
    async fn follow(&mut self) -> KvError {
        loop {
            let Some(error) = self.step().await else { continue };
            if error.is_over() {
                return error;
            }
            tracing::warn!(
                store = self.store.name(), r#type = type_name::<T>(), %error,
                "cannot follow a live map, retrying"
            );
            self.begin_reading();
            self.states.send_modify(|state| {
                self.follower.update_link(&mut state.status.link);
                state.status.sync_state = LiveMapSyncState::Rereading;
            });
        }
    }

    /// Begins to read the store again. Until that reading is complete, the published map is stale.
    pub(super) fn begin_reading(&mut self) {
        // Drops the updates of a reading that was interrupted.
        self.table = Table::clone(&self.current.load());
        self.rejected.clear();
        self.unseen = Some(self.table.unseen());
    }

    /// Applies the next events, as many as are ready, and publishes the map. Returns an error that
    /// ended the watch. The next watch begins with the initial state. Keys that were not delivered
    /// before its caught-up marker are gone. Until then the published values stay.
    pub(super) async fn step(&mut self) -> Option<KvError> {
        let is_reading = self.unseen.is_some();
        let differs = async {
            if is_reading {
                std::future::pending().await
            }
            self.comparison.differs(&self.store, &self.scope).await;
        };
        // The comparison is first, because a scope that changes all the time must not delay it.
        let event = match select(pin!(differs), pin!(self.follower.next())).await {
            Either::Left(((), _)) => None,
            Either::Right((event, _)) => Some(event),
        };
        let mut event = event.unwrap_or_else(|| self.follower.lose_after_difference());
        let (mut end, mut has_news) = (None, false);
        for left in (0..BATCH).rev() {
            has_news |= matches!(event, Event::Update(_) | Event::CaughtUp { .. });
            end = self.apply(event);
            // A scope that changes all the time must not block other tasks of the thread, nor the
            // end of this task.
            tokio::task::consume_budget().await;
            let is_full = left == 0 || end.is_some();
            // The budget was consumed above. Otherwise the watch would consume the budget, and seem
            // to have no ready update.
            let ready = (!is_full).then(|| unconstrained(self.follower.next()).now_or_never());
            let Some(ready) = ready.flatten() else { break };
            event = ready;
        }
        if has_news && self.unseen.is_none() {
            log_rejections(&std::mem::take(&mut self.rejected));
            self.publish();
        }
        if end.is_none() {
            self.states.send_if_modified(|state| self.follower.update_link(&mut state.status.link));
        }
        end
    }

    /// Applies an event. Returns an error that ended the watch.
    fn apply(&mut self, event: Event) -> Option<KvError> {
        let update = match event {
            Event::Opened => {
                self.comparison.start_over();
                return None;
            }
            Event::LinkChanged => {
                self.comparison.mark_unverified();
                return None;
            }
            Event::Update(update) => update,
            Event::CaughtUp { .. } => KvUpdate::CaughtUp,
            Event::Lost(error) | Event::Closed(error) => return Some(error),
        };
        let cursor = self.follower.cursor();
        let before = self.comparison.before(cursor.map_or(0, |cursor| cursor.position()));
        self.comparison.record(update.entry(), cursor);
        match update.into_entry() {
            Some(entry) => {
                let finding = read_entry::<T>(&entry);
                if let Some(unseen) = &mut self.unseen {
                    unseen.see(&finding);
                }
                self.rejected.extend(self.table.apply(finding));
            }
            None => {
                if let Some(unseen) = self.unseen.take() {
                    self.table.sweep(&unseen);
                    if self.table.generation != self.current.load().generation {
                        self.comparison.found();
                    }
                }
            }
        }
        if before == Verdict::Differs || self.comparison.after() == Verdict::Differs {
            let lost = self.follower.lose_after_difference();
            return self.apply(lost);
        }
        None
    }

    fn publish(&self) {
        // The map is stored before the handles are notified.
        self.current.store(Arc::new(self.table.clone()));
        self.states.send_modify(|state| {
            state.generation = self.table.generation;
            state.status.rejected = self.table.rejections.size();
            state.status.sync_state = LiveMapSyncState::Current;
        });
    }
}

impl<T: KeyValue> fmt::Debug for LiveMapTask<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveMapTask")
            .field("type", &type_name::<T>())
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}
