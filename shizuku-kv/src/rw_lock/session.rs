//! The session of a process: one key for all its locks of a store, which proves that the process
//! lives. The process renews it. Other processes delete it if they have seen no renewal for longer
//! than its lease. `docs/locks.md` explains why that is safe (ADR 0041).

mod slots;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use backon::ExponentialBackoff;
use serde::{Deserialize, Serialize};
use tokio::runtime;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use self::slots::Leftover;
pub(super) use self::slots::salt_of;
use super::error::LockLoss;
use super::lease::{self, Sign};
use super::options::{LONGEST_LEASE, SHORTEST_LEASE};
use super::record::{ClaimId, SessionId, Slot, padded};
use crate::store::{
    Deadline, Key, KvEntry, KvError, KvResult, Store, SuspendAwareInstant, VersionToken, backoff,
};

/// Prefix of the keys of sessions.
pub(super) const PREFIX: &str = "rw_lock_session.";

/// Format of an entry whose key serves only one session, and names it.
const FORMAT_OF_ONE: u32 = 1;

/// Format of an entry whose key serves successive sessions.
const FORMAT: u32 = 2;

/// Number of bytes of the longest entry.
const LENGTH: usize = 112;

/// Minimum deadline of one request of a renewal, if the lease has room for it.
const SHORT_REQUEST: Duration = Duration::from_millis(500);

/// An entry under the key of a session. Each renewal has a different number, so that its writer
/// recognizes its own entry.
#[derive(Serialize, Deserialize)]
struct Stored {
    shizuku_lock_session: u32,
    /// Distinguishes the sessions of a key; in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nonce: Option<String>,
    lease_ms: u64,
    renewal: u64,
}

impl Stored {
    /// Returns an entry of the session with this random number. Without a number, the session is
    /// the one that the key names.
    fn of_session(nonce: Option<u64>, lease: Duration, renewal: u64) -> Self {
        let shizuku_lock_session = if nonce.is_some() { FORMAT } else { FORMAT_OF_ONE };
        let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
        Self {
            shizuku_lock_session,
            nonce: nonce.map(|nonce| format!("{nonce:016x}")),
            lease_ms,
            renewal,
        }
    }

    /// Returns bytes whose length is constant, together with that of the expected version. A full
    /// store therefore accepts a renewal.
    fn to_bytes(&self, expected: Option<VersionToken>) -> Vec<u8> {
        // Serializing numbers and strings does not fail.
        padded(serde_json::to_vec(self).unwrap_or_default(), LENGTH, expected)
    }

    fn of(entry: &KvEntry) -> Option<Self> {
        let is_known =
            |stored: &Self| matches!(stored.shizuku_lock_session, FORMAT_OF_ONE | FORMAT);
        let is_live = !entry.is_tombstone();
        serde_json::from_slice::<Self>(&entry.value)
            .ok()
            .filter(|stored| is_live && is_known(stored))
    }

    fn is_of(&self, session: SessionId) -> bool {
        let nonce = self.nonce.as_ref().and_then(|nonce| u64::from_str_radix(nonce, 16).ok());
        match session.place() {
            Some(_) => nonce.is_some_and(|nonce| u128::from(nonce) == session.number()),
            None => true,
        }
    }
}

/// Returns the lease of the session under a key. Returns the longest lease if the entry cannot be
/// read, because a later version may have written it.
pub(super) fn lease_of(entry: &KvEntry) -> Duration {
    let stored = Stored::of(entry).map(|stored| Duration::from_millis(stored.lease_ms));
    stored.map_or(LONGEST_LEASE, |lease| lease.min(LONGEST_LEASE))
}

/// Classifies an entry under the key of a session. An unreadable entry, perhaps of a later version,
/// counts as a sign of life.
pub(super) fn sign_of(session: SessionId, entry: &KvEntry) -> Sign {
    let is_its_own =
        !entry.is_tombstone() && Stored::of(entry).is_none_or(|stored| stored.is_of(session));
    lease::sign(session.place().map(|place| place.first), entry.version.as_u64(), is_its_own)
}

/// Returns the key under which a session is renewed. It may already serve another session.
pub(super) fn key_of(session: SessionId) -> KvResult<Key> {
    match session.place() {
        Some(place) => key_of_slot(place.slot),
        None => Key::new(format!("{PREFIX}{session}")),
    }
}

fn key_of_slot(slot: Slot) -> KvResult<Key> {
    Key::new(format!("{PREFIX}{slot}"))
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
    /// Set once the key exists.
    identity: OnceLock<Identity>,
    lease: Duration,
    claims: AtomicU64,
    /// Time at which the newest acknowledged renewal was sent.
    proof: Mutex<SuspendAwareInstant>,
    state: watch::Sender<State>,
    use_: Mutex<Use>,
    /// Reason for ending the session, if it has to end.
    ends: Mutex<Option<LockLoss>>,
    /// Wakes the keep-alive task of the session.
    wake: Notify,
    /// Set when that task has ended. If the store was reachable, the key is deleted by then.
    is_gone: watch::Sender<bool>,
    /// Record of a lock, read together with the keys of sessions.
    found: Mutex<Option<KvEntry>>,
}

/// The identity of a session, and its key.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) id: SessionId,
    pub(super) key: Key,
}

/// The number of users of a session, and the time of its last change.
#[derive(Debug)]
struct Use {
    users: usize,
    since: Instant,
}

impl Session {
    pub(super) fn holds(&self) -> bool {
        matches!(*self.state.borrow(), State::Live)
            && lease::holds(lock(&self.proof).elapsed(), self.lease)
    }

    /// Extends the session from the moment at which the renewal was sent. Returns false if the
    /// session had expired before the acknowledgement came. A lost session stays lost, because
    /// another process may have acted on the loss.
    fn prolong(&self, sent: SuspendAwareInstant) -> bool {
        let mut proof = lock(&self.proof);
        let holds = lease::holds(proof.elapsed(), self.lease);
        if holds {
            *proof = sent;
        }
        holds
    }

    /// Ends the session. The first reason counts.
    fn finish(&self, loss: LockLoss) {
        self.state.send_if_modified(|state| {
            let is_open = matches!(state, State::Opening | State::Live);
            if is_open {
                *state = State::Over(loss);
            }
            is_open
        });
    }

    /// Returns why the session does not hold any more. Returns `None` if it holds.
    pub(super) fn loss(&self) -> Option<LockLoss> {
        match &*self.state.borrow() {
            State::Over(loss) => Some(*loss),
            State::Failed(_) => Some(LockLoss::StoreGone),
            State::Live if !lease::holds(lock(&self.proof).elapsed(), self.lease) => {
                Some(LockLoss::Expired)
            }
            State::Opening | State::Live => None,
        }
    }

    /// Returns the time until which the session holds if it is not renewed.
    pub(super) fn end(&self) -> Instant {
        lock(&self.proof).instant() + self.lease
    }

    /// Waits until the session does not hold any more.
    pub(super) async fn lost(&self) -> LockLoss {
        let mut states = self.state.subscribe();
        loop {
            if let Some(loss) = self.loss() {
                return loss;
            }
            // The end of a session changes the state. The end of the lease is computed again after
            // each renewal that was due.
            let _ = tokio::time::timeout_at(self.end(), states.changed()).await;
        }
    }

    /// Waits until the session is open.
    async fn opened(&self) -> Result<SessionId, KvError> {
        let mut states = self.state.subscribe();
        let state = states.wait_for(|state| !matches!(state, State::Opening)).await;
        if let Ok(State::Failed(error)) = state.as_deref() {
            return Err(error.clone());
        }
        // A claim detects a session that has already ended.
        self.id().ok_or_else(|| KvError::Unavailable {
            operation: "open a lock session",
            reason: "its task has ended".to_owned(),
            source: None,
        })
    }

    fn id(&self) -> Option<SessionId> {
        self.identity.get().map(|identity| identity.id)
    }

    /// Requests that the keep-alive task end the session.
    fn ask_to_end(&self, loss: LockLoss) {
        lock(&self.ends).get_or_insert(loss);
        self.wake.notify_one();
    }

    /// Returns a marker for the key of an absent session. While it is in place, no process can
    /// renew the session.
    pub(super) fn marker() -> Vec<u8> {
        Stored::of_session(None, SHORTEST_LEASE, 0).to_bytes(None)
    }
}

/// Counts the users of a session.
#[derive(Debug)]
struct InUse(Arc<Session>);

impl InUse {
    fn new(session: &Arc<Session>) -> Self {
        lock(&session.use_).users += 1;
        Self(Arc::clone(session))
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut use_ = lock(&self.0.use_);
        use_.users -= 1;
        use_.since = Instant::now();
        if use_.users == 0 {
            self.0.wake.notify_one();
        }
    }
}

/// Prevents a session from ending because it is unused. Clones count too.
#[derive(Debug)]
pub(super) struct SessionUse {
    in_use: InUse,
    id: SessionId,
}

impl SessionUse {
    /// Returns the id of a new claim.
    pub(super) fn next_claim(&self) -> ClaimId {
        ClaimId { session: self.id, number: self.claims.fetch_add(1, Ordering::Relaxed) }
    }

    /// Removes and returns the record of this lock, if it was read when the session was opened.
    pub(super) fn take_found(&self, key: &Key) -> Option<KvEntry> {
        lock(&self.found).take_if(|entry| entry.key == *key)
    }
}

impl std::ops::Deref for SessionUse {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.in_use.0
    }
}

impl Clone for SessionUse {
    fn clone(&self) -> Self {
        Self { in_use: InUse::new(&self.in_use.0), id: self.id }
    }
}

/// The sessions of a store's handle: one for each length of lease, and each runtime.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    alive: Mutex<HashMap<(runtime::Id, Duration), Arc<Session>>>,
    /// Key of the session that was lost last.
    lost: Mutex<Option<Key>>,
    /// Whether the connection is about to be shut down, so that no session is opened any more. Set
    /// under the mutex of `alive`.
    is_closed: AtomicBool,
}

impl Sessions {
    /// Returns a session that holds, opening one if none exists. The record of a lock that is
    /// likely to be wanted next is read together with the keys of sessions.
    ///
    /// Cancel safe: the next caller uses a session that was begun, otherwise the session ends by
    /// itself.
    pub(super) async fn get(
        self: &Arc<Self>,
        store: &Store,
        lease: Duration,
        record: &Key,
    ) -> Result<SessionUse, KvError> {
        let in_use = self.find_or_open(store, lease, record)?;
        let id = in_use.0.opened().await?;
        Ok(SessionUse { in_use, id })
    }

    fn find_or_open(
        self: &Arc<Self>,
        store: &Store,
        lease: Duration,
        record: &Key,
    ) -> Result<InUse, KvError> {
        let runtime = runtime::Handle::current();
        let mut sessions = lock(&self.alive);
        // Removes the sessions of runtimes that have ended, too.
        sessions.retain(|_, session| session.loss().is_none());
        if self.is_closed.load(Ordering::Relaxed) {
            return Err(KvError::Closed { operation: "lock" });
        }
        if let Some(session) = sessions.get(&(runtime.id(), lease)) {
            return Ok(InUse::new(session));
        }
        let session = Arc::new(Session {
            identity: OnceLock::new(),
            lease,
            claims: AtomicU64::new(0),
            proof: Mutex::new(SuspendAwareInstant::now()),
            state: watch::Sender::new(State::Opening),
            use_: Mutex::new(Use { users: 0, since: Instant::now() }),
            ends: Mutex::new(None),
            wake: Notify::new(),
            is_gone: watch::Sender::new(false),
            found: Mutex::new(None),
        });
        sessions.insert((runtime.id(), lease), Arc::clone(&session));
        let in_use = InUse::new(&session);
        let store = store.with_deadline(Deadline::DEFAULT).of_task();
        let keep_alive =
            KeepAlive { sessions: Arc::clone(self), session, store, leftovers: Vec::new() };
        runtime.spawn(keep_alive.run(record.clone()));
        Ok(in_use)
    }

    /// Ends a session here that other processes have ended.
    pub(super) fn end(&self, id: SessionId, loss: LockLoss) {
        let sessions = lock(&self.alive);
        if let Some(session) = sessions.values().find(|session| session.id() == Some(id)) {
            session.finish(loss);
            session.ask_to_end(loss);
        }
    }

    /// Ends all sessions, because the connection is about to be shut down. Waits until their keys
    /// are deleted.
    pub(super) async fn end_all(&self) {
        let sessions: Vec<_> = {
            let mut alive = lock(&self.alive);
            self.is_closed.store(true, Ordering::Relaxed);
            alive.drain().map(|(_, session)| session).collect()
        };
        for session in &sessions {
            session.ask_to_end(LockLoss::StoreGone);
        }
        for session in sessions {
            // The sender lives in the session, so waiting does not fail.
            let _ = session.is_gone.subscribe().wait_for(|is_gone| *is_gone).await;
        }
    }

    /// Returns the sessions that hold on a runtime.
    pub(super) fn of_runtime(&self, runtime: runtime::Id) -> Vec<SessionId> {
        let sessions = lock(&self.alive);
        let own = sessions.iter().filter(|((of, _), session)| *of == runtime && session.holds());
        own.filter_map(|(_, session)| session.id()).collect()
    }

    /// Removes a session without users, after a lease or once the store is abandoned. Afterwards it
    /// cannot gain a user.
    fn retire(&self, session: &Arc<Session>, is_abandoned: bool) -> bool {
        let mut sessions = lock(&self.alive);
        let use_ = lock(&session.use_);
        let is_idle = use_.users == 0 && (is_abandoned || use_.since.elapsed() >= session.lease);
        if is_idle {
            sessions.retain(|_, kept| !Arc::ptr_eq(kept, session));
        }
        is_idle
    }
}

/// The task that keeps a session alive.
struct KeepAlive {
    sessions: Arc<Sessions>,
    session: Arc<Session>,
    store: Store,
    /// Keys that appeared to be in use when this session was opened. Those of crashed processes are
    /// deleted later.
    leftovers: Vec<Leftover>,
}

/// Result of a renewal.
enum Renewal {
    Renewed,
    Over(LockLoss),
}

impl KeepAlive {
    async fn run(mut self, record: Key) {
        let session = Arc::clone(&self.session);
        // Ends the session even if this task is dropped with its runtime, so that no caller waits
        // for it.
        let _ending = Ending(Arc::clone(&session));
        let (identity, version) = match self.open(&record).await {
            Ok(opened) => opened,
            Err(error) => {
                session.state.send_replace(State::Failed(error));
                return;
            }
        };
        // The session is opened only once.
        let _ = session.identity.set(identity.clone());
        session.state.send_replace(State::Live);
        let (loss, version) = self.keep(&identity, version).await;
        session.finish(loss);
        if loss == LockLoss::Evicted {
            *lock(&self.sessions.lost) = Some(identity.key.clone());
        }
        // Spares other processes from waiting until the session is found silent. If this fails,
        // they wait.
        self.remove(&identity, version).await;
    }

    /// Renews the session until it ends.
    async fn keep(
        &mut self,
        identity: &Identity,
        mut version: VersionToken,
    ) -> (LockLoss, VersionToken) {
        let session = Arc::clone(&self.session);
        let mut is_abandoned = false;
        let mut renewal = 0;
        loop {
            let due = lock(&session.proof).instant() + session.lease / 3;
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = session.wake.notified() => {}
                () = self.store.abandoned(), if !is_abandoned => is_abandoned = true,
            }
            let asked = *lock(&session.ends);
            if let Some(loss) = asked {
                return (loss, version);
            }
            if self.sessions.retire(&session, is_abandoned) {
                return (LockLoss::Expired, version);
            }
            if Instant::now() < due {
                continue;
            }
            if let Renewal::Over(loss) = self.renew(identity, &mut version, &mut renewal).await {
                tracing::warn!(store = self.store.name(), %loss, "the locks of this process are lost");
                return (loss, version);
            }
            self.collect().await;
        }
    }

    /// Deletes the key, unless it serves another session by now.
    async fn remove(&self, identity: &Identity, version: VersionToken) {
        // Read first, because the newest renewal may have been written without an acknowledgement.
        if let Ok(Some(found)) = self.store.leader_entry(&identity.key).await
            && sign_of(identity.id, &found) == Sign::Life
            && !is_older(Some(found.version), Some(version))
        {
            let _ = self.store.delete_with_version(&identity.key, found.version).await;
        }
    }

    /// Renews the session, with retries until the renewal succeeds or the session is over.
    async fn renew(
        &self,
        identity: &Identity,
        version: &mut VersionToken,
        renewal: &mut u64,
    ) -> Renewal {
        let Identity { id, key } = identity;
        let nonce = id.place().and_then(|_| u64::try_from(id.number()).ok());
        let session = &self.session;
        let mut pauses = pauses(session.lease);
        // Time at which each attempt was sent. An attempt that is found in the store proves that
        // this process lived at that time.
        let mut tries = Vec::new();
        loop {
            let (sent, remaining) = (
                SuspendAwareInstant::now(),
                session.end().saturating_duration_since(Instant::now()),
            );
            if !session.holds() || remaining.is_zero() {
                return Renewal::Over(LockLoss::Expired);
            }
            let store = self.store.with_deadline(remaining.min(request_limit(session.lease)));
            *renewal += 1;
            tries.push((*renewal, sent));
            let value = Stored::of_session(nonce, session.lease, *renewal).to_bytes(Some(*version));
            let proof = match store.update(key, value, *version).await {
                Ok(renewed) => {
                    *version = renewed;
                    Some(sent)
                }
                Err(error) if error.is_over() || matches!(error, KvError::StoreNotFound { .. }) => {
                    return Renewal::Over(LockLoss::StoreGone);
                }
                Err(error) => {
                    tracing::debug!(store = store.name(), %error, "a lease is not renewed yet");
                    let is_refused = error.is_conflict();
                    match store.leader_entry(key).await {
                        Ok(found) => match judge(*id, found.as_ref(), *version, is_refused) {
                            Found::Ours(landed, number) => {
                                *version = landed;
                                tries
                                    .iter()
                                    .find(|(tried, _)| *tried == number)
                                    .map(|(_, sent)| *sent)
                            }
                            Found::Unchanged => None,
                            Found::Gone => return Renewal::Over(LockLoss::Evicted),
                        },
                        Err(error)
                            if error.is_over()
                                || matches!(error, KvError::StoreNotFound { .. }) =>
                        {
                            return Renewal::Over(LockLoss::StoreGone);
                        }
                        Err(_) => None,
                    }
                }
            };
            match proof {
                Some(sent) if session.prolong(sent) => {
                    // Wakes the tasks that wait for the end, so that they compute it again.
                    session.state.send_if_modified(|state| matches!(state, State::Live));
                    return Renewal::Renewed;
                }
                Some(_) => return Renewal::Over(LockLoss::Expired),
                None => tokio::time::sleep(pauses.next().unwrap_or_default()).await,
            }
        }
    }
}

/// State of the key after a renewal that failed.
enum Found {
    /// The attempt with this number has landed, and its acknowledgement was lost.
    Ours(VersionToken, u64),
    Unchanged,
    Gone,
}

/// Classifies the entry that was found. `version` is the newest version known to have been written.
/// A missing entry may be an answer from before the session was created, unless the renewal was
/// rejected.
fn judge(id: SessionId, found: Option<&KvEntry>, version: VersionToken, is_refused: bool) -> Found {
    match found {
        Some(entry) if entry.version == version => Found::Unchanged,
        Some(entry) => match Stored::of(entry).filter(|stored| stored.is_of(id)) {
            Some(stored) if is_later(entry.version, version) => {
                Found::Ours(entry.version, stored.renewal)
            }
            // The answer of a replaced leader.
            Some(_) => Found::Unchanged,
            None if is_older(Some(entry.version), Some(version)) => Found::Unchanged,
            None => Found::Gone,
        },
        None if is_refused => Found::Gone,
        None => Found::Unchanged,
    }
}

/// Returns whether a version is later than another one. If versions cannot be compared, a different
/// one counts as later.
pub(super) fn is_later(one: VersionToken, other: VersionToken) -> bool {
    match (one.as_u64(), other.as_u64()) {
        (Some(one), Some(other)) => one > other,
        _ => one != other,
    }
}

/// Returns whether an answer is older than the newest version seen, as far as versions show it.
pub(super) fn is_older(found: Option<VersionToken>, seen: Option<VersionToken>) -> bool {
    match (found, seen) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(found), Some(seen)) => {
            found.as_u64().zip(seen.as_u64()).is_some_and(|(found, seen)| found < seen)
        }
    }
}

/// Marks a session as over if its task ends without having done so.
struct Ending(Arc<Session>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.finish(LockLoss::TaskEnded);
        self.0.is_gone.send_replace(true);
    }
}

/// Returns the deadline of one request of a renewal: a ninth of the lease. Three attempts of a
/// write and a read then fit into the two thirds that are left when a renewal is due. In a short
/// lease it is half a second, or a third of the lease if that is less. A slow server would
/// otherwise never answer in time.
fn request_limit(lease: Duration) -> Duration {
    (lease / 9).max(SHORT_REQUEST.min(lease / 3)).min(Deadline::DEFAULT)
}

/// Returns the pauses between attempts to renew, which are short against the lease.
fn pauses(lease: Duration) -> ExponentialBackoff {
    backoff(Duration::from_millis(20), lease / 12)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts the version that the server receives in a header. Otherwise a full store would reject
    /// a renewal.
    #[test]
    fn a_renewal_is_never_longer_than_the_session() {
        let length = |renewal, version: u64| {
            let version = (version > 0).then(|| VersionToken::from_u64(version));
            let digits = version.map_or(1, |version| version.to_string().len());
            Stored::of_session(Some(u64::MAX), LONGEST_LEASE, renewal).to_bytes(version).len()
                + digits
        };
        let created = length(0, 0);
        for number in [1, 9, 10, 999_999, 1_000_000, u64::MAX] {
            assert_eq!(length(number, number), created, "{number}");
        }
    }
}
