//! Watches the sessions ahead of waiting claims of this process, and ends silent ones.
//!
//! `docs/locks.md` explains why that is safe. The silence of a session begins when this process
//! observes the newest renewal, which is later than its sending. A session is ended by a
//! compare-and-delete of the observed version, which fails after another renewal (ADR 0042).
//!
//! [`ahead`] determines which sessions are ahead of a claim, and which of them it watches.

mod ahead;
mod observations;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use futures_util::future::{join_all, select_all};
use tokio::time::Instant;

pub(super) use self::ahead::Prospect;
use self::ahead::{Ahead, Liveness};
use self::observations::{Observation, Observations};
use super::lease;
use super::record::{LockRecord, SessionId};
use super::session::{key_of, marker, salt_of};
use crate::store::{Key, KvEntry, KvError, KvResult, Store, VersionToken, WatchScope};
use crate::watch::{Event, Follower};

/// Pause before another attempt to end a session.
const REST: Duration = Duration::from_millis(500);

/// Time for which a session must be ahead before it is watched, if the previous one was ahead for
/// less time. Locks that are held for a shorter time therefore need no watch.
const HOLD_OFF: Duration = Duration::from_millis(100);

/// Maximum number of keys in one watch. The server does not filter more keys than that.
const KEYS_OF_A_WATCH: usize = 64;

/// Maximum number of watches before they are reopened, with all keys in as few watches as possible.
const MOST_WATCHES: usize = 8;

/// Maximum number of sessions that are ended, or read, in one step.
const AT_ONCE: usize = 16;

/// A watch of some keys, and the newest entry of each.
struct KeyWatch {
    keys: Vec<Key>,
    follower: Follower,
    /// Whether the initial state is complete. A key that is missing from it does not exist.
    is_complete: bool,
    newest: HashMap<Key, KvEntry>,
}

/// The state of the claims of this process.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnClaims {
    /// Whether one of them is in the queue.
    pub(super) has_queued: bool,
    /// Whether one of them is deferred until sessions that may be dead are found dead or alive.
    pub(super) has_deferred: bool,
    /// Whether one of them has a short wait, so that no watch is deferred.
    pub(super) is_hasty: bool,
}

/// The observed sessions of one lock's record.
pub(super) struct FailureDetector {
    store: Store,
    watches: Vec<KeyWatch>,
    /// Whether this user may not watch several keys at once, which on NATS needs a right to the
    /// whole bucket (ADR 0066).
    is_one_by_one: bool,
    observed: Observations,
    /// Sessions of other processes, which are ended when they are silent.
    ahead: Vec<Ahead>,
    /// Waiting sessions of this process. Other processes may end them.
    own: Vec<SessionId>,
    /// Time since which each session has been ahead.
    ahead_since: HashMap<SessionId, Instant>,
    /// Whether the last session was ahead for less than [`HOLD_OFF`].
    is_quick: bool,
    /// Whether a claim that does not wait was rejected, and may be repeated. Until then, the
    /// sessions that were ahead of it are watched for a sign of life.
    expects_claim: bool,
    /// Whether a claim of this process is queued or deferred.
    waits: bool,
    /// Random factor that delays ending sessions here that another process is nearer to.
    patience: f64,
}

impl FailureDetector {
    pub(super) fn new(store: &Store) -> Self {
        Self {
            store: store.clone(),
            watches: Vec::new(),
            is_one_by_one: false,
            observed: Observations::default(),
            ahead: Vec::new(),
            own: Vec::new(),
            ahead_since: HashMap::new(),
            is_quick: false,
            expects_claim: false,
            waits: false,
            patience: fastrand::f64(),
        }
    }

    /// Watches the sessions ahead of a rejected claim until each has given a sign of life.
    pub(super) fn expect_claim(&mut self) {
        self.expects_claim = true;
        self.observed.discount_renewals();
    }

    /// Stops all watches, because no claim waits or the record is not readable. The next
    /// [`update`](Self::update) opens them again if a claim waits.
    pub(super) fn stand_down(&mut self) {
        (self.waits, self.expects_claim) = (false, false);
        self.watches.clear();
        self.ahead.clear();
        self.own.clear();
        self.note_departures(&[]);
    }

    /// Forgets all observations, because they belong to a deleted store.
    pub(super) fn forget(&mut self) {
        self.watches.clear();
        self.observed = Observations::default();
    }

    /// Notes the sessions in the record. `own` are the sessions of the claims of this process.
    pub(super) fn update(&mut self, record: &LockRecord, own: &[SessionId], claims: OwnClaims) {
        self.observed.retain_of(record);
        self.waits = claims.has_queued || claims.has_deferred;
        self.expects_claim |= claims.has_deferred;
        if !self.waits && !self.expects_claim {
            self.stand_down();
            return;
        }
        self.ahead = self.ahead_of(record, own);
        let is_alive = |ahead: &Ahead| {
            self.observed.get(ahead.session).is_some_and(|observation| observation.renewed)
        };
        if self.expects_claim && !claims.has_deferred && self.ahead.iter().all(is_alive) {
            self.expects_claim = false;
            self.ahead = self.ahead_of(record, own);
        }
        let in_line = record.queue.iter().map(|claim| claim.id.session);
        let own_in_line: BTreeSet<_> = in_line.filter(|session| own.contains(session)).collect();
        self.own = own_in_line.into_iter().collect();
        if !self.is_needed() {
            // A watch without a reader is a burden.
            self.watches.clear();
            self.note_departures(&[]);
            return;
        }
        let now = Instant::now();
        let watched: Vec<_> = self.watched().collect();
        self.note_departures(&watched);
        for session in watched {
            self.ahead_since.entry(session).or_insert(now);
        }
        let puts_off = self.is_quick && !self.expects_claim && !claims.is_hasty;
        self.open_watches(if puts_off { HOLD_OFF } else { Duration::ZERO });
        self.note_newest();
    }

    fn ahead_of(&self, record: &LockRecord, own: &[SessionId]) -> Vec<Ahead> {
        ahead::ahead_of(record, own, self.expects_claim, |session| self.observed.liveness(session))
    }

    /// Returns whether a claim at this position in the queue may be granted soon, although others
    /// precede it.
    pub(super) fn prospect(
        &self,
        record: &LockRecord,
        index: usize,
        own: &[SessionId],
    ) -> Prospect {
        ahead::prospect(record, index, own, |session| self.observed.liveness(session))
    }

    /// Forgets the sessions that are no longer ahead.
    fn note_departures(&mut self, watched: &[SessionId]) {
        let left = self.ahead_since.extract_if(|session, _| !watched.contains(session));
        if let Some(shortest) = left.map(|(_, since)| since.elapsed()).min() {
            self.is_quick = shortest < HOLD_OFF;
        }
    }

    /// Returns whether an observed session matters to a claim.
    pub(super) fn is_needed(&self) -> bool {
        (self.waits || self.expects_claim) && !self.ahead.is_empty()
    }

    fn watched(&self) -> impl Iterator<Item = SessionId> {
        self.ahead.iter().map(|ahead| ahead.session).chain(self.own.iter().copied())
    }

    /// Opens watches of the sessions that have been ahead for `hold_off`. Drops those of other
    /// sessions.
    fn open_watches(&mut self, hold_off: Duration) {
        let all: BTreeSet<Key> =
            self.watched().filter_map(|session| key_of(session).ok()).collect();
        self.watches.retain(|watch| watch.keys.iter().any(|key| all.contains(key)));
        if self.watches.len() >= MOST_WATCHES && !self.is_one_by_one {
            self.watches.clear();
        }
        let is_ripe = |session: &SessionId| {
            self.ahead_since.get(session).is_some_and(|since| since.elapsed() >= hold_off)
        };
        let ripe = self.watched().filter(is_ripe).filter_map(|session| key_of(session).ok());
        let is_watched = |key: &Key| self.watches.iter().any(|watch| watch.keys.contains(key));
        let missing: BTreeSet<Key> = ripe.filter(|key| !is_watched(key)).collect();
        let missing: Vec<Key> = missing.into_iter().collect();
        let at_once = if self.is_one_by_one { 1 } else { KEYS_OF_A_WATCH };
        for keys in missing.chunks(at_once) {
            let scope = match keys {
                [key] => WatchScope::Key(key.clone()),
                keys => WatchScope::Keys(keys.to_vec()),
            };
            let (keys, follower) = (keys.to_vec(), Follower::shared(&self.store, scope));
            let newest = HashMap::new();
            self.watches.push(KeyWatch { keys, follower, is_complete: false, newest });
        }
    }

    /// Records the entries that watches have delivered before their session was ahead.
    fn note_newest(&mut self) {
        let unseen: Vec<_> =
            self.watched().filter(|session| self.observed.get(*session).is_none()).collect();
        for session in unseen {
            let Ok(key) = key_of(session) else { continue };
            let watch = self.watches.iter().find(|watch| watch.keys.contains(&key));
            let Some((newest, is_complete)) =
                watch.map(|watch| (watch.newest.get(&key).cloned(), watch.is_complete))
            else {
                continue;
            };
            if let Some(entry) = newest {
                self.observed.observe(session, &entry);
            }
            if is_complete {
                self.observed.note_absent(session);
            }
        }
    }

    /// Waits for a change of a session. Returns the error if this user may not watch it.
    ///
    /// Cancel safe: no event is lost.
    pub(super) async fn next(&mut self) -> KvResult<()> {
        if self.watches.is_empty() {
            std::future::pending::<()>().await;
        }
        let events = self.watches.iter_mut().map(|watch| Box::pin(watch.follower.next()));
        let (event, index, _) = select_all(events).await;
        let watch = &mut self.watches[index];
        match event {
            Event::Opened => watch.is_complete = false,
            Event::Lost(error @ KvError::Unauthorized { .. }) if watch.keys.len() == 1 => {
                self.expects_claim = false;
                return Err(error);
            }
            Event::Lost(KvError::Unauthorized { .. }) => {
                self.is_one_by_one = true;
                self.watches.swap_remove(index);
                self.open_watches(Duration::ZERO);
            }
            Event::Lost(_) | Event::Closed(_) => watch.is_complete = false,
            Event::LinkChanged => {}
            Event::CaughtUp { .. } => {
                watch.is_complete = true;
                self.note_newest();
            }
            Event::Update(update) => {
                if let Some(entry) = update.into_entry() {
                    watch.newest.insert(entry.key.clone(), entry.clone());
                    self.observe_all(&entry);
                }
            }
        }
        Ok(())
    }

    /// Notes an entry for all sessions under its key.
    fn observe_all(&mut self, entry: &KvEntry) {
        let is_of = |session: &SessionId| key_of(*session).is_ok_and(|key| key == entry.key);
        let sessions: Vec<_> = self.watched().filter(is_of).collect();
        for session in sessions {
            self.observed.observe(session, entry);
        }
    }

    /// Returns when the next action is due.
    pub(super) fn alarm(&self) -> Option<Instant> {
        if !self.is_needed() {
            return None;
        }
        let due = |ahead: &Ahead| {
            let observation = self.observed.get(ahead.session).filter(|known| !known.is_over);
            let is_alive = self.observed.liveness(ahead.session) == Liveness::Alive;
            let overdue = observation.filter(|_| is_alive).map(overdue);
            let silent = observation.map(|observation| self.due(*ahead, observation));
            // A session that has not been seen is watched, or will be.
            let key = key_of(ahead.session).ok();
            let is_watched = self
                .watches
                .iter()
                .any(|watch| key.as_ref().is_some_and(|key| watch.keys.contains(key)));
            let ripe = self.ahead_since.get(&ahead.session).filter(|_| !is_watched);
            [overdue, silent, ripe.map(|since| *since + HOLD_OFF)].into_iter().flatten().min()
        };
        self.ahead.iter().filter_map(due).min()
    }

    /// Returns when a session is ended here, unless it gives a sign of life. The nearest process
    /// does it first.
    fn due(&self, ahead: Ahead, observation: &Observation) -> Instant {
        let patience = lease::patience(observation.lease);
        let is_first = self.waits && ahead.is_next;
        let patience =
            if is_first { patience } else { patience + patience.mul_f64(self.patience / 4.0) };
        let rests_until = observation.rests_until.unwrap_or(observation.since);
        (observation.since + patience).max(rests_until)
    }

    /// Ends the sessions ahead that have been silent for too long, up to [`AT_ONCE`] in one call.
    pub(super) async fn end_silent(&mut self) {
        if !self.is_needed() {
            return;
        }
        let now = Instant::now();
        let silent = self.ahead.iter().filter_map(|ahead| {
            let observation = self.observed.get(ahead.session)?;
            (observation.is_silent() && now >= self.due(*ahead, observation))
                .then_some((ahead.session, observation.version))
        });
        // Concurrently, so that many dead sessions in a queue take no longer than one.
        let silent: Vec<_> = silent.take(AT_ONCE).collect();
        let ends = silent.iter().map(|(session, version)| end(&self.store, *session, *version));
        let ended = join_all(ends).await;
        let store = self.store.name().to_owned();
        for ((session, _), ended) in silent.into_iter().zip(ended) {
            if let Err(error) = &ended {
                tracing::debug!(store, %session, %error, "failed to end a silent lock session");
            }
            let Some(observation) = self.observed.get_mut(session) else { continue };
            observation.is_over = matches!(ended, Ok(true));
            observation.rests_until = Some(Instant::now() + REST);
            if observation.is_over {
                tracing::warn!(store, %session, "ended a silent lock session, revoking its locks");
            } else if ended.is_ok() {
                // The session has given a sign of life, or its key is gone without a trace.
                self.read_again(session).await;
            }
        }
    }

    /// Reads the key of a session whose version has changed.
    async fn read_again(&mut self, session: SessionId) {
        let Ok(key) = key_of(session) else { return };
        match self.store.leader_entry(&key).await {
            Ok(Some(entry)) => self.observed.observe(session, &entry),
            Ok(None) => {
                if let Some(observation) = self.observed.get_mut(session) {
                    (observation.version, observation.since) = (None, Instant::now());
                }
            }
            Err(_) => {}
        }
    }

    /// Reads unknown sessions, and one of this process, because its entry shows the time of the
    /// store.
    pub(super) async fn read(
        &mut self,
        sessions: &[SessionId],
        own: Option<SessionId>,
    ) -> KvResult<()> {
        let sessions: Vec<_> = sessions.iter().copied().take(AT_ONCE).collect();
        let all = sessions.iter().copied().chain(own);
        let keys = all.map(key_of).collect::<KvResult<Vec<_>>>()?;
        let entries = self.store.entries(&keys).await?;
        for (index, entry) in entries.iter().enumerate() {
            let session = sessions.get(index).copied();
            match (session, entry) {
                (Some(session), Some(entry)) => self.observed.observe(session, entry),
                (None, Some(entry)) => self.observed.note_time(entry.created),
                (_, None) => {}
            }
            if let Some(session) = session {
                self.observed.note_absent(session);
            }
        }
        Ok(())
    }

    /// Returns the sessions in a record that are over.
    pub(super) fn ended_in(&self, record: &LockRecord) -> Vec<SessionId> {
        self.observed.ended_in(record)
    }
}

/// Returns the moment by which a session that is alive has been renewed.
fn overdue(observation: &Observation) -> Instant {
    observation.since + observation.lease / 2
}

/// Returns whether a session was opened in a deleted store of the same name.
async fn is_of_a_deleted_store(store: &Store, session: SessionId) -> KvResult<bool> {
    let Some(of_session) = session.slot_use().and_then(|used| used.slot.salt) else {
        return Ok(false);
    };
    store.refresh().await?;
    Ok(salt_of(store).is_some_and(|salt| salt != of_session))
}

/// Ends a session whose version has not changed since it was seen. Returns whether it is over.
async fn end(store: &Store, session: SessionId, version: Option<VersionToken>) -> KvResult<bool> {
    let key = key_of(session)?;
    let version = match version {
        Some(version) => version,
        // A session of a deleted store has no key in this store, and cannot renew one here.
        // Creating the key would make the salt of the deleted store look confirmed.
        None if is_of_a_deleted_store(store, session).await? => return Ok(true),
        // Creating the key succeeds only if it does not exist. A process that would renew it finds
        // another version.
        None => match store.create(&key, marker()).await {
            Ok(version) => version,
            Err(KvError::AlreadyExists { .. }) => return Ok(false),
            Err(error) => return Err(error),
        },
    };
    match store.delete_with_version(&key, version).await {
        Ok(_) => Ok(true),
        Err(KvError::RevisionMismatch { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
