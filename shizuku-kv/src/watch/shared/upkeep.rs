//! The shared tasks of the live values of one runtime, besides their watches: a sign of life, and
//! the comparison with the store.
//!
//! One read of the store's figures in each interval serves all of them. Their keys are read in
//! batches only if the figures have changed. A key is then read from the leader only if the watch
//! does not deliver the entry that was found (ADR 0048).

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use crate::store::{
    Deadline, Key, KvEntry, KvError, KvResult, KvStore, StoreFigures, VersionToken, WatchScope,
    lock,
};
use crate::watch::pulse::Pulse;

/// Maximum number of keys that are read after one read of the figures. The others follow after the
/// next read.
const MOST_KEYS: usize = 4096;

/// Maximum number of keys in one read.
const PAGE: usize = 512;

/// Timeout for a watch to deliver a found entry.
const GRACE: Duration = Duration::from_secs(2);

/// Version and time of the newest value of a key; `None` if the key is absent.
pub(crate) type KnownValue = Option<(VersionToken, SystemTime)>;

/// A key that is compared with the store.
#[derive(Debug)]
struct ComparedKey {
    key: Key,
    /// The newest delivered value. `None` if the state of the key is unknown.
    known: Mutex<Option<KnownValue>>,
    differs: Notify,
}

impl ComparedKey {
    fn known(&self) -> Option<KnownValue> {
        *lock(&self.known)
    }
}

/// Converts an entry to the form in which it is compared.
fn value_of(entry: Option<&KvEntry>) -> KnownValue {
    entry.filter(|entry| !entry.is_tombstone()).map(|entry| (entry.version, entry.created))
}

/// The comparison of one key with the store. It ends when this value is dropped.
pub(crate) struct KeyComparison {
    upkeep: Arc<Upkeep>,
    id: u64,
    /// The type under which [`Upkeep::share`] offers the live value.
    shared: TypeId,
    key: Arc<ComparedKey>,
}

impl KeyComparison {
    /// Records the newest delivered value.
    pub(crate) fn record(&self, known: KnownValue) {
        *lock(&self.key.known) = Some(known);
    }

    /// Waits until the store differs from the delivered value, so that the key has to be read
    /// again.
    ///
    /// Cancel safe: the next call receives the notification.
    pub(crate) async fn differs(&self) {
        self.key.differs.notified().await;
    }
}

impl KeyComparison {
    /// Returns the number of the comparison, for [`Upkeep::share`].
    pub(crate) fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for KeyComparison {
    fn drop(&mut self) {
        let mut keys = lock(&self.upkeep.keys);
        keys.by_id.remove(&self.id);
        let key = (self.key.key.clone(), self.shared);
        let is_shared = keys.shared.get(&key).is_some_and(|(id, _)| *id == self.id);
        let shared = is_shared.then(|| keys.shared.remove(&key));
        drop(keys);
        drop(shared);
    }
}

/// The upkeep of the live values of one runtime that share an interval. The tasks end when the last
/// owner drops this value.
pub(crate) struct Upkeep {
    backend: Arc<dyn KvStore>,
    pub(crate) pulse: Arc<Pulse>,
    interval: Duration,
    keys: Mutex<ComparedKeys>,
    /// Aborted when the upkeep is dropped.
    tasks: [AbortHandle; 2],
}

#[derive(Debug, Default)]
struct ComparedKeys {
    last_id: u64,
    /// The newest live value of each key and type, with the number of its comparison.
    shared: HashMap<(Key, TypeId), (u64, Box<dyn Any + Send + Sync>)>,
    /// The keys, and the last round in which each was compared.
    by_id: BTreeMap<u64, (Arc<ComparedKey>, u64)>,
    /// The last key that was compared. The next turn begins after it.
    turn: u64,
    /// Number of the round. In a round, each key is compared once.
    round: u64,
    /// The figures at the start of the round.
    figures: Option<StoreFigures>,
}

impl Upkeep {
    /// Starts the upkeep on this runtime.
    pub(super) fn start(backend: &Arc<dyn KvStore>, interval: Duration) -> Arc<Self> {
        let pulse = Arc::<Pulse>::default();
        Arc::new_cyclic(|upkeep| Self {
            backend: Arc::clone(backend),
            tasks: [
                tokio::spawn(beat(Arc::clone(&pulse), Arc::clone(backend))).abort_handle(),
                tokio::spawn(compare(Weak::clone(upkeep), interval)).abort_handle(),
            ],
            pulse,
            interval,
            keys: Mutex::default(),
        })
    }

    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    /// Compares a key from now on. `known` is the newest delivered value, `None` if the state of
    /// the key is unknown. `S` is the type of the live value that will be [shared](Self::share).
    pub(crate) fn compare<S: Any>(
        self: &Arc<Self>,
        key: Key,
        known: Option<KnownValue>,
    ) -> KeyComparison {
        let key = Arc::new(ComparedKey { key, known: Mutex::new(known), differs: Notify::new() });
        let id = lock(&self.keys).insert(Arc::clone(&key));
        KeyComparison { upkeep: Arc::clone(self), id, shared: TypeId::of::<S>(), key }
    }

    /// Offers the live value of a comparison to others of its key, until the comparison ends.
    pub(crate) fn share<S: Any + Send + Sync>(&self, id: u64, live: S) {
        let mut keys = lock(&self.keys);
        // The task of the live value may have ended already.
        let Some((key, _)) = keys.by_id.get(&id) else { return };
        let key = (key.key.clone(), TypeId::of::<S>());
        let superseded = keys.shared.insert(key, (id, Box::new(live)));
        drop(keys);
        drop(superseded);
    }

    /// Returns the offered live value of a key and type.
    pub(crate) fn shared<S: Any + Clone>(&self, key: &Key) -> Option<S> {
        let keys = lock(&self.keys);
        keys.shared.get(&(key.clone(), TypeId::of::<S>()))?.1.downcast_ref::<S>().cloned()
    }

    /// Reads the figures, and the keys if the figures have changed.
    async fn compare_keys(&self) -> KvResult<()> {
        if lock(&self.keys).by_id.is_empty() {
            return Ok(());
        }
        let deadline = Deadline::after(Deadline::DEFAULT);
        let answer = self.backend.figures(&WatchScope::All, deadline);
        let figures = match deadline.bound("figures", None, answer).await {
            Ok(figures) if figures.keys.is_none() => return Ok(()),
            Ok(figures) => Some(figures),
            Err(KvError::Unsupported { .. }) => None,
            Err(error) => return Err(error),
        };
        let (round, turn) = lock(&self.keys).next_turn(figures);
        let mut found = Vec::new();
        for page in turn.chunks(PAGE) {
            let keys: Vec<_> = page.iter().map(|(_, key)| key.key.clone()).collect();
            let deadline = Deadline::after(Deadline::DEFAULT);
            let entries =
                deadline.bound("get_many", None, self.backend.entries(&keys, deadline)).await?;
            for ((_, key), entry) in page.iter().zip(entries) {
                let before = key.known();
                if before != Some(value_of(entry.as_ref())) {
                    found.push((key, before));
                }
            }
        }
        if !found.is_empty() {
            // Most found entries are already in flight to their watches.
            sleep(GRACE).await;
        }
        for (key, before) in found {
            if key.known() != before {
                continue;
            }
            let deadline = Deadline::after(Deadline::DEFAULT);
            let entry = self.backend.leader_entry(&key.key, deadline);
            let entry = deadline.bound("entry", Some(&key.key), entry).await?;
            if key.known() == before && before != Some(value_of(entry.as_ref())) {
                tracing::warn!(
                    store = self.backend.name(), key = %key.key,
                    "detected a live value that differs from its store, reading it again"
                );
                key.differs.notify_one();
            }
        }
        lock(&self.keys).compared(round, &turn);
        Ok(())
    }
}

impl ComparedKeys {
    fn insert(&mut self, key: Arc<ComparedKey>) -> u64 {
        self.last_id += 1;
        self.by_id.insert(self.last_id, (key, 0));
        self.last_id
    }

    /// Returns the number of the round, and the next keys to compare in it. Figures that
    /// differ from those of the round begin a new round, and so do unknown figures. While the
    /// figures stay the same, each key is compared once.
    fn next_turn(&mut self, figures: Option<StoreFigures>) -> (u64, Vec<(u64, Arc<ComparedKey>)>) {
        if self.round == 0 || figures.is_none() || self.figures != figures {
            self.round += 1;
            self.figures = figures;
        }
        let behind = self.by_id.range((Bound::Excluded(self.turn), Bound::Unbounded));
        let before = self.by_id.range(..=self.turn);
        let due = behind.chain(before).filter(|(_, (_, round))| *round != self.round);
        let due = due.map(|(id, (key, _))| (*id, Arc::clone(key)));
        let turn: Vec<_> = due.take(MOST_KEYS).collect();
        (self.round, turn)
    }

    /// Records that a turn has been compared.
    fn compared(&mut self, round: u64, turn: &[(u64, Arc<ComparedKey>)]) {
        for (id, _) in turn {
            if let Some((_, compared_in)) = self.by_id.get_mut(id) {
                *compared_in = round;
            }
        }
        self.turn = turn.last().map_or(self.turn, |(id, _)| *id);
    }
}

async fn beat(pulse: Arc<Pulse>, backend: Arc<dyn KvStore>) {
    loop {
        pulse.next(&*backend).await;
    }
}

async fn compare(upkeep: Weak<Upkeep>, interval: Duration) {
    // Jittered, so that processes do not compare at the same moment.
    let mut pause = interval.mul_f64(fastrand::f64());
    loop {
        sleep(pause).await;
        let Some(upkeep) = upkeep.upgrade() else { return };
        if let Err(error) = upkeep.compare_keys().await {
            let store = upkeep.backend.name();
            tracing::debug!(store, %error, "cannot compare live values, retrying later");
        }
        pause = interval;
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl fmt::Debug for Upkeep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upkeep").field("store", &self.backend.name()).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    fn many() -> (ComparedKeys, usize) {
        let mut keys = ComparedKeys::default();
        let count = MOST_KEYS * 2 + 100;
        for id in 1..=count {
            keys.insert(compared(&format!("k{id}")));
        }
        (keys, count)
    }

    fn compared(key: &str) -> Arc<ComparedKey> {
        let (key, known) = (Key::new(key).unwrap(), Mutex::default());
        Arc::new(ComparedKey { key, known, differs: Notify::new() })
    }

    fn figures(newest: u64) -> Option<StoreFigures> {
        Some(StoreFigures::counted([0; 16], newest, 1))
    }

    #[test]
    fn each_key_has_its_turn_while_the_figures_change() {
        for known in [true, false] {
            let (mut keys, count) = many();
            let mut seen = std::collections::HashSet::new();
            for number in 0..3 {
                let (round, turn) = keys.next_turn(figures(number).filter(|_| known));
                assert_eq!(turn.len(), MOST_KEYS);
                keys.compared(round, &turn);
                seen.extend(turn.iter().map(|(id, _)| *id));
            }
            assert_eq!(seen.len(), count);
        }
    }

    #[test]
    fn each_key_is_compared_once_with_the_same_figures() {
        let (mut keys, count) = many();
        let mut compared = 0;
        for _ in 0..10 {
            let (round, turn) = keys.next_turn(figures(1));
            keys.compared(round, &turn);
            compared += turn.len();
        }
        assert_eq!(compared, count);
        // A key that is added later is compared, and again if its turn failed.
        keys.insert(self::compared("later"));
        assert_eq!(keys.next_turn(figures(1)).1.len(), 1);
        assert_eq!(keys.next_turn(figures(1)).1.len(), 1);
    }
}
