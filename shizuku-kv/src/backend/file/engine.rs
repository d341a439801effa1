//! The threads of a database: one that writes, some that read, and one that notices the commits of
//! other processes. Nothing of redb runs on a thread of the caller.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{oneshot, watch};

use ::redb::{ReadTransaction, TransactionError};

use super::backup;
use super::failure::Failure;
use super::folder::{Folder, Opened};
use super::job::{Job, NewJob, Outcome, Wait};
use super::options::{Mode, Options};
use super::record::nanos;
use super::tables::StoreId;
use super::transaction::{Summary, Transaction};
use super::view::{Stop, View};
use super::wake::Wake;
use crate::store::timer::timeout_at;
use crate::store::{Deadline, Key, KvError, KvResult, lock};

/// Number of threads that read.
const READERS: usize = 4;

/// Maximum number of jobs and bytes of one commit.
const COMMIT_JOBS: usize = 1024;
const COMMIT_BYTES: usize = 8 * 1024 * 1024;

/// Maximum number of entries that one commit expires, removes or changes beside its jobs, so that
/// writers wait for a short time only.
const UPKEEP: usize = 1000;

/// Maximum number of reads of one transaction.
const READS_TOGETHER: usize = 32;

/// Time of a transaction after which it begins no further read.
const READ_LIMIT: Duration = Duration::from_millis(10);

/// Interval between two tries to acquire the lock of the writers of a shared file.
const TRY_AGAIN: Duration = Duration::from_millis(1);

/// Maximum time after the deadline for finding the process in the way.
const LOOK_AROUND: Duration = Duration::from_millis(100);

/// Interval between two comparisons with the file while a watch waits.
const POLL: Duration = Duration::from_millis(50);

/// Maximum time after the deadline within which a taken write is expected to end.
const COMMIT_GRACE: Duration = Duration::from_millis(200);

/// Name of the operation in errors of opening the database.
const OPENING: &str = "connect";

/// An open database. Dropping it closes the database in the background.
pub(super) struct Engine(Arc<Shared>);

struct Shared {
    folder: Folder,
    /// Read while a transaction runs, so that the database is not closed meanwhile.
    database: RwLock<State>,
    writes: Mutex<Writes>,
    wakes_writer: Condvar,
    reads: Mutex<Reads>,
    wakes_reader: Condvar,
    is_closed: AtomicBool,
    /// Changes with each commit that this process has noticed, and at the end.
    changes: watch::Sender<u64>,
    /// Number of watches.
    watches: AtomicUsize,
    wake: Option<Wake>,
    /// Becomes true when the database has been closed.
    is_ended: watch::Sender<bool>,
}

enum State {
    Open(Opened),
    /// A commit has failed. The next one opens the database again.
    Interrupted,
    Closed,
}

#[derive(Default)]
struct Writes {
    jobs: VecDeque<Box<dyn Job>>,
    /// Time of the next expiry, in nanoseconds since 1970.
    next_due: Option<u64>,
    /// Whether deleted stores may have entries.
    collects: bool,
    /// Stores whose settings have changed.
    changed: Vec<StoreId>,
    is_closed: bool,
}

#[derive(Default)]
struct Reads {
    jobs: VecDeque<ReadJob>,
    is_closed: bool,
}

type ReadJob = Box<dyn FnOnce(Result<&View<'_>, &Failure>) + Send>;

/// The call for which work is done, for its errors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) operation: &'static str,
    pub(super) key: Option<&'a Key>,
    pub(super) deadline: Deadline,
}

impl<'a> Call<'a> {
    pub(super) fn new(operation: &'static str, deadline: Deadline) -> Self {
        Self { operation, key: None, deadline }
    }

    pub(super) fn of(self, key: &'a Key) -> Self {
        Self { key: Some(key), ..self }
    }

    fn timeout(&self) -> KvError {
        self.deadline.timeout(self.operation, self.key)
    }
}

impl Engine {
    /// Opens the database on a thread of its own.
    ///
    /// # Errors
    /// Returns the error of opening it. Returns [`KvError::Timeout`] if that takes too long: a
    /// database that is opened later is closed again.
    pub(super) async fn open(options: Options, call: Call<'_>) -> KvResult<Self> {
        let (answer, opened) = oneshot::channel();
        let spawned = thread::Builder::new().name("shizuku-kv-file".to_owned()).spawn(move || {
            let opened =
                Folder::open(options).map(|(folder, database)| Shared::new(folder, database));
            match opened {
                Ok(shared) => {
                    let shared = Arc::new(shared);
                    let started = shared.start();
                    let engine = Self(Arc::clone(&shared));
                    // If the caller has given up, dropping the answer closes the database.
                    let _ = answer.send(started.map(|()| engine));
                    shared.run_writer();
                }
                Err(error) => drop(answer.send(Err(error))),
            }
        });
        if let Err(error) = spawned {
            return Err(no_thread(call.operation, error));
        }
        match timeout_at(call.deadline.instant(), opened).await {
            Some(Ok(opened)) => opened.map_err(|error| error.of_operation(call.operation)),
            Some(Err(_)) => Err(KvError::closed(call.operation)),
            None => Err(call.timeout()),
        }
    }

    pub(super) fn folder(&self) -> &Folder {
        &self.0.folder
    }

    /// Returns an error after [`close`](Self::close).
    pub(super) fn check_open(&self, operation: &'static str) -> KvResult<()> {
        match self.0.is_closed.load(Ordering::Acquire) {
            true => Err(KvError::closed(operation)),
            false => Ok(()),
        }
    }

    /// Closes the database after all queued writes. Waits until the deadline.
    pub(super) async fn close(&self, call: Call<'_>) -> KvResult<()> {
        let mut ended = self.0.is_ended.subscribe();
        self.0.close();
        match timeout_at(call.deadline.instant(), ended.wait_for(|is_ended| *is_ended)).await {
            Some(_) => Ok(()),
            None => Err(call.timeout()),
        }
    }

    /// Runs a read on a thread of the database. A read that finds an expired entry is repeated
    /// after the expiry has been applied.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        call: Call<'_>,
        work: impl Fn(&View<'_>) -> Result<T, Stop> + Send + Sync + 'static,
    ) -> KvResult<T> {
        let work = Arc::new(work);
        loop {
            match self.read_once(call, Arc::clone(&work)).await? {
                Ok(result) => return Ok(result),
                Err(Stop::Expired) => self.expire(call).await?,
                Err(Stop::Error(error)) => return Err(error),
                Err(Stop::Failed(failure)) => return Err(self.error(&failure, call.operation)),
            }
        }
    }

    async fn read_once<T: Send + 'static>(
        &self,
        call: Call<'_>,
        work: Arc<impl Fn(&View<'_>) -> Result<T, Stop> + Send + Sync + 'static>,
    ) -> KvResult<Result<T, Stop>> {
        self.check_open(call.operation)?;
        let (answer, result) = oneshot::channel();
        let (operation, shared) = (call.operation, Arc::downgrade(&self.0));
        let job: ReadJob = Box::new(move |view| {
            // A caller that has given up needs no answer.
            if answer.is_closed() {
                return;
            }
            let result = match view {
                Ok(view) => work(view),
                Err(failure) => Err(Stop::Error(match shared.upgrade() {
                    Some(shared) => failure.to_error(operation, shared.folder.file(), None),
                    None => KvError::closed(operation),
                })),
            };
            let _ = answer.send(result);
        });
        if !self.0.queue_read(job) {
            return Err(KvError::closed(call.operation));
        }
        match timeout_at(call.deadline.instant(), result).await {
            Some(Ok(result)) => Ok(result),
            // The job was dropped.
            Some(Err(_)) => Err(self.lost(call.operation)),
            None => Err(call.timeout()),
        }
    }

    /// Applies everything that has expired.
    async fn expire(&self, call: Call<'_>) -> KvResult<()> {
        self.write(call, None, 0, false, |transaction| Ok(Ok(transaction.expire_some(UPKEEP)?)))
            .await
            .map(drop)
    }

    /// Runs a write on the writer's thread, in a commit together with others. Returns its result
    /// when the commit is on disk.
    ///
    /// # Errors
    /// Returns [`KvError::Timeout`] if the deadline passes while the write is queued, and the write
    /// does not happen then. Returns [`KvError::OutcomeUnknown`] if the commit takes longer.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        call: Call<'_>,
        store: Option<&str>,
        bytes: usize,
        is_alone: bool,
        work: impl FnMut(&mut Transaction<'_>) -> Result<KvResult<T>, Failure> + Send + 'static,
    ) -> KvResult<T> {
        self.check_open(call.operation)?;
        let error = {
            let (operation, key, store) =
                (call.operation, call.key.cloned(), store.map(str::to_owned));
            let path = self.0.folder.file().to_owned();
            move |outcome: Outcome<'_>| match (outcome, &key) {
                (Outcome::Committed, _) => KvError::closed(operation),
                (Outcome::Unknown(failure), Some(key)) => {
                    let cause = failure.to_error(operation, &path, None);
                    KvError::outcome_unknown(operation, key.clone()).with_source(cause)
                }
                (Outcome::Failed(failure) | Outcome::Unknown(failure), _) => {
                    failure.to_error(operation, &path, store.as_deref())
                }
            }
        };
        let (job, mut wait) = NewJob { work, error, bytes, is_alone }.queued();
        if !self.0.queue_write(job) {
            return Err(KvError::closed(call.operation));
        }
        self.answer(call, &mut wait).await
    }

    async fn answer<T>(&self, call: Call<'_>, wait: &mut Wait<T>) -> KvResult<T> {
        let closed = || Err(self.lost(call.operation));
        if let Some(answer) = timeout_at(call.deadline.instant(), &mut wait.answer).await {
            return answer.unwrap_or_else(|_| closed());
        }
        if wait.ticket.withdraw() {
            return Err(self.withdrawn(call).await);
        }
        let latest = Deadline::after(COMMIT_GRACE).instant();
        match timeout_at(latest, &mut wait.answer).await {
            Some(answer) => answer.unwrap_or_else(|_| closed()),
            None => Err(match call.key {
                Some(key) => KvError::outcome_unknown(call.operation, key.clone()),
                None => call.timeout(),
            }),
        }
    }

    /// Returns the error of a call whose job was dropped.
    fn lost(&self, operation: &'static str) -> KvError {
        match self.check_open(operation) {
            Ok(()) => self.error(&Failure::damaged("reading it panicked"), operation),
            Err(error) => error,
        }
    }

    /// Returns the error of a write that was withdrawn at its deadline. It names a stopped process
    /// that may hold the lock of the file.
    async fn withdrawn(&self, call: Call<'_>) -> KvError {
        if self.0.folder.mode() != Mode::Shared {
            return call.timeout();
        }
        let folder = self.0.folder.clone();
        let look = tokio::task::spawn_blocking(move || folder.in_the_way());
        match timeout_at(Deadline::after(LOOK_AROUND).instant(), look).await {
            Some(Ok(Some(reason))) => {
                let limit = call.deadline.limit();
                KvError::unavailable(call.operation, format!("{reason} (waited {limit:?})"))
            }
            _ => call.timeout(),
        }
    }

    /// Applies the new settings of a store to its entries, in the background.
    pub(super) fn apply_limits(&self, id: StoreId) {
        lock(&self.0.writes).changed.push(id);
        self.0.wakes_writer.notify_one();
    }

    /// Removes the entries of deleted stores, in the background.
    pub(super) fn collect(&self) {
        lock(&self.0.writes).collects = true;
        self.0.wakes_writer.notify_one();
    }

    /// Returns a receiver of changes. While it lives, the commits of other processes are noticed.
    pub(super) fn changes(&self) -> Changes {
        self.0.watches.fetch_add(1, Ordering::AcqRel);
        if let Some(wake) = &self.0.wake {
            wake.begin();
        }
        Changes { receiver: self.0.changes.subscribe(), shared: Arc::clone(&self.0) }
    }

    /// Notifies all watches.
    pub(super) fn notify(&self) {
        self.0.notify();
    }

    fn error(&self, failure: &Failure, operation: &'static str) -> KvError {
        failure.to_error(operation, self.0.folder.file(), None)
    }

    /// Copies the database to a new folder, on a thread of its own.
    pub(super) async fn backup(&self, target: PathBuf) -> KvResult<()> {
        const OPERATION: &str = "backup";
        self.check_open(OPERATION)?;
        let (answer, copied) = oneshot::channel();
        let shared = Arc::clone(&self.0);
        let spawned = thread::Builder::new().name("shizuku-kv-copy".to_owned()).spawn(move || {
            let database = shared.database();
            let result = match &*database {
                State::Open(opened) => backup::copy(opened, &target),
                State::Interrupted | State::Closed => Err(KvError::closed(OPERATION)),
            };
            let _ = answer.send(result);
        });
        spawned.map_err(|error| no_thread(OPERATION, error))?;
        copied.await.unwrap_or_else(|_| Err(self.lost(OPERATION)))
    }

    /// Checks that the database is still the file at its path, and answers.
    pub(super) async fn check(&self, call: Call<'_>) -> KvResult<()> {
        let folder = self.0.folder.clone();
        self.read(call, move |view| {
            folder.check_identity()?;
            view.commits()?;
            Ok(())
        })
        .await
    }
}

fn no_thread(operation: &'static str, error: std::io::Error) -> KvError {
    KvError::unavailable(operation, "no thread could be started: raise the limit of threads")
        .with_source(error)
}

/// Notifications of changes.
pub(super) struct Changes {
    receiver: watch::Receiver<u64>,
    shared: Arc<Shared>,
}

impl Changes {
    /// Marks all changes until now as seen.
    pub(super) fn see(&mut self) {
        self.receiver.borrow_and_update();
    }

    /// Waits for a change after the last one that was seen.
    pub(super) async fn next(&mut self) {
        // The sender lives as long as `shared`, so that waiting does not fail.
        let _ = self.receiver.changed().await;
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.shared.watches.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("folder", &self.0.folder).finish_non_exhaustive()
    }
}

impl Shared {
    fn new(folder: Folder, database: Opened) -> Self {
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
    fn start(self: &Arc<Self>) -> KvResult<()> {
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

    fn close(&self) {
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

    fn notify(&self) {
        self.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
    }

    fn queue_write(&self, job: Box<dyn Job>) -> bool {
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

    fn queue_read(&self, job: ReadJob) -> bool {
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

    fn database(&self) -> RwLockReadGuard<'_, State> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn now() -> u64 {
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

    /// Commits until the engine is closed, then closes the database.
    fn run_writer(&self) {
        let mut last_failed = false;
        while self.wait_for_work(last_failed) {
            if self.folder.mode().is_read_only() {
                continue;
            }
            let committed = catch_unwind(AssertUnwindSafe(|| self.commit()));
            last_failed = committed.as_ref().is_ok_and(|committed| !committed);
            if committed.is_err() {
                tracing::error!(path = %self.folder.file().display(), "writing to a database panicked");
                self.interrupt();
                last_failed = true;
            }
        }
        let state = std::mem::replace(
            &mut *self.database.write().unwrap_or_else(PoisonError::into_inner),
            State::Closed,
        );
        if let State::Open(opened) = state
            && let Err(failure) = opened.close()
        {
            tracing::warn!(?failure, path = %self.folder.file().display(), "closing a database failed");
        }
        self.folder.leave();
        self.is_ended.send_replace(true);
    }

    /// Waits until there is something to commit. Returns `false` at the end.
    fn wait_for_work(&self, last_failed: bool) -> bool {
        let mut writes = lock(&self.writes);
        loop {
            writes.jobs.retain(|job| !job.is_withdrawn());
            if !writes.jobs.is_empty() {
                return true;
            }
            if writes.is_closed {
                return false;
            }
            let due = writes.next_due.filter(|_| !self.folder.mode().is_read_only());
            let wait = due.map(|due| Duration::from_nanos(due.saturating_sub(Self::now())));
            let has_upkeep = (writes.collects || !writes.changed.is_empty())
                && !self.folder.mode().is_read_only();
            // After a failure only a caller tries again at once.
            let wait = if last_failed {
                Some(Duration::from_secs(1))
            } else if has_upkeep {
                return true;
            } else {
                wait
            };
            writes = match wait {
                Some(wait) if wait.is_zero() => return true,
                Some(wait) => {
                    let (guard, timeout) = self
                        .wakes_writer
                        .wait_timeout(writes, wait)
                        .unwrap_or_else(PoisonError::into_inner);
                    if last_failed && timeout.timed_out() {
                        return true;
                    }
                    guard
                }
                None => self.wakes_writer.wait(writes).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Takes the next jobs of one commit. They can no longer be withdrawn.
    fn take_jobs(&self) -> Vec<Box<dyn Job>> {
        let mut writes = lock(&self.writes);
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while taken.len() < COMMIT_JOBS && bytes < COMMIT_BYTES {
            let Some(job) = writes.jobs.pop_front() else { break };
            if job.is_alone() && !taken.is_empty() {
                writes.jobs.push_front(job);
                break;
            }
            if job.take() {
                bytes += job.bytes();
                let is_alone = job.is_alone();
                taken.push(job);
                if is_alone {
                    break;
                }
            }
        }
        taken
    }

    /// Makes one commit. Returns whether it succeeded.
    fn commit(&self) -> bool {
        if let Err(failure) = self.reopen() {
            self.fail_all(&failure);
            return false;
        }
        let mark = fastrand::u64(..);
        let database = self.database();
        let State::Open(opened) = &*database else { return false };
        let transaction = loop {
            match opened.begin_write() {
                Ok(transaction) => break transaction,
                Err(TransactionError::WouldBlock) => {
                    if !self.has_work() {
                        return true;
                    }
                    // Another process writes. Jobs can be withdrawn until this one may write.
                    thread::sleep(TRY_AGAIN);
                }
                Err(error) => {
                    drop(database);
                    let failure = Failure::from(error);
                    self.interrupt();
                    self.fail_all(&failure);
                    return false;
                }
            }
        };
        let mut jobs = self.take_jobs();
        let mut committing = None;
        let result = self.folder.check_identity().and_then(|()| {
            let worked = self.work(&transaction, &mut jobs, mark)?;
            if worked.is_changed && !worked.is_rejected {
                committing = Some(worked.commits);
                transaction.commit()?;
                // A commit to a file that was removed meanwhile has not persisted anything.
                self.folder.check_identity()?;
            } else {
                transaction.abort()?;
            }
            Ok(worked)
        });
        drop(database);
        match result {
            Ok(worked) => {
                self.after(worked);
                jobs.into_iter().for_each(|job| job.finish(Outcome::Committed));
                true
            }
            Err(failure) => {
                self.interrupt();
                let committed = match committing {
                    Some(commits) => self.has_committed(mark, commits),
                    None => Some(false),
                };
                let outcome = match (&failure, committed) {
                    (Failure::Interfered(_), _) => Outcome::Failed(&failure),
                    (_, Some(true)) => {
                        self.notify();
                        Outcome::Committed
                    }
                    (_, Some(false)) => Outcome::Failed(&failure),
                    (_, None) => Outcome::Unknown(&failure),
                };
                jobs.into_iter().for_each(|job| job.finish(outcome));
                false
            }
        }
    }

    fn has_work(&self) -> bool {
        let mut writes = lock(&self.writes);
        writes.jobs.retain(|job| !job.is_withdrawn());
        !writes.jobs.is_empty()
            || (!writes.is_closed && (writes.collects || writes.next_due.is_some()))
    }

    /// Does the jobs and a piece of upkeep in a transaction.
    fn work(
        &self,
        transaction: &::redb::WriteTransaction,
        jobs: &mut [Box<dyn Job>],
        mark: u64,
    ) -> Result<Worked, Failure> {
        let (collects, changed) = {
            let writes = lock(&self.writes);
            (writes.collects, writes.changed.clone())
        };
        let mut tables = Transaction::begin(transaction, Self::now())?;
        let mut worked = Worked::default();
        let is_alone = jobs.iter().any(|job| job.is_alone());
        for job in jobs {
            worked.is_rejected |= job.run(&mut tables)? && is_alone;
        }
        if !is_alone {
            tables.expire_some(UPKEEP)?;
            worked.has_collected = collects && tables.collect_some(UPKEEP)?;
            for id in changed {
                if !tables.apply_limits_some(id, UPKEEP)? {
                    break;
                }
                worked.applied.push(id);
            }
        }
        let Summary { is_changed, commits, next_due } = tables.finish(mark)?;
        Ok(Worked { is_changed, commits, next_due, ..worked })
    }

    /// Notes the results of a commit.
    fn after(&self, worked: Worked) {
        {
            let mut writes = lock(&self.writes);
            writes.next_due = worked.next_due;
            writes.collects &= !worked.has_collected;
            writes.changed.retain(|id| !worked.applied.contains(id));
        }
        if worked.is_changed && !worked.is_rejected {
            self.notify();
        }
    }

    /// Closes the database, which the next commit opens again.
    fn interrupt(&self) {
        let mut state = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if let State::Open(_) = &*state {
            *state = State::Interrupted;
        }
    }

    /// Opens the database again, if a failed commit has closed it.
    fn reopen(&self) -> Result<(), Failure> {
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

    /// Returns whether the commit with this mark and this number has happened. Returns `None` if
    /// that cannot be known, because another process has committed since.
    fn has_committed(&self, mark: u64, number: u64) -> Option<bool> {
        self.reopen().ok()?;
        let database = self.database();
        let State::Open(opened) = &*database else { return None };
        let transaction = opened.begin_read().ok()?;
        let view = View::new(&transaction, 0, true);
        match (view.mark().ok()? == mark, view.commits().ok()? < number) {
            (true, _) => Some(true),
            (false, true) => Some(false),
            // No other process can have made that commit.
            (false, false) if self.folder.mode() != Mode::Shared => Some(false),
            (false, false) => None,
        }
    }

    /// Answers all queued jobs with a failure. None of them has happened.
    fn fail_all(&self, failure: &Failure) {
        let jobs = std::mem::take(&mut lock(&self.writes).jobs);
        let taken = jobs.into_iter().filter(|job| job.take());
        taken.for_each(|job| job.finish(Outcome::Failed(failure)));
    }
}

/// The result of the work of one commit.
#[derive(Default)]
struct Worked {
    is_changed: bool,
    is_rejected: bool,
    /// Number of commits of the file, with this one.
    commits: u64,
    next_due: Option<u64>,
    has_collected: bool,
    applied: Vec<StoreId>,
}
