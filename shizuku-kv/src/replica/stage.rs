//! What is done with one batch: what is known is left out, the rest is applied, and then kept.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::{Either, select};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::course::Phase;
use super::retry::{RetryPolicy, Tries};
use super::storage::{Held, ReplicaPlace};
use super::unkept::Unkept;
use super::{Batch, ReplicaError, ReplicaProgress, ReplicaStorage, StorageError};
use crate::store::{Key, KvEntry, KvUpdate};

/// What is to be done.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) updates: Vec<KvUpdate>,
    /// What is kept with it.
    pub(super) place: Option<ReplicaPlace>,
    pub(super) phase: Phase,
    /// When the first of the updates came.
    pub(super) since: SystemTime,
}

/// What became of it.
#[derive(Debug)]
pub(super) enum Done {
    /// It is applied and kept.
    Kept,
    /// It failed, and the replica was stopped meanwhile.
    GivenUp,
}

/// Everything that a stage needs but the storage itself, which is used in other threads.
#[derive(Clone, Debug)]
pub(super) struct Tools {
    pub(super) retry: RetryPolicy,
    pub(super) stop: CancellationToken,
    pub(super) progress: watch::Sender<ReplicaProgress>,
    pub(super) unkept: Unkept,
}

/// Does it. `apply` is lent, and comes back with the result.
pub(super) async fn stage<S, A, F, E>(
    mut apply: A,
    storage: Arc<Mutex<S>>,
    work: Work,
    tools: Tools,
) -> (A, Result<Done, ReplicaError>)
where
    S: ReplicaStorage,
    A: FnMut(Batch) -> F,
    F: Future<Output = Result<(), E>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let result = tools.run(&mut apply, &storage, work).await;
    (apply, result)
}

impl Tools {
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
        let Work { updates, place, phase, since } = work;
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
        if updates.is_empty() && place.is_none() {
            self.progress.send_modify(|progress| {
                (progress.unapplied, progress.unapplied_since) = (0, None);
                progress.last_error = None;
            });
            return Ok(Done::Kept);
        }
        let batch = Batch { updates: Arc::new(updates), cursor: place.map(|place| place.cursor()) };
        let count = batch.updates.iter().filter(|update| update.entry().is_some()).count();
        let mut tries = self.retry.tries();
        self.unkept.given(&batch);
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
            let commit = move |storage: &mut S| storage.commit(&updates, place.as_ref());
            let Err(error) = blocking(storage, commit).await else { break };
            if !self.again("keeping what was applied", error, &mut tries).await? {
                return Ok(Done::GivenUp);
            }
        }
        self.unkept.kept();
        self.progress.send_modify(|progress| {
            progress.applied = place.map(|place| place.cursor());
            (progress.unapplied, progress.unapplied_since) = (0, None);
            progress.updates += count as u64;
            progress.last_error = None;
        });
        Ok(Done::Kept)
    }

    /// The updates that tell something which is not held; none where the replica was stopped.
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
        let mut held: HashMap<&Key, Option<Held>> = keys.iter().zip(held).collect();
        // What is held changes with each that is news: a server that is behind shows a value which is older than the one
        // that is held, and then that one, which is news again.
        let mut is_news = |entry: &KvEntry| {
            let is_news = phase.is_news(entry, held.get(&entry.key).copied().flatten());
            if is_news && let Some(held) = held.get_mut(&entry.key) {
                *held = (!entry.is_tombstone()).then(|| Held::new(entry.version, entry.created));
            }
            is_news
        };
        Ok(Some(
            updates.into_iter().filter(|update| update.entry().is_none_or(&mut is_news)).collect(),
        ))
    }

    /// What a storage has failed at is tried again where that can help.
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

    /// What was in the way is not any more.
    pub(super) fn worked(&self) {
        self.progress.send_modify(|progress| progress.last_error = None);
    }

    /// Rests before the next try, and tells of the failure. Whether there is to be a next one: not when the replica is
    /// stopped.
    ///
    /// # Errors
    /// The failure, after the last try.
    async fn pause(
        &self,
        tries: &mut Tries,
        failure: impl FnOnce(u32) -> ReplicaError,
    ) -> Result<bool, ReplicaError> {
        let pause = tries.failed();
        let failure = failure(tries.made);
        let Some(pause) = pause else { return Err(failure) };
        // The texts are the caller's own: they are told to whoever asks, and kept out of the log.
        let what = failure.what();
        tracing::warn!(
            attempts = tries.made,
            what,
            "a replica does not get on, and will try again"
        );
        self.progress.send_modify(|progress| progress.last_error = Some(Arc::new(failure)));
        Ok(!self.rest(pause).await)
    }

    /// Waits, and tells whether the replica was stopped meanwhile.
    pub(super) async fn rest(&self, pause: Duration) -> bool {
        let (stopped, rest) = (self.stop.cancelled(), tokio::time::sleep(pause));
        matches!(select(std::pin::pin!(stopped), std::pin::pin!(rest)).await, Either::Left(_))
    }
}

/// Uses the storage where that may block, in the order in which this is called: what was begun is finished before what
/// comes after it begins, also where nobody waits for it any more.
pub(super) async fn blocking<S: ReplicaStorage, R: Send + 'static>(
    storage: &Arc<Mutex<S>>,
    work: impl FnOnce(&mut S) -> Result<R, StorageError> + Send + 'static,
) -> Result<R, StorageError> {
    // Locked before another thread is asked for, or one that is late to begin would find the storage after its successors.
    // Where an earlier call panicked, what the storage holds is as it left it: its own promise is about crashes too.
    let mut storage = Arc::clone(storage).lock_owned().await;
    match tokio::task::spawn_blocking(move || work(&mut storage)).await {
        Ok(result) => result,
        Err(_) => Err(StorageError::fatal("it panicked, or the runtime has ended")),
    }
}
