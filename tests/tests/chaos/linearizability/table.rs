//! The keys that clients share, each for a few operations, because the time of a search grows
//! exponentially with their number.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::journal::{Clock, Journal, Line};
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
    clock: Clock,
    most: usize,
    history: Mutex<History>,
    journal: Option<Journal>,
}

impl Sheet {
    pub(crate) fn begin(&self, client: usize, operation: Operation) -> usize {
        let at = self.clock.elapsed();
        if let Some(journal) = &self.journal {
            journal.note(&Line::Call { key: self.key.clone(), client, operation, at });
        }
        self.lock().begin(client, operation, at)
    }

    pub(crate) fn end(&self, call: usize, end: End) {
        let (at, mut history) = (self.clock.elapsed(), self.lock());
        if let Some(journal) = &self.journal {
            let (key, client) = (self.key.clone(), history.calls[call].client);
            journal.note(&Line::Answer { key, client, end, at });
        }
        history.end(call, end, at);
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
pub(crate) struct Table {
    keys: Mutex<Keys>,
    /// The journal of a process. The keys of all processes then change at the same times.
    journal: Option<Journal>,
}

/// Time after which processes use other keys, and number of operations of each on one of them.
const TURN: Duration = Duration::from_millis(250);
const SHARE: usize = 12;

#[derive(Debug)]
struct Keys {
    clock: Clock,
    random: Random,
    current: Vec<Arc<Sheet>>,
    all: Vec<Arc<Sheet>>,
}

impl Table {
    pub(crate) fn new(clock: Clock, random: Random) -> Self {
        let keys = Keys { clock, random, current: Vec::new(), all: Vec::new() };
        let table = Self { keys: Mutex::new(keys), journal: None };
        table.turn();
        table
    }

    /// Returns the keys that a process shares with others.
    pub(crate) fn shared(clock: Clock, random: Random, journal: &Journal) -> Self {
        Self { journal: Some(journal.clone()), ..Self::new(clock, random) }
    }

    pub(crate) fn journal(&self, line: impl FnOnce() -> Line) {
        if let Some(journal) = &self.journal {
            journal.note(&line());
        }
    }

    /// Returns the key at a slot, which is a new one after a number of operations. Returns `None`
    /// if the process has a journal and has used up its share of operations on this key.
    pub(crate) fn at(&self, slot: usize) -> Option<Arc<Sheet>> {
        let mut keys = self.lock();
        if let Some(journal) = &self.journal {
            let turn = keys.clock.elapsed().as_nanos() / TURN.as_nanos();
            let key = format!("register.{turn}.{slot}");
            if keys.current[slot].key != key {
                let (clock, history) = (keys.clock, Mutex::default());
                let journal = Some(journal.clone());
                keys.current[slot] = Arc::new(Sheet { key, clock, most: SHARE, history, journal });
            }
            return Some(&keys.current[slot]).filter(|sheet| !sheet.is_full()).cloned();
        }
        if keys.current[slot].is_full() {
            keys.current[slot] = keys.sheet();
        }
        Some(Arc::clone(&keys.current[slot]))
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
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keys {
    fn sheet(&mut self) -> Arc<Sheet> {
        let most = FEWEST + self.random.below(MOST - FEWEST + 1);
        let sheet = Arc::new(Sheet {
            key: format!("register.{}", self.all.len()),
            clock: self.clock,
            most: usize::try_from(most).expect("a small number"),
            history: Mutex::default(),
            journal: None,
        });
        self.all.push(Arc::clone(&sheet));
        sheet
    }
}
