//! What becomes of single requests: planned by a test, carried out by [`crate::store`].

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use shizuku_kv::{Key, KvEntry, KvError, VersionToken};

/// Who asks more often does so in a loop. It gets no answer any more, so that the test fails and does not hang.
const BUSY: usize = 10_000;

/// What becomes of a write.
#[derive(Clone, Debug)]
pub(crate) enum Fate {
    /// It does not take effect, and the process is told why.
    Refused(KvError),
    /// It does not take effect, and the process is told that nobody knows.
    Lost,
    /// It takes effect, and a moment later the process is told that nobody knows.
    Unanswered,
    /// It is on its way until the test lets it arrive; the process is told that nobody knows.
    Late,
    /// It takes effect at once, and is answered so much later.
    Slow(Duration),
    /// The backend panics.
    Panics,
}

/// What a write is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A change of a lock's record.
    Record,
    /// A renewal of this process's own session.
    Renewal,
    /// The end of a session of which nothing is heard.
    Ending,
    Other,
}

impl Kind {
    pub(crate) fn of(operation: &str, key: &Key) -> Self {
        match operation {
            "create" | "update" if is_record(key) => Self::Record,
            "update" if key.starts_with("rw_lock_session.") => Self::Renewal,
            "delete_with_version" if key.starts_with("rw_lock_session.") => Self::Ending,
            _ => Self::Other,
        }
    }
}

fn is_record(key: &Key) -> bool {
    key.starts_with("rw_lock.")
}

/// What is to become of some of the writes of a kind.
#[derive(Debug)]
struct Plan {
    kind: Kind,
    /// So many go through first.
    before: usize,
    times: usize,
    fate: Fate,
}

impl Plan {
    /// The fate of a write of this kind; none where it goes through.
    fn next(&mut self) -> Option<Fate> {
        if self.before > 0 {
            self.before -= 1;
            return None;
        }
        self.times = self.times.checked_sub(1)?;
        Some(self.fate.clone())
    }
}

/// What is planned for the requests of one process.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    plans: Mutex<Vec<Plan>>,
    /// What reads find, of keys of which a replica that is behind has something else.
    behind: Mutex<HashMap<Key, Option<KvEntry>>>,
    refused_read: Mutex<Option<KvError>>,
    vanished: Mutex<HashSet<Key>>,
    is_crashed: AtomicBool,
    is_unheard: AtomicBool,
    reads: AtomicUsize,
    record_writes: AtomicUsize,
    watches: AtomicUsize,
    calls: AtomicUsize,
    /// Keys whose entries look so much older than they are: the clock of the store was set.
    older: Mutex<HashMap<Key, Duration>>,
}

impl Faults {
    /// Number of requests, whatever they were for. Watches do not count.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }

    /// Counts a request.
    pub(crate) fn called(&self) {
        self.calls.fetch_add(1, SeqCst);
    }

    /// From now on the entries of a key look older than they are.
    pub(crate) fn make_look_older(&self, key: &str, by: Duration) {
        self.older.lock().unwrap().insert(Key::new(key).unwrap(), by);
    }

    /// The entry with the time that it shows.
    pub(crate) fn dated(&self, mut entry: KvEntry) -> KvEntry {
        if let Some(by) = self.older.lock().unwrap().get(&entry.key) {
            entry.created -= *by;
        }
        entry
    }

    /// Of the next write of a kind.
    pub(crate) fn next(&self, kind: Kind, fate: Fate) {
        self.plan(Plan { kind, before: 0, times: 1, fate });
    }

    /// Of the write of a kind after so many others of it.
    pub(crate) fn after(&self, before: usize, kind: Kind, fate: Fate) {
        self.plan(Plan { kind, before, times: 1, fate });
    }

    /// Of each write of a kind from now on.
    pub(crate) fn each(&self, kind: Kind, fate: Fate) {
        self.plan(Plan { kind, before: 0, times: usize::MAX, fate });
    }

    fn plan(&self, plan: Plan) {
        self.plans.lock().unwrap().push(plan);
    }

    /// Whether everything that was planned once has happened: else a test shows nothing.
    pub(crate) fn are_over(&self) -> bool {
        self.plans.lock().unwrap().iter().all(|plan| plan.times == 0)
            && self.refused_read.lock().unwrap().is_none()
    }

    /// The next read of a record fails.
    pub(crate) fn refuse_read(&self, error: KvError) {
        *self.refused_read.lock().unwrap() = Some(error);
    }

    /// From now on reads of the key find this: a replica answers that is behind.
    pub(crate) fn fall_behind(&self, key: &str, entry: Option<KvEntry>) {
        self.behind.lock().unwrap().insert(Key::new(key).unwrap(), entry);
    }

    pub(crate) fn catch_up(&self) {
        self.behind.lock().unwrap().clear();
    }

    /// The key is lost without a trace, and no watch tells of it. It is there again when it is written.
    pub(crate) fn lose_key(&self, key: &str) {
        self.vanished.lock().unwrap().insert(Key::new(key).unwrap());
    }

    /// The process is gone: of what it does nothing arrives any more.
    pub(crate) fn crash(&self) {
        self.is_crashed.store(true, SeqCst);
    }

    /// How many changes of records were tried.
    pub(crate) fn record_writes(&self) -> usize {
        self.record_writes.load(SeqCst)
    }

    /// How often something was asked: keys that were read, changes of records, watches that were opened.
    pub(crate) fn requests(&self) -> usize {
        self.reads.load(SeqCst) + self.record_writes() + self.watches.load(SeqCst)
    }

    /// Counts a watch that is opened.
    pub(crate) async fn watching(&self) {
        if self.watches.fetch_add(1, SeqCst) >= BUSY {
            std::future::pending::<()>().await;
        }
    }

    /// From now on watches bring nothing, and do not end.
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

    /// Counts a write, and says what becomes of it; nothing in particular where it goes through.
    pub(crate) async fn fate(&self, kind: Kind) -> Option<Fate> {
        if kind == Kind::Record && self.record_writes.fetch_add(1, SeqCst) >= BUSY {
            std::future::pending::<()>().await;
        }
        let mut plans = self.plans.lock().unwrap();
        plans.iter_mut().filter(|plan| plan.kind == kind).find_map(Plan::next)
    }

    /// Counts a read, and says what it finds; nothing in particular where it finds what is there.
    pub(crate) async fn finding(&self, key: &Key) -> Option<Result<Option<KvEntry>, KvError>> {
        if self.reads.fetch_add(1, SeqCst) >= BUSY {
            std::future::pending::<()>().await;
        }
        if is_record(key)
            && let Some(error) = self.refused_read.lock().unwrap().take()
        {
            return Some(Err(error));
        }
        if let Some(entry) = self.behind.lock().unwrap().get(key) {
            return Some(Ok(entry.clone()));
        }
        self.is_lost(key).then_some(Ok(None))
    }

    pub(crate) fn is_lost(&self, key: &Key) -> bool {
        self.vanished.lock().unwrap().contains(key)
    }

    /// It is written again. Whether it had been lost.
    pub(crate) fn find_key(&self, key: &Key) -> bool {
        self.vanished.lock().unwrap().remove(key)
    }
}

pub(crate) fn timeout() -> KvError {
    KvError::Timeout { operation: "update", key: None, limit: Duration::from_secs(2) }
}

pub(crate) fn unavailable() -> KvError {
    KvError::Unavailable { operation: "update", reason: "no leader".to_owned(), source: None }
}

pub(crate) fn full() -> KvError {
    KvError::StoreFull {
        store: "locks".to_owned(),
        limit: "it has as many bytes as it may".to_owned(),
    }
}

pub(crate) fn broken() -> KvError {
    KvError::Backend {
        operation: "entry",
        reason: "the answer is no answer".to_owned(),
        source: None,
    }
}

pub(crate) fn unknown(operation: &'static str, key: &Key) -> KvError {
    KvError::OutcomeUnknown { operation, key: key.clone(), source: None }
}

pub(crate) fn other_version(key: &Key, expected: VersionToken) -> KvError {
    KvError::RevisionMismatch { key: key.clone(), expected, found: None }
}
