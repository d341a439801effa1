//! The faults of single requests: a test plans them, and [`crate::adversity::store`] applies them.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shizuku_kv::{Deadline, Key, KvEntry, KvError, VersionToken, WatchScope};
use shizuku_kv_tests::faulty::{Fault, On, Operation, Plan};

/// Number of requests after which a process is considered to loop. It gets no answers from then on,
/// so that the test fails instead of hanging.
const BUSY: usize = 10_000;

/// Time for which a process waits for an answer that does not come.
const PATIENCE: Duration = Duration::from_millis(300);

/// Prefix of the keys of requests.
pub(crate) const REQUESTS: &str = "rw_lock_request.";

/// The fate of a write.
#[derive(Clone, Debug)]
pub(crate) enum Fate {
    /// It does not take effect, and the process gets this error.
    Rejected(KvError),
    /// It does not take effect, and the process gets an unknown outcome.
    Lost,
    /// It takes effect, and a moment later the process gets an unknown outcome.
    Unanswered,
    /// It is in transit until the test lets it arrive. The process gets an unknown outcome.
    Late,
    /// It takes effect at once, and is answered after this time.
    Slow(Duration),
    /// The backend panics.
    Panics,
}

/// The purpose of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A change of a lock's record.
    Record,
    /// A renewal of this process's own session.
    Renewal,
    /// The end of an expired session.
    Ending,
    /// A request that others apply.
    Request,
    /// The removal of such a request.
    Purge,
    Other,
}

impl Kind {
    pub(crate) fn of(operation: &str, key: &Key) -> Self {
        match operation {
            "create" | "update" if is_record(key) => Self::Record,
            "update" if key.starts_with("rw_lock_session.") => Self::Renewal,
            "delete_with_version" if key.starts_with("rw_lock_session.") => Self::Ending,
            "put" if key.starts_with(REQUESTS) => Self::Request,
            "purge" if key.starts_with(REQUESTS) => Self::Purge,
            _ => Self::Other,
        }
    }

    fn on(self) -> On {
        On::matching(move |call| match &call.operation {
            Operation::Write(key, write) => Self::of(write.name(), key) == self,
            _ => false,
        })
    }
}

fn is_record(key: &Key) -> bool {
    key.starts_with("rw_lock.")
}

/// The planned faults of one process's requests.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// The fates of writes, and rejections of reads.
    pub(crate) plan: Arc<Plan>,
    /// Writes in transit.
    late: Arc<Mutex<Vec<Operation>>>,
    /// Results of reads of keys for which a replica that is behind answers.
    behind: Mutex<HashMap<Key, Option<KvEntry>>>,
    vanished: Mutex<HashSet<Key>>,
    is_crashed: AtomicBool,
    is_unheard: AtomicBool,
    reads: AtomicUsize,
    record_writes: AtomicUsize,
    watches: AtomicUsize,
    may_not_watch: AtomicBool,
    knows_no_requests: AtomicBool,
    calls: AtomicUsize,
    /// Keys whose entries look older by this time, as if the clock of the store had been set.
    older: Mutex<HashMap<Key, Duration>>,
}

impl Faults {
    /// Returns the number of requests of any kind, except watches.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }

    /// Counts a request.
    pub(crate) fn called(&self) {
        self.calls.fetch_add(1, SeqCst);
    }

    /// Makes the entries of a key look older from now on.
    pub(crate) fn make_look_older(&self, key: &str, by: Duration) {
        self.older.lock().unwrap().insert(Key::new(key).unwrap(), by);
    }

    /// Returns the entry with the time that it shows.
    pub(crate) fn dated(&self, mut entry: KvEntry) -> KvEntry {
        if let Some(by) = self.older.lock().unwrap().get(&entry.key) {
            entry.created -= *by;
        }
        entry
    }

    /// Plans the fate of the next write of a kind.
    pub(crate) fn next(&self, kind: Kind, fate: Fate) {
        self.after(0, kind, fate);
    }

    /// Plans the fate of the write of a kind after this many others of it.
    pub(crate) fn after(&self, before: usize, kind: Kind, fate: Fate) {
        self.plan.add(kind.on().after(before).times(1), self.fault(fate));
    }

    /// Plans the fate of each write of a kind from now on.
    pub(crate) fn each(&self, kind: Kind, fate: Fate) {
        self.plan.add(kind.on(), self.fault(fate));
    }

    fn fault(&self, fate: Fate) -> Fault {
        match fate {
            Fate::Rejected(error) => Fault::fail(error),
            Fate::Lost => Fault::lose_request(PATIENCE),
            Fate::Unanswered => Fault::lose_answer(PATIENCE),
            Fate::Slow(by) => Fault::delay_answer(by),
            Fate::Panics => Fault::panic("a backend panics, as it was told to"),
            Fate::Late => {
                let late = Arc::clone(&self.late);
                Fault::new(move |call, next| {
                    late.lock().unwrap().push(call.operation.clone());
                    async move { Fault::lose_request(PATIENCE).apply(call, &next).await }
                })
            }
        }
    }

    /// Returns the writes in transit, which are no longer in transit.
    pub(crate) fn take_late(&self) -> Vec<Operation> {
        std::mem::take(&mut *self.late.lock().unwrap())
    }

    /// Returns true if all single planned faults have happened. Otherwise a test would prove
    /// nothing.
    pub(crate) fn are_over(&self) -> bool {
        self.plan.is_over()
    }

    /// Makes the next read of a key with this prefix fail.
    pub(crate) fn reject_read(&self, prefix: &'static str, error: KvError) {
        let reads = On::matching(move |call| match &call.operation {
            Operation::Entry(key) | Operation::LeaderEntry(key) => key.starts_with(prefix),
            _ => false,
        });
        self.plan.add(reads.times(1), Fault::fail(error));
    }

    /// Makes reads of the key return this from now on, as if a replica that is behind answered.
    pub(crate) fn fall_behind(&self, key: &str, entry: Option<KvEntry>) {
        self.behind.lock().unwrap().insert(Key::new(key).unwrap(), entry);
    }

    pub(crate) fn catch_up(&self) {
        self.behind.lock().unwrap().clear();
    }

    /// Loses the key without a trace and without a watch update. It exists again after a write.
    pub(crate) fn lose_key(&self, key: &str) {
        self.vanished.lock().unwrap().insert(Key::new(key).unwrap());
    }

    /// Crashes the process: none of its requests arrives any more.
    pub(crate) fn crash(&self) {
        self.is_crashed.store(true, SeqCst);
    }

    /// Returns the number of attempted changes of records.
    pub(crate) fn record_writes(&self) -> usize {
        self.record_writes.load(SeqCst)
    }

    /// Returns the number of reads of keys, changes of records, and openings of watches.
    pub(crate) fn requests(&self) -> usize {
        self.reads.load(SeqCst) + self.record_writes() + self.watches.load(SeqCst)
    }

    /// Denies requests and their watch from now on, so that the process behaves like one of an
    /// earlier version.
    pub(crate) fn deny_requests(&self) {
        self.knows_no_requests.store(true, SeqCst);
        self.each(Kind::Request, Fate::Rejected(denied()));
    }

    /// Counts a watch that is opened.
    pub(crate) async fn watching(&self, scope: &WatchScope) -> Result<(), KvError> {
        let is_of_requests = matches!(scope, WatchScope::Prefix(it) if it.starts_with(REQUESTS));
        if is_of_requests && self.knows_no_requests.load(SeqCst) {
            return Err(denied());
        }
        if self.watches.fetch_add(1, SeqCst) >= BUSY {
            std::future::pending::<()>().await;
        }
        if self.may_not_watch.load(SeqCst) { Err(denied()) } else { Ok(()) }
    }

    /// Whether the store denies watches from now on.
    pub(crate) fn deny_watches(&self, denied: bool) {
        self.may_not_watch.store(denied, SeqCst);
    }

    /// Makes watches deliver nothing from now on, without ending.
    pub(crate) fn hear_nothing(&self) {
        self.is_unheard.store(true, SeqCst);
    }

    pub(crate) async fn heard(&self) {
        if self.is_unheard.load(SeqCst) {
            std::future::pending::<()>().await;
        }
    }

    pub(crate) async fn sent(&self) {
        if self.is_crashed.load(SeqCst) {
            std::future::pending::<()>().await;
        }
    }

    /// Counts a write.
    pub(crate) async fn writing(&self, kind: Kind) {
        if kind == Kind::Record && self.record_writes.fetch_add(1, SeqCst) >= BUSY {
            std::future::pending::<()>().await;
        }
    }

    /// Counts a read, and returns the answer of a replica that is behind, if one answers.
    pub(crate) async fn finding(&self, key: &Key) -> Option<Option<KvEntry>> {
        if self.reads.fetch_add(1, SeqCst) >= BUSY {
            std::future::pending::<()>().await;
        }
        self.behind.lock().unwrap().get(key).cloned()
    }

    pub(crate) fn is_lost(&self, key: &Key) -> bool {
        self.vanished.lock().unwrap().contains(key)
    }

    /// Records that the key was written again. Returns true if it had been lost.
    pub(crate) fn find_key(&self, key: &Key) -> bool {
        self.vanished.lock().unwrap().remove(key)
    }
}

pub(crate) fn timeout() -> KvError {
    Deadline::after(Duration::from_secs(2)).timeout("update", None)
}

pub(crate) fn unavailable() -> KvError {
    KvError::unavailable("update", "no leader")
}

pub(crate) fn denied() -> KvError {
    KvError::unauthorized("watch", "it may not watch")
}

pub(crate) fn full() -> KvError {
    KvError::store_full("locks", "it has as many bytes as it may")
}

pub(crate) fn broken() -> KvError {
    KvError::backend("entry", "the answer is no answer")
}

pub(crate) fn other_version(key: &Key, expected: VersionToken) -> KvError {
    KvError::revision_mismatch(key.clone(), expected, None)
}
