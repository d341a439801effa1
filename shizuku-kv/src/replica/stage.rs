//! Processes one batch: skips the updates that are known, applies the others, then commits them
//! (ADR 0031).

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::{Either, select};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::phase::Phase;
use super::retry::{RetryPolicy, Tries};
use super::storage::{Checkpoint, StoredVersion};
use super::uncommitted::Uncommitted;
use super::{Batch, ReplicaError, ReplicaProgress, ReplicaStorage, StorageError};
use crate::store::{Key, KvEntry, KvUpdate};

/// A batch to process.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) updates: Vec<KvUpdate>,
    /// The checkpoint to commit with it.
    pub(super) checkpoint: Option<Checkpoint>,
    pub(super) phase: Phase,
    /// Time at which the first of the updates came.
    pub(super) since: SystemTime,
}

/// The outcome of a batch.
#[derive(Debug)]
pub(super) enum Done {
    /// It is applied and committed.
    Kept,
    /// It failed, and the replica was stopped meanwhile.
    GivenUp,
}

/// Everything that a stage needs except the storage itself, which other threads use.
#[derive(Clone, Debug)]
pub(super) struct StageContext {
    pub(super) retry: RetryPolicy,
    pub(super) stop: CancellationToken,
    pub(super) progress: watch::Sender<ReplicaProgress>,
    pub(super) uncommitted: Uncommitted,
}

/// Processes the batch. `apply` is moved in, and comes back with the result.
pub(super) async fn stage<S, A, F, E>(
    mut apply: A,
    storage: Arc<Mutex<S>>,
    work: Work,
    context: StageContext,
) -> (A, Result<Done, ReplicaError>)
where
    S: ReplicaStorage,
    A: FnMut(Batch) -> F,
    F: Future<Output = Result<(), E>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let result = context.run(&mut apply, &storage, work).await;
    (apply, result)
}

impl StageContext {
    async fn run<S, A, F, E>(
        &self,
        apply: &mut A,
        storage: &Arc<Mutex<S>>,
        work: Work,
    ) -> Result<Done, ReplicaError>
    where
        S: ReplicaStorage,
        A: FnMut(Batch) -> F,
        F: Future<Output = Result<(), E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let Work { updates, checkpoint, phase, since } = work;
        self.progress.send_modify(|progress| {
            progress.unapplied = updates.len();
            progress.unapplied_since = Some(since);
        });
        let updates = if phase.compares() {
            match self.news(storage, updates, phase).await? {
                Some(news) => news,
                None => return Ok(Done::GivenUp),
            }
        } else {
            updates
        };
        if updates.is_empty() && checkpoint.is_none() {
            self.progress.send_modify(|progress| {
                (progress.unapplied, progress.unapplied_since) = (0, None);
                progress.last_error = None;
            });
            return Ok(Done::Kept);
        }
        let batch = Batch {
            updates: Arc::new(updates),
            cursor: checkpoint.map(|checkpoint| checkpoint.cursor()),
        };
        let count = batch.updates.iter().filter(|update| update.entry().is_some()).count();
        let mut tries = self.retry.tries();
        self.uncommitted.given(&batch);
        loop {
            let Err(error) = apply(batch.clone()).await else { break };
            let source = Arc::from(error.into());
            let failure = |attempts| ReplicaError::Apply { updates: count, attempts, source };
            if !self.pause(&mut tries, failure).await? {
                return Ok(Done::GivenUp);
            }
        }
        let mut tries = self.retry.tries();
        loop {
            let updates = Arc::clone(&batch.updates);
            let commit = move |storage: &mut S| storage.commit(&updates, checkpoint.as_ref());
            let Err(error) = blocking(storage, commit).await else { break };
            if !self.again("keeping what was applied", error, &mut tries).await? {
                return Ok(Done::GivenUp);
            }
        }
        self.uncommitted.kept();
        self.progress.send_modify(|progress| {
            progress.applied = checkpoint.map(|checkpoint| checkpoint.cursor());
            (progress.unapplied, progress.unapplied_since) = (0, None);
            progress.updates += count as u64;
            progress.last_error = None;
        });
        Ok(Done::Kept)
    }

    /// Returns the updates that differ from the held state. Returns `None` if the replica was
    /// stopped.
    async fn news<S: ReplicaStorage>(
        &self,
        storage: &Arc<Mutex<S>>,
        updates: Vec<KvUpdate>,
        phase: Phase,
    ) -> Result<Option<Vec<KvUpdate>>, ReplicaError> {
        let keys: HashSet<Key> =
            updates.iter().filter_map(|update| Some(update.entry()?.key.clone())).collect();
        let keys: Arc<Vec<Key>> = Arc::new(keys.into_iter().collect());
        let mut tries = self.retry.tries();
        let held = loop {
            let asked = Arc::clone(&keys);
            match blocking(storage, move |storage: &mut S| storage.held(&asked)).await {
                Ok(held) => break held,
                Err(error) => {
                    if !self.again("looking up stored entries", error, &mut tries).await? {
                        return Ok(None);
                    }
                }
            }
        };
        let mut held: HashMap<&Key, Option<StoredVersion>> = keys.iter().zip(held).collect();
        // Each update that is news changes the held entry. A server that is behind may show an
        // older value than the held one, and then the held one again, which is news again.
        let mut is_news = |entry: &KvEntry| {
            let is_news = phase.is_news(entry, held.get(&entry.key).copied().flatten());
            if is_news && let Some(held) = held.get_mut(&entry.key) {
                *held = (!entry.is_tombstone())
                    .then(|| StoredVersion::new(entry.version, entry.created));
            }
            is_news
        };
        Ok(Some(
            updates.into_iter().filter(|update| update.entry().is_none_or(&mut is_news)).collect(),
        ))
    }

    /// Retries after a failure of the storage, if a retry can help.
    pub(super) async fn again(
        &self,
        doing: &'static str,
        error: StorageError,
        tries: &mut Tries,
    ) -> Result<bool, ReplicaError> {
        let is_retryable = error.is_retryable();
        let failure = |_| ReplicaError::Storage { doing, source: Arc::new(error) };
        if is_retryable { self.pause(tries, failure).await } else { Err(failure(0)) }
    }

    /// Clears the last error after a success.
    pub(super) fn worked(&self) {
        self.progress.send_modify(|progress| progress.last_error = None);
    }

    /// Reports the failure and backs off before the next attempt. Returns false if the replica is
    /// stopped, so that no attempt follows.
    ///
    /// # Errors
    /// Returns the failure after the last attempt.
    async fn pause(
        &self,
        tries: &mut Tries,
        failure: impl FnOnce(u32) -> ReplicaError,
    ) -> Result<bool, ReplicaError> {
        let pause = tries.failed();
        let failure = failure(tries.made);
        let Some(pause) = pause else { return Err(failure) };
        // The texts are the caller's own. Progress shows them, but the log does not.
        let what = failure.what();
        tracing::warn!(
            attempts = tries.made,
            what,
            "a replica does not get on, and will try again"
        );
        self.progress.send_modify(|progress| progress.last_error = Some(Arc::new(failure)));
        Ok(!self.rest(pause).await)
    }

    /// Waits. Returns true if the replica was stopped meanwhile.
    pub(super) async fn rest(&self, pause: Duration) -> bool {
        let (stopped, rest) = (self.stop.cancelled(), tokio::time::sleep(pause));
        matches!(select(std::pin::pin!(stopped), std::pin::pin!(rest)).await, Either::Left(_))
    }
}

/// Runs `work` on the storage in a blocking thread, in the order of the calls. Work that was begun
/// is finished before the next begins, even if its future was dropped.
pub(super) async fn blocking<S: ReplicaStorage, R: Send + 'static>(
    storage: &Arc<Mutex<S>>,
    work: impl FnOnce(&mut S) -> Result<R, StorageError> + Send + 'static,
) -> Result<R, StorageError> {
    // Locks before the thread is requested. Otherwise a thread that starts late would find the
    // storage after its successors. If an earlier call panicked, the storage is as the panic left
    // it; its own guarantee covers crashes too.
    let mut storage = Arc::clone(storage).lock_owned().await;
    match tokio::task::spawn_blocking(move || work(&mut storage)).await {
        Ok(result) => result,
        Err(_) => Err(StorageError::fatal("it panicked, or the runtime has ended")),
    }
}
