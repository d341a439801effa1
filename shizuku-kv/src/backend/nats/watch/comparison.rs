//! Comparison of an idle watch with the leader of its stream (ADR 0010, ADR 0064).

use futures_util::{StreamExt, TryStreamExt, stream};

use super::super::census::{Census, Change};
use super::super::consumer::HEARTBEAT;
use super::super::expiry::Expiry;
use super::super::figures::scope_keys;
use super::super::leader;
use super::super::settings::Settings;
use super::{NatsWatch, OPERATION};
use crate::store::{Deadline, Key, KvError, KvResult, SuspendAwareInstant};

/// Result of a comparison of an idle watch with the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Alike,
    /// The leader has had a newer message in scope for a whole heartbeat.
    LeftOut,
    /// The leader has lost delivered messages.
    Expired(Expiry),
}

impl NatsWatch {
    /// Compares an idle watch with the leader. A server may miscount pending messages
    /// ([`initial_sync`](super::super::initial_sync)), and then wait for another message before it
    /// continues. So after some heartbeats, and periodically from then on, the leader is asked for
    /// its newest message. The message must have arrived by the next heartbeat (ADR 0010).
    pub(super) async fn compare(&mut self) -> Comparison {
        self.quiet = self.quiet.saturating_add(1);
        let asks = self.missing || matches!(self.quiet, 2 | 6) || self.quiet.is_multiple_of(12);
        if !asks {
            return Comparison::Alike;
        }
        let deadline = Deadline::after(HEARTBEAT);
        let newest = leader::newest(&self.core, OPERATION, &self.filters, deadline).await;
        let Ok(newest) = newest else { return Comparison::Alike };
        let is_older = self.last.as_ref().is_some_and(|last| newest < last.sequence);
        if is_older && self.is_set_back(deadline).await.unwrap_or(false) {
            return Comparison::Expired(Expiry::Lost);
        }
        self.compared = SuspendAwareInstant::now();
        if self.has_lost(deadline).await {
            return Comparison::Expired(Expiry::Vanished);
        }
        let is_newer = newest > self.position;
        if std::mem::replace(&mut self.missing, is_newer) && is_newer {
            Comparison::LeftOut
        } else {
            Comparison::Alike
        }
    }

    /// Returns whether entries have left the stream without a message since the last comparison. A
    /// leader that does not answer is asked again at the next comparison.
    pub(super) async fn has_lost(&mut self, deadline: Deadline) -> bool {
        let counted = scope_keys(&self.core, OPERATION, &self.scope, deadline).await;
        let Ok((info, keys)) = counted else { return false };
        if self.incarnation != Some(info.incarnation(&self.core.bucket.stream)) {
            // The consumer of the old store is lost too.
            return false;
        }
        let (census, settings, before) = (Census::new(&info, keys), info.settings(), self.census);
        match self.compare_census(census, &settings) {
            Change::None => false,
            Change::Lost => true,
            Change::Fewer(left) => match self.cleaned_up(&settings, deadline).await {
                Ok(Some(cleaned_up)) => left > cleaned_up,
                // Tombstones expire, or are too many for a request about each.
                Ok(None) => false,
                Err(_) => {
                    self.census = before;
                    false
                }
            },
        }
    }

    /// Compares a census with the last one, which it replaces.
    pub(super) fn compare_census(&mut self, census: Census, settings: &Settings) -> Change {
        let before = self.census.replace(census.or_keys_of(self.census));
        let Some(before) = before else {
            self.is_silent = settings.loses_newest && !settings.expiry_events;
            return Change::None;
        };
        let change = census.compare(&before, self.deleted.count(), self.knows_tombstones);
        // With some settings, stores lose entries without a message to any watch.
        if self.is_silent { Change::None } else { change }
    }

    /// Returns the number of delivered tombstones that another client has cleaned up, and forgets
    /// them. Returns `None` if tombstones expire, or are too many for a request about each.
    async fn cleaned_up(
        &mut self,
        settings: &Settings,
        deadline: Deadline,
    ) -> KvResult<Option<u64>> {
        let Some(keys) = self.deleted.keys().filter(|_| settings.tombstone_life.is_none()) else {
            return Ok(None);
        };
        let core = &self.core;
        let reads = stream::iter(keys.clone()).map(|key| async move {
            let found = core.newest_of_leader(OPERATION, &key, deadline).await?;
            Ok::<_, KvError>((key, found.is_none()))
        });
        let reads: Vec<(Key, bool)> =
            reads.buffer_unordered(leader::IN_FLIGHT).try_collect().await?;
        let gone: Vec<_> =
            reads.into_iter().filter_map(|(key, is_gone)| is_gone.then_some(key)).collect();
        for key in &gone {
            self.deleted.forget(key);
        }
        Ok(Some(gone.len() as u64))
    }

    /// Returns whether the leader has lost the last message that this watch has delivered.
    pub(super) async fn is_set_back(&self, deadline: Deadline) -> KvResult<bool> {
        match &self.last {
            Some(last) => last.is_lost(&self.core, OPERATION, deadline).await,
            None => Ok(false),
        }
    }
}
