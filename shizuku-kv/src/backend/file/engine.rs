//! A database from the view of its callers, whose work runs on the threads of the database. Nothing
//! of redb runs on a thread of the caller.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::backup;
use super::failure::Failure;
use super::folder::Folder;
use super::job::{NewJob, Outcome, Wait};
use super::options::{Mode, Options};
use super::shared::{ReadJob, Shared, State, no_thread};
use super::tables::StoreId;
use super::transaction::Transaction;
use super::view::{Stop, View};
use crate::store::timer::timeout_at;
use crate::store::{Deadline, Key, KvError, KvResult, lock};

/// Maximum number of entries that a read expires before it is repeated.
const UPKEEP: usize = 1000;

/// Maximum time after the deadline for finding the process in the way.
const LOOK_AROUND: Duration = Duration::from_millis(100);

/// Maximum time after the deadline within which a taken write is expected to end.
const COMMIT_GRACE: Duration = Duration::from_millis(200);

/// An open database. Dropping it closes the database in the background.
pub(super) struct Engine(Arc<Shared>);

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
