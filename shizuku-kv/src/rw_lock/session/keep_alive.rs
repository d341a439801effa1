//! The task that keeps a session alive: the task opens the session, renews it, and finally deletes
//! its key.

use std::sync::Arc;
use std::time::Duration;

use backon::ExponentialBackoff;
use tokio::time::Instant;

use super::entry::{SessionEntry, is_later, is_older, meaning_of};
use super::registry::Registry;
use super::slots::{Opened, Slots};
use super::state::Session;
use crate::rw_lock::error::LockLoss;
use crate::rw_lock::lease::EntryMeaning;
use crate::rw_lock::record::SessionId;
use crate::store::{
    Deadline, Key, KvEntry, KvError, Store, SuspendAwareInstant, VersionToken, backoff,
};

/// Minimum deadline of one request of a renewal, unless a third of the lease is less.
const SHORT_REQUEST: Duration = Duration::from_millis(500);

/// The task that keeps a session alive.
pub(super) struct KeepAlive {
    registry: Arc<Registry>,
    session: Arc<Session>,
    store: Store,
    /// Ends the session even if this task is dropped with its runtime, so that no caller waits for
    /// the session.
    _ending: Ending,
}

/// The key of an open session, and its newest known version.
struct Lease {
    id: SessionId,
    key: Key,
    version: VersionToken,
    /// Number of renewals that were sent.
    renewals: u64,
}

/// Result of a renewal.
enum Renewal {
    Renewed,
    Over(LockLoss),
}

impl KeepAlive {
    pub(super) fn new(registry: Arc<Registry>, session: Arc<Session>, store: Store) -> Self {
        let _ending = Ending(Arc::clone(&session));
        Self { registry, session, store, _ending }
    }

    /// Runs until the session has ended. `record` is the key of a lock that is likely to be needed
    /// next.
    pub(super) async fn run(self, record: Key) {
        let lease = self.session.lease;
        let mut slots = Slots::new(self.store.clone(), lease, self.registry.last_evicted());
        let Opened { id, key, version, sent, record } = match slots.open(&record).await {
            Ok(opened) => opened,
            Err(error) => return self.session.fail(error),
        };
        self.session.begin(id, sent, record);
        let mut lease = Lease { id, key, version, renewals: 0 };
        let loss = self.keep(&mut lease, &mut slots).await;
        self.session.finish(loss);
        if loss == LockLoss::Evicted {
            self.registry.note_evicted(lease.key.clone());
        }
        // Without this removal, other processes wait until the session has been silent for long
        // enough.
        self.remove(&lease).await;
    }

    /// Renews the session until it ends.
    async fn keep(&self, lease: &mut Lease, slots: &mut Slots) -> LockLoss {
        let session = &self.session;
        let mut is_abandoned = false;
        loop {
            let due = session.next_renewal();
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = session.wake.notified() => {}
                () = self.store.abandoned(), if !is_abandoned => {
                    is_abandoned = true;
                    session.note_abandoned();
                }
            }
            if let Some(loss) = session.requested_end() {
                return loss;
            }
            if self.registry.retire(session) {
                return LockLoss::Expired;
            }
            if Instant::now() < due {
                continue;
            }
            if let Renewal::Over(loss) = self.renew(lease).await {
                let store = self.store.name();
                tracing::warn!(store, %loss, "lost the lock session of this process");
                return loss;
            }
            // A slow store must not delay the next renewal, nor a shutdown.
            let until = session.next_renewal().min(Instant::now() + Deadline::DEFAULT);
            tokio::select! {
                // Stored again for the wait above.
                () = session.wake.notified() => session.wake.notify_one(),
                _ = tokio::time::timeout_at(until, slots.end_silent()) => {}
            }
        }
    }

    /// Deletes the key, unless it already serves another session.
    async fn remove(&self, lease: &Lease) {
        // The key is read first, because the newest renewal may have been written without an
        // acknowledgement.
        if let Ok(Some(found)) = self.store.leader_entry(&lease.key).await
            && meaning_of(lease.id, &found) == EntryMeaning::Alive
            && !is_older(Some(found.version), Some(lease.version))
        {
            let _ = self.store.delete_with_version(&lease.key, found.version).await;
        }
    }

    /// Renews the session, with retries until the renewal succeeds or the session has ended.
    async fn renew(&self, lease: &mut Lease) -> Renewal {
        let nonce = lease.id.slot_use().and_then(|_| u64::try_from(lease.id.number()).ok());
        let session = &self.session;
        let mut pauses = pauses(session.lease);
        // Time at which each attempt was sent. An attempt that is found in the store proves that
        // this process was alive at that time.
        let mut attempts = Vec::new();
        loop {
            let sent = SuspendAwareInstant::now();
            let remaining = session.end().saturating_duration_since(Instant::now());
            if !session.holds() || remaining.is_zero() {
                return Renewal::Over(LockLoss::Expired);
            }
            let store = self.store.with_deadline(remaining.min(request_limit(session.lease)));
            lease.renewals += 1;
            attempts.push((lease.renewals, sent));
            let entry = SessionEntry::of_session(nonce, session.lease, lease.renewals);
            let value = entry.to_bytes(Some(lease.version));
            let written = store.update(&lease.key, value, lease.version).await;
            let is_rejected = written.as_ref().is_err_and(KvError::is_conflict);
            let proof = match written {
                Ok(version) => {
                    lease.version = version;
                    Some(sent)
                }
                Err(error) if is_gone(&error) => return Renewal::Over(LockLoss::StoreGone),
                Err(error) => {
                    tracing::debug!(store = store.name(), %error, "failed to renew a lock session");
                    match store.leader_entry(&lease.key).await {
                        Ok(found) => match lease.judge(found.as_ref(), is_rejected) {
                            Found::Landed(version, number) => {
                                lease.version = version;
                                let attempt = attempts.iter().find(|(of, _)| *of == number);
                                attempt.map(|(_, sent)| *sent)
                            }
                            Found::Unchanged => None,
                            Found::Gone => return Renewal::Over(LockLoss::Evicted),
                        },
                        // The next attempt shows whether the store is gone.
                        Err(_) => None,
                    }
                }
            };
            match proof {
                Some(sent) if session.prolong(sent) => return Renewal::Renewed,
                Some(_) => return Renewal::Over(LockLoss::Expired),
                None => tokio::time::sleep(pauses.next().unwrap_or_default()).await,
            }
        }
    }
}

/// Returns whether the store is gone, or its connection was shut down.
fn is_gone(error: &KvError) -> bool {
    error.is_over() || matches!(error, KvError::StoreNotFound { .. })
}

/// State of the key after a renewal that failed.
enum Found {
    /// The attempt with this number has landed, and its acknowledgement was lost.
    Landed(VersionToken, u64),
    Unchanged,
    Gone,
}

impl Lease {
    /// Classifies the found entry. A missing entry may be an answer from before the creation of the
    /// session, unless the renewal was rejected.
    fn judge(&self, found: Option<&KvEntry>, is_rejected: bool) -> Found {
        match found {
            Some(entry) if entry.version == self.version => Found::Unchanged,
            Some(entry) => match SessionEntry::of(entry).filter(|stored| stored.is_of(self.id)) {
                Some(stored) if is_later(entry.version, self.version) => {
                    Found::Landed(entry.version, stored.renewal)
                }
                // A replaced leader has answered.
                Some(_) => Found::Unchanged,
                None if is_older(Some(entry.version), Some(self.version)) => Found::Unchanged,
                None => Found::Gone,
            },
            None if is_rejected => Found::Gone,
            None => Found::Unchanged,
        }
    }
}

/// Ends a session if its task stops without having ended it.
struct Ending(Arc<Session>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.finish(LockLoss::TaskEnded);
        self.0.mark_gone();
    }
}

/// Returns the deadline of one request of a renewal: a ninth of the lease. Three attempts of a
/// write and a read then fit into the two thirds that are left when a renewal is due. For a short
/// lease the deadline is half a second, or a third of the lease if that is less. Otherwise a slow
/// server would never answer in time.
fn request_limit(lease: Duration) -> Duration {
    (lease / 9).max(SHORT_REQUEST.min(lease / 3)).min(Deadline::DEFAULT)
}

/// Returns the pauses between attempts to renew, which are at most a twelfth of the lease.
fn pauses(lease: Duration) -> ExponentialBackoff {
    backoff(Duration::from_millis(20), lease / 12)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test reports by panicking")]
mod tests {
    use std::time::SystemTime;

    use super::super::entry::key_of;
    use super::*;
    use crate::rw_lock::record::{Slot, SlotUse};

    /// The key serves successive sessions. A replaced leader still has an earlier one.
    #[test]
    fn entry_of_an_earlier_session_is_no_proof_of_the_end() {
        let slot_use = SlotUse { slot: Slot { salt: None, number: 3 }, first: 10 };
        let id = SessionId::at(slot_use, 7);
        let version = VersionToken::from_u64(10);
        let lease = Lease { id, key: key_of(id).unwrap(), version, renewals: 0 };
        let other = |version| {
            let value = SessionEntry::of_session(Some(8), Duration::from_secs(1), 0).to_bytes(None);
            let version = VersionToken::from_u64(version);
            KvEntry::put(lease.key.clone(), value.into(), version, SystemTime::UNIX_EPOCH)
        };
        assert!(matches!(lease.judge(Some(&other(9)), true), Found::Unchanged));
        assert!(matches!(lease.judge(Some(&other(11)), true), Found::Gone));
    }
}
