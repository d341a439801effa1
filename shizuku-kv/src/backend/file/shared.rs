//! The shared state of the threads of a database, and the threads that read and that notice the
//! commits of other processes.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use ::redb::ReadTransaction;
use tokio::sync::watch;

use super::failure::Failure;
use super::folder::{Folder, Opened};
use super::job::Job;
use super::record::nanos;
use super::tables::StoreId;
use super::view::View;
use super::wake::Wake;
use crate::store::{KvError, KvResult, lock};

/// Number of threads that read.
const READERS: usize = 4;

/// Maximum number of reads of one transaction.
const READS_TOGETHER: usize = 32;

/// Time of a transaction after which it begins no further read.
const READ_LIMIT: Duration = Duration::from_millis(10);

/// Interval between two comparisons with the file while a watch waits.
const POLL: Duration = Duration::from_millis(50);

/// Name of the operation in errors of opening the database.
pub(super) const OPENING: &str = "connect";

/// The state that the threads of a database share.
pub(super) struct Shared {
    pub(super) folder: Folder,
    /// Read while a transaction runs, so that the database is not closed meanwhile.
    pub(super) database: RwLock<State>,
    pub(super) writes: Mutex<Writes>,
    pub(super) wakes_writer: Condvar,
    pub(super) reads: Mutex<Reads>,
    pub(super) wakes_reader: Condvar,
    pub(super) is_closed: AtomicBool,
    /// Changes with each commit that this process has noticed, and at the end.
    pub(super) changes: watch::Sender<u64>,
    /// Number of watches.
    pub(super) watches: AtomicUsize,
    pub(super) wake: Option<Wake>,
    /// Becomes true when the database has been closed.
    pub(super) is_ended: watch::Sender<bool>,
}

pub(super) enum State {
    Open(Opened),
    /// A commit has failed. The next one opens the database again.
    Interrupted,
    Closed,
}

#[derive(Default)]
pub(super) struct Writes {
    pub(super) jobs: VecDeque<Box<dyn Job>>,
    /// Time of the next expiry, in nanoseconds since 1970.
    pub(super) next_due: Option<u64>,
    /// Whether deleted stores may have entries.
    pub(super) collects: bool,
    /// Stores whose settings have changed.
    pub(super) changed: Vec<StoreId>,
    pub(super) is_closed: bool,
}

#[derive(Default)]
pub(super) struct Reads {
    pub(super) jobs: VecDeque<ReadJob>,
    pub(super) is_closed: bool,
}

pub(super) type ReadJob = Box<dyn FnOnce(Result<&View<'_>, &Failure>) + Send>;

/// Returns the error for a thread that cannot be started.
pub(super) fn no_thread(operation: &'static str, error: std::io::Error) -> KvError {
    KvError::unavailable(operation, "no thread could be started: raise the limit of threads")
        .with_source(error)
}

impl Shared {
    pub(super) fn new(folder: Folder, database: Opened) -> Self {
        let notices = folder.mode().notices_others();
        let wake = notices.then(|| Wake::new(folder.file().to_owned(), POLL));
        Self {
            folder,
            database: RwLock::new(State::Open(database)),
            // The first round finds work that an earlier process has left.
            writes: Mutex::new(Writes { collects: true, next_due: Some(0), ..Writes::default() }),
            wakes_writer: Condvar::new(),
            reads: Mutex::default(),
            wakes_reader: Condvar::new(),
            is_closed: AtomicBool::new(false),
            changes: watch::Sender::new(0),
            watches: AtomicUsize::new(0),
            wake,
            is_ended: watch::Sender::new(false),
        }
    }

    /// Starts the other threads.
    pub(super) fn start(self: &Arc<Self>) -> KvResult<()> {
        for _ in 0..READERS {
            let shared = Arc::clone(self);
            let reader = thread::Builder::new().name("shizuku-kv-read".to_owned());
            let spawned = reader.spawn(move || shared.run_reader());
            spawned.map_err(|error| no_thread(OPENING, error))?;
        }
        if self.wake.is_some() {
            let shared = Arc::clone(self);
            let spawned = thread::Builder::new()
                .name("shizuku-kv-wake".to_owned())
                .spawn(move || shared.run_wake());
            spawned.map_err(|error| no_thread(OPENING, error))?;
        }
        Ok(())
    }

    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        lock(&self.writes).is_closed = true;
        self.wakes_writer.notify_all();
        let unread = {
            let mut reads = lock(&self.reads);
            reads.is_closed = true;
            std::mem::take(&mut reads.jobs)
        };
        self.wakes_reader.notify_all();
        // Dropped without the lock. Their callers get an answer.
        drop(unread);
        if let Some(wake) = &self.wake {
            wake.close();
        }
        self.notify();
    }

    pub(super) fn notify(&self) {
        self.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
    }

    pub(super) fn queue_write(&self, job: Box<dyn Job>) -> bool {
        {
            let mut writes = lock(&self.writes);
            if writes.is_closed {
                return false;
            }
            writes.jobs.push_back(job);
        }
        self.wakes_writer.notify_one();
        true
    }

    pub(super) fn queue_read(&self, job: ReadJob) -> bool {
        {
            let mut reads = lock(&self.reads);
            if reads.is_closed {
                return false;
            }
            reads.jobs.push_back(job);
        }
        self.wakes_reader.notify_one();
        true
    }

    pub(super) fn database(&self) -> RwLockReadGuard<'_, State> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now() -> u64 {
        nanos(SystemTime::now())
    }

    fn run_reader(&self) {
        while let Some(jobs) = self.take_reads() {
            // redb may panic over a damaged file. The callers get an error, and the thread stays.
            let read = AssertUnwindSafe(|| self.read_together(jobs));
            if catch_unwind(read).is_err() {
                tracing::error!(path = %self.folder.file().display(), "reading a database panicked");
            }
        }
    }

    /// Waits for reads, and takes a share of them. Returns `None` at the end.
    fn take_reads(&self) -> Option<VecDeque<ReadJob>> {
        let mut reads = lock(&self.reads);
        loop {
            if !reads.jobs.is_empty() {
                let share = reads.jobs.len().div_ceil(READERS).min(READS_TOGETHER);
                return Some(reads.jobs.drain(..share).collect());
            }
            if reads.is_closed {
                return None;
            }
            reads = self.wakes_reader.wait(reads).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Does reads in one transaction, which begins after they were queued, unless they take long.
    fn read_together(&self, mut jobs: VecDeque<ReadJob>) {
        let hides_expired = self.folder.mode().is_read_only();
        while let Some(job) = jobs.pop_front() {
            let opened = self.reopen();
            let database = self.database();
            let transaction = match (&*database, opened) {
                (State::Open(opened), _) => opened.begin_read(),
                (State::Interrupted, Err(failure)) => Err(failure),
                (State::Interrupted, Ok(())) => Err(Failure::Busy(format!(
                    "the database {} is closed after a failed write; repeat the call",
                    self.folder.file().display()
                ))),
                (State::Closed, _) => return,
            };
            match transaction {
                Ok(transaction) => {
                    let view = View::new(&transaction, Self::now(), hides_expired);
                    let until = Instant::now() + READ_LIMIT;
                    job(Ok(&view));
                    while Instant::now() < until
                        && let Some(job) = jobs.pop_front()
                    {
                        job(Ok(&view));
                    }
                }
                Err(failure) => job(Err(&failure)),
            }
        }
    }

    /// Notices the commits of other processes.
    fn run_wake(&self) {
        let Some(wake) = &self.wake else { return };
        let mut known = None;
        while wake.wait(|| self.watches.load(Ordering::Acquire) > 0) {
            let (commits, next_due) = match self.look() {
                Ok(found) => found,
                Err(failure) => {
                    // The reads of the watches return the error.
                    tracing::debug!(?failure, "could not look for changes of a file");
                    (u64::MAX, None)
                }
            };
            if known.replace(commits) != Some(commits) {
                self.notify();
                lock(&self.writes).next_due = next_due;
                self.wakes_writer.notify_one();
            }
        }
    }

    fn look(&self) -> Result<(u64, Option<u64>), Failure> {
        let database = self.database();
        let State::Open(opened) = &*database else { return Ok((u64::MAX, None)) };
        let transaction: ReadTransaction = opened.begin_read()?;
        let view = View::new(&transaction, Self::now(), true);
        Ok((view.commits()?, view.next_due()?))
    }

    /// Closes the database, which the next commit opens again.
    pub(super) fn interrupt(&self) {
        let mut state = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if let State::Open(_) = &*state {
            *state = State::Interrupted;
        }
    }

    /// Opens the database again, if a failed commit has closed it.
    pub(super) fn reopen(&self) -> Result<(), Failure> {
        if !matches!(&*self.database(), State::Interrupted) {
            return Ok(());
        }
        let mut state = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have opened it.
        if let State::Interrupted = &*state {
            *state = State::Open(self.folder.reopen()?);
        }
        Ok(())
    }
}
