//! A client that reads, creates, swaps and deletes, and records the answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use shizuku_kv::{KvEntry, KvError, Store, VersionToken};
use shizuku_kv_tests::Random;
use tokio::sync::watch;

use crate::journal::Line;
use crate::linearizability::history::End;
use crate::linearizability::register::{Answer, Known, Operation};
use crate::linearizability::table::{SLOTS, Sheet, Table};

/// Deadlines of operations, by client. With the short one many end during a fault, and with the
/// long one some outlive an election.
const DEADLINES: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(10)];

/// The shared state of the clients of a run.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) table: Table,
    /// Number of the next write, which is its value.
    pub(crate) next_write: AtomicUsize,
    /// Answers that no fault explains.
    pub(crate) oddities: std::sync::Mutex<Vec<String>>,
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) number: usize,
    pub(crate) store: Store,
    pub(crate) random: Random,
    pub(crate) common: Arc<Common>,
    /// The last known entry of the key at each slot, with the key.
    known: [Option<(String, Seen)>; SLOTS],
}

/// A client's knowledge of a key.
#[derive(Clone, Copy, Debug)]
enum Seen {
    Nothing,
    Lives(Known),
    Tombstone(Known),
    /// It was that, or absent, and is something else by now.
    Outdated(Option<Known>),
}

impl Client {
    pub(crate) fn new(number: usize, store: &Store, random: Random, common: &Arc<Common>) -> Self {
        let store = store.with_deadline(DEADLINES[number % DEADLINES.len()]);
        Self { number, store, random, common: Arc::clone(common), known: [const { None }; SLOTS] }
    }

    /// Runs until it is stopped.
    pub(crate) async fn run(mut self, over: watch::Receiver<bool>) {
        while !*over.borrow() {
            self.once().await;
            // The random pause keeps clients out of step, so that every order happens.
            tokio::time::sleep(Duration::from_micros(self.random.below(1000))).await;
        }
    }

    async fn once(&mut self) {
        let slot = usize::try_from(self.random.below(SLOTS as u64)).expect("a small number");
        let Some(sheet) = self.common.table.at(slot) else { return };
        let known = self.known[slot].take().filter(|(key, _)| *key == sheet.key);
        let seen = known.map_or(Seen::Nothing, |(_, seen)| seen);
        let operation = self.choose(seen);
        let call = sheet.begin(self.number, operation);
        let end = self.perform(&sheet, operation).await;
        sheet.end(call, end);
        self.known[slot] = Some((sheet.key.clone(), learned(seen, operation, end)));
    }

    /// Returns the next operation on a key with this knowledge.
    fn choose(&mut self, seen: Seen) -> Operation {
        let what = self.random.below(10);
        match (seen, what) {
            (_, 0..=1) | (Seen::Outdated(_), 2..=7) => Operation::Read,
            (Seen::Nothing | Seen::Outdated(None), _) | (_, 3) => {
                Operation::Create { write: self.next_write() }
            }
            (Seen::Lives(expected), 4) => Operation::Delete { expected, write: self.next_write() },
            (Seen::Tombstone(_), 5..=7) => Operation::Create { write: self.next_write() },
            (
                Seen::Lives(expected) | Seen::Tombstone(expected) | Seen::Outdated(Some(expected)),
                _,
            ) => Operation::Swap { expected, write: self.next_write() },
        }
    }

    fn next_write(&self) -> usize {
        self.common.next_write.fetch_add(1, Ordering::Relaxed)
    }

    async fn perform(&self, sheet: &Sheet, operation: Operation) -> End {
        let (store, key) = (&self.store, &sheet.key);
        let value = |write: usize| write.to_string();
        let answer = match operation {
            Operation::Read => return self.read(key).await,
            Operation::Create { write } => store.create(key, value(write)).await,
            Operation::Swap { expected, write } => {
                store.update(key, value(write), token(expected)).await
            }
            Operation::Delete { expected, .. } => {
                store.delete_with_version(key, token(expected)).await
            }
        };
        match answer {
            Ok(version) => End::Told(Answer::Written(version.as_u64().expect("a number"))),
            Err(KvError::AlreadyExists { .. } | KvError::RevisionMismatch { .. }) => {
                End::Told(Answer::Mismatch)
            }
            Err(KvError::Timeout { .. } | KvError::Unavailable { .. }) => End::NotDone,
            Err(KvError::OutcomeUnknown { .. }) => End::Open,
            Err(error) => {
                self.odd(format!("{operation:?} of {key} was answered {error}"));
                End::Open
            }
        }
    }

    async fn read(&self, key: &str) -> End {
        match self.store.get(key).await {
            Ok(found) => match found.as_ref().map(known).transpose() {
                Ok(found) => End::Told(Answer::Found(found)),
                Err(why) => {
                    self.odd(format!("{key} has a value that nobody wrote: {why}"));
                    End::Open
                }
            },
            Err(error) => {
                if !error.is_retryable() {
                    self.odd(format!("reading {key} was answered {error}"));
                }
                End::Open
            }
        }
    }

    fn odd(&self, what: String) {
        self.common.table.journal(|| Line::Odd(what.clone()));
        self.common.oddities.lock().unwrap().push(what);
    }
}

/// Returns a client's knowledge after an operation.
fn learned(seen: Seen, operation: Operation, end: End) -> Seen {
    let version = match end {
        End::Told(Answer::Written(version)) => version,
        End::Told(Answer::Found(found)) => return found.map_or(Seen::Nothing, Seen::Lives),
        End::Told(Answer::Mismatch) => {
            return match seen {
                Seen::Lives(known) | Seen::Tombstone(known) => Seen::Outdated(Some(known)),
                Seen::Nothing => Seen::Outdated(None),
                Seen::Outdated(_) => seen,
            };
        }
        _ => return seen,
    };
    match operation {
        Operation::Create { write } | Operation::Swap { write, .. } => {
            Seen::Lives(Known { version, write })
        }
        Operation::Delete { write, .. } => Seen::Tombstone(Known { version, write }),
        Operation::Read => seen,
    }
}

fn token(known: Known) -> VersionToken {
    VersionToken::from_u64(known.version)
}

fn known(entry: &KvEntry) -> Result<Known, String> {
    let text = std::str::from_utf8(&entry.value).map_err(|error| error.to_string())?;
    let write = text.parse().map_err(|error| format!("{text:?}: {error}"))?;
    Ok(Known { version: entry.version.as_u64().ok_or("a version without a number")?, write })
}
