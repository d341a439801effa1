//! A database from the view of its callers, whose work runs on the threads of the database. Nothing
//! of redb runs on a thread of the caller.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::backup;
use super::cache::{Before, Found};
use super::draft::BACKUP;
use super::failure::Failure;
use super::folder::Folder;
use super::job::{NewJob, Outcome, Wait};
use super::notice::Changes;
use super::queue::ReadJob;
use super::shared::{Shared, no_thread};
use super::tables::StoreId;
use super::transaction::Transaction;
use super::view::{Stop, View};
use crate::store::timer::timeout_at;
use crate::store::{Deadline, Key, KvEntry, KvError, KvResult, lock};

/// Maximum time after the deadline for finding the process in the way.
const LOOK_AROUND: Duration = Duration::from_millis(100);

/// Maximum time after the deadline within which a taken write is expected to end.
const COMMIT_GRACE: Duration = Duration::from_millis(200);

/// An open database. Dropping it closes the database in the background.
pub(super) struct Engine(pub(super) Arc<Shared>);

/// The call for which work is done, for its errors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) operation: &'static str,
    pub(super) key: Option<&'a Key>,
    pub(super) deadline: Deadline,
    /// Whether a read may take as long as a slice.
    is_slice: bool,
}

impl<'a> Call<'a> {
    pub(super) fn new(operation: &'static str, deadline: Deadline) -> Self {
        Self { operation, key: None, deadline, is_slice: false }
    }

    pub(super) fn of(self, key: &'a Key) -> Self {
        Self { key: Some(key), ..self }
    }

    /// Marks a read that may take as long as a slice, so that shorter ones do not wait for it.
    pub(super) fn slice(self) -> Self {
        Self { is_slice: true, ..self }
    }

    pub(super) fn timeout(&self) -> KvError {
        self.deadline.timeout(self.operation, self.key)
    }

    /// Returns the error for a call that another process has blocked.
    pub(super) fn blocked(&self, reason: &str) -> KvError {
        let limit = self.deadline.limit();
        KvError::unavailable(self.operation, format!("{reason} (waited {limit:?})"))
    }

    fn unknown(&self) -> Option<KvError> {
        self.key.map(|key| KvError::outcome_unknown(self.operation, key.clone()))
    }
}

impl Engine {
    pub(super) fn of(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    #[cfg(test)]
    pub(super) fn shared(&self) -> &Shared {
        &self.0
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

    /// Returns the newest entry of a key if it is cached.
    pub(super) fn cached(&self, id: StoreId, key: &Key) -> Option<Option<KvEntry>> {
        self.0.cache.as_ref()?.get((id, key), Instant::now(), Shared::now)
    }

    /// Begins a read whose result is to be [cached](Self::cache).
    pub(super) fn before(&self, id: StoreId, key: &Key) -> Option<Before> {
        self.0.cache.as_ref()?.before(id, key)
    }

    /// Caches the newest entry of a key.
    pub(super) fn cache(&self, before: Before, id: StoreId, key: &Key, found: Found) {
        if let Some(cache) = &self.0.cache {
            cache.add(before, id, key.clone(), found);
        }
    }

    /// Runs a read on a thread of the database.
    ///
    /// A read that finds an expired entry is repeated after the expiry has been applied. If that
    /// takes too long or fails, for example on a full disk, the entry is treated as absent.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        call: Call<'_>,
        work: impl Fn(&View<'_>) -> Result<T, Stop> + Send + Sync + 'static,
    ) -> KvResult<T> {
        let (work, mut hides_expired) = (Arc::new(work), false);
        loop {
            match self.read_once(call, Arc::clone(&work), hides_expired).await? {
                Ok(result) => return Ok(result),
                Err(Stop::Expired(at)) => {
                    self.expire(call, at).await;
                    hides_expired = true;
                }
                Err(Stop::Error(error)) => return Err(error),
                Err(Stop::Failed(failure)) => return Err(self.error(&failure, call.operation)),
            }
        }
    }

    async fn read_once<T: Send + 'static>(
        &self,
        call: Call<'_>,
        work: Arc<impl Fn(&View<'_>) -> Result<T, Stop> + Send + Sync + 'static>,
        hides_expired: bool,
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
                Ok(view) if hides_expired => work(&view.hiding_expired()),
                Ok(view) => work(view),
                Err(failure) => Err(Stop::Error(match shared.upgrade() {
                    Some(shared) => failure.to_error(operation, shared.folder.file(), None),
                    None => KvError::closed(operation),
                })),
            };
            let _ = answer.send(result);
        });
        if !self.0.queue_read(job, call.is_slice) {
            return Err(KvError::closed(call.operation));
        }
        match timeout_at(call.deadline.instant(), result).await {
            Some(Ok(result)) => Ok(result),
            // The job was dropped.
            Some(Err(_)) => Err(self.lost(call.operation)),
            None => Err(self.late(call).await),
        }
    }

    /// Applies an expiry, within a part of the time of a read.
    async fn expire(&self, call: Call<'_>, (due, id, version): (u64, StoreId, u64)) {
        let until = Deadline::after(call.deadline.remaining() / 4);
        let call = Call { key: None, deadline: until, ..call };
        let expiry = self.write(call, None, 0, false, move |transaction| {
            Ok(Ok(transaction.expire_one(due, id, version)?))
        });
        // Dropping the future withdraws the write.
        if !matches!(timeout_at(until.instant(), expiry).await, Some(Ok(()))) {
            tracing::debug!("could not write an expiry that a read has found");
        }
    }

    /// Runs a write on the writer's thread, in a commit together with others. Returns its result
    /// when the commit is on disk.
    ///
    /// # Errors
    /// Returns [`KvError::Timeout`], or [`KvError::Unavailable`] with a stopped process, if the
    /// deadline passes while the write is queued; the write does not happen then. Returns
    /// [`KvError::OutcomeUnknown`] if the commit takes longer, or [`KvError::Timeout`] for a write
    /// without a key.
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
                (Outcome::Unknown(failure), None) => failure.to_unknown(operation, &path),
                (Outcome::Failed(failure), _) => {
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
        if let Some(answer) = timeout_at(call.deadline.instant(), &mut wait.answer).await {
            return answer.unwrap_or_else(|_| Err(self.lost_write(call)));
        }
        if wait.ticket.withdraw() {
            return Err(self.late(call).await);
        }
        let latest = Deadline::after(COMMIT_GRACE).instant();
        match timeout_at(latest, &mut wait.answer).await {
            Some(answer) => answer.unwrap_or_else(|_| Err(self.lost_write(call))),
            None => Err(call.unknown().unwrap_or_else(|| call.timeout())),
        }
    }

    /// Returns the error of a call whose job was dropped.
    fn lost(&self, operation: &'static str) -> KvError {
        match self.check_open(operation) {
            Ok(()) => self.error(&Failure::damaged("using it panicked"), operation),
            Err(error) => error,
        }
    }

    /// Returns the error of a write that was dropped by a panic, maybe after its commit.
    fn lost_write(&self, call: Call<'_>) -> KvError {
        let cause = self.lost(call.operation);
        match call.unknown() {
            Some(error) => error.with_source(cause),
            None => cause,
        }
    }

    /// Returns the error of a call that has not happened by its deadline. It names a stopped
    /// process that may hold a lock of the file.
    async fn late(&self, call: Call<'_>) -> KvError {
        let folder = self.0.folder.clone();
        let look = tokio::task::spawn_blocking(move || folder.in_the_way());
        match timeout_at(Deadline::after(LOOK_AROUND).instant(), look).await {
            Some(Ok(Some(reason))) => call.blocked(&reason),
            _ => call.timeout(),
        }
    }

    /// Applies the new settings of a store to its entries, in the background, unless this process
    /// only reads.
    pub(super) fn apply_limits(&self, id: StoreId) {
        if self.folder().mode().is_read_only() {
            return;
        }
        lock(&self.0.writes).changed.push(id);
        self.0.wakes_writer.notify_one();
    }

    /// Returns the notifications of a store.
    pub(super) fn changes_of(&self, id: StoreId) -> Changes {
        self.0.changes_of(id)
    }

    fn error(&self, failure: &Failure, operation: &'static str) -> KvError {
        failure.to_error(operation, self.0.folder.file(), None)
    }

    /// Copies the database to a new folder, on a thread of its own.
    pub(super) async fn backup(&self, target: PathBuf) -> KvResult<()> {
        self.check_open(BACKUP)?;
        let Ok(turn) = Arc::clone(&self.0.copies).acquire_owned().await else {
            return Err(KvError::closed(BACKUP));
        };
        let (answer, copied) = oneshot::channel();
        let shared = Arc::clone(&self.0);
        let spawned = thread::Builder::new().name("shizuku-kv-copy".to_owned()).spawn(move || {
            let result = backup::copy_to(&shared, &target);
            drop((turn, shared));
            let _ = answer.send(result);
        });
        spawned.map_err(|error| no_thread(BACKUP, error))?;
        copied.await.unwrap_or_else(|_| Err(self.lost(BACKUP)))
    }

    /// Checks that the database is still the file at its path, and that it can be read.
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
