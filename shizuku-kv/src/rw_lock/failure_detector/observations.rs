//! The observed state of sessions: the newest renewal of each, and the time of its observation.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::ahead::Liveness;
use crate::rw_lock::lease::{self, EntryMeaning};
use crate::rw_lock::record::{LockRecord, SessionId};
use crate::rw_lock::session::{is_later, lease_of, meaning_of};
use crate::store::{KvEntry, SuspendAwareInstant, VersionToken};

/// Assumed lease of a session whose key was never found, because the real lease is unknown.
const ABSENT_LEASE: Duration = Duration::from_secs(60);

/// The observed state of a session.
#[derive(Debug)]
pub(super) struct Observation {
    /// `None` if its key was not found.
    pub(super) version: Option<VersionToken>,
    /// Time at which the store accepted the newest renewal, by the clock of the store.
    created: SystemTime,
    /// Time at which this process first observed that version.
    pub(super) since: Instant,
    pub(super) lease: Duration,
    /// Whether the session was renewed since this process first observed it, or since a claim is
    /// expected.
    pub(super) renewed: bool,
    pub(super) is_over: bool,
    /// Set after an attempt to end the session: no further attempt is made before this time.
    pub(super) rests_until: Option<Instant>,
}

impl Observation {
    /// Returns whether the session has been silent for so long that it may be ended.
    pub(super) fn is_silent(&self) -> bool {
        !self.is_over && lease::is_silent(self.since.elapsed(), self.lease)
    }
}

/// The observed sessions of one record.
#[derive(Debug, Default)]
pub(super) struct Observations {
    sessions: HashMap<SessionId, Observation>,
    /// A time of the store's clock, and a local time after that reading.
    clock: Option<(SystemTime, SuspendAwareInstant)>,
}

impl Observations {
    pub(super) fn get(&self, session: SessionId) -> Option<&Observation> {
        self.sessions.get(&session)
    }

    pub(super) fn get_mut(&mut self, session: SessionId) -> Option<&mut Observation> {
        self.sessions.get_mut(&session)
    }

    /// Forgets the sessions that are not in the record.
    pub(super) fn retain_of(&mut self, record: &LockRecord) {
        if self.sessions.is_empty() {
            return;
        }
        let sessions: BTreeSet<_> = record.claims().map(|claim| claim.id.session).collect();
        self.sessions.retain(|session, _| sessions.contains(session));
    }

    /// Requires another renewal of each session as a sign of life.
    pub(super) fn discount_renewals(&mut self) {
        for observation in self.sessions.values_mut() {
            observation.renewed = false;
        }
    }

    /// Records an entry under the key of a session.
    pub(super) fn observe(&mut self, session: SessionId, entry: &KvEntry) {
        self.note_time(entry.created);
        let known = self.sessions.get(&session);
        let version = known.and_then(|known| known.version);
        let is_over = match meaning_of(session, entry) {
            EntryMeaning::Older => return,
            EntryMeaning::Alive => false,
            EntryMeaning::Ended => true,
        };
        let is_known = known.is_some_and(|known| known.is_over)
            || version.is_some_and(|known| !is_later(entry.version, known));
        if is_known {
            return;
        }
        let observation = Observation {
            version: Some(entry.version),
            created: entry.created,
            since: Instant::now(),
            lease: lease_of(entry),
            renewed: version.is_some(),
            is_over,
            rests_until: None,
        };
        self.sessions.insert(session, observation);
    }

    /// Records that a session in the record has no key in the store. The silence of this session
    /// begins now, because its key may have existed before.
    pub(super) fn note_absent(&mut self, session: SessionId) {
        self.sessions.entry(session).or_insert_with(|| Observation {
            version: None,
            created: SystemTime::UNIX_EPOCH,
            since: Instant::now(),
            lease: ABSENT_LEASE,
            renewed: false,
            is_over: false,
            rests_until: None,
        });
    }

    /// Records a time that the store's clock has shown. The clock is later than that by now.
    pub(super) fn note_time(&mut self, time: SystemTime) {
        if self.time().is_none_or(|known| time > known) {
            self.clock = Some((time, SuspendAwareInstant::now()));
        }
    }

    /// Returns a time that the store's clock has reached.
    fn time(&self) -> Option<SystemTime> {
        self.clock.and_then(|(time, at)| time.checked_add(at.elapsed()))
    }

    pub(super) fn liveness(&self, session: SessionId) -> Liveness {
        match self.get(session) {
            None => Liveness::Unknown,
            Some(observation) if observation.is_over => Liveness::Over,
            Some(observation) if !self.may_be_dead(observation) => Liveness::Alive,
            Some(observation) => {
                let patience = lease::patience(observation.lease);
                let is_stuck = observation.since.elapsed() >= 2 * patience;
                if is_stuck { Liveness::Stuck } else { Liveness::MayBeDead }
            }
        }
    }

    /// Returns whether a session may be dead, by the age of its last renewal.
    fn may_be_dead(&self, observation: &Observation) -> bool {
        // A renewal during the observation is better evidence than a clock.
        let time = self.time().filter(|_| !observation.renewed);
        let age = time.and_then(|now| now.duration_since(observation.created).ok());
        let (age, since) = (age.unwrap_or_default(), observation.since.elapsed());
        observation.version.is_some() && lease::may_be_dead(age, since, observation.lease)
    }

    /// Returns the sessions in a record that have ended.
    pub(super) fn ended_in(&self, record: &LockRecord) -> Vec<SessionId> {
        let is_over = |session: &SessionId| self.get(*session).is_some_and(|known| known.is_over);
        let sessions = record.claims().map(|claim| claim.id.session);
        let ended: BTreeSet<_> = sessions.filter(is_over).collect();
        ended.into_iter().collect()
    }
}
