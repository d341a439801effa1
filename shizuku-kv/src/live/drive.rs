//! The task behind a live value.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use backon::ExponentialBackoff;
use futures_util::future::{Either, select};
use tokio::sync::watch;
use tokio::time::Instant;

use super::LiveSnapshot;
use super::status::{LiveStanding, State};
use crate::store::backoff;
use crate::store::{
    Follower, Following, Key, KvEntry, KvError, KvOperation, KvUpdate, Store, VersionToken, Watch,
    WatchLink, WatchScope,
};
use crate::typed::{ByteDeserialize, DecodeError, KeyValue, KvReadError, read_record, type_name};

/// How the records of a type become what is in force.
pub(super) struct Policy<T, V> {
    /// A record that is there.
    pub(super) present: fn(T) -> V,
    /// What is in force where there is none; without this the last value is.
    pub(super) absent: Option<fn() -> V>,
}

/// What was seen of the store, and not taken yet.
pub(super) enum Seen<T> {
    Good(LiveSnapshot<T>),
    Bad(VersionToken, Arc<KvReadError>),
    Absent(Option<(KvOperation, VersionToken)>),
}

/// What an update says of a record; none for the caught-up marker.
pub(super) fn look<T: KeyValue<Value: ByteDeserialize>>(update: KvUpdate) -> Option<Seen<T>> {
    let entry = update.into_entry()?;
    let version = entry.version;
    if entry.is_tombstone() {
        return Some(Seen::Absent(Some((entry.operation, version))));
    }
    Some(match guarded::<T, _>(&entry, || read_record::<T>(&entry)) {
        Ok(value) => Seen::Good(LiveSnapshot::of(value, version, entry.created)),
        Err(error) => {
            // The error names the type, the key and what is wrong, and nothing of the value.
            tracing::warn!(%error, "a live value was refused, what is in force stays");
            Seen::Bad(version, Arc::new(error))
        }
    })
}

/// Runs a type's own code on an entry. One that panics is no reason to lose the value in force.
pub(super) fn guarded<T, R>(
    entry: &KvEntry,
    read: impl FnOnce() -> Result<R, KvReadError>,
) -> Result<R, KvReadError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        Err(KvReadError::Decode {
            type_name: type_name::<T>(),
            key: entry.key.clone(),
            version: entry.version,
            source: DecodeError::new("the type's own code panicked"),
        })
    })
}

/// Follows one record for as long as it is not aborted.
pub(super) struct Driver<T, V> {
    pub(super) store: Store,
    pub(super) key: Key,
    pub(super) policy: Policy<T, V>,
    pub(super) value: Arc<ArcSwap<LiveSnapshot<V>>>,
    pub(super) states: watch::Sender<State>,
    /// The value's follower, which is compared with the store.
    pub(super) follower: Arc<Follower>,
    pub(super) _following: Following,
}

impl<T, V> Driver<T, V>
where
    T: KeyValue<Value: ByteDeserialize>,
{
    /// Runs until the connection is closed. `watch` is one that has been read from, if there is one.
    pub(super) async fn run(self, mut watch: Option<Watch>) {
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
                    .send_modify(|state| state.status.standing = LiveStanding::Ended { error });
                return;
            }
            // Who shares the watch with others says it for all of them.
            tracing::debug!(
                store = self.store.name(), key = %self.key, %error, "a live value cannot be followed for now"
            );
            self.cut_off(error.to_string());
            tokio::time::sleep(pauses.next().unwrap_or_default()).await;
        }
    }

    /// Takes what a watch delivers, until it ends. A new one delivers what is there first: what has not come by its
    /// caught-up marker is not there, and until then what is in force may be outdated.
    async fn follow(
        &self,
        mut watch: Watch,
        mut is_known: bool,
        pauses: &mut ExponentialBackoff,
    ) -> KvError {
        let begun = Instant::now();
        let mut links = watch.link_changes();
        loop {
            if is_known {
                self.link(watch.link());
            }
            let update =
                match select(pin!(next(&mut watch, &mut links)), pin!(self.follower.differs()))
                    .await
                {
                    Either::Left((update, _)) => update,
                    Either::Right(_) => {
                        let reason =
                            "the store differs from the entries that its watch has delivered";
                        return KvError::CursorExpired {
                            store: self.store.name().to_owned(),
                            reason,
                        };
                    }
                };
            let Some(update) = update else { continue };
            match update {
                None => return KvError::Closed { operation: "live" },
                Some(Err(error)) => return error,
                Some(Ok(update)) => {
                    let value = update.entry().filter(|entry| !entry.is_tombstone());
                    let heard = value.map(|entry| (entry.version, entry.created));
                    match look(update) {
                        Some(seen) => self.take(seen),
                        None if is_known => continue,
                        None => self.take(Seen::Absent(None)),
                    }
                    self.follower.hear(heard);
                }
            }
            is_known = true;
            // One that ends as soon as it has begun is no progress.
            if begun.elapsed() >= LASTING {
                *pauses = self::pauses();
            }
            // A key that changes all the time must not keep the thread from others, nor the task from being ended.
            tokio::task::consume_budget().await;
        }
    }

    fn take(&self, seen: Seen<T>) {
        let (value, standing) = match seen {
            Seen::Good(found) => {
                let held = self.value.load();
                // In a store that was made again versions begin anew: the time tells one of them from its namesake.
                let is_new = (held.version, held.created) != (found.version, found.created);
                (is_new.then(|| found.map(self.policy.present)), LiveStanding::Current)
            }
            Seen::Bad(version, error) => (None, LiveStanding::Rejected { version, error }),
            Seen::Absent(tombstone) => {
                let is_new = self.value.load().version.is_some();
                let value = self.policy.absent.filter(|_| is_new);
                let value = value.map(|absent| LiveSnapshot::unversioned(absent()));
                (value, LiveStanding::Absent { tombstone })
            }
        };
        let held = self.value.load().generation;
        let generation = held + u64::from(value.is_some());
        // Before the handles are told.
        if let Some(value) = value {
            self.value.store(Arc::new(LiveSnapshot { generation, ..value }));
        }
        self.states.send_modify(|state| {
            state.generation = generation;
            state.status.standing = standing;
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

/// A link over which nothing is heard, since the moment that is known already or since now.
pub(super) fn lost(link: &WatchLink, reason: String) -> WatchLink {
    let since = match link {
        WatchLink::Down { since, .. } => *since,
        WatchLink::Up => SystemTime::now(),
    };
    WatchLink::down(since, reason)
}

/// How long a watch has to last for the next loss to be a new one.
pub(super) const LASTING: Duration = Duration::from_secs(10);

/// The next update; none where the link is another one.
pub(super) async fn next(
    watch: &mut Watch,
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

/// The pauses between two watches. Short enough for the end of the connection to be noticed: those who wait open one watch
/// together.
pub(super) fn pauses() -> ExponentialBackoff {
    backoff(Duration::from_millis(50), Duration::from_secs(2))
}

impl<T, V> std::fmt::Debug for Driver<T, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver")
            .field("type", &type_name::<T>())
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}
