//! Comparison of a replica with its store, for entries that left the store without a message (ADR
//! 0048).
//!
//! Most comparisons are one request for the store's figures, which agree with the replica's. If
//! they do not, the keys are listed. The replica resyncs only if a key is missing on either side.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::collect::Collector;
use super::comparison::Compared;
use super::phase;
use super::run::Run;
use super::tally::Tally;
use super::{ReplicaError, ReplicaStorage, StoredVersion};
use crate::store::{Key, KeySet, KvError, StoreFigures, WatchCursor, WatchScope};
use crate::watch::{NewestHeld, Verification};

/// Pause before another attempt if changes overtook the first one, or if it failed.
const SOON: Duration = Duration::from_secs(1);

/// Maximum number of overtaken attempts before the keys are listed.
const ATTEMPTS: u32 = 3;

/// Number of listed keys in one storage lookup.
const PAGE: usize = 1024;

/// Maximum number of keys, missing on one side, that are looked up one by one.
const MOST_SUSPECTS: usize = 64;

impl<S: ReplicaStorage> Run<'_, S> {
    /// Compares the replica with the store. All collected updates have been applied and persisted.
    pub(super) async fn compare(
        &mut self,
        collector: &mut Collector<'_>,
    ) -> Result<Compared, ReplicaError> {
        // An earlier target stands for another position.
        self.comparison.asked = None;
        let figures = match self.until_stopped(self.store.figures(self.scope)).await {
            None => return Ok(Compared::Stopped),
            Some(Ok(figures)) => Some(figures),
            Some(Err(KvError::Unsupported { .. })) => None,
            Some(Err(error)) => return Ok(self.failed(&error)),
        };
        if let Some(figures) = &figures {
            let Some(cursor) = collector.cursor else { return Ok(Compared::Soon) };
            if figures.keys.is_none() {
                self.comparison.unverified = None;
                return Ok(Compared::Same);
            }
            let is_short = *self.scope == WatchScope::All && figures.newest < cursor.position();
            if figures.incarnation != *cursor.incarnation() || is_short {
                return Ok(self.differs("the store has lost delivered updates"));
            }
        }
        match self.is_same_store().await? {
            Compared::Same => {}
            other => return Ok(other),
        }
        // The keys of a scope that cannot be counted show nothing about their values, so the store
        // is checked before.
        let Some(figures) = figures else { return self.list(collector.cursor, None).await };
        if collector.wait_for(figures.newest) {
            return self.judge(collector.cursor, figures).await;
        }
        self.comparison.asked = Some(figures);
        Ok(Compared::Waits)
    }

    /// Resumes a comparison whose position has been reached.
    pub(super) async fn reached(
        &mut self,
        collector: &mut Collector<'_>,
    ) -> Result<Compared, ReplicaError> {
        match self.comparison.asked.take() {
            Some(figures) => self.judge(collector.cursor, figures).await,
            None => Ok(Compared::Same),
        }
    }

    /// Compares with figures of the position to which every update has been applied and persisted.
    async fn judge(
        &mut self,
        cursor: Option<WatchCursor>,
        figures: StoreFigures,
    ) -> Result<Compared, ReplicaError> {
        let Some(held) = self.ask("counting stored entries", |storage| storage.len()).await? else {
            return Ok(Compared::Stopped);
        };
        let keys = figures.keys.unwrap_or_default();
        let tombstones = self.comparison.tally.tombstones();
        let has_shrunk = figures.has_shrunk(self.comparison.seen.as_ref());
        self.comparison.seen = Some(figures.clone());
        let is_there = cursor.is_some_and(|cursor| cursor.position() >= figures.newest);
        if is_there && phase::agrees(held, tombstones, keys) {
            let is_unchanged = || self.comparison.agreed.as_ref() == Some(&figures);
            let is_proven = !figures.reverts || (figures.entries.is_some() && is_unchanged());
            if is_proven {
                self.comparison.attempts = 0;
                self.comparison.agreed = Some(figures);
                return Ok(Compared::Same);
            }
            // Keys alone do not show whether one of them has an older value.
            if has_shrunk {
                self.comparison.found();
            }
            if !self.comparison.may_list() {
                return Ok(Compared::Unknown);
            }
            let found = self.read_again(figures).await?;
            return Ok(found);
        }
        // The key count includes a key that has not arrived, because its first value was superseded
        // before its turn.
        let is_overtaken =
            tombstones.is_some_and(|tombstones| held.saturating_add(tombstones) < keys);
        if is_there && is_overtaken && self.comparison.attempts + 1 < ATTEMPTS {
            self.comparison.attempts += 1;
            return Ok(Compared::Soon);
        }
        self.comparison.attempts = 0;
        self.list(cursor, Some((figures, held))).await
    }

    /// Looks up every held entry, because an older entry of its key may have replaced it.
    async fn read_again(&mut self, figures: StoreFigures) -> Result<Compared, ReplicaError> {
        let scan = self.store.scan(self.scope.clone());
        let mut entries = Vec::with_capacity(PAGE);
        loop {
            let next = match self.until_stopped(scan.next()).await {
                None => return Ok(Compared::Stopped),
                Some(Some(Err(error))) => return Ok(self.failed(&error)),
                Some(Some(Ok(entry))) => {
                    Some((entry.key, StoredVersion::new(entry.version, entry.created)))
                }
                Some(None) => None,
            };
            let is_last = next.is_none();
            entries.extend(next);
            if entries.len() < PAGE && !is_last {
                continue;
            }
            let page = Arc::new(std::mem::take(&mut entries));
            let keys = Arc::clone(&page);
            let older = self.ask("looking up stored entries", move |storage| {
                let asked = keys.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
                let held = storage.held(&asked)?;
                Ok(held.iter().zip(keys.iter()).any(|(held, (_, found))| {
                    held.is_some_and(|held| {
                        held != *found && held.version.as_u64() >= found.version.as_u64()
                    })
                }))
            });
            match older.await? {
                None => return Ok(Compared::Stopped),
                Some(true) => {
                    return Ok(self.differs("an older value is the newest of its key again"));
                }
                Some(false) => {}
            }
            if is_last {
                self.comparison.agreed = Some(figures);
                return Ok(Compared::Same);
            }
        }
    }

    /// Checks that the store is the one that the replica followed before the connection was lost.
    async fn is_same_store(&mut self) -> Result<Compared, ReplicaError> {
        let Some(mut unverified) = self.comparison.unverified.clone() else {
            return Ok(Compared::Same);
        };
        if unverified.recent.is_empty() {
            // This run has received no update, so only the held entries of an earlier one are
            // known.
            let position = unverified.cursor.position();
            let recent = self.ask("looking up stored entries", move |storage| {
                let mut newest = NewestHeld::up_to(position);
                storage
                    .for_each_key(&mut |key, held| newest.visit(key, held.version, held.created))?;
                Ok(newest.into_recent())
            });
            let Some(recent) = recent.await? else { return Ok(Compared::Stopped) };
            unverified.recent = recent;
            self.comparison.unverified = Some(unverified.clone());
        }
        let verification = match self.until_stopped(unverified.verify(self.store, self.scope)).await
        {
            None => return Ok(Compared::Stopped),
            Some(Ok(verification)) => verification,
            Some(Err(error)) => return Ok(self.failed(&error)),
        };
        match verification {
            Verification::Other => return Ok(self.differs("the store is an older copy")),
            Verification::Unproven => {
                return Ok(self.differs("no remembered entry is left for the comparison"));
            }
            // Updates that were written while the replica was away follow the checkpoint, and are
            // no reason for a resync.
            Verification::Unremembered | Verification::Same => self.comparison.unverified = None,
        }
        Ok(Compared::Same)
    }

    /// Lists the keys, and compares them with the held ones. `figures`, with the number of keys
    /// held at their position, make the difference known from then on.
    async fn list(
        &mut self,
        cursor: Option<WatchCursor>,
        figures: Option<(StoreFigures, u64)>,
    ) -> Result<Compared, ReplicaError> {
        if !self.comparison.may_list() {
            return Ok(Compared::Unknown);
        }
        tracing::debug!(store = self.store.name(), "a replica compares its keys with the store's");
        let listing = self.store.keys(self.scope.clone());
        let mut listed = KeySet::default();
        let mut suspects = Vec::new();
        let mut page = Vec::with_capacity(PAGE);
        loop {
            let next = match self.until_stopped(listing.next()).await {
                None => return Ok(Compared::Stopped),
                Some(Some(Err(error))) => return Ok(self.failed(&error)),
                Some(Some(Ok(key))) => Some(key),
                Some(None) => None,
            };
            let is_last = next.is_none();
            if let Some(key) = next {
                listed.insert(&key);
                page.push(key);
            }
            if page.len() == PAGE || is_last {
                let keys = std::mem::take(&mut page);
                let missing = self.ask("looking up stored entries", move |storage| {
                    let held = storage.held(&keys)?;
                    let missing = keys.iter().zip(held).filter(|(_, held)| held.is_none());
                    Ok(missing
                        .map(|(key, _)| key.clone())
                        .take(MOST_SUSPECTS + 1)
                        .collect::<Vec<_>>())
                });
                let Some(missing) = missing.await? else { return Ok(Compared::Stopped) };
                suspects.extend(missing);
            }
            if is_last {
                break;
            }
        }
        let listed = Arc::new(listed);
        let gone = self.ask("looking up stored entries", move |storage| {
            let mut gone = Vec::new();
            storage.for_each_key(&mut |key, _| {
                if gone.len() <= MOST_SUSPECTS && !listed.contains(key) {
                    gone.push(key.clone());
                }
            })?;
            Ok(gone)
        });
        let Some(gone) = gone.await? else { return Ok(Compared::Stopped) };
        suspects.extend(gone);
        if suspects.len() > MOST_SUSPECTS {
            return Ok(self.differs("keys differ"));
        }
        for key in suspects {
            match self.differs_at(&key, cursor).await? {
                None => return Ok(Compared::Stopped),
                Some(Ok(false)) => {}
                Some(Ok(true)) => return Ok(self.differs("a key differs")),
                Some(Err(error)) => return Ok(self.failed(&error)),
            }
        }
        let keys = figures.as_ref().and_then(|(figures, _)| figures.keys);
        if let (Some((figures, held)), Some(keys)) = (figures, keys) {
            // The others are tombstones, and entries that no watch delivers.
            self.comparison.tally = Tally::resume(keys.checked_sub(held));
            self.comparison.agreed = Some(figures);
        }
        Ok(Compared::Same)
    }

    /// Returns true if the held entry of a key differs from the leader's, which is not about to
    /// supersede it.
    async fn differs_at(
        &self,
        key: &Key,
        cursor: Option<WatchCursor>,
    ) -> Result<Option<Result<bool, KvError>>, ReplicaError> {
        let entry = match self.until_stopped(self.store.leader_entry(key)).await {
            None => return Ok(None),
            Some(Ok(entry)) => entry,
            Some(Err(error)) => return Ok(Some(Err(error))),
        };
        let asked = [key.clone()];
        let held =
            self.ask("looking up stored entries", move |storage| storage.held(&asked)).await?;
        let Some(held) = held.map(|held| held.first().copied().flatten()) else { return Ok(None) };
        let position = cursor.map_or(0, |cursor| cursor.position());
        let is_coming = |number: u64| number > position;
        Ok(Some(Ok(match entry {
            Some(entry) if entry.version.as_u64().is_some_and(is_coming) => false,
            Some(entry) if !entry.is_tombstone() => {
                held != Some(StoredVersion::new(entry.version, entry.created))
            }
            Some(_) | None => held.is_some(),
        })))
    }

    fn differs(&mut self, why: &'static str) -> Compared {
        tracing::warn!(store = self.store.name(), why, "a replica differs from its store");
        self.comparison.found();
        Compared::Differs
    }

    fn failed(&mut self, error: &KvError) -> Compared {
        tracing::debug!(store = self.store.name(), %error, "a replica cannot be compared with its store for now");
        // A failed listing has no result, so the next attempt may list again.
        self.comparison.not_before = Instant::now();
        self.context.progress.send_if_modified(|progress| {
            let reported = progress.comparison_error.as_ref().map(ToString::to_string);
            let is_new = reported != Some(error.to_string());
            progress.comparison_error = Some(Arc::new(error.clone()));
            is_new
        });
        if !error.is_retryable() {
            // A denied request is repeated at the usual interval.
            return Compared::Unknown;
        }
        self.comparison.failures = self.comparison.failures.saturating_add(1);
        Compared::Failed
    }

    /// Returns the time of the next attempt after this result. Returns `None` if no other attempt
    /// follows.
    pub(super) fn next_attempt(&self, compared: Compared) -> Option<Instant> {
        let pause = match compared {
            Compared::Soon => SOON,
            Compared::Failed => {
                let factor = 1 << self.comparison.failures.saturating_sub(1).min(6);
                (SOON * factor).min(self.comparison.interval)
            }
            _ => self.comparison.interval,
        };
        // An instant that the clock cannot express never comes.
        Instant::now().checked_add(pause)
    }

    /// Returns the result of a future. Returns `None` if the replica is stopped before.
    pub(super) async fn until_stopped<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.context.stop.cancelled() => None,
            result = future => Some(result),
        }
    }
}
