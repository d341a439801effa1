//! The task behind a live value.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::LiveSnapshot;
use super::status::{LiveStanding, State};
use crate::store::{
    Key, KvEntry, KvError, KvOperation, News, Store, Subscription, VersionToken, WatchLink, WatchScope,
};
use crate::typed::{ByteDeserialize, KeyValue, KvReadError, read_record};

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

/// What an entry says of a record.
pub(super) fn look<T: KeyValue<Value: ByteDeserialize>>(entry: &KvEntry) -> Seen<T> {
    let version = entry.version;
    if entry.is_tombstone() {
        return Seen::Absent(Some((entry.operation, version)));
    }
    match read_record(entry) {
        Ok(value) => Seen::Good(LiveSnapshot { value, version: Some(version), created: Some(entry.created) }),
        Err(error) => {
            // The error names the type, the key and what is wrong, and nothing of the value.
            tracing::warn!(%error, "a live value was refused, what is in force stays");
            Seen::Bad(version, Arc::new(error))
        }
    }
}

/// Follows one record for as long as it is not aborted.
pub(super) struct Driver<T, V> {
    pub(super) store: Store,
    pub(super) key: Key,
    pub(super) policy: Policy<T, V>,
    pub(super) value: Arc<ArcSwap<LiveSnapshot<V>>>,
    pub(super) states: watch::Sender<State>,
}

impl<T, V> Driver<T, V>
where
    T: KeyValue<Value: ByteDeserialize>,
{
    /// Runs until the connection is closed. `is_known` says whether what was there has come.
    pub(super) async fn run(self, mut news: Subscription, mut is_known: bool) {
        loop {
            let ended = self.follow(news, is_known).await;
            if let Some(error) = ended {
                self.states.send_modify(|state| state.status.standing = LiveStanding::Ended { error });
                return;
            }
            // The runtime of the one that was first is gone, with the watch that was shared; not this one.
            tokio::task::yield_now().await;
            news = self.store.subscribe(WatchScope::Key(self.key.clone()));
            is_known = false;
        }
    }

    /// Takes what is new, until nothing follows; the error, where that is for good.
    async fn follow(&self, mut news: Subscription, mut is_known: bool) -> Option<KvError> {
        let mut trouble = None;
        while let Some(news) = news.next().await {
            match news {
                News::Entry(entry) => {
                    is_known = true;
                    self.take(look(&entry));
                }
                News::Gone(_) => self.take(Seen::Absent(None)),
                News::CaughtUp if is_known => {}
                News::CaughtUp => self.take(Seen::Absent(None)),
                News::Link(link) => self.link(link),
                News::Trouble(error) => trouble = Some(error),
            }
        }
        trouble.filter(|error| matches!(error, KvError::Closed { .. }))
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
        let is_new = value.is_some();
        // Before the handles are told.
        if let Some(value) = value {
            self.value.store(Arc::new(value));
        }
        self.states.send_modify(|state| {
            state.generation += u64::from(is_new);
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
}
