//! Watches the sessions that are in the way of waiting claims of this process, and ends silent
//! ones.
//!
//! `docs/locks.md` explains why that is safe. Silence is counted from when this process saw the
//! newest renewal, which is after it was sent. A session is ended by a compare-and-delete of the
//! version that was seen, which fails if a renewal has come meanwhile (ADR 0042).
//!
//! [`way`] determines which sessions are in the way of a claim, and which of them it watches.

mod way;

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use futures_util::future::{join_all, select_all};
use tokio::time::Instant;

pub(super) use self::way::Prospect;
use super::lease::{self, Sign};
use super::record::{LockRecord, SessionId};
use super::session::{Session, is_later, key_of, lease_of, salt_of, sign_of};
use crate::store::{
    Key, KvEntry, KvError, KvResult, Store, SuspendAwareInstant, VersionToken, WatchScope,
};
use crate::watch::{Event, Follower};

/// Time after which ending a session is tried again.
const REST: Duration = Duration::from_millis(500);

/// Time for which a session is in the way before it is watched, if the one before was not for so
/// long. Locks that are held for less are handed over without a watch.
const HOLD_OFF: Duration = Duration::from_millis(100);

/// Assumed lease of a session whose key was never seen, because its lease is unknown.
const ABSENT_LEASE: Duration = Duration::from_secs(60);

/// Maximum number of keys in one watch. The server does not filter more keys than that.
const KEYS_OF_A_WATCH: usize = 64;

/// Maximum number of watches before they are reopened, with all keys in as few watches as possible.
const MOST_WATCHES: usize = 8;

/// Maximum number of sessions that are ended, or read, in one step.
const AT_ONCE: usize = 16;

/// The observed state of a session.
#[derive(Debug)]
struct KnownSession {
    /// `None` if its key was not found.
    version: Option<VersionToken>,
    /// Time at which the store accepted the newest renewal, by the clock of the store.
    created: SystemTime,
    /// Time at which this process first saw that version.
    since: Instant,
    lease: Duration,
    /// Whether it was renewed since this process first saw it.
    renewed: bool,
    is_over: bool,
    /// Set after an attempt to end the session: no further attempt before this moment.
    rests_until: Option<Instant>,
}

/// A watch of some keys, and the newest entry of each.
struct KeyWatch {
    keys: Vec<Key>,
    follower: Follower,
    /// Whether the initial state is complete. A key that is missing from it does not exist.
    is_complete: bool,
    newest: HashMap<Key, KvEntry>,
}

/// A session that is in the way of a claim.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    session: SessionId,
    /// Whether the session is directly before the claim.
    is_next: bool,
}

/// The state of the claims of this process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    /// Whether one of them is in the queue.
    pub(super) waits: bool,
    /// Whether one of them waits only for sessions that may be dead.
    pub(super) hopes: bool,
    /// Whether one of them does not wait for long, so that nothing is put off.
    pub(super) is_hasty: bool,
}

/// The observed sessions of one lock's record.
pub(super) struct FailureDetector {
    store: Store,
    watches: Vec<KeyWatch>,
    /// Whether this user may not watch several keys at once, which on NATS needs a right to the
    /// whole bucket (ADR 0066).
    is_one_by_one: bool,
    seen: HashMap<SessionId, KnownSession>,
    /// Sessions of other processes, which are ended when they are silent.
    wanted: Vec<Wanted>,
    /// Waiting sessions of this process. Other processes may end them.
    own: Vec<SessionId>,
    /// Time at which each session came to be in the way.
    in_way_since: HashMap<SessionId, Instant>,
    /// Whether the last session was in the way for so short a time that no watch was needed.
    is_quick: bool,
    /// Whether a claim was rejected that does not wait, but may come back. Until then, the sessions
    /// that were in its way are watched for a sign of life.
    vigil: bool,
    waits: bool,
    /// Random factor that delays ending sessions here that another process is nearer to.
    patience: f64,
    /// A time of the store's clock, and a moment after it was read.
    clock: Option<(SystemTime, SuspendAwareInstant)>,
}

impl FailureDetector {
    pub(super) fn new(store: &Store) -> Self {
        Self {
            store: store.clone(),
            watches: Vec::new(),
            is_one_by_one: false,
            seen: HashMap::new(),
            wanted: Vec::new(),
            own: Vec::new(),
            in_way_since: HashMap::new(),
            is_quick: false,
            vigil: false,
            waits: false,
            patience: fastrand::f64(),
            clock: None,
        }
    }

    /// Watches the sessions in the way of a rejected claim until each has given a sign of life.
    pub(super) fn keep_vigil(&mut self) {
        self.vigil = true;
        for seen in self.seen.values_mut() {
            seen.renewed = false;
        }
    }

    /// Forgets everything, because it belongs to a deleted store.
    pub(super) fn forget(&mut self) {
        self.watches.clear();
        self.seen.clear();
        self.clock = None;
    }

    /// Notes the sessions in the record. `own` are the sessions of the claims of this process.
    pub(super) fn look_at(&mut self, record: &LockRecord, own: &[SessionId], line: Line) {
        let sessions: BTreeSet<_> = record.claims().map(|claim| claim.id.session).collect();
        self.seen.retain(|session, _| sessions.contains(session));
        self.waits = line.waits || line.hopes;
        self.vigil |= line.hopes;
        self.wanted = self.wanted(record, own);
        let is_alive =
            |wanted: &Wanted| self.seen.get(&wanted.session).is_some_and(|seen| seen.renewed);
        if self.vigil && !line.hopes && self.wanted.iter().all(is_alive) {
            self.vigil = false;
            self.wanted = self.wanted(record, own);
        }
        let in_line = record.queue.iter().map(|claim| claim.id.session);
        let own_in_line: BTreeSet<_> = in_line.filter(|session| own.contains(session)).collect();
        self.own = own_in_line.into_iter().collect();
        if !self.is_needed() {
            // A watch without a reader is a burden.
            self.watches.clear();
            self.note_who_left(&[]);
            return;
        }
        let now = Instant::now();
        let watched: Vec<_> = self.watched().collect();
        self.note_who_left(&watched);
        for session in watched {
            self.in_way_since.entry(session).or_insert(now);
        }
        let puts_off = self.is_quick && !self.vigil && !line.is_hasty;
        self.open_watches(if puts_off { HOLD_OFF } else { Duration::ZERO });
        self.note_newest();
    }

    /// Forgets the sessions that are no longer in the way.
    fn note_who_left(&mut self, watched: &[SessionId]) {
        let left = self.in_way_since.extract_if(|session, _| !watched.contains(session));
        if let Some(shortest) = left.map(|(_, since)| since.elapsed()).min() {
            self.is_quick = shortest < HOLD_OFF;
        }
    }

    /// Returns whether an observed session matters to a claim.
    pub(super) fn is_needed(&self) -> bool {
        (self.waits || self.vigil) && !self.wanted.is_empty()
    }

    fn watched(&self) -> impl Iterator<Item = SessionId> {
        self.wanted.iter().map(|wanted| wanted.session).chain(self.own.iter().copied())
    }

    /// Watches the keys of sessions that have been in the way for `hold_off`, and no longer those
    /// of others.
    fn open_watches(&mut self, hold_off: Duration) {
        let all: BTreeSet<Key> =
            self.watched().filter_map(|session| key_of(session).ok()).collect();
        self.watches.retain(|watch| watch.keys.iter().any(|key| all.contains(key)));
        if self.watches.len() >= MOST_WATCHES && !self.is_one_by_one {
            self.watches.clear();
        }
        let is_ripe = |session: &SessionId| {
            self.in_way_since.get(session).is_some_and(|since| since.elapsed() >= hold_off)
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

    /// Notes the entries that watches have delivered for sessions that have since come to be in the
    /// way.
    fn note_newest(&mut self) {
        let unseen: Vec<_> =
            self.watched().filter(|session| !self.seen.contains_key(session)).collect();
        for session in unseen {
            let Ok(key) = key_of(session) else { continue };
            let watch = self.watches.iter().find(|watch| watch.keys.contains(&key));
            let Some((newest, is_complete)) =
                watch.map(|watch| (watch.newest.get(&key).cloned(), watch.is_complete))
            else {
                continue;
            };
            if let Some(entry) = newest {
                self.take(session, &entry);
            }
            if is_complete {
                self.note_absent(session);
            }
        }
    }

    /// Notes that a session in the record is not in the store. Its absence is known only from now
    /// on.
    fn note_absent(&mut self, session: SessionId) {
        self.seen.entry(session).or_insert_with(|| KnownSession {
            version: None,
            created: SystemTime::UNIX_EPOCH,
            since: Instant::now(),
            lease: ABSENT_LEASE,
            renewed: false,
            is_over: false,
            rests_until: None,
        });
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
                self.vigil = false;
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
                    self.take_all(&entry);
                }
            }
        }
        Ok(())
    }

    /// Notes an entry for all sessions under its key.
    fn take_all(&mut self, entry: &KvEntry) {
        let is_of = |session: &SessionId| key_of(*session).is_ok_and(|key| key == entry.key);
        let sessions: Vec<_> = self.watched().filter(is_of).collect();
        for session in sessions {
            self.take(session, entry);
        }
    }

    fn take(&mut self, session: SessionId, entry: &KvEntry) {
        self.note_time(entry.created);
        let known = self.seen.get(&session);
        let version = known.and_then(|known| known.version);
        let is_over = match sign_of(session, entry) {
            Sign::Older => return,
            Sign::Life => false,
            Sign::Over => true,
        };
        let is_known = known.is_some_and(|known| known.is_over)
            || version.is_some_and(|known| !is_later(entry.version, known));
        if is_known {
            return;
        }
        let seen = KnownSession {
            version: Some(entry.version),
            created: entry.created,
            since: Instant::now(),
            lease: lease_of(entry),
            renewed: version.is_some(),
            is_over,
            rests_until: None,
        };
        self.seen.insert(session, seen);
    }

    /// Notes a time that the store's clock has shown. The clock shows a later time now.
    fn note_time(&mut self, time: SystemTime) {
        if self.time().is_none_or(|known| time > known) {
            self.clock = Some((time, SuspendAwareInstant::now()));
        }
    }

    /// Returns the time that the store's clock shows now, or an earlier one.
    fn time(&self) -> Option<SystemTime> {
        self.clock.and_then(|(time, at)| time.checked_add(at.elapsed()))
    }

    /// Returns when the next action is due.
    pub(super) fn alarm(&self) -> Option<Instant> {
        if !self.is_needed() {
            return None;
        }
        let due = |wanted: &Wanted| {
            let seen = self.seen.get(&wanted.session);
            let overdue = seen.filter(|seen| !seen.is_over && !self.may_be_dead(seen)).map(overdue);
            let silent = seen.filter(|seen| !seen.is_over).map(|seen| self.due(*wanted, seen));
            // A session that has not been seen is watched, or will be.
            let key = key_of(wanted.session).ok();
            let is_watched = self
                .watches
                .iter()
                .any(|watch| key.as_ref().is_some_and(|key| watch.keys.contains(key)));
            let ripe = self.in_way_since.get(&wanted.session).filter(|_| !is_watched);
            [overdue, silent, ripe.map(|since| *since + HOLD_OFF)].into_iter().flatten().min()
        };
        self.wanted.iter().filter_map(due).min()
    }

    /// Returns when a session is ended here, unless it gives a sign of life. The nearest process
    /// does it first.
    fn due(&self, wanted: Wanted, seen: &KnownSession) -> Instant {
        let patience = lease::patience(seen.lease);
        let is_first = self.waits && wanted.is_next;
        let patience =
            if is_first { patience } else { patience + patience.mul_f64(self.patience / 4.0) };
        (seen.since + patience).max(seen.rests_until.unwrap_or(seen.since))
    }

    /// Ends the sessions in the way that have been silent for too long.
    pub(super) async fn end_silent(&mut self) {
        if !self.is_needed() {
            return;
        }
        let now = Instant::now();
        let silent = self.wanted.iter().filter_map(|wanted| {
            let seen = self.seen.get(&wanted.session).filter(|seen| !seen.is_over)?;
            let is_silent = lease::is_silent(seen.since.elapsed(), seen.lease);
            (is_silent && now >= self.due(*wanted, seen)).then_some((wanted.session, seen.version))
        });
        // Concurrently, so that many dead sessions in a queue take no longer than one.
        let silent: Vec<_> = silent.take(AT_ONCE).collect();
        let ends = silent.iter().map(|(session, version)| end(&self.store, *session, *version));
        let ended = join_all(ends).await;
        for ((session, _), ended) in silent.into_iter().zip(ended) {
            if let Err(error) = &ended {
                tracing::debug!(store = self.store.name(), %error, "a silent session cannot be ended yet");
            }
            let Some(seen) = self.seen.get_mut(&session) else { continue };
            seen.is_over = matches!(ended, Ok(true));
            seen.rests_until = Some(Instant::now() + REST);
            if seen.is_over {
                tracing::warn!(store = self.store.name(), %session, "nothing is heard of a process: its locks are taken from it");
            } else if ended.is_ok() {
                // The session has given a sign of life, or its key is gone without a trace.
                self.find(session).await;
            }
        }
    }

    /// Reads the key of a session whose version has changed.
    async fn find(&mut self, session: SessionId) {
        let Ok(key) = key_of(session) else { return };
        match self.store.leader_entry(&key).await {
            Ok(Some(entry)) => self.take(session, &entry),
            Ok(None) => {
                if let Some(seen) = self.seen.get_mut(&session) {
                    (seen.version, seen.since) = (None, Instant::now());
                }
            }
            Err(_) => {}
        }
    }

    /// Reads unknown sessions, and one of this process, because its entry shows the time of the
    /// store.
    pub(super) async fn look(
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
                (Some(session), Some(entry)) => self.take(session, entry),
                (None, Some(entry)) => self.note_time(entry.created),
                (_, None) => {}
            }
            if let Some(session) = session {
                self.note_absent(session);
            }
        }
        Ok(())
    }

    /// Returns the sessions in a record that are over.
    pub(super) fn over(&self, record: &LockRecord) -> Vec<SessionId> {
        let is_over = |session: &SessionId| self.seen.get(session).is_some_and(|seen| seen.is_over);
        let sessions: BTreeSet<_> = record.claims().map(|claim| claim.id.session).collect();
        sessions.into_iter().filter(is_over).collect()
    }
}

/// Returns the moment by which a session that is alive has been renewed.
fn overdue(seen: &KnownSession) -> Instant {
    seen.since + seen.lease / 2
}

/// Returns whether a session was opened in a deleted store of the same name.
async fn is_of_a_deleted_store(store: &Store, session: SessionId) -> KvResult<bool> {
    let Some(of_session) = session.place().and_then(|place| place.slot.salt) else {
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
        None => match store.create(&key, Session::marker()).await {
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
