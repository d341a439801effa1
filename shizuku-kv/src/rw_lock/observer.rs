//! Watching the sessions of those who hold what others wait for, and ending those of which nothing is heard.
//!
//! `docs/locks.md` says why that is safe: silence is counted from when this process saw the newest renewal, which is
//! after it was sent; and a session is ended by a compare-and-delete of what was seen, which fails where a renewal has
//! come meanwhile.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use super::course;
use super::following::{Event, Following};
use super::record::{LockRecord, SessionId};
use super::session::{PREFIX, Session, is_later, key_of, lease_of};
use crate::store::{KvEntry, KvError, KvResult, KvUpdate, Store, VersionToken, WatchScope};

/// How long after a session that could not be ended it is tried again.
const REST: Duration = Duration::from_millis(500);

/// What is known of a session.
#[derive(Debug)]
struct Seen {
    /// None where its key was not found.
    version: Option<VersionToken>,
    /// When that was seen first.
    since: Instant,
    lease: Duration,
    /// Whether it was renewed since it was first looked at.
    renewed: bool,
    is_over: bool,
    /// It could not be ended: not before this moment again.
    rests_until: Option<Instant>,
}

/// The sessions in one lock's record.
pub(super) struct Observer {
    store: Store,
    watch: Following,
    /// Whether the state has come: a session that has not is not there.
    is_complete: bool,
    seen: HashMap<SessionId, Seen>,
    /// The sessions in the record that are not of this process.
    wanted: Vec<SessionId>,
    /// How many of them come before the first claim that waits here.
    before: usize,
    /// Somebody was refused and does not wait, but may come back: is what was in its way alive?
    vigil: bool,
    waits: bool,
    /// So much later than they could be sessions are ended here: those who come first in line do it for all.
    patience: f64,
}

impl Observer {
    pub(super) fn new(store: &Store) -> Self {
        Self {
            store: store.clone(),
            watch: Following::new(store, WatchScope::prefix(PREFIX)),
            is_complete: false,
            seen: HashMap::new(),
            wanted: Vec::new(),
            before: 0,
            vigil: false,
            waits: false,
            patience: fastrand::f64(),
        }
    }

    /// Somebody was refused: who is in the way is looked at until it has given a sign of life.
    pub(super) fn keep_vigil(&mut self) {
        self.vigil = true;
        for seen in self.seen.values_mut() {
            seen.renewed = false;
        }
    }

    /// Takes note of who is in the record. `own` are the sessions of the claims of this process, `waits` whether one of
    /// them is in line.
    pub(super) fn look_at(&mut self, record: &LockRecord, own: &[SessionId], waits: bool) {
        let sessions: BTreeSet<_> = record.claims().map(|claim| claim.id.session).collect();
        self.wanted = sessions.iter().filter(|session| !own.contains(session)).copied().collect();
        let first = record.queue.iter().position(|claim| own.contains(&claim.id.session));
        self.before = first.unwrap_or(record.queue.len());
        self.waits = waits;
        // Those that live may make a claim; what is over is of interest as long as it is in the record.
        self.seen.retain(|session, seen| !seen.is_over || sessions.contains(session));
        let is_alive = |session: &SessionId| self.seen.get(session).is_some_and(|seen| seen.renewed);
        if self.vigil && self.wanted.iter().all(is_alive) {
            self.vigil = false;
        }
        if !self.is_needed() {
            // A watch that nobody reads is a burden.
            self.watch.stop();
            self.is_complete = false;
            return;
        }
        self.watch.start();
        if self.is_complete {
            self.note_absent();
        }
    }

    /// Whether anything of what is observed matters.
    pub(super) fn is_needed(&self) -> bool {
        (self.waits || self.vigil) && !self.wanted.is_empty()
    }

    /// What is in the record and not in the store. That it is not there is known from now on only.
    fn note_absent(&mut self) {
        for session in &self.wanted {
            self.seen.entry(*session).or_insert_with(|| Seen {
                version: None,
                since: Instant::now(),
                lease: ABSENT_LEASE,
                renewed: false,
                is_over: false,
                rests_until: None,
            });
        }
    }

    /// Waits for something to happen to a session.
    ///
    /// Dropping the future is safe.
    pub(super) async fn next(&mut self) {
        match self.watch.next().await {
            Event::Opened | Event::Lost => self.is_complete = false,
            Event::Update(KvUpdate::CaughtUp) => {
                self.is_complete = true;
                self.note_absent();
            }
            Event::Update(update) => {
                if let Some(entry) = update.into_entry() {
                    self.take(&entry);
                }
            }
        }
    }

    fn take(&mut self, entry: &KvEntry) {
        let Some(session) = entry.key.strip_prefix(PREFIX).and_then(|id| id.parse::<SessionId>().ok()) else {
            return;
        };
        // Of those who are not in the record too: they may make a claim, and are not heard of again if they crash then.
        let now = Instant::now();
        let known = self.seen.get(&session);
        let version = known.and_then(|known| known.version);
        if version.is_some_and(|known| !is_later(entry.version, known)) {
            return;
        }
        let renewed = known.is_some_and(|known| known.version.is_some());
        let seen = Seen {
            version: Some(entry.version),
            since: now,
            lease: lease_of(entry),
            renewed,
            is_over: entry.is_tombstone(),
            rests_until: None,
        };
        self.seen.insert(session, seen);
    }

    /// When the next session is found silent.
    pub(super) fn alarm(&self) -> Option<Instant> {
        if !self.is_needed() {
            return None;
        }
        let due = |session: &SessionId| {
            let seen = self.seen.get(session).filter(|seen| !seen.is_over)?;
            Some(self.due(seen))
        };
        self.wanted.iter().filter_map(due).min()
    }

    /// When a session is ended here, unless something is heard of it. Whoever is next in line does it first.
    fn due(&self, seen: &Seen) -> Instant {
        let patience = course::patience(seen.lease);
        let is_next = self.waits && self.before == 0;
        let patience = if is_next { patience } else { patience + patience.mul_f64(self.patience / 4.0) };
        (seen.since + patience).max(seen.rests_until.unwrap_or(seen.since))
    }

    /// Ends the sessions of which nothing has been heard for too long: also those that hold nothing here, whose process
    /// has left their keys behind.
    pub(super) async fn end_silent(&mut self) {
        if !self.is_needed() {
            return;
        }
        let now = Instant::now();
        let silent = self.seen.iter().filter(|(_, seen)| {
            !seen.is_over && now >= self.due(seen) && course::is_silent(seen.since.elapsed(), seen.lease)
        });
        // A few at a time: each is a request, and there is more to do.
        let silent: Vec<_> = silent.map(|(session, seen)| (*session, seen.version)).take(4).collect();
        for (session, version) in silent {
            let ended = end(&self.store, session, version).await;
            if let Err(error) = &ended {
                tracing::debug!(store = self.store.name(), %error, "a silent session cannot be ended yet");
            }
            let Some(seen) = self.seen.get_mut(&session) else { continue };
            seen.is_over = matches!(ended, Ok(true));
            seen.rests_until = Some(Instant::now() + REST);
            if seen.is_over {
                tracing::warn!(store = self.store.name(), %session, "nothing is heard of a process: its locks are taken from it");
            } else if ended.is_ok() {
                // It has given a sign of life, or its key is gone without a trace.
                self.find(session).await;
            }
        }
    }

    /// Looks at a key that is not as it was seen.
    async fn find(&mut self, session: SessionId) {
        let Ok(key) = key_of(session) else { return };
        match self.store.leader_entry(&key).await {
            Ok(Some(entry)) => self.take(&entry),
            Ok(None) => {
                if let Some(seen) = self.seen.get_mut(&session) {
                    (seen.version, seen.since) = (None, Instant::now());
                }
            }
            Err(_) => {}
        }
    }

    /// The sessions in a record that are over.
    pub(super) fn over(&self, record: &LockRecord) -> Vec<SessionId> {
        let is_over = |session: &SessionId| self.seen.get(session).is_some_and(|seen| seen.is_over);
        let sessions: BTreeSet<_> = record.claims().map(|claim| claim.id.session).collect();
        sessions.into_iter().filter(is_over).collect()
    }
}

/// The lease that a session is taken to have whose key was never seen: nobody can tell.
const ABSENT_LEASE: Duration = Duration::from_secs(60);

/// Ends a session that is as it was seen. Whether it is over.
async fn end(store: &Store, session: SessionId, version: Option<VersionToken>) -> KvResult<bool> {
    let key = key_of(session)?;
    let version = match version {
        Some(version) => version,
        // A key that is made here is one that was not there: whoever would renew it finds another version.
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
