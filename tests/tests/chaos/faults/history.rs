//! The writes, and their outcomes as the writers know them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shizuku_kv::KvError;

use crate::journal::{Clock, Journal, Line};

pub(crate) type Key = Arc<str>;

/// The effect of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Stores a value. Counters count in it.
    Put {
        count: u64,
    },
    /// Stores a value that expires.
    Lease,
    Delete,
    Purge,
}

impl Kind {
    pub(crate) fn is_deletion(self) -> bool {
        matches!(self, Self::Delete | Self::Purge)
    }
}

/// The outcome of a write, as its writer knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// It took effect with this version.
    Acknowledged(u64),
    /// It did not take effect.
    Refused,
    /// The outcome cannot be known.
    Unknown,
}

#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) key: Key,
    pub(crate) kind: Kind,
    /// Time before it was sent, since the run began.
    pub(crate) began: Duration,
    /// Time after the answer.
    pub(crate) ended: Duration,
    pub(crate) outcome: Outcome,
}

/// All writes of a bucket. The index of a write identifies it.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) writes: Vec<Write>,
}

impl History {
    pub(crate) fn of<'h>(&'h self, key: &'h str) -> impl Iterator<Item = (usize, &'h Write)> {
        self.writes.iter().enumerate().filter(move |(_, write)| &*write.key == key)
    }

    /// Returns the number of writes whose outcome satisfies a rule.
    pub(crate) fn count(&self, rule: impl Fn(Outcome) -> bool) -> u64 {
        self.writes.iter().filter(|write| rule(write.outcome)).count() as u64
    }
}

/// The history while several writers record it.
#[derive(Debug)]
pub(crate) struct Ledger {
    clock: Clock,
    /// The number of the first write.
    first: usize,
    /// The name of the store, and a journal for another process.
    journal: Option<(String, Journal)>,
    open: Mutex<Open>,
    /// Answers that no fault explains.
    oddities: Mutex<Vec<String>>,
    oddities_left_out: AtomicU64,
}

#[derive(Debug, Default)]
struct Open {
    history: History,
    /// Newest acknowledged version of each key.
    newest: HashMap<Key, u64>,
    /// Time at which the newest acknowledged write of each group began.
    groups: HashMap<String, Duration>,
}

impl Ledger {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            first: 0,
            journal: None,
            open: Mutex::default(),
            oddities: Mutex::default(),
            oddities_left_out: AtomicU64::new(0),
        }
    }

    /// Returns a ledger that copies everything to a journal. Its writes have numbers from `first`.
    pub(crate) fn journaled(clock: Clock, store: &str, journal: &Journal, first: usize) -> Self {
        let journal = Some((store.to_owned(), journal.clone()));
        Self { first, journal, ..Self::new(clock) }
    }

    fn journal(&self, line: impl FnOnce(String) -> Line) {
        if let Some((store, journal)) = &self.journal {
            journal.note(&line(store.clone()));
        }
    }

    /// Records a write before it is sent, and returns its number.
    pub(crate) fn begin(&self, key: &str, kind: Kind) -> usize {
        let began = self.clock.elapsed();
        let mut open = self.open.lock().unwrap();
        let write =
            Write { key: key.into(), kind, began, ended: Duration::MAX, outcome: Outcome::Unknown };
        open.history.writes.push(write);
        let write = self.first + open.history.writes.len() - 1;
        drop(open);
        let key = key.to_owned();
        self.journal(|store| Line::Begin { store, write, key, kind, at: began });
        write
    }

    /// Records the answer, and returns the version if the write was acknowledged.
    pub(crate) fn end(
        &self,
        write: usize,
        answer: Result<shizuku_kv::VersionToken, KvError>,
    ) -> Option<u64> {
        let ended = self.clock.elapsed();
        let outcome = match answer {
            Ok(version) => Outcome::Acknowledged(version.as_u64().expect("a number")),
            Err(error) => {
                let outcome = told(&error);
                outcome.unwrap_or_else(|| {
                    self.odd(format!("write {write} was answered {error}"));
                    Outcome::Unknown
                })
            }
        };
        self.journal(|store| Line::End { store, write, outcome, at: ended });
        let mut open = self.open.lock().unwrap();
        let write = &mut open.history.writes[write - self.first];
        (write.ended, write.outcome) = (ended, outcome);
        let Outcome::Acknowledged(version) = outcome else { return None };
        let (key, began) = (Arc::clone(&write.key), write.began);
        let group = key.split('.').next().expect("a group").to_owned();
        let newest = open.newest.entry(key).or_default();
        *newest = version.max(*newest);
        let latest = open.groups.entry(group).or_default();
        *latest = began.max(*latest);
        Some(version)
    }

    pub(crate) fn odd(&self, what: String) {
        self.journal(|_| Line::Odd(what.clone()));
        let mut oddities = self.oddities.lock().unwrap();
        if oddities.len() < 20 {
            oddities.push(format!("at {:.3?}: {what}", self.clock.elapsed()));
        } else {
            self.oddities_left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn oddities(&self) -> Vec<String> {
        let mut oddities = self.oddities.lock().unwrap().clone();
        let left_out = self.oddities_left_out.load(Ordering::Relaxed);
        if left_out > 0 {
            oddities.push(format!("and {left_out} more of these"));
        }
        oddities
    }

    /// Returns the newest acknowledged version of each key.
    pub(crate) fn newest(&self) -> HashMap<Key, u64> {
        self.open.lock().unwrap().newest.clone()
    }

    /// Returns true if each group of keys has an acknowledged write that began after this moment.
    pub(crate) fn all_groups_written_since(&self, moment: Duration) -> bool {
        self.open
            .lock()
            .unwrap()
            .groups
            .iter()
            .all(|(group, began)| group == "anchor" || *began > moment)
    }

    pub(crate) fn history(&self) -> History {
        self.open.lock().unwrap().history.clone()
    }
}

/// Returns the outcome that an error implies. Returns `None` for an error that faults do not
/// explain.
fn told(error: &KvError) -> Option<Outcome> {
    match error {
        KvError::OutcomeUnknown { .. } => Some(Outcome::Unknown),
        KvError::Timeout { .. }
        | KvError::Unavailable { .. }
        | KvError::RevisionMismatch { .. }
        | KvError::AlreadyExists { .. } => Some(Outcome::Refused),
        _ => None,
    }
}
