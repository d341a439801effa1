//! Comparison of a live map with its store, for entries that left the store without a message (ADR
//! 0048).
//!
//! The map applies updates while a request of the comparison is in flight.

use std::time::Duration;

use futures_core::future::BoxFuture;
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
pub(super) struct Comparison {
    interval: Duration,
    live: KeySet,
    tombstones: KeySet,
    cursor: Option<WatchCursor>,
    recent: Recent,
    unverified: Option<UnverifiedPosition>,
    due: Option<Instant>,
    request: Option<Request>,
    /// Number of failed requests since the last one that succeeded.
    failures: u32,
    /// Requested figures whose position has not been reached, and the end of the wait for it.
    asked: Option<(StoreFigures, Instant)>,
    agreed: Option<StoreFigures>,
    attempts: u32,
    /// The store is not read again before this moment.
    not_before: Instant,
    pause: Duration,
}

/// A request to the store, which is in flight.
struct Request {
    answer: BoxFuture<'static, KvResult<Answer>>,
    /// The position that the request verifies.
    unverified: Option<UnverifiedPosition>,
    /// The positions of the keys that the map did not know before the request, in their order.
    new_keys: Vec<u64>,
}

enum Answer {
    /// The map agrees with the store, or cannot be compared with it.
    Same,
    Differs,
    /// The store is the one that the map knew. The figures are of a position.
    Figures(StoreFigures),
    /// The store is the one that the map knew. The keys of the scope can only be listed.
    Uncountable,
    /// The keys were listed.
    Listed {
        differs: bool,
    },
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
            request: None,
            failures: 0,
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
        self.request = None;
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
        let known = self.keys();
        if entry.is_tombstone() {
            self.live.remove(&entry.key);
            self.tombstones.insert(&entry.key);
        } else {
            self.tombstones.remove(&entry.key);
            self.live.insert(&entry.key);
        }
        if self.keys() > known
            && let Some(request) = &mut self.request
        {
            request.new_keys.push(cursor.map_or(0, |cursor| cursor.position()));
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

    /// Compares the map at the due times, until the store is to be read again.
    ///
    /// Cancel safe: a request stays in flight.
    pub(super) async fn differs(&mut self, store: &Store, scope: &WatchScope) {
        loop {
            let verdict = if let Some(request) = &mut self.request {
                let answer = request.answer.as_mut().await;
                self.answered(answer, store, scope)
            } else {
                sleep_until(self.asked.as_ref().map_or(self.due, |(_, until)| Some(*until))).await;
                match self.asked.take() {
                    // The change at that position does not arrive.
                    Some(_) => self.may_read(),
                    None => self.request_figures(store, scope),
                }
            };
            if verdict == Verdict::Differs {
                return;
            }
        }
    }

    /// Requests the figures.
    fn request_figures(&mut self, store: &Store, scope: &WatchScope) -> Verdict {
        self.due = Instant::now().checked_add(self.interval);
        // A loss of the connection during the request makes the position unverified again.
        let unverified = self.unverified.take();
        let answer = figures(store.clone(), scope.clone(), self.cursor, unverified.clone());
        self.request(unverified, answer)
    }

    fn request(
        &mut self,
        unverified: Option<UnverifiedPosition>,
        answer: impl Future<Output = KvResult<Answer>> + Send + 'static,
    ) -> Verdict {
        let answer = Box::pin(answer);
        self.request = Some(Request { answer, unverified, new_keys: Vec::new() });
        Verdict::Same
    }

    fn answered(&mut self, answer: KvResult<Answer>, store: &Store, scope: &WatchScope) -> Verdict {
        let Some(Request { unverified, new_keys, .. }) = self.request.take() else {
            return Verdict::Same;
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                let store = store.name();
                tracing::debug!(store, %error, "a live map cannot be compared for now");
                self.unverified = unverified.or(self.unverified.take());
                if error.is_retryable() {
                    let pause = SOON * (1 << self.failures.min(6));
                    self.failures = self.failures.saturating_add(1);
                    self.due = Some(Instant::now() + pause.min(self.interval));
                }
                return Verdict::Same;
            }
        };
        self.failures = 0;
        match answer {
            Answer::Same => Verdict::Same,
            Answer::Differs => Verdict::Differs,
            Answer::Figures(figures) if self.has_reached(figures.newest) => {
                // The keys behind the position of the figures are not counted.
                let counted = new_keys.partition_point(|position| *position <= figures.newest);
                let later = (new_keys.len() - counted) as u64;
                self.judge(figures, self.keys() - later)
            }
            Answer::Figures(figures) => {
                self.asked = Some((figures, Instant::now() + PATIENCE));
                Verdict::Same
            }
            Answer::Uncountable => match self.may_read() {
                Verdict::Same => Verdict::Same,
                Verdict::Differs => {
                    self.request(None, list(store.clone(), scope.clone(), self.live.clone()))
                }
            },
            Answer::Listed { differs: false } => {
                self.attempts = 0;
                Verdict::Same
            }
            Answer::Listed { differs: true } => self.listed_difference(),
        }
    }

    fn has_reached(&self, position: u64) -> bool {
        self.cursor.is_some_and(|cursor| cursor.position() >= position)
    }

    /// Compares if the wait for a position ends, before an update behind it is applied.
    pub(super) fn before(&mut self, position: u64) -> Verdict {
        match self.asked.take_if(|(figures, _)| figures.newest < position) {
            Some((figures, _)) => self.judge(figures, self.keys()),
            None => Verdict::Same,
        }
    }

    /// Compares if the wait for a position ends, after an update was applied.
    pub(super) fn after(&mut self) -> Verdict {
        let position = self.cursor.map_or(0, |cursor| cursor.position());
        match self.asked.take_if(|(figures, _)| figures.newest <= position) {
            Some((figures, _)) => self.judge(figures, self.keys()),
            None => Verdict::Same,
        }
    }

    /// Compares the figures of a position with the number of keys that were known there.
    fn judge(&mut self, figures: StoreFigures, known: u64) -> Verdict {
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

    fn listed_difference(&mut self) -> Verdict {
        // A key that changes frequently may have changed meanwhile.
        if self.attempts + 1 < ATTEMPTS {
            self.attempts += 1;
            self.not_before = Instant::now();
            self.due = Some(Instant::now() + SOON);
            return Verdict::Same;
        }
        self.attempts = 0;
        Verdict::Differs
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

/// Requests the figures, and verifies that the store is the one that the map knew.
async fn figures(
    store: Store,
    scope: WatchScope,
    cursor: Option<WatchCursor>,
    unverified: Option<UnverifiedPosition>,
) -> KvResult<Answer> {
    let figures = match store.figures(&scope).await {
        Err(KvError::Unsupported { .. }) => None,
        figures => Some(figures?),
    };
    if let Some(figures) = &figures {
        let Some(cursor) = cursor else { return Ok(Answer::Same) };
        if figures.keys.is_none() {
            return Ok(Answer::Same);
        }
        let is_short = scope == WatchScope::All && figures.newest < cursor.position();
        if is_short || figures.incarnation != *cursor.incarnation() {
            return Ok(Answer::Differs);
        }
    }
    if let Some(unverified) = unverified {
        match unverified.verify(&store, &scope).await? {
            Verification::Other | Verification::Unproven => return Ok(Answer::Differs),
            Verification::Same | Verification::Unremembered => {}
        }
    }
    Ok(figures.map_or(Answer::Uncountable, Answer::Figures))
}

/// Lists the keys of a scope that the backend cannot count. `live` are the known keys when the
/// request began.
async fn list(store: Store, scope: WatchScope, live: KeySet) -> KvResult<Answer> {
    let keys = store.keys(scope);
    let (mut count, mut differs) = (0, false);
    while let Some(key) = keys.next().await {
        count += 1;
        differs |= !live.contains(&key?);
    }
    Ok(Answer::Listed { differs: differs || count != live.len() })
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
