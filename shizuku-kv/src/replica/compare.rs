//! Comparison of a replica with its store, for entries that left the store without a message (ADR 0048).
//!
//! Most comparisons are one look at the store's figures, which agree with what the replica has. If they do not, the keys
//! are listed; only if one of them is missing on either side the state is taken anew.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::collect::Collector;
use super::course;
use super::run::Driver;
use super::tally::Tally;
use super::{Held, ReplicaError, ReplicaStorage};
use crate::store::{Course, Doubt, Key, KeySet, KvError, Recent, StoreFigures, WatchCursor, WatchScope};

/// Pause before another look where the first one was overtaken by changes, or failed.
const SOON: Duration = Duration::from_secs(1);

/// Number of looks that may be overtaken before the keys are listed.
const LOOKS: u32 = 3;

/// Number of listed keys that are looked up in the storage at a time.
const PAGE: usize = 1024;

/// Number of keys, missing on one side, that are looked up one by one.
const MOST_SUSPECTS: usize = 64;

/// After listings that found nothing the next one waits for up to this many intervals.
const LONGEST_PAUSE: u32 = 16;

/// What follows from a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compared {
    /// The replica has what the store has.
    Same,
    /// It is not known, and not worth another listing yet.
    Unknown,
    /// It is compared when the position is reached that the collector waits for.
    Waits,
    /// Another look is due soon.
    Soon,
    /// The state has to be taken anew.
    Differs,
    Stopped,
}

/// State of the comparisons of one run.
#[derive(Debug)]
pub(super) struct Comparison {
    pub(super) interval: Duration,
    pub(super) tally: Tally,
    /// Where the replica was when it lost touch with the store; none once the store is known to be the same.
    pub(super) doubt: Option<Doubt>,
    /// What came from the watches of this run.
    pub(super) recent: Recent,
    /// The doubt is of an earlier run: what was delivered has to be looked up in the storage.
    unread: bool,
    /// A look whose position has not been reached.
    asked: Option<StoreFigures>,
    /// The figures that agreed last.
    agreed: Option<StoreFigures>,
    looks: u32,
    /// The next listing is not made before.
    not_before: Instant,
    pause: Duration,
}

impl Comparison {
    pub(super) fn new(interval: Duration) -> Self {
        Self {
            interval,
            tally: Tally::default(),
            doubt: None,
            recent: Recent::default(),
            unread: false,
            asked: None,
            agreed: None,
            looks: 0,
            not_before: Instant::now(),
            pause: interval,
        }
    }

    /// A place from before this run is gone on from.
    pub(super) fn resume(&mut self, cursor: WatchCursor, tombstones: Option<u64>) {
        self.tally = Tally::resume(tombstones);
        self.unread = true;
        self.doubt = Some(Doubt { cursor, recent: Recent::default() });
    }

    /// The state is taken from its beginning.
    pub(super) fn afresh(&mut self) {
        self.tally = Tally::afresh();
        (self.doubt, self.asked, self.agreed) = (None, None, None);
        (self.recent, self.unread) = (Recent::default(), false);
    }

    /// Whether the keys may be listed now. If so, the next listing waits longer, unless this one finds something.
    fn may_list(&mut self) -> bool {
        let now = Instant::now();
        if now < self.not_before {
            return false;
        }
        self.not_before = now.checked_add(self.pause).unwrap_or(now);
        self.pause = self.pause.saturating_mul(2).min(self.interval.saturating_mul(LONGEST_PAUSE));
        true
    }

    fn found(&mut self) {
        self.pause = self.interval;
        self.not_before = Instant::now();
    }
}

impl<S: ReplicaStorage> Driver<'_, S> {
    /// Compares. What has been collected is applied and kept.
    pub(super) async fn compare(&mut self, collector: &mut Collector<'_>) -> Result<Compared, ReplicaError> {
        // One that was asked for before stands for another position.
        self.comparison.asked = None;
        let figures = match self.until_stopped(self.store.figures(self.scope)).await {
            None => return Ok(Compared::Stopped),
            Some(Ok(figures)) => figures,
            Some(Err(KvError::Unsupported { .. })) => return self.list(collector.cursor, None).await,
            Some(Err(error)) => return Ok(self.failed(&error)),
        };
        let Some(cursor) = collector.cursor else { return Ok(Compared::Soon) };
        if figures.keys.is_none() {
            self.comparison.doubt = None;
            return Ok(Compared::Same);
        }
        let is_short = *self.scope == WatchScope::All && figures.newest < cursor.position();
        if figures.incarnation != *cursor.incarnation() || is_short {
            return Ok(self.differs("the store has lost what it had delivered"));
        }
        match self.is_same_store().await? {
            Compared::Same => {}
            other => return Ok(other),
        }
        if collector.wait_for(figures.newest) {
            return self.judge(collector.cursor, figures).await;
        }
        self.comparison.asked = Some(figures);
        Ok(Compared::Waits)
    }

    /// Goes on with a comparison whose position has been reached.
    pub(super) async fn reached(&mut self, collector: &mut Collector<'_>) -> Result<Compared, ReplicaError> {
        match self.comparison.asked.take() {
            Some(figures) => self.judge(collector.cursor, figures).await,
            None => Ok(Compared::Same),
        }
    }

    /// Compares with figures of the position to which everything has been applied and kept.
    async fn judge(
        &mut self,
        cursor: Option<WatchCursor>,
        figures: StoreFigures,
    ) -> Result<Compared, ReplicaError> {
        let Some(held) = self.ask("counting what is held", |storage| storage.len()).await? else {
            return Ok(Compared::Stopped);
        };
        let keys = figures.keys.unwrap_or_default();
        let tombstones = self.comparison.tally.tombstones();
        let is_there = cursor.is_some_and(|cursor| cursor.position() >= figures.newest);
        if is_there && course::agrees(held, tombstones, keys) {
            let is_unchanged = || self.comparison.agreed.as_ref() == Some(&figures);
            let is_proven = !figures.reverts || (figures.entries.is_some() && is_unchanged());
            if is_proven {
                self.comparison.looks = 0;
                self.comparison.agreed = Some(figures);
                return Ok(Compared::Same);
            }
            // Keys alone do not tell whether one of them has an older value.
            if !self.comparison.may_list() {
                return Ok(Compared::Unknown);
            }
            let found = self.read_again(figures).await?;
            return Ok(found);
        }
        // A key whose first value was superseded before its turn is counted and has not come.
        let is_overtaken = tombstones.is_some_and(|tombstones| held.saturating_add(tombstones) < keys);
        if is_there && is_overtaken && self.comparison.looks + 1 < LOOKS {
            self.comparison.looks += 1;
            return Ok(Compared::Soon);
        }
        self.comparison.looks = 0;
        self.list(cursor, Some((figures, held))).await
    }

    /// An entry may have given way to an older one of its key: all that are held are looked up.
    async fn read_again(&mut self, figures: StoreFigures) -> Result<Compared, ReplicaError> {
        let mut scan = self.store.scan(self.scope.clone());
        let mut entries = Vec::with_capacity(PAGE);
        loop {
            let next = match self.until_stopped(scan.next()).await {
                None => return Ok(Compared::Stopped),
                Some(Some(Err(error))) => return Ok(self.failed(&error)),
                Some(Some(Ok(entry))) => Some((entry.key, Held::new(entry.version, entry.created))),
                Some(None) => None,
            };
            let is_last = next.is_none();
            entries.extend(next);
            if entries.len() < PAGE && !is_last {
                continue;
            }
            let page = Arc::new(std::mem::take(&mut entries));
            let keys = Arc::clone(&page);
            let older = self.ask("looking up what is held", move |storage| {
                let asked = keys.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
                let held = storage.held(&asked)?;
                Ok(held.iter().zip(keys.iter()).any(|(held, (_, found))| {
                    held.is_some_and(|held| held != *found && held.version.as_u64() >= found.version.as_u64())
                }))
            });
            match older.await? {
                None => return Ok(Compared::Stopped),
                Some(true) => return Ok(self.differs("an older value is the newest of its key again")),
                Some(false) => {}
            }
            if is_last {
                self.comparison.agreed = Some(figures);
                return Ok(Compared::Same);
            }
        }
    }

    /// Whether the store is the one that was followed before the replica lost touch with it.
    async fn is_same_store(&mut self) -> Result<Compared, ReplicaError> {
        let Some(mut doubt) = self.comparison.doubt.clone() else { return Ok(Compared::Same) };
        if self.comparison.unread {
            // Of an earlier run nothing is known but what is held.
            let position = doubt.cursor.position();
            let recent = self.ask("looking up what is held", move |storage| {
                let mut failed = Ok(());
                let mut visit_all = |visit: &mut dyn FnMut(&Key, _, _)| {
                    failed = storage.for_each_key(&mut |key, held| visit(key, held.version, held.created));
                };
                let recent = Recent::of_held(&mut visit_all, position);
                failed.map(|()| recent)
            });
            let Some(recent) = recent.await? else { return Ok(Compared::Stopped) };
            doubt.recent = recent;
            self.comparison.unread = false;
            self.comparison.doubt = Some(doubt.clone());
        }
        let course = match self.until_stopped(doubt.resolve(self.store, self.scope)).await {
            None => return Ok(Compared::Stopped),
            Some(Ok(course)) => course,
            Some(Err(error)) => return Ok(self.failed(&error)),
        };
        match course {
            Course::Other => return Ok(self.differs("the store is an older copy")),
            Course::Untold => {
                return Ok(self.differs("nothing is left to tell whether the store is an older copy"));
            }
            // What was written while the replica was away comes from the place on, and is no reason to read all.
            Course::Unremembered | Course::Same => self.comparison.doubt = None,
        }
        Ok(Compared::Same)
    }

    /// Lists the keys, and compares them with those that are held. With figures, and how many keys were held at their
    /// position, the difference is known from then on.
    async fn list(
        &mut self,
        cursor: Option<WatchCursor>,
        figures: Option<(StoreFigures, u64)>,
    ) -> Result<Compared, ReplicaError> {
        if !self.comparison.may_list() {
            return Ok(Compared::Unknown);
        }
        tracing::debug!(store = self.store.name(), "a replica compares its keys with the store's");
        let mut listing = self.store.keys(self.scope.clone());
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
                let missing = self.ask("looking up what is held", move |storage| {
                    let held = storage.held(&keys)?;
                    let missing = keys.iter().zip(held).filter(|(_, held)| held.is_none());
                    Ok(missing.map(|(key, _)| key.clone()).take(MOST_SUSPECTS + 1).collect::<Vec<_>>())
                });
                let Some(missing) = missing.await? else { return Ok(Compared::Stopped) };
                suspects.extend(missing);
            }
            if is_last {
                break;
            }
        }
        let listed = Arc::new(listed);
        let gone = self.ask("looking up what is held", move |storage| {
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
            // The others are tombstones, and what no watch delivers.
            self.comparison.tally = Tally::resume(keys.checked_sub(held));
            self.comparison.agreed = Some(figures);
        }
        Ok(Compared::Same)
    }

    /// Whether what is held of a key is neither what the leader has nor about to be superseded by it.
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
        let held = self.ask("looking up what is held", move |storage| storage.held(&asked)).await?;
        let Some(held) = held.map(|held| held.first().copied().flatten()) else { return Ok(None) };
        let position = cursor.map_or(0, |cursor| cursor.position());
        let is_coming = |number: u64| number > position;
        Ok(Some(Ok(match entry {
            Some(entry) if entry.version.as_u64().is_some_and(is_coming) => false,
            Some(entry) if !entry.is_tombstone() => held != Some(Held::new(entry.version, entry.created)),
            Some(_) | None => held.is_some(),
        })))
    }

    fn differs(&mut self, why: &'static str) -> Compared {
        tracing::warn!(store = self.store.name(), why, "a replica differs from its store");
        self.comparison.found();
        Compared::Differs
    }

    fn failed(&self, error: &KvError) -> Compared {
        tracing::debug!(store = self.store.name(), %error, "a replica cannot be compared with its store for now");
        // What is not allowed is not asked for every second.
        if error.is_retryable() { Compared::Soon } else { Compared::Unknown }
    }

    /// The moment of the next look after this result; none where there is no other.
    pub(super) fn next_look(&self, compared: Compared) -> Option<Instant> {
        let pause = if compared == Compared::Soon { SOON } else { self.comparison.interval };
        // A moment that the clock cannot express never comes.
        Instant::now().checked_add(pause)
    }

    /// The result of a future, unless the replica is stopped before.
    async fn until_stopped<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.tools.stop.cancelled() => None,
            result = future => Some(result),
        }
    }
}
