//! Comparison of a live map with its store, for entries that left the store without a message (ADR
//! 0048).

use std::time::Duration;

use tokio::time::Instant;

use crate::store::{
    KeySet, KvEntry, KvError, KvResult, Store, StoreFigures, WatchCursor, WatchScope,
};
use crate::watch::{Recent, UnverifiedPosition, Verification};

/// Pause before another attempt if changes overtook the first one, or if it failed.
const SOON: Duration = Duration::from_secs(1);

/// Maximum number of overtaken attempts before the store is read again.
const ATTEMPTS: u32 = 3;

/// Timeout for reaching a position while no update comes: the change there may have left the store
/// before its turn.
const PATIENCE: Duration = Duration::from_secs(10);

/// Maximum number of intervals before the next reading, after readings without a difference.
const LONGEST_PAUSE: u32 = 16;

/// The known state of the store, to be compared with its figures.
#[derive(Debug)]
pub(super) struct Comparison {
    interval: Duration,
    live: KeySet,
    tombstones: KeySet,
    cursor: Option<WatchCursor>,
    recent: Recent,
    unverified: Option<UnverifiedPosition>,
    due: Option<Instant>,
    /// Requested figures whose position has not been reached, and the end of the wait for it.
    asked: Option<(StoreFigures, Instant)>,
    agreed: Option<StoreFigures>,
    attempts: u32,
    /// The store is not read again before this moment.
    not_before: Instant,
    pause: Duration,
}

/// Result of a comparison of the map with the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Same,
    Differs,
}

impl Comparison {
    pub(super) fn new(interval: Duration) -> Self {
        let now = Instant::now();
        Self {
            interval,
            live: KeySet::default(),
            tombstones: KeySet::default(),
            cursor: None,
            recent: Recent::default(),
            unverified: None,
            // Due at once, because the store may count entries that no watch delivers.
            due: Some(now),
            asked: None,
            agreed: None,
            attempts: 0,
            not_before: now,
            pause: interval,
        }
    }

    /// Starts over, because the store is read from its beginning.
    pub(super) fn start_over(&mut self) {
        self.live = KeySet::default();
        self.tombstones = KeySet::default();
        self.recent = Recent::default();
        (self.cursor, self.unverified, self.asked, self.agreed) = (None, None, None, None);
    }

    /// Resets the pause, because a reading that a comparison requested has found a difference.
    pub(super) fn found(&mut self) {
        self.pause = self.interval;
        self.not_before = Instant::now();
    }

    /// Records an entry that arrived, or the caught-up marker.
    pub(super) fn record(&mut self, entry: Option<&KvEntry>, cursor: Option<WatchCursor>) {
        self.cursor = cursor;
        let Some(entry) = entry else { return };
        self.recent.push(entry);
        if entry.is_tombstone() {
            self.live.remove(&entry.key);
            self.tombstones.insert(&entry.key);
        } else {
            self.tombstones.remove(&entry.key);
            self.live.insert(&entry.key);
        }
        if let Some((_, until)) = &mut self.asked {
            *until = Instant::now() + PATIENCE;
        }
    }

    /// Returns the number of keys whose entry is known, including tombstones.
    pub(super) fn keys(&self) -> u64 {
        self.live.len() + self.tombstones.len()
    }

    /// Records that the watch lost its connection: the next server may have an older copy of the
    /// store.
    pub(super) fn mark_unverified(&mut self) {
        if let (None, Some(cursor)) = (&self.unverified, self.cursor) {
            self.unverified = Some(UnverifiedPosition { cursor, recent: self.recent.clone() });
        }
    }

    /// Returns when the next comparison is due. Returns `None` if it never is.
    pub(super) fn due(&self) -> Option<Instant> {
        self.asked.as_ref().map_or(self.due, |(_, until)| Some(*until))
    }

    /// Reads the figures if they are due.
    pub(super) async fn compare(&mut self, store: &Store, scope: &WatchScope) -> Verdict {
        if let Some((figures, _)) = self.asked.take() {
            // The change at that position does not arrive.
            return self.judge(figures);
        }
        self.due = Instant::now().checked_add(self.interval);
        match self.ask(store, scope).await {
            Ok(verdict) => verdict,
            Err(error) => {
                tracing::debug!(store = store.name(), %error, "a live map cannot be compared for now");
                if error.is_retryable() {
                    self.due = Some(Instant::now() + SOON);
                }
                Verdict::Same
            }
        }
    }

    async fn ask(&mut self, store: &Store, scope: &WatchScope) -> KvResult<Verdict> {
        let figures = match store.figures(scope).await {
            Err(KvError::Unsupported { .. }) => return self.list(store, scope).await,
            figures => figures?,
        };
        let Some(cursor) = self.cursor else { return Ok(Verdict::Same) };
        if figures.keys.is_none() {
            self.unverified = None;
            return Ok(Verdict::Same);
        }
        let is_short = *scope == WatchScope::All && figures.newest < cursor.position();
        if is_short || figures.incarnation != *cursor.incarnation() {
            return Ok(Verdict::Differs);
        }
        if let Some(unverified) = &self.unverified {
            match unverified.verify(store, scope).await? {
                Verification::Other | Verification::Unproven => return Ok(Verdict::Differs),
                Verification::Same | Verification::Unremembered => self.unverified = None,
            }
        }
        if cursor.position() >= figures.newest {
            return Ok(self.judge(figures));
        }
        self.asked = Some((figures, Instant::now() + PATIENCE));
        Ok(Verdict::Same)
    }

    /// Compares if the wait for a position ends, before an update behind it is applied.
    pub(super) fn before(&mut self, position: u64) -> Verdict {
        match self.asked.take_if(|(figures, _)| figures.newest < position) {
            Some((figures, _)) => self.judge_at(figures),
            None => Verdict::Same,
        }
    }

    /// Compares if the wait for a position ends, after an update was applied.
    pub(super) fn after(&mut self) -> Verdict {
        let position = self.cursor.map_or(0, |cursor| cursor.position());
        match self.asked.take_if(|(figures, _)| figures.newest <= position) {
            Some((figures, _)) => self.judge_at(figures),
            None => Verdict::Same,
        }
    }

    fn judge(&mut self, figures: StoreFigures) -> Verdict {
        if self.cursor.is_some_and(|cursor| cursor.position() >= figures.newest) {
            return self.judge_at(figures);
        }
        self.may_read()
    }

    /// Compares with figures of the position up to which every update has been applied.
    fn judge_at(&mut self, figures: StoreFigures) -> Verdict {
        let known = self.keys();
        let keys = figures.keys.unwrap_or_default();
        if known == keys {
            self.attempts = 0;
            let is_proven = !figures.reverts
                || (figures.entries.is_some() && self.agreed.as_ref() == Some(&figures));
            if figures.has_shrunk(self.agreed.as_ref()) {
                // A key may have an older value.
                self.found();
            }
            self.agreed = Some(figures);
            return if is_proven { Verdict::Same } else { self.may_read() };
        }
        // A key whose first value was superseded before its turn is counted and has not arrived.
        if known < keys && self.attempts + 1 < ATTEMPTS {
            self.attempts += 1;
            self.due = Some(Instant::now() + SOON);
            return Verdict::Same;
        }
        self.attempts = 0;
        self.may_read()
    }

    /// Lists the keys of a scope that the backend cannot count.
    async fn list(&mut self, store: &Store, scope: &WatchScope) -> KvResult<Verdict> {
        if self.may_read() == Verdict::Same {
            return Ok(Verdict::Same);
        }
        let keys = store.keys(scope.clone());
        let (mut count, mut differs) = (0, false);
        while let Some(key) = keys.next().await {
            count += 1;
            differs |= !self.live.contains(&key?);
        }
        if !differs && count == self.live.len() {
            return Ok(Verdict::Same);
        }
        // A key that changes frequently may have changed meanwhile.
        if self.attempts + 1 < ATTEMPTS {
            self.attempts += 1;
            self.not_before = Instant::now();
            self.due = Some(Instant::now() + SOON);
            return Ok(Verdict::Same);
        }
        self.attempts = 0;
        Ok(Verdict::Differs)
    }

    /// Returns whether the store is to be read again. The next reading waits longer, unless this
    /// one finds a difference.
    fn may_read(&mut self) -> Verdict {
        let now = Instant::now();
        if now < self.not_before {
            return Verdict::Same;
        }
        self.not_before = now.checked_add(self.pause).unwrap_or(now);
        self.pause = self.pause.saturating_mul(2).min(self.interval.saturating_mul(LONGEST_PAUSE));
        Verdict::Differs
    }
}
