//! The write of all requested changes, and the answers to their callers.

use std::time::{Duration, SystemTime};

use super::Coordinator;
use super::claims::{ClaimState, LocalClaim, Pending};
use super::record_cache::CachedRecord;
use crate::rw_lock::command::Rejection;
use crate::rw_lock::failure_detector::Prospect;
use crate::rw_lock::record::{ClaimId, GRANT_ROOM, LockRecord, SWAP_ROOM};
use crate::rw_lock::transition::{Change, Outcome};
use crate::store::{FencingToken, KvError};

/// Timeout, after a lost swap, for the watch to deliver the change that won. This change is already
/// in flight.
const CHANGE_TIMEOUT: Duration = Duration::from_millis(20);

/// Timeout for each further change of another process, if other processes claim too.
const FURTHER_CHANGE_TIMEOUT: Duration = Duration::from_millis(1);

/// A record with all requested changes applied.
struct Batch {
    record: LockRecord,
    /// Outcomes of the pending changes, in their order.
    pending: Vec<Outcome>,
    claims: Vec<(ClaimId, Outcome)>,
}

/// Returns whether a claim of one record is absent in a later one.
fn has_removed(old: &LockRecord, new: &LockRecord) -> bool {
    let mut ids: Vec<_> = new.claims().map(|claim| claim.id).collect();
    ids.sort_unstable();
    old.claims().any(|claim| ids.binary_search(&claim.id).is_err())
}

impl Coordinator {
    /// Tries once to write all requested changes.
    pub(super) async fn write(&mut self) {
        let mut was_read = false;
        loop {
            if self.cache.known().is_none() {
                if let Err(error) = self.read().await {
                    return self.handle_failure(error).await;
                }
                was_read = true;
            }
            // The entry may be foreign.
            let Some(known) = self.cache.known().cloned() else { return };
            if let Some((session, request)) = self.request(&known) {
                return self.make(session, request).await;
            }
            self.leave_orphans(&known.record);
            let batch = self.batch(&known.record);
            if batch.record != known.record || self.is_unresolved(&known) {
                return self.swap(batch, &known).await;
            }
            if batch.claims.is_empty() && batch.pending.is_empty() {
                // The requests of others change nothing.
                return;
            }
            if was_read {
                return self.conclude(batch).await;
            }
            // The cached record may be stale.
            self.cache.invalidate();
        }
    }

    /// Returns whether the record has to be written even if nothing changes it. A write of unknown
    /// outcome may still land, or another process may still apply a request of this one.
    fn is_unresolved(&self, known: &CachedRecord) -> bool {
        let is_abandoned = |pending: &Pending| match pending.change {
            Change::Leave(id) => !self.claims.get(id).is_some_and(LocalClaim::is_recorded),
            _ => false,
        };
        self.cache.has_unresolved(known)
            || self.requests.may_be_applied() && self.pending.iter().any(is_abandoned)
    }

    /// Requests the removal of orphaned claims, so that it is retried after a failure.
    fn leave_orphans(&mut self, record: &LockRecord) {
        let orphans = self.orphans(record);
        if orphans.is_empty() {
            return;
        }
        let sessions = self.env.sessions.uses_of_runtime(self.env.id.0);
        for id in orphans {
            let session = sessions.iter().find(|session| session.id() == Some(id.session));
            self.pending.push(Pending::leave(id, session.cloned(), None));
        }
        self.resume_deferred();
    }

    /// Requests the deferred claims again, because removals may make room for them in the same
    /// write.
    fn resume_deferred(&mut self) {
        let deferred = self.claims.iter_mut().filter(|local| local.is_deferred());
        deferred.for_each(|local| local.resume());
    }

    /// Applies the requested changes to a record.
    fn batch(&mut self, known: &LockRecord) -> Batch {
        let mut record = known.clone();
        // A break that was sent may have landed, and must not revoke later grants.
        let newest = FencingToken::from_u64(record.fence);
        for pending in self.pending.iter_mut().filter(|pending| !pending.sent) {
            if let Change::Break { newest: of_old } = &mut pending.change {
                *of_old = newest;
            }
        }
        if self.requests.has_received() {
            let own = self.env.sessions.of_runtime(self.env.id.0);
            self.requests.apply(&mut record, &own);
        }
        let ended = self.failure_detector.ended_in(&record);
        if !ended.is_empty() {
            self.resume_deferred();
        }
        for session in ended {
            record.apply(&Change::Evict(session));
        }
        let pending = self.pending.iter().map(|pending| record.apply(&pending.change)).collect();
        let claims = self.claims.requested().into_iter().map(|local| {
            let waits = matches!(local.state, ClaimState::Requested { waits: true, .. });
            let change = Change::Claim { claim: local.claim.clone(), waits };
            (local.claim.id, record.apply(&change))
        });
        let claims = claims.collect();
        Batch { record, pending, claims }
    }

    /// Replaces the known record.
    async fn swap(&mut self, mut batch: Batch, known: &CachedRecord) {
        batch.record.stamp(known.record.fence, SystemTime::now());
        let (expected, has_claims) = (known.version, !batch.claims.is_empty());
        let value = batch.record.to_bytes(expected);
        // Each waiter receives a token eventually, and needs room for it. Waiting readers already
        // have that room. Only one writer at a time needs it.
        let room = value.len() + GRANT_ROOM + SWAP_ROOM;
        if room > self.env.store.max_value_size() {
            if self.requests.drop_received() {
                return;
            }
            if has_claims {
                return self.reject_requested(&Rejection::Full);
            }
        }
        for (id, _) in &batch.claims {
            if let Some(local) = self.claims.get_mut(*id) {
                local.note_sent();
            }
        }
        let has_removed = has_removed(&known.record, &batch.record);
        let written = match expected {
            Some(version) if !known.has_expired => {
                self.env.store.update(self.key(), value, version).await
            }
            _ => self.env.store.create(self.key(), value).await,
        };
        match written {
            Ok(version) => {
                self.contention.wrote();
                self.requests.wrote(version, has_removed);
                // Moved, because the answers to the requests do not need the record.
                self.cache.written(std::mem::take(&mut batch.record), version);
                self.conclude(batch).await;
            }
            Err(error) if error.is_conflict() => {
                self.cache.invalidate();
                self.handle_conflict().await;
            }
            Err(KvError::StoreFull { .. }) if self.requests.drop_received() => {}
            // A claim needs room, and a release does not.
            Err(error @ KvError::StoreFull { .. }) if has_claims => {
                self.reject_requested(&Rejection::Store(error));
            }
            Err(error @ KvError::OutcomeUnknown { .. }) => {
                self.cache.outcome_unknown(expected);
                self.pending.iter_mut().for_each(|pending| pending.sent = true);
                self.handle_failure(error).await;
            }
            Err(error) => {
                self.cache.invalidate();
                self.handle_failure(error).await;
            }
        }
    }

    /// Reports each outcome to its caller. A claim with a short wait is given more time if the
    /// sessions ahead of it may be dead.
    async fn conclude(&mut self, batch: Batch) {
        if batch.claims.iter().any(|(_, outcome)| *outcome == Outcome::Busy) {
            self.read_sessions_ahead(None).await;
        }
        self.answer(batch);
        let hasty = self.claims.iter().find(|local| local.wait.is_hasty && local.is_queued());
        if let Some(id) = hasty.map(|local| local.claim.id) {
            self.read_sessions_ahead(Some(id)).await;
        }
    }

    /// Reads the unknown sessions ahead of a queued claim, or of a claim that arrives now, unless a
    /// session ahead is known to be alive.
    async fn read_sessions_ahead(&mut self, claim: Option<ClaimId>) {
        let own = self.claims.sessions();
        while let Some(CachedRecord { record, .. }) = self.cache.known() {
            let index = record.queue.iter().position(|queued| Some(queued.id) == claim);
            let index = index.unwrap_or(record.queue.len());
            let Prospect::Unknown(sessions) = self.failure_detector.prospect(record, index, &own)
            else {
                return;
            };
            // The entry of the own session shows a time of the store's clock, even if the session
            // has ended.
            if self.failure_detector.read(&sessions, own.first().copied()).await.is_err() {
                return;
            }
        }
    }

    /// Answers the callers, and updates the claims of this process.
    fn answer(&mut self, batch: Batch) {
        let pending = std::mem::take(&mut self.pending);
        for (pending, outcome) in pending.into_iter().zip(batch.pending) {
            if let Change::Leave(id) = pending.change {
                self.claims.remove(id);
            }
            pending.answer(Ok(outcome));
        }
        for (id, outcome) in batch.claims {
            let Some(local) = self.claims.get_mut(id) else { continue };
            match outcome {
                Outcome::Granted(token) => local.grant(token),
                Outcome::Queued => local.queue(),
                Outcome::Busy => self.defer_or_reject(id),
                Outcome::Full => {
                    self.failure_detector.expect_claim();
                    // Another process may still apply the request of the claim.
                    if self.requests.may_be_applied() {
                        self.reject(id, Rejection::Full);
                    } else {
                        self.end_claim(id, Rejection::Full);
                    }
                }
                Outcome::Done | Outcome::Broken(_) | Outcome::NotThere => {}
            }
        }
        self.compare();
    }

    /// Defers a claim that does not wait if the sessions ahead of it may be dead.
    fn defer_or_reject(&mut self, id: ClaimId) {
        self.failure_detector.expect_claim();
        let own = self.claims.sessions();
        let prospect = self.cache.known().map(|CachedRecord { record, .. }| {
            self.failure_detector.prospect(record, record.queue.len(), &own)
        });
        if prospect != Some(Prospect::MayBeDead) {
            self.end_claim(id, Rejection::Busy);
        } else if let Some(local) = self.claims.get_mut(id) {
            local.defer();
        }
    }

    /// Ends a claim that is not in the record.
    pub(super) fn end_claim(&mut self, id: ClaimId, rejection: Rejection) {
        if let Some(local) = self.claims.remove(id) {
            local.reject(rejection);
        }
    }

    /// Handles a lost swap: another process has changed the record. The watch, if one is open,
    /// delivers the new record sooner than a read would. A pending release does not wait for
    /// further changes.
    async fn handle_conflict(&mut self) {
        self.contention.lost_swap();
        self.requests.follow(true);
        // While a replica is behind, a read may return the version that the swap expected. A watch
        // delivers the newer one.
        if self.contention.is_repeated() {
            self.start_watch();
        }
        let passes = if self.pending.is_empty() { self.contention.passes() } else { 0 };
        for number in 0..=passes {
            if !self.watch.is_started() {
                break;
            }
            let events = async {
                let event = self.watch.next().await;
                self.handle(event);
                while self.cache.known().is_none() && self.watch.is_started() {
                    let event = self.watch.next().await;
                    self.handle(event);
                }
            };
            let limit = if number == 0 { CHANGE_TIMEOUT } else { FURTHER_CHANGE_TIMEOUT };
            if tokio::time::timeout(limit, events).await.is_err() {
                break;
            }
            if self.cache.known().is_some_and(|known| self.request(known).is_some()) {
                // A request conflicts with no change of another process.
                break;
            }
        }
        let pause = self.contention.pause_before_read();
        if self.cache.known().is_none() && !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }

    /// Handles a failed request: answers the callers if a retry cannot help, then backs off.
    async fn handle_failure(&mut self, error: KvError) {
        let (store, key) = (self.env.store.name(), self.key());
        tracing::debug!(store, %key, %error, "failed to change a lock record");
        if !error.is_retryable() && !matches!(error, KvError::OutcomeUnknown { .. }) {
            let is_gone = matches!(error, KvError::Closed { .. } | KvError::StoreNotFound { .. });
            let rejection = Rejection::Store(error.clone());
            // Otherwise this task would read the record of a deleted store forever.
            self.failure_detector.stand_down();
            self.reject_requested(&rejection);
            self.pending.iter_mut().for_each(|pending| pending.reject(&rejection));
            if is_gone && self.shutdown.is_some() {
                // The store has nothing to release any more.
                self.pending.clear();
            }
        }
        self.claims.iter().for_each(|local| local.wait.extend(false));
        let is_given_up = |pending: &Pending| pending.leaves() && !pending.is_retried();
        let gives_up = self.pending.iter().any(is_given_up);
        if let Some(shutdown) = self.shutdown.as_mut().filter(|_| gives_up) {
            shutdown.failure = Some(error);
        }
        self.pending.retain(Pending::is_retried);
        let pause = self.contention.pause_after_failure();
        tokio::time::sleep(pause).await;
    }

    /// Rejects the requested claims and the deferred ones.
    fn reject_requested(&mut self, rejection: &Rejection) {
        for id in self.claims.ids(|local| local.is_requested() || local.is_deferred()) {
            self.reject(id, rejection.clone());
        }
    }
}
