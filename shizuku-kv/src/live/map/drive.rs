//! The task that follows the records of a live map.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;

use arc_swap::ArcSwap;
use backon::ExponentialBackoff;
use futures_util::FutureExt;
use futures_util::future::{Either, select};
use tokio::sync::watch;
use tokio::task::unconstrained;
use tokio::time::Instant;

use super::compare::{Comparison, Verdict};
use super::open::begin;
use super::status::{LiveMapStatus, LiveMapSyncState, LiveRejection};
use super::table::{Finding, Table, Unseen};
use crate::live::LiveSnapshot;
use crate::live::drive::{LASTING, lost, next, pauses};
use crate::live::panics::{guarded, outliving, read};
use crate::live::status::State;
use crate::record::{ByteDeserialize, KeyValue, canonical_key, type_name};
use crate::store::{KvEntry, KvError, KvUpdate, Store, Watch, WatchLink, WatchScope};

/// Maximum number of ready updates that are published together. An endless series of ready updates
/// must not keep the map from being published.
const BATCH: usize = 256;

/// Reads the record of an entry.
pub(super) fn look<T: KeyValue<Value: ByteDeserialize>>(entry: &KvEntry) -> Finding<T::Key, T> {
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
pub(super) fn report<'a>(rejections: impl IntoIterator<Item = &'a LiveRejection>) {
    for LiveRejection { error, .. } in rejections {
        tracing::warn!(%error, "an entry of a live map was refused, what is in force stays");
    }
}

/// Follows a scope for as long as it is not aborted.
pub(super) struct LiveMapTask<T: KeyValue> {
    pub(super) store: Store,
    pub(super) scope: WatchScope,
    /// The map with all delivered updates. While the store is read again, it is ahead of the
    /// published map.
    pub(super) table: Table<T::Key, T>,
    pub(super) current: Arc<ArcSwap<Table<T::Key, T>>>,
    pub(super) states: watch::Sender<State<LiveMapStatus>>,
    pub(super) comparison: Comparison,
}

impl<T> LiveMapTask<T>
where
    T: KeyValue<Key: Ord + Clone, Value: ByteDeserialize>,
{
    /// Runs until the connection is closed or the type's own code panics. `watch` has delivered the
    /// initial state.
    pub(super) async fn run(self, watch: Watch) {
        let states = self.states.clone();
        let end = |error| {
            states.send_modify(|state| state.status.sync_state = LiveMapSyncState::Ended { error })
        };
        outliving::<T>("live_map", self.follow_store(watch), end).await;
    }

    async fn follow_store(mut self, watch: Watch) {
        let mut pauses = pauses();
        let mut error = self.follow(watch, false, &mut pauses).await;
        loop {
            if error.is_over() {
                self.states.send_modify(|state| {
                    state.status.sync_state = LiveMapSyncState::Ended { error }
                });
                return;
            }
            tracing::warn!(
                store = self.store.name(), r#type = type_name::<T>(), %error,
                "a live map cannot be followed for now"
            );
            self.cut_off(error.to_string());
            tokio::time::sleep(pauses.next().unwrap_or_default()).await;
            error = match begin(&self.store, &self.scope).await {
                Ok(watch) => self.follow(watch, true, &mut pauses).await,
                Err(error) => error,
            };
        }
    }

    /// Applies the updates of a watch, until it ends. A new watch begins with the initial state.
    /// Keys that are still unseen at its caught-up marker are gone. Until then the current values
    /// stay.
    pub(super) async fn follow(
        &mut self,
        watch: Watch,
        is_new: bool,
        pauses: &mut ExponentialBackoff,
    ) -> KvError {
        // Drops the updates of a reading that was interrupted.
        self.table = Table::clone(&self.current.load());
        let mut unseen = is_new.then(|| self.table.unseen());
        if is_new {
            self.comparison.afresh();
        }
        let begun = Instant::now();
        let mut links = watch.link_changes();
        let mut is_heard = !is_new;
        let mut refused = Vec::new();
        loop {
            if is_heard {
                self.link(watch.link());
            }
            let due = self.comparison.due().filter(|_| unseen.is_none());
            let mut update = match select(pin!(next(&watch, &mut links)), pin!(sleep_until(due)))
                .await
            {
                Either::Left((Some(update), _)) => update,
                Either::Left((None, _)) => {
                    self.comparison.lose_touch();
                    continue;
                }
                Either::Right(_) => match self.comparison.look(&self.store, &self.scope).await {
                    Verdict::Same => continue,
                    Verdict::Differs => return self.differs(),
                },
            };
            let mut end = None;
            for left in (0..BATCH).rev() {
                // A watch may have lost its connection and resumed delivery in one poll. The loss
                // came before this update.
                if let Some(links) = &mut links
                    && links.has_changed().unwrap_or(false)
                {
                    links.mark_unchanged();
                    self.comparison.lose_touch();
                }
                match update.unwrap_or(Err(KvError::Closed { operation: "live_map" })) {
                    Ok(update) => {
                        let cursor = watch.cursor();
                        let position = cursor.map_or(0, |cursor| cursor.position());
                        let before = self.comparison.before(position);
                        self.comparison.take(update.entry(), cursor);
                        refused.extend(self.take(update, &mut unseen));
                        if before == Verdict::Differs || self.comparison.after() == Verdict::Differs
                        {
                            end = Some(self.differs());
                        }
                    }
                    Err(error) => end = Some(error),
                }
                // A scope that changes all the time must not keep the thread from other tasks, nor
                // this task from being ended.
                tokio::task::consume_budget().await;
                let is_full = left == 0 || end.is_some();
                // The budget was consumed above. Otherwise the watch would consume it, and seem to
                // have no ready update.
                let ready = (!is_full).then(|| unconstrained(watch.next()).now_or_never());
                let Some(ready) = ready.flatten() else { break };
                update = ready;
            }
            if unseen.is_none() {
                report(&std::mem::take(&mut refused));
                self.publish();
            }
            if let Some(error) = end {
                return error;
            }
            is_heard = true;
            // A watch that ends soon after its start is no progress.
            if begun.elapsed() >= LASTING {
                *pauses = self::pauses();
            }
        }
    }

    /// Applies an update. Returns a rejection that is new.
    fn take(
        &mut self,
        update: KvUpdate,
        unseen: &mut Option<Unseen<T::Key, T>>,
    ) -> Option<LiveRejection> {
        let Some(entry) = update.into_entry() else {
            if let Some(unseen) = unseen.take() {
                self.table.sweep(&unseen);
                if self.table.generation != self.current.load().generation {
                    self.comparison.found();
                }
            }
            return None;
        };
        let finding = look::<T>(&entry);
        if let Some(unseen) = unseen {
            unseen.see(&finding);
        }
        self.table.take(finding)
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

    /// Returns the error for a store that differs from the delivered entries.
    fn differs(&self) -> KvError {
        let reason = "the store differs from the entries that its watch has delivered";
        KvError::CursorExpired { store: self.store.name().to_owned(), reason }
    }

    fn link(&self, link: WatchLink) {
        self.states.send_if_modified(|state| {
            let is_new = state.status.link != link;
            state.status.link = link;
            is_new
        });
    }

    /// Marks the link as lost, and the map as outdated until the store was read again.
    fn cut_off(&self, reason: String) {
        self.states.send_modify(|state| {
            state.status.link = lost(&state.status.link, reason);
            state.status.sync_state = LiveMapSyncState::Rereading;
        });
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

impl<T: KeyValue> fmt::Debug for LiveMapTask<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("type", &type_name::<T>())
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}
