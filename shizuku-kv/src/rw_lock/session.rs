//! The proof that a process lives: one key for all its locks of a store, which it renews, and which others delete when
//! they have heard nothing for longer than its lease. `docs/locks.md` says why that is safe.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::ExponentialBackoff;
use serde::{Deserialize, Serialize};
use tokio::runtime;
use tokio::sync::watch;
use tokio::time::Instant;

use super::course;
use super::error::LockLoss;
use super::options::{LONGEST_LEASE, SHORTEST_LEASE};
use super::record::{ClaimId, SessionId, padded};
use crate::store::{Deadline, Key, KvEntry, KvError, KvResult, Moment, Store, VersionToken, backoff};

/// What stands before a session in its key.
pub(super) const PREFIX: &str = "rw_lock_session.";

const FORMAT: u32 = 1;

/// Number of bytes of the longest session.
const LENGTH: usize = 80;

/// What is stored. Each renewal has another number, so that its writer knows its own again.
#[derive(Serialize, Deserialize)]
struct Stored {
    shizuku_lock_session: u32,
    lease_ms: u64,
    renewal: u64,
}

impl Stored {
    fn with(lease: Duration, renewal: u64) -> Self {
        let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
        Self { shizuku_lock_session: FORMAT, lease_ms, renewal }
    }

    /// Always of one size, with the version that the write expects: a store that is full takes a
    /// renewal.
    fn to_bytes(&self, expected: Option<VersionToken>) -> Vec<u8> {
        // Numbers always have a form.
        padded(serde_json::to_vec(self).unwrap_or_default(), LENGTH, expected)
    }

    fn of(entry: &KvEntry) -> Option<Self> {
        serde_json::from_slice::<Self>(&entry.value)
            .ok()
            .filter(|stored| stored.shizuku_lock_session == FORMAT && !entry.is_tombstone())
    }
}

/// The lease of the session under a key. One that cannot be read, of a version to come perhaps, has the longest there is.
pub(super) fn lease_of(entry: &KvEntry) -> Duration {
    let stored = Stored::of(entry).map(|stored| Duration::from_millis(stored.lease_ms));
    stored.map_or(LONGEST_LEASE, |lease| lease.min(LONGEST_LEASE))
}

pub(super) fn key_of(session: SessionId) -> KvResult<Key> {
    Key::new(format!("{PREFIX}{session}"))
}

#[derive(Clone, Debug)]
enum State {
    Opening,
    Live,
    Over(LockLoss),
    Failed(KvError),
}

/// The session of a process with one length of lease.
#[derive(Debug)]
pub(super) struct Session {
    id: SessionId,
    key: Key,
    lease: Duration,
    claims: AtomicU64,
    /// When the newest acknowledged renewal was sent.
    proof: Mutex<Moment>,
    state: watch::Sender<State>,
    use_: Mutex<Use>,
}

/// Who uses a session, and since when nobody does.
#[derive(Debug)]
struct Use {
    users: usize,
    since: Instant,
}

impl Session {
    pub(super) fn holds(&self) -> bool {
        matches!(*self.state.borrow(), State::Live) && course::holds(lock(&self.proof).elapsed(), self.lease)
    }

    /// Holds on from a renewal that was sent at this moment; unless it was over before the acknowledgement came. What was
    /// lost once stays lost: somebody may have acted on it.
    fn prolong(&self, sent: Moment) -> bool {
        let mut proof = lock(&self.proof);
        let holds = course::holds(proof.elapsed(), self.lease);
        if holds {
            *proof = sent;
        }
        holds
    }

    /// It is over, for the first reason that there was.
    fn finish(&self, loss: LockLoss) {
        self.state.send_if_modified(|state| {
            let is_open = matches!(state, State::Opening | State::Live);
            if is_open {
                *state = State::Over(loss);
            }
            is_open
        });
    }

    /// Why it does not hold any more; none while it does.
    pub(super) fn loss(&self) -> Option<LockLoss> {
        match &*self.state.borrow() {
            State::Over(loss) => Some(*loss),
            State::Failed(_) => Some(LockLoss::StoreGone),
            State::Live if !course::holds(lock(&self.proof).elapsed(), self.lease) => Some(LockLoss::Expired),
            State::Opening | State::Live => None,
        }
    }

    /// Until when it holds if it is not renewed.
    pub(super) fn end(&self) -> Instant {
        lock(&self.proof).instant() + self.lease
    }

    /// Waits until it does not hold any more.
    pub(super) async fn lost(&self) -> LockLoss {
        let mut states = self.state.subscribe();
        loop {
            if let Some(loss) = self.loss() {
                return loss;
            }
            // Who ends a session says so; the time is looked at again after each renewal that was due.
            let _ = tokio::time::timeout_at(self.end(), states.changed()).await;
        }
    }

    /// Waits until it is there.
    async fn opened(&self) -> Result<(), KvError> {
        let mut states = self.state.subscribe();
        let state = states.wait_for(|state| !matches!(state, State::Opening)).await;
        match state.as_deref() {
            Ok(State::Failed(error)) => Err(error.clone()),
            // One that has ended already is found out by who claims with it.
            _ => Ok(()),
        }
    }

    fn value(&self, renewal: u64, expected: Option<VersionToken>) -> Vec<u8> {
        Stored::with(self.lease, renewal).to_bytes(expected)
    }

    /// What is put in the place of a session that is not there, so that nobody can renew it.
    pub(super) fn marker() -> Vec<u8> {
        Stored::with(SHORTEST_LEASE, 0).to_bytes(None)
    }
}

/// Keeps a session from ending for want of use. Clones count too.
#[derive(Debug)]
pub(super) struct SessionUse(Arc<Session>);

impl SessionUse {
    fn new(session: &Arc<Session>) -> Self {
        lock(&session.use_).users += 1;
        Self(Arc::clone(session))
    }

    /// A claim that nobody has made.
    pub(super) fn next_claim(&self) -> ClaimId {
        ClaimId { session: self.0.id, number: self.0.claims.fetch_add(1, Ordering::Relaxed) }
    }
}

impl std::ops::Deref for SessionUse {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.0
    }
}

impl Clone for SessionUse {
    fn clone(&self) -> Self {
        Self::new(&self.0)
    }
}

impl Drop for SessionUse {
    fn drop(&mut self) {
        let mut use_ = lock(&self.0.use_);
        use_.users -= 1;
        use_.since = Instant::now();
    }
}

/// The sessions of a store's handle: one for each length of lease, and each runtime.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<(runtime::Id, Duration), Arc<Session>>>);

impl Sessions {
    /// A session that holds, made if there is none.
    ///
    /// Dropping the future is safe: what it has begun is used by the next, or ends by itself.
    pub(super) async fn get(self: &Arc<Self>, store: &Store, lease: Duration) -> Result<SessionUse, KvError> {
        let session = self.find_or_open(store, lease)?;
        session.opened().await?;
        Ok(session)
    }

    fn find_or_open(self: &Arc<Self>, store: &Store, lease: Duration) -> Result<SessionUse, KvError> {
        let runtime = runtime::Handle::current();
        let mut sessions = lock(&self.0);
        // Those of runtimes that have ended, too.
        sessions.retain(|_, session| session.loss().is_none());
        if let Some(session) = sessions.get(&(runtime.id(), lease)) {
            return Ok(SessionUse::new(session));
        }
        let id = SessionId::random();
        let session = Arc::new(Session {
            id,
            key: key_of(id)?,
            lease,
            claims: AtomicU64::new(0),
            proof: Mutex::new(Moment::now()),
            state: watch::Sender::new(State::Opening),
            use_: Mutex::new(Use { users: 0, since: Instant::now() }),
        });
        sessions.insert((runtime.id(), lease), Arc::clone(&session));
        let used = SessionUse::new(&session);
        let store = store.with_deadline(Deadline::DEFAULT);
        let keeper = Keeper { sessions: Arc::clone(self), session, store };
        runtime.spawn(keeper.run());
        Ok(used)
    }

    /// Others have ended a session: so it is over here too.
    pub(super) fn end(&self, id: SessionId, loss: LockLoss) {
        let sessions = lock(&self.0);
        if let Some(session) = sessions.values().find(|session| session.id == id) {
            session.finish(loss);
        }
    }

    /// The sessions that live on a runtime.
    pub(super) fn of_runtime(&self, runtime: runtime::Id) -> Vec<SessionId> {
        let sessions = lock(&self.0);
        let own = sessions.iter().filter(|((of, _), session)| *of == runtime && session.holds());
        own.map(|(_, session)| session.id).collect()
    }

    /// Takes out a session that nobody has used for a while, so that nobody will.
    fn retire(&self, session: &Arc<Session>) -> bool {
        let mut sessions = lock(&self.0);
        let use_ = lock(&session.use_);
        let is_idle = use_.users == 0 && use_.since.elapsed() >= session.lease;
        if is_idle {
            sessions.retain(|_, kept| !Arc::ptr_eq(kept, session));
        }
        is_idle
    }
}

/// The task that keeps a session.
struct Keeper {
    sessions: Arc<Sessions>,
    session: Arc<Session>,
    store: Store,
}

/// What a renewal has come to.
enum Renewal {
    Renewed,
    Over(LockLoss),
}

impl Keeper {
    async fn run(mut self) {
        let session = Arc::clone(&self.session);
        // A task that is dropped with its runtime leaves nobody waiting.
        let _ending = Ending(Arc::clone(&session));
        let mut version = match self.open().await {
            Ok(version) => version,
            Err(error) => {
                session.state.send_replace(State::Failed(error));
                return;
            }
        };
        session.state.send_replace(State::Live);
        let mut renewal = 0;
        loop {
            let last = lock(&session.proof).instant();
            tokio::time::sleep_until(last + session.lease / 3).await;
            if self.sessions.retire(&session) {
                session.finish(LockLoss::Expired);
                break;
            }
            if let Renewal::Over(loss) = self.renew(&mut version, &mut renewal).await {
                tracing::warn!(store = self.store.name(), %loss, "the locks of this process are lost");
                session.finish(loss);
                break;
            }
        }
        // Nobody has to wait for it to be found silent. Where this fails they do.
        let _ = self.store.delete(&session.key).await;
    }

    /// Makes the key.
    async fn open(&mut self) -> Result<VersionToken, KvError> {
        let session = &self.session;
        let sent = Moment::now();
        let created = match self.store.create(&session.key, session.value(0, None)).await {
            Err(error @ KvError::OutcomeUnknown { .. }) => {
                let found = self.store.leader_entry(&session.key).await?;
                let found = found.filter(|entry| !entry.is_tombstone());
                found.map(|entry| entry.version).ok_or(error)
            }
            created => created,
        };
        *lock(&session.proof) = sent;
        created
    }

    /// Renews, as often as it takes and is of use.
    async fn renew(&self, version: &mut VersionToken, renewal: &mut u64) -> Renewal {
        let session = &self.session;
        let mut pauses = pauses(session.lease);
        // When each try was sent: one that is found in the store proves that this process lived then.
        let mut tries = Vec::new();
        loop {
            let (sent, remaining) = (Moment::now(), session.end().saturating_duration_since(Instant::now()));
            if !session.holds() || remaining.is_zero() {
                return Renewal::Over(LockLoss::Expired);
            }
            // Two tries fit into what is left after a third of the lease.
            let store = self.store.with_deadline(remaining.min(session.lease / 3).min(Deadline::DEFAULT));
            *renewal += 1;
            tries.push((*renewal, sent));
            let proof =
                match store.update(&session.key, session.value(*renewal, Some(*version)), *version).await {
                    Ok(renewed) => {
                        *version = renewed;
                        Some(sent)
                    }
                    Err(KvError::StoreNotFound { .. } | KvError::Closed { .. }) => {
                        return Renewal::Over(LockLoss::StoreGone);
                    }
                    Err(error) => {
                        tracing::debug!(store = store.name(), %error, "a lease is not renewed yet");
                        let is_refused = error.is_conflict();
                        match store.leader_entry(&session.key).await {
                            Ok(found) => match judge(found.as_ref(), *version, is_refused) {
                                Found::Ours(landed, number) => {
                                    *version = landed;
                                    tries.iter().find(|(tried, _)| *tried == number).map(|(_, sent)| *sent)
                                }
                                Found::Unchanged => None,
                                Found::Gone => return Renewal::Over(LockLoss::Evicted),
                            },
                            Err(KvError::StoreNotFound { .. }) => {
                                return Renewal::Over(LockLoss::StoreGone);
                            }
                            Err(_) => None,
                        }
                    }
                };
            match proof {
                Some(sent) if session.prolong(sent) => {
                    // Whoever waits for the end looks at it again.
                    session.state.send_if_modified(|state| matches!(state, State::Live));
                    return Renewal::Renewed;
                }
                Some(_) => return Renewal::Over(LockLoss::Expired),
                None => tokio::time::sleep(pauses.next().unwrap_or_default()).await,
            }
        }
    }
}

/// What the key says after a renewal that failed.
enum Found {
    /// A try of this number has landed, whose acknowledgement was lost.
    Ours(VersionToken, u64),
    Unchanged,
    Gone,
}

/// What is found, where the newest that is known to have been written has this version. That nothing is found may be an answer
/// from before the session was made, unless the renewal was refused.
fn judge(found: Option<&KvEntry>, version: VersionToken, is_refused: bool) -> Found {
    match found {
        Some(entry) if entry.version == version => Found::Unchanged,
        Some(entry) => match Stored::of(entry) {
            Some(stored) if is_later(entry.version, version) => Found::Ours(entry.version, stored.renewal),
            // Of a leader that was replaced.
            Some(_) => Found::Unchanged,
            None => Found::Gone,
        },
        None if is_refused => Found::Gone,
        None => Found::Unchanged,
    }
}

/// Whether a version is later than another, where that can be told; else it is another one, and taken for later.
pub(super) fn is_later(one: VersionToken, other: VersionToken) -> bool {
    match (one.as_u64(), other.as_u64()) {
        (Some(one), Some(other)) => one > other,
        _ => one != other,
    }
}

/// Whether an answer is from before something that was seen, as far as versions tell.
pub(super) fn is_older(found: Option<VersionToken>, seen: Option<VersionToken>) -> bool {
    match (found, seen) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(found), Some(seen)) => {
            found.as_u64().zip(seen.as_u64()).is_some_and(|(found, seen)| found < seen)
        }
    }
}

/// Says that a session is over when its task ends without having said so.
struct Ending(Arc<Session>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.finish(LockLoss::TaskEnded);
    }
}

/// The pauses between tries to renew: short against the lease.
fn pauses(lease: Duration) -> ExponentialBackoff {
    backoff(Duration::from_millis(20), lease / 12)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With the version that the server is told in a header. Otherwise a store that is full would
    /// refuse a renewal.
    #[test]
    fn a_renewal_is_never_longer_than_the_session() {
        let length = |renewal, version: u64| {
            let version = (version > 0).then(|| VersionToken::from_u64(version));
            let digits = version.map_or(1, |version| version.to_string().len());
            Stored::with(LONGEST_LEASE, renewal).to_bytes(version).len() + digits
        };
        let created = length(0, 0);
        for number in [1, 9, 10, 999_999, 1_000_000, u64::MAX] {
            assert_eq!(length(number, number), created, "{number}");
        }
    }
}
