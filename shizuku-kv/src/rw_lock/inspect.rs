//! The state of a lock for operators (ADR 0057).

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::lease::{self, EntryMeaning};
use super::record::{Claim, Grant, LockMode, LockRecord, SessionId};
use super::session::{key_of, lease_of, meaning_of};
use crate::store::{FencingToken, Key, KvEntry, KvResult, Store};

/// Maximum number of concurrent requests for sessions to the leader.
const IN_FLIGHT: usize = 32;

/// The holders of a resource and its waiters, from
/// [`DistroRwLock::inspect`](super::DistroRwLock::inspect).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockState {
    /// The newest token that was granted, or that a break has passed. `None` if the resource was
    /// never locked.
    pub newest: Option<FencingToken>,
    /// One writer, or any number of readers. Dead ones are among them until another process waits
    /// for them; see [`LockClaim::presumed_dead`].
    pub holders: Vec<LockGrant>,
    /// The waiters in the order of their arrival. A waiter that has just given up may still be
    /// among them for a moment.
    pub waiting: Vec<LockClaim>,
}

/// A holder of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockGrant {
    /// The claim of the holder.
    pub claim: LockClaim,
    /// The number of the grant.
    pub token: FencingToken,
    /// Time of the grant, by the clock of the process that granted it: the holder, or the process
    /// that released the lock before. `None` in a record of an earlier version.
    pub since: Option<SystemTime>,
}

/// A holder of a resource, or a waiter for it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockClaim {
    /// Mode of the claim.
    pub mode: LockMode,
    /// Label that the claimant has set ([`LockOptions::label`](super::LockOptions::label)).
    pub label: Option<String>,
    /// Session of the process, which renews the key `rw_lock_session.SESSION` as long as it lives.
    pub session: String,
    /// Its lease ([`LockOptions::lease`](super::LockOptions::lease)); `None` if its session has
    /// ended.
    pub lease: Option<Duration>,
    /// Time of the last renewal of its session, by the store's clock. `None` if its session has
    /// ended.
    pub renewed: Option<SystemTime>,
    /// Whether its process seems to have died. The next process that waits for it verifies that,
    /// and then evicts it.
    ///
    /// It is true if its session has ended, or if its last renewal is longer ago than its lease and
    /// an eighth. Both times are of the store's clock: when it accepted the renewal, and the
    /// present time. No clock of a client is involved. It is a presumption and decides nothing: the
    /// clocks of a cluster's servers may differ, and a holder that is cut off may come back. It is
    /// false if the store does not report its time.
    pub presumed_dead: bool,
}

/// The sessions in a record, as one read of the store returned them.
#[derive(Debug, Default)]
pub(super) struct SessionStates {
    /// Time of the store's clock.
    now: Option<SystemTime>,
    /// Lease and last renewal of each session that has not ended.
    sessions: HashMap<SessionId, (Duration, SystemTime)>,
}

impl SessionStates {
    pub(super) async fn read(store: &Store, record: &LockRecord) -> KvResult<Self> {
        let sessions: BTreeSet<_> = record.claims().map(|claim| claim.id.session).collect();
        if sessions.is_empty() {
            return Ok(Self::default());
        }
        let sessions = sessions.into_iter().map(|session| Ok((session, key_of(session)?)));
        let sessions = sessions.collect::<KvResult<Vec<(SessionId, Key)>>>()?;
        let found = store.get_many(sessions.iter().map(|(_, key)| key)).await?;
        let now = store.time().await?;
        let mut states = Self { now, sessions: HashMap::new() };
        let mut doubtful = Vec::new();
        for ((session, key), entry) in sessions.into_iter().zip(found) {
            states.note(session, entry.as_ref());
            if states.presumes_dead(session) {
                doubtful.push((session, key));
            }
        }
        // A replica that is behind would show an old renewal, or no renewal.
        let asked = stream::iter(doubtful)
            .map(|(session, key)| async move {
                KvResult::Ok((session, store.leader_entry(&key).await?))
            })
            .buffer_unordered(IN_FLIGHT);
        let asked: Vec<_> = asked.try_collect().await?;
        for (session, entry) in asked {
            states.note(session, entry.as_ref());
        }
        Ok(states)
    }

    fn note(&mut self, session: SessionId, entry: Option<&KvEntry>) {
        match entry.filter(|entry| meaning_of(session, entry) == EntryMeaning::Alive) {
            Some(entry) => self.sessions.insert(session, (lease_of(entry), entry.created)),
            None => self.sessions.remove(&session),
        };
    }

    fn presumes_dead(&self, session: SessionId) -> bool {
        let Some((lease, renewed)) = self.sessions.get(&session) else { return true };
        let since = self.now.and_then(|now| now.duration_since(*renewed).ok());
        since.is_some_and(|since| lease::is_silent(since, *lease))
    }
}

impl LockState {
    pub(super) fn of(record: LockRecord, states: &SessionStates) -> Self {
        let newest = (record.fence > 0).then(|| FencingToken::from_u64(record.fence));
        Self {
            newest,
            holders: record.holders.into_iter().map(|grant| LockGrant::of(grant, states)).collect(),
            waiting: record.queue.into_iter().map(|claim| LockClaim::of(claim, states)).collect(),
        }
    }
}

impl LockGrant {
    fn of(grant: Grant, states: &SessionStates) -> Self {
        let since = since_of(&grant);
        Self { claim: LockClaim::of(grant.claim, states), token: grant.token, since }
    }
}

/// Returns the time of the grant.
pub(super) fn since_of(grant: &Grant) -> Option<SystemTime> {
    grant.since.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(since)))
}

impl LockClaim {
    fn of(claim: Claim, states: &SessionStates) -> Self {
        let session = claim.id.session;
        let (lease, renewed) = states.sessions.get(&session).copied().unzip();
        Self {
            mode: claim.mode,
            label: claim.label,
            session: session.to_string(),
            lease,
            renewed,
            presumed_dead: states.presumes_dead(session),
        }
    }
}
