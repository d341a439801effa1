//! The shared tasks of the live values of one runtime, besides their watches: a sign of life, and
//! the comparison with the store.
//!
//! One read of the store's figures each minute serves all of them. Their keys are looked up in
//! batches only if the figures have changed. A key is read from the leader only if its watch does
//! not deliver the found entry (ADR 0048).

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::lock;
use crate::store::pulse::Pulse;
use crate::store::{
    Deadline, Key, KvEntry, KvError, KvResult, KvStore, StoreFigures, VersionToken, WatchScope,
};

/// Maximum number of keys that are looked up after one read of the figures. The others follow after
/// the next.
const MOST_KEYS: usize = 4096;

/// Number of keys in one lookup.
const PAGE: usize = 512;

/// Timeout for a watch to deliver a found entry.
const GRACE: Duration = Duration::from_secs(2);

/// Version and time of the newest value that a follower knows; `None` if the key is absent.
pub(crate) type Heard = Option<(VersionToken, SystemTime)>;

/// A follower of one key.
#[derive(Debug)]
pub(crate) struct Follower {
    key: Key,
    /// `None` if the state of the key is unknown.
    heard: Mutex<Option<Heard>>,
    again: Notify,
}

impl Follower {
    pub(crate) fn new(key: Key, heard: Option<Heard>) -> Self {
        Self { key, heard: Mutex::new(heard), again: Notify::new() }
    }

    /// Records the newest delivered value.
    pub(crate) fn hear(&self, heard: Heard) {
        *lock(&self.heard) = Some(heard);
    }

    /// Waits until the store differs from the delivered value, so that the key has to be read
    /// again.
    ///
    /// Cancel safe: a notification is kept for the next call.
    pub(crate) async fn differs(&self) {
        self.again.notified().await;
    }

    fn heard(&self) -> Option<Heard> {
        *lock(&self.heard)
    }
}

/// Converts an entry to the form in which followers compare it.
fn heard(entry: Option<&KvEntry>) -> Heard {
    entry.filter(|entry| !entry.is_tombstone()).map(|entry| (entry.version, entry.created))
}

/// The upkeep of one runtime's live values. Its tasks end with its last owner.
pub(crate) struct Upkeep {
    backend: Arc<dyn KvStore>,
    pub(crate) pulse: Arc<Pulse>,
    interval: Duration,
    followers: Mutex<Followers>,
    /// Aborted when the upkeep is dropped.
    tasks: [AbortHandle; 2],
}

#[derive(Debug, Default)]
struct Followers {
    last: u64,
    by_id: BTreeMap<u64, Compared>,
    /// The last follower that was compared. The next turn begins behind it.
    turn: u64,
    /// Number of the round in which each follower is compared once.
    round: u64,
    /// The figures of the round.
    figures: Option<StoreFigures>,
}

/// A follower, and the last round in which it was compared.
#[derive(Debug)]
struct Compared {
    follower: Arc<Follower>,
    round: u64,
}

/// Keeps a follower compared until it is dropped.
pub(crate) struct Following {
    upkeep: Arc<Upkeep>,
    id: u64,
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
            followers: Mutex::default(),
        })
    }

    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    /// Compares a follower from now on.
    pub(crate) fn follow(self: &Arc<Self>, follower: Arc<Follower>) -> Following {
        let mut followers = lock(&self.followers);
        followers.last += 1;
        let id = followers.last;
        followers.by_id.insert(id, Compared { follower, round: 0 });
        drop(followers);
        Following { upkeep: Arc::clone(self), id }
    }

    /// Reads the figures, and the keys if the figures have changed.
    async fn look(&self) -> KvResult<()> {
        if lock(&self.followers).by_id.is_empty() {
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
        let (round, turn) = lock(&self.followers).next_turn(figures);
        let mut found = Vec::new();
        for page in turn.chunks(PAGE) {
            let keys: Vec<_> = page.iter().map(|(_, follower)| follower.key.clone()).collect();
            let deadline = Deadline::after(Deadline::DEFAULT);
            let entries =
                deadline.bound("get_many", None, self.backend.entries(&keys, deadline)).await?;
            for ((_, follower), entry) in page.iter().zip(entries) {
                let before = follower.heard();
                if before != Some(heard(entry.as_ref())) {
                    found.push((follower, before));
                }
            }
        }
        if !found.is_empty() {
            // Most found entries are already in flight to their watches.
            sleep(GRACE).await;
        }
        for (follower, before) in found {
            if follower.heard() != before {
                continue;
            }
            let deadline = Deadline::after(Deadline::DEFAULT);
            let entry = self.backend.leader_entry(&follower.key, deadline);
            let entry = deadline.bound("entry", Some(&follower.key), entry).await?;
            if follower.heard() == before && before != Some(heard(entry.as_ref())) {
                tracing::warn!(
                    store = self.backend.name(), key = %follower.key,
                    "a live value differs from its store, reading it again"
                );
                follower.again.notify_one();
            }
        }
        lock(&self.followers).compared(round, &turn);
        Ok(())
    }
}

impl Followers {
    /// Returns the number of the round, and the next followers to compare in it. Figures that
    /// differ from those of the round begin a new round, and so do unknown figures. While the
    /// figures stay the same, each follower is compared once.
    fn next_turn(&mut self, figures: Option<StoreFigures>) -> (u64, Vec<(u64, Arc<Follower>)>) {
        if self.round == 0 || figures.is_none() || self.figures != figures {
            self.round += 1;
            self.figures = figures;
        }
        let behind = self.by_id.range((Bound::Excluded(self.turn), Bound::Unbounded));
        let before = self.by_id.range(..=self.turn);
        let due = behind.chain(before).filter(|(_, compared)| compared.round != self.round);
        let due = due.map(|(id, compared)| (*id, Arc::clone(&compared.follower)));
        let turn: Vec<_> = due.take(MOST_KEYS).collect();
        (self.round, turn)
    }

    /// Records that a turn has been compared.
    fn compared(&mut self, round: u64, turn: &[(u64, Arc<Follower>)]) {
        for (id, _) in turn {
            if let Some(compared) = self.by_id.get_mut(id) {
                compared.round = round;
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
        if let Err(error) = upkeep.look().await {
            tracing::debug!(store = upkeep.backend.name(), %error, "live values cannot be compared for now");
        }
        pause = interval;
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        lock(&self.upkeep.followers).by_id.remove(&self.id);
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

    fn many() -> (Followers, usize) {
        let mut followers = Followers::default();
        let count = MOST_KEYS * 2 + 100;
        for id in 1..=count as u64 {
            let key = Key::new(format!("k{id}")).unwrap();
            let follower = Arc::new(Follower::new(key, None));
            followers.by_id.insert(id, Compared { follower, round: 0 });
        }
        (followers, count)
    }

    fn figures(newest: u64) -> Option<StoreFigures> {
        Some(StoreFigures::counted([0; 16], newest, 1))
    }

    #[test]
    fn each_follower_has_its_turn_while_the_figures_change() {
        for known in [true, false] {
            let (mut followers, count) = many();
            let mut seen = std::collections::HashSet::new();
            for number in 0..3 {
                let (round, turn) = followers.next_turn(figures(number).filter(|_| known));
                assert_eq!(turn.len(), MOST_KEYS);
                followers.compared(round, &turn);
                seen.extend(turn.iter().map(|(id, _)| *id));
            }
            assert_eq!(seen.len(), count);
        }
    }

    #[test]
    fn each_follower_is_compared_once_with_the_same_figures() {
        let (mut followers, count) = many();
        let mut compared = 0;
        for _ in 0..10 {
            let (round, turn) = followers.next_turn(figures(1));
            followers.compared(round, &turn);
            compared += turn.len();
        }
        assert_eq!(compared, count);
        // A follower that is added later is compared, and again if its turn failed.
        let key = Key::new("later").unwrap();
        let follower = Arc::new(Follower::new(key, None));
        followers.by_id.insert(count as u64 + 1, Compared { follower, round: 0 });
        assert_eq!(followers.next_turn(figures(1)).1.len(), 1);
        assert_eq!(followers.next_turn(figures(1)).1.len(), 1);
    }
}
