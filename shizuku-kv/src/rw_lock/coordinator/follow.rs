//! The reads and the watch of the record, and their effect on the claims of this process.

use std::time::Duration;

use tokio::time::Instant;

use super::claims::{ClaimState, LocalClaim, Pending};
use super::record_cache::{CachedRecord, CaughtUp, EntryEffect};
use super::{Coordinator, KEEP, LONG_HELD};
use crate::rw_lock::command::Rejection;
use crate::rw_lock::error::LockLoss;
use crate::rw_lock::failure_detector::{OwnClaims, Prospect};
use crate::rw_lock::record::ClaimId;
use crate::rw_lock::transition::{Change, Outcome};
use crate::store::{KvError, KvResult};
use crate::watch::Event;

/// Maximum number of repeats of a read that returns an older version than the newest known one.
/// Afterwards the watch decides.
const STALE_READS: u32 = 4;

impl Coordinator {
    /// Reads the record from the leader.
    pub(super) async fn read(&mut self) -> KvResult<()> {
        let mut found = self.env.store.leader_entry(self.key()).await?;
        for _ in 0..STALE_READS {
            if !self.cache.is_stale(found.as_ref()) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(fastrand::u64(2..20))).await;
            found = self.env.store.leader_entry(self.key()).await?;
        }
        if self.cache.is_stale(found.as_ref()) {
            self.watch.stop();
            self.watch.start();
            self.cache.contradicted();
            let reason =
                "the answer is older than the newest known version of the record".to_owned();
            return Err(KvError::Unavailable { operation: "read a lock", reason, source: None });
        }
        self.contention.read();
        let effect = self.cache.read(found);
        self.apply(effect);
        Ok(())
    }

    pub(super) fn start_watch(&mut self) {
        if !self.watch.is_started() {
            self.cache.watch_started();
            self.watch.start();
        }
    }

    /// Handles a change of the watch.
    pub(super) fn handle(&mut self, event: Event) {
        match event {
            Event::Opened => self.cache.watch_opened(),
            Event::LinkChanged => {}
            Event::CaughtUp { .. } => {
                let CaughtUp { is_recreated, effect } = self.cache.caught_up();
                if is_recreated {
                    self.leave_deleted_store();
                }
                self.apply(effect);
            }
            Event::Update(update) => {
                if let Some(entry) = update.into_entry() {
                    let effect = self.cache.delivered(entry);
                    self.apply(effect);
                }
            }
            Event::Lost(error) | Event::Closed(error) => {
                if matches!(error, KvError::Unauthorized { .. }) {
                    self.reject_waiting(&error);
                }
                self.cache.watch_lost();
            }
        }
    }

    /// Ends the sessions of this process, because they belong to a deleted store.
    fn leave_deleted_store(&mut self) {
        let (store, key) = (self.env.store.name(), self.key());
        tracing::debug!(store, %key, "detected a recreated store, ending the lock sessions of the old one");
        for session in self.env.sessions.of_runtime(self.env.id.0) {
            self.env.sessions.end(session, LockLoss::StoreGone);
        }
        self.failure_detector.forget();
    }

    /// Applies an observed change of the record to the claims of this process.
    pub(super) fn apply(&mut self, effect: EntryEffect) {
        match effect {
            EntryEffect::Nothing => {}
            EntryEffect::Record => {
                self.compare();
                self.requests.observed(self.cache.known());
            }
            // The entry is not changed.
            EntryEffect::Foreign(reason) => {
                let rejection = Rejection::Foreign(reason);
                self.claims.drain().for_each(|local| local.reject(rejection.clone()));
                let pending = self.pending.drain(..);
                pending.for_each(|pending| pending.answer(Err(rejection.clone())));
                self.failure_detector.stand_down();
            }
        }
    }

    /// Compares the record with the claims of this process: grants, revokes, or claims again.
    pub(super) fn compare(&mut self) {
        let Some(CachedRecord { record, .. }) = self.cache.known() else { return };
        let positions = self.claims.queue_positions(record);
        if self.requests.patient_until().is_some() {
            // Another process may have applied the request.
            let has_left = |pending: &mut Pending| match pending.change {
                Change::Leave(id) => {
                    let is_recorded = self.claims.get(id).is_some_and(LocalClaim::is_recorded);
                    is_recorded && record.grant(id).is_none() && !positions.contains_key(&id)
                }
                _ => false,
            };
            for pending in self.pending.extract_if(.., has_left).collect::<Vec<_>>() {
                if let Change::Leave(id) = pending.change {
                    self.claims.remove(id);
                }
                pending.answer(Ok(Outcome::Done));
            }
        }
        let is_leaving =
            |id: ClaimId| self.pending.iter().any(|pending| pending.change == Change::Leave(id));
        let mut revoked = Vec::new();
        for local in self.claims.iter_mut() {
            let id = local.claim.id;
            match (&local.state, record.grant(id)) {
                (ClaimState::Queued(_) | ClaimState::Requested { sent: true, .. }, Some(grant)) => {
                    local.grant(grant.token)
                }
                (ClaimState::Requested { sent: true, .. }, None) if positions.contains_key(&id) => {
                    local.queue();
                }
                // The record was removed, or written by a client that does not follow the protocol.
                // Otherwise the claim has left with a write that was not answered.
                (ClaimState::Queued(_), None)
                    if !positions.contains_key(&id) && !is_leaving(id) =>
                {
                    local.request_again();
                }
                (ClaimState::Granted { .. }, None) => revoked.push(id),
                _ => {}
            }
        }
        for id in revoked {
            self.end_claim(id, Rejection::SessionOver);
        }
        let is_done = self.pending.is_empty() && !self.claims.any(LocalClaim::is_requested);
        if is_done && self.requests.note_applied() {
            self.contention.was_helped();
        }
    }

    /// Watches the record while its changes matter, and the sessions ahead of the waiting claims.
    pub(super) fn follow(&mut self) {
        let now = Instant::now();
        let is_watched = |local: &LocalClaim| match &local.state {
            ClaimState::Granted { since, .. } => *since + LONG_HELD <= now,
            ClaimState::Requested { .. } | ClaimState::Deferred { .. } | ClaimState::Queued(_) => {
                true
            }
        };
        if let Some(CachedRecord { record, .. }) = self.cache.known() {
            let has_deferred = self.claims.any(LocalClaim::is_deferred);
            let is_hasty = |local: &LocalClaim| local.is_queued() && local.wait.is_hasty;
            let claims = OwnClaims {
                has_queued: self.claims.any(LocalClaim::is_queued),
                has_deferred,
                is_hasty: has_deferred || self.claims.any(is_hasty),
            };
            self.failure_detector.update(record, &self.claims.sessions(), claims);
        }
        self.update_waits();
        let matters = self.claims.any(is_watched) || self.failure_detector.is_needed();
        if matters || self.contention.was_within(KEEP) {
            self.start_watch();
        }
        self.requests.follow(self.contention.was_within(KEEP));
    }

    /// Extends the waits of callers while the sessions ahead of them may be dead. Rejects a
    /// deferred claim if a session ahead of it is alive.
    fn update_waits(&mut self) {
        if !self.claims.any(|local| local.is_deferred() || local.is_queued()) {
            return;
        }
        let own = self.claims.sessions();
        let Some(CachedRecord { record, .. }) = self.cache.known() else { return };
        let positions = self.claims.queue_positions(record);
        let mut blocked = Vec::new();
        for local in self.claims.iter_mut() {
            let is_queued = local.is_queued();
            if !local.is_deferred() && !is_queued {
                continue;
            }
            let queue_position =
                positions.get(&local.claim.id).copied().unwrap_or(record.queue.len());
            match self.failure_detector.prospect(record, queue_position, &own) {
                Prospect::Free if !is_queued => local.resume(),
                Prospect::Free | Prospect::MayBeDead => local.wait.extend(true),
                Prospect::Unknown(_) | Prospect::Alive if is_queued => local.wait.extend(false),
                Prospect::Unknown(_) | Prospect::Alive => blocked.push(local.claim.id),
            }
        }
        for id in blocked {
            self.reject(id, Rejection::Busy);
        }
    }

    /// Ends the wait of every claim, because this user may not watch the record or the sessions.
    pub(super) fn reject_waiting(&mut self, error: &KvError) {
        for id in self.claims.ids(|local| local.is_deferred() || local.is_queued()) {
            self.reject(id, Rejection::Store(error.clone()));
        }
    }
}
