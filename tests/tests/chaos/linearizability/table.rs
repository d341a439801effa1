//! The keys that clients share, each for a few operations, because the time of a search grows
//! exponentially with their number.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::linearizability::history::{End, History};
use crate::linearizability::register::Operation;
use shizuku_kv_tests::Random;

/// Number of keys in use at a time.
pub(crate) const SLOTS: usize = 3;

/// Minimum and maximum number of operations of a key.
const FEWEST: u64 = 30;
const MOST: u64 = 60;

/// Number of operations with unknown outcome after which a key is not used any more, because each
/// can take effect at any time.
const OPEN: usize = 3;

/// One key, and its history while it grows.
#[derive(Debug)]
pub(crate) struct Sheet {
    pub(crate) key: String,
    start: Instant,
    most: usize,
    history: Mutex<History>,
}

impl Sheet {
    pub(crate) fn begin(&self, client: usize, operation: Operation) -> usize {
        self.lock().begin(client, operation, self.start.elapsed())
    }

    pub(crate) fn end(&self, call: usize, end: End) {
        self.lock().end(call, end, self.start.elapsed());
    }

    pub(crate) fn history(&self) -> History {
        self.lock().clone()
    }

    fn is_full(&self) -> bool {
        let history = self.lock();
        let open = history.count(|call| call.ended.is_some_and(|(_, end)| end == End::Open));
        history.calls.len() >= self.most || open >= OPEN
    }

    fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All keys of a run.
#[derive(Debug)]
pub(crate) struct Table(Mutex<Keys>);

#[derive(Debug)]
struct Keys {
    start: Instant,
    random: Random,
    current: Vec<Arc<Sheet>>,
    all: Vec<Arc<Sheet>>,
}

impl Table {
    pub(crate) fn new(start: Instant, random: Random) -> Self {
        let table = Self(Mutex::new(Keys { start, random, current: Vec::new(), all: Vec::new() }));
        table.turn();
        table
    }

    /// Returns the key at a slot. It is a new one if the last one has had its operations.
    pub(crate) fn at(&self, slot: usize) -> Arc<Sheet> {
        let mut keys = self.lock();
        if keys.current[slot].is_full() {
            keys.current[slot] = keys.sheet();
        }
        Arc::clone(&keys.current[slot])
    }

    /// Puts new keys at all slots.
    pub(crate) fn turn(&self) {
        let mut keys = self.lock();
        keys.current = (0..SLOTS).map(|_| keys.sheet()).collect();
    }

    pub(crate) fn all(&self) -> Vec<Arc<Sheet>> {
        self.lock().all.clone()
    }

    /// Returns the number of acknowledged or rejected operations that began since then.
    pub(crate) fn answered_since(&self, moment: Duration) -> usize {
        let since = |sheet: &Arc<Sheet>| {
            sheet
                .history()
                .count(|call| call.times[0] >= moment && matches!(call.end(), End::Told(_)))
        };
        // Older keys have no new operations.
        self.lock().all.iter().rev().take(SLOTS * 4).map(since).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Keys> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keys {
    fn sheet(&mut self) -> Arc<Sheet> {
        let most = FEWEST + self.random.below(MOST - FEWEST + 1);
        let sheet = Arc::new(Sheet {
            key: format!("register.{}", self.all.len()),
            start: self.start,
            most: usize::try_from(most).expect("a small number"),
            history: Mutex::default(),
        });
        self.all.push(Arc::clone(&sheet));
        sheet
    }
}
