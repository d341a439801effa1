//! Writers of every kind, each of which records its writes and their outcomes.

use std::sync::Arc;
use std::time::Duration;

use shizuku_kv::{KvEntry, KvResult, Store, VersionToken};
use shizuku_kv_tests::Random;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::faults::history::{Kind, Ledger};
use crate::faults::record::Cell;
use crate::faults::world::Phase;

/// Deadline of each write: short, so that there are many during a fault.
pub(crate) const DEADLINE: Duration = Duration::from_secs(2);

/// Number of keys in each group.
pub(crate) const PLAIN: u64 = 8;
pub(crate) const COUNTERS: u64 = 3;
pub(crate) const CHURN: u64 = 8;
pub(crate) const LEASES: u64 = 12;

/// The task of a writer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Task {
    /// Puts values, one or many at a time.
    Plain,
    /// Adds one to the present value, by compare-and-swap.
    Count,
    /// Deletes, purges, creates and swaps.
    Churn,
    /// Puts values that expire.
    Lease,
}

impl Task {
    /// Returns the pause between two writes, so that a history stays small enough to keep.
    fn pace(self) -> Duration {
        Duration::from_millis(match self {
            Self::Plain => 8,
            Self::Count | Self::Churn => 10,
            // Gives each key time to expire.
            Self::Lease => 150,
        })
    }
}

#[derive(Debug)]
pub(crate) struct Writer {
    store: Store,
    ledger: Arc<Ledger>,
    random: Random,
    /// True if leases expire. Otherwise they are only put.
    leases: bool,
}

impl Writer {
    pub(crate) fn new(store: &Store, ledger: &Arc<Ledger>, random: Random) -> Self {
        let store = store.with_deadline(DEADLINE);
        Self { leases: store.ttl().is_some(), store, ledger: Arc::clone(ledger), random }
    }

    /// Replaces the deadline of each write.
    pub(crate) fn deadline(self, deadline: Duration) -> Self {
        Self { store: self.store.with_deadline(deadline), ..self }
    }

    /// Writes until faults end.
    pub(crate) async fn run(mut self, task: Task, phase: watch::Receiver<Phase>) {
        let mut pace = tokio::time::interval(task.pace());
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while *phase.borrow() == Phase::Faults {
            pace.tick().await;
            match task {
                Task::Plain => self.plain().await,
                Task::Count => {
                    let key = format!("count.{}", self.random.below(COUNTERS));
                    self.count(&key).await;
                }
                Task::Churn => self.churn().await,
                Task::Lease => self.lease().await,
            }
        }
    }

    /// Puts a value, and repeats that until it is acknowledged.
    pub(crate) async fn put_for_sure(&mut self, key: &str) {
        while self.put(key).await.is_none() {}
    }

    /// Increments a counter, and repeats that until it is acknowledged.
    pub(crate) async fn count_for_sure(&mut self, key: &str) {
        while self.count(key).await.is_none() {}
    }

    pub(crate) async fn delete_for_sure(&mut self, key: &str) {
        let (write, answer) = (self.ledger.begin(key, Kind::Delete), self.store.delete(key).await);
        if self.ledger.end(write, answer).is_none() {
            Box::pin(self.delete_for_sure(key)).await;
        }
    }

    async fn put(&self, key: &str) -> Option<u64> {
        let (write, value) = self.begin(key, 0);
        let answer = self.store.put(key, value).await;
        self.ledger.end(write, answer)
    }

    /// Records a write with a value.
    fn begin(&self, key: &str, count: u64) -> (usize, bytes::Bytes) {
        let write = self.ledger.begin(key, Kind::Put { count });
        (write, Cell::new(key, write, count).to_json())
    }

    async fn plain(&mut self) {
        if !self.random.once_in(20) {
            let key = format!("plain.{}", self.random.below(PLAIN));
            self.put(&key).await;
            return;
        }
        let mut items = Vec::new();
        let mut writes = Vec::new();
        for number in 0..PLAIN {
            let key = format!("plain.{number}");
            let (write, value) = self.begin(&key, 0);
            writes.push(write);
            items.push((key, value));
        }
        let answers = self.store.put_many(items).await;
        assert_eq!(answers.len(), writes.len(), "an answer for each");
        for (write, answer) in writes.into_iter().zip(answers) {
            self.ledger.end(write, answer);
        }
    }

    async fn count(&self, key: &str) -> Option<u64> {
        let found = self.found(key).await?;
        let Some(entry) = found else {
            let (write, value) = self.begin(key, 1);
            let answer = self.store.create(key, value).await;
            return self.ledger.end(write, answer);
        };
        let cell = Cell::found(key, &entry.value).map_err(|why| self.ledger.odd(why)).ok()?;
        let (write, value) = self.begin(key, cell.count + 1);
        let answer = self.store.update(key, value, entry.version).await;
        self.ledger.end(write, answer)
    }

    /// Returns the present entry, or `None` if it could not be read.
    async fn found(&self, key: &str) -> Option<Option<KvEntry>> {
        match self.store.get(key).await {
            Ok(found) => Some(found),
            Err(error) if error.is_retryable() => None,
            Err(error) => {
                self.ledger.odd(format!("reading {key} was answered {error}"));
                None
            }
        }
    }

    async fn churn(&mut self) {
        let key = format!("churn.{}", self.random.below(CHURN));
        let what = self.random.below(8);
        let expected = match what {
            5.. => match self.found(&key).await.flatten() {
                Some(entry) => Some(entry.version),
                None => return,
            },
            _ => None,
        };
        self.change(&key, what, expected).await;
    }

    async fn change(&self, key: &str, what: u64, expected: Option<VersionToken>) {
        let store = &self.store;
        match (what, expected) {
            (0, _) => self.deletion(key, Kind::Delete, store.delete(key)).await,
            (1, _) => {
                // In a store whose tombstones expire, a purge leaves the tombstone of a deletion.
                let kind = if store.capabilities().key_ttl { Kind::Delete } else { Kind::Purge };
                self.deletion(key, kind, store.purge(key)).await;
            }
            (2 | 3, _) => {
                let (write, value) = self.begin(key, 0);
                let answer = store.create(key, value).await;
                self.ledger.end(write, answer);
            }
            (5, Some(version)) => {
                self.deletion(key, Kind::Delete, store.delete_with_version(key, version)).await;
            }
            (_, Some(version)) => {
                let (write, value) = self.begin(key, 0);
                let answer = store.update(key, value, version).await;
                self.ledger.end(write, answer);
            }
            _ => {
                self.put(key).await;
            }
        }
    }

    async fn deletion(
        &self,
        key: &str,
        kind: Kind,
        deletion: impl Future<Output = KvResult<VersionToken>>,
    ) {
        let write = self.ledger.begin(key, kind);
        let answer = deletion.await;
        self.ledger.end(write, answer);
    }

    async fn lease(&mut self) {
        let key = format!("lease.{}", self.random.below(LEASES));
        let (what, life) = (self.random.below(6), Duration::from_secs(1 + self.random.below(2)));
        self.lease_of(&key, what, life).await;
    }

    pub(crate) async fn lease_of(&self, key: &str, what: u64, life: Duration) {
        let Some(ttl) = self.store.ttl().filter(|_| self.leases) else {
            self.put(key).await;
            return;
        };
        if what == 0 {
            return self.deletion(key, Kind::Delete, self.store.delete(key)).await;
        }
        let expected = match what {
            1 => match self.found(key).await.flatten() {
                Some(entry) => Some(entry.version),
                None => return,
            },
            _ => None,
        };
        let write = self.ledger.begin(key, Kind::Lease);
        let value = Cell::new(key, write, 0).to_json();
        let answer = match (what, expected) {
            (_, Some(version)) => ttl.update(key, value, version, life).await,
            (2, _) => ttl.create(key, value, life).await,
            _ => ttl.put(key, value, life).await,
        };
        self.ledger.end(write, answer);
    }
}
