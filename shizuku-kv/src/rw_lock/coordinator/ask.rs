//! The requests that this process makes instead of swaps that would be lost.

use std::time::Duration;

use tokio::time::Instant;

use super::Coordinator;
use super::claims::ClaimState;
use super::record_cache::CachedRecord;
use crate::rw_lock::record::SessionId;
use crate::rw_lock::request::{self, Request};
use crate::rw_lock::transition::Change;
use crate::store::KvError;

/// Timeout for purging all requests of this process.
const PURGE_TIMEOUT: Duration = Duration::from_millis(500);

impl Coordinator {
    /// Returns the request to make instead of a swap, with the session under whose key it is made.
    /// Returns `None` if a swap is better, or one of the changes cannot be requested.
    pub(super) fn request(&self, known: &CachedRecord) -> Option<(SessionId, Request)> {
        // While claims wait, the swap of the last writer would conflict with the release for which
        // they wait.
        let is_useful = known.record.queue.is_empty()
            && match self.requests.are_applied() {
                Some(true) => self.contention.has_lost(),
                Some(false) => false,
                None => self.contention.is_repeated(),
            };
        if !is_useful || !self.requests.may_ask() || self.shutdown.is_some() {
            return None;
        }
        if self.needs_removals(&known.record) {
            return None;
        }
        let base = known.version?;
        let mut leaves = Vec::new();
        for pending in &self.pending {
            let Change::Leave(id) = pending.change else { return None };
            let is_recorded = self.claims.get(id).is_some_and(|local| local.is_recorded());
            if !is_recorded {
                return None;
            }
            leaves.push(id);
        }
        let mut claims = Vec::new();
        for local in self.claims.requested() {
            if !matches!(local.state, ClaimState::Requested { waits: true, .. }) {
                return None;
            }
            claims.push(local.claim.clone());
        }
        let session = claims.first().map(|claim| claim.id.session);
        let session = session.or(leaves.first().map(|id| id.session))?;
        let request = Request::new(self.key().clone(), base, claims, leaves);
        // Others apply changes of the session that uses the key only.
        let is_of_key = request.sessions().all(|of| of == session);
        is_of_key.then_some((session, request))
    }

    /// Makes a request. Then waits for others to apply it.
    pub(super) async fn make(&mut self, session: SessionId, request: Request) {
        let Ok(key) = request::key_of(self.key(), session) else { return };
        let has_claims = !request.claims.is_empty();
        self.requests.sent(&key, session, has_claims, self.cache.known());
        for claim in &request.claims {
            if let Some(local) = self.claims.get_mut(claim.id) {
                local.note_sent();
            }
        }
        let sent = Instant::now();
        let written = self.env.store.put(key, request.to_bytes()).await;
        if let Ok(_) | Err(KvError::OutcomeUnknown { .. }) = written {
            self.pending.iter_mut().for_each(|pending| pending.sent = true);
        }
        match written {
            Ok(_) => self.requests.acknowledged(sent.elapsed()),
            // The store may be slow, so that waiting for others may take long too.
            Err(error) => {
                if matches!(error, KvError::Unauthorized { .. }) {
                    self.requests.deny();
                }
                self.requests.failed();
            }
        }
    }

    /// Purges the requests of this process, unless that takes long: a shutdown or a claim waits. A
    /// request that stays is of no effect.
    pub(super) async fn purge_requests(&mut self) {
        let keys = self.requests.take_own();
        let (store, lock) = (&self.env.store, self.key());
        let purge = async {
            for key in keys {
                if let Err(error) = store.purge(key).await {
                    let store = store.name();
                    tracing::debug!(store, key = %lock, %error, "failed to purge a lock request");
                }
            }
        };
        if tokio::time::timeout(PURGE_TIMEOUT, purge).await.is_err() {
            tracing::debug!(store = store.name(), key = %lock, "abandoned a purge of lock requests");
        }
    }
}
