//! The task that follows the record of a live value.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use backon::ExponentialBackoff;
use futures_util::future::{Either, select};
use tokio::sync::watch;
use tokio::time::Instant;

use super::LiveSnapshot;
use super::panics::{outliving, read};
use super::status::{LiveSyncState, State};
use crate::record::{ByteDeserialize, KeyValue, KvReadError, type_name};
use crate::store::backoff;
use crate::store::{
    Follower, Following, Key, KvError, KvOperation, KvUpdate, Store, VersionToken, Watch,
    WatchLink, WatchScope,
};

/// Conversion of a record, or of its absence, to the current value.
pub(super) struct Policy<T, V> {
    /// Converts a record.
    pub(super) present: fn(T) -> V,
    /// Returns the current value if the store has no record. Without it, the last value stays
    /// current.
    pub(super) absent: Option<fn() -> V>,
}

/// A state of the record in the store that is not the current value yet.
pub(super) enum Candidate<V> {
    Good(LiveSnapshot<V>),
    Bad(VersionToken, Arc<KvReadError>),
    Absent(Option<(KvOperation, VersionToken)>),
}

/// Reads an update of a record. Returns `None` for the caught-up marker.
pub(super) fn look<T, V>(update: KvUpdate, present: fn(T) -> V) -> Option<Candidate<V>>
where
    T: KeyValue<Value: ByteDeserialize>,
{
    let entry = update.into_entry()?;
    let version = entry.version;
    if entry.is_tombstone() {
        return Some(Candidate::Absent(Some((entry.operation, version))));
    }
    Some(match read::<T, _>(&entry, |_| ()) {
        Ok((value, ())) => {
            Candidate::Good(LiveSnapshot::of(present(value), version, entry.created))
        }
        Err(error) => {
            // The error names the type, the key and the fault, and nothing of the value.
            tracing::warn!(%error, "a live value was refused, what is in force stays");
            Candidate::Bad(version, Arc::new(error))
        }
    })
}

/// Follows one record for as long as it is not aborted.
pub(super) struct LiveTask<T, V> {
    pub(super) store: Store,
    pub(super) key: Key,
    pub(super) policy: Policy<T, V>,
    pub(super) value: Arc<ArcSwap<LiveSnapshot<V>>>,
    pub(super) states: watch::Sender<State>,
    /// The value's follower, which is compared with the store.
    pub(super) follower: Arc<Follower>,
    pub(super) _following: Following,
}

impl<T, V> LiveTask<T, V>
where
    T: KeyValue<Value: ByteDeserialize>,
{
    /// Runs until the connection is closed or the type's own code panics.
    pub(super) async fn run(self, watch: Option<Watch>) {
        let states = self.states.clone();
        let end = |error| {
            states.send_modify(|state| state.status.sync_state = LiveSyncState::Ended { error })
        };
        outliving::<T>("live", self.follow_store(watch), end).await;
    }

    /// Runs until the connection is closed. `watch` is a watch that has already been read from, if
    /// there is one.
    async fn follow_store(self, mut watch: Option<Watch>) {
        let mut pauses = pauses();
        loop {
            let error = match watch.take() {
                Some(watch) => self.follow(watch, true, &mut pauses).await,
                None => match self.store.shared_watch(WatchScope::Key(self.key.clone())).await {
                    Ok(watch) => self.follow(watch, false, &mut pauses).await,
                    Err(error) => error,
                },
            };
            if error.is_over() {
                self.states
                    .send_modify(|state| state.status.sync_state = LiveSyncState::Ended { error });
                return;
            }
            // The owner of the shared watch logs the warning for all its readers.
            tracing::debug!(
                store = self.store.name(), key = %self.key, %error, "a live value cannot be followed for now"
            );
            self.cut_off(error.to_string());
            tokio::time::sleep(pauses.next().unwrap_or_default()).await;
        }
    }

    /// Applies the updates of a watch, until it ends. A new watch begins with the initial state. A
    /// key that has not arrived by its caught-up marker is absent. Until then the current value may
    /// be outdated.
    async fn follow(
        &self,
        watch: Watch,
        mut is_known: bool,
        pauses: &mut ExponentialBackoff,
    ) -> KvError {
        let begun = Instant::now();
        let mut links = watch.link_changes();
        loop {
            if is_known {
                self.link(watch.link());
            }
            let update = match select(pin!(next(&watch, &mut links)), pin!(self.follower.differs()))
                .await
            {
                Either::Left((update, _)) => update,
                Either::Right(_) => {
                    let reason = "the store differs from the entries that its watch has delivered";
                    return KvError::CursorExpired { store: self.store.name().to_owned(), reason };
                }
            };
            let Some(update) = update else { continue };
            match update {
                None => return KvError::Closed { operation: "live" },
                Some(Err(error)) => return error,
                Some(Ok(update)) => {
                    let value = update.entry().filter(|entry| !entry.is_tombstone());
                    let heard = value.map(|entry| (entry.version, entry.created));
                    match look(update, self.policy.present) {
                        Some(seen) => self.take(seen),
                        None if is_known => continue,
                        None => self.take(Candidate::Absent(None)),
                    }
                    self.follower.hear(heard);
                }
            }
            is_known = true;
            // A watch that ends soon after its start is no progress.
            if begun.elapsed() >= LASTING {
                *pauses = self::pauses();
            }
            // A key that changes all the time must not keep the thread from other tasks, nor this
            // task from being ended.
            tokio::task::consume_budget().await;
        }
    }

    fn take(&self, seen: Candidate<V>) {
        let (value, sync_state) = match seen {
            Candidate::Good(found) => {
                let held = self.value.load();
                // In a recreated store, versions start again. The time distinguishes an entry from
                // an earlier one with the same version (ADR 0027).
                let is_new = (held.version, held.created) != (found.version, found.created);
                (is_new.then_some(found), LiveSyncState::Current)
            }
            Candidate::Bad(version, error) => (None, LiveSyncState::Rejected { version, error }),
            Candidate::Absent(tombstone) => {
                let is_new = self.value.load().version.is_some();
                let value = self.policy.absent.filter(|_| is_new);
                let value = value.map(|absent| LiveSnapshot::unversioned(absent()));
                (value, LiveSyncState::Absent { tombstone })
            }
        };
        let held = self.value.load().generation;
        let generation = held + u64::from(value.is_some());
        // The value is stored before the handles are notified.
        if let Some(value) = value {
            self.value.store(Arc::new(LiveSnapshot { generation, ..value }));
        }
        self.states.send_modify(|state| {
            state.generation = generation;
            state.status.sync_state = sync_state;
        });
    }

    fn link(&self, link: WatchLink) {
        self.states.send_if_modified(|state| {
            let is_new = state.status.link != link;
            state.status.link = link;
            is_new
        });
    }

    fn cut_off(&self, reason: String) {
        let link = lost(&self.states.borrow().status.link, reason);
        self.link(link);
    }
}

/// Returns the state of a lost link. It is down since the known moment, or since now.
pub(super) fn lost(link: &WatchLink, reason: String) -> WatchLink {
    let since = match link {
        WatchLink::Down { since, .. } => *since,
        WatchLink::Up => SystemTime::now(),
    };
    WatchLink::down(since, reason)
}

/// Minimum duration of a watch for which the next loss resets the pauses.
pub(super) const LASTING: Duration = Duration::from_secs(10);

/// Returns the next update. Returns `None` if the connection state has changed.
pub(super) async fn next(
    watch: &Watch,
    links: &mut Option<watch::Receiver<WatchLink>>,
) -> Option<Option<Result<KvUpdate, KvError>>> {
    let next = pin!(watch.next());
    let Some(links) = links else { return Some(next.await) };
    match select(next, pin!(links.changed())).await {
        Either::Left((update, _)) => Some(update),
        Either::Right((Ok(()), _)) => None,
        Either::Right((Err(_), next)) => Some(next.await),
    }
}

/// Returns the pauses between two watches. They are short enough to notice the end of the
/// connection, because waiting live values share one watch.
pub(super) fn pauses() -> ExponentialBackoff {
    backoff(Duration::from_millis(50), Duration::from_secs(2))
}

impl<T, V> std::fmt::Debug for LiveTask<T, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver")
            .field("type", &type_name::<T>())
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}
