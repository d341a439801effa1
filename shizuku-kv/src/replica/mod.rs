//! Local copies of a store: each change is applied to a state of the caller's own, and a stored
//! checkpoint says exactly which changes were applied.
//!
//! A [`Replica`] watches a scope, collects updates into batches ([`BatchConfig`]), and passes each
//! batch to the caller's `apply`. Only after `apply` has returned, the replica commits the cursor
//! to its [storage](ReplicaStorage), together with the applied updates. After a crash at any
//! moment:
//!
//! - Everything up to the stored checkpoint was applied. Later updates are delivered again, so that
//!   `apply` may see an update twice. Applying it again must do no harm, as setting a key does
//!   none.
//! - The store delivers only the missed updates, and not its whole content.
//!
//! The replica resyncs if the store no longer has the updates after the checkpoint
//! ([`KvError::CursorExpired`]). It also resyncs if the store was deleted and recreated, or if the
//! scope has changed. It reads the initial state again and skips known entries. At the end it drops
//! the keys that the store no longer has, as deletions with the operation
//! [`KvOperation::Vanished`]. Until then the storage has no checkpoint. During a resync the replica
//! remembers some 40 bytes for each key.
//!
//! # Choosing a storage
//!
//! | the state that `apply` changes | its storage |
//! |---|---|
//! | in memory, rebuilt at each start | [`MemoryStorage`]: every start reads the whole state from the store |
//! | in memory, and there again after a restart | [`LogStorage`]: state and checkpoint in an append-only log |
//! | larger than memory | `RedbStorage`, feature `local` |
//! | in a database of your own | implement [`ReplicaStorage`] over it |
//!
//! The last line is a matter of correctness. A state that outlives the process in one place, and
//! the replica's storage in another, can diverge. The storage does not know the updates that were
//! applied but not committed before a crash. A resync therefore cannot find that one of them has
//! vanished. A state in memory ends with the crash and is rebuilt from the storage.
//!
//! # Exclusive use
//!
//! A storage belongs to one replica. The storages in this module reject a second opening.
//!
//! [`KvError::CursorExpired`]: crate::KvError::CursorExpired
//! [`KvOperation::Vanished`]: crate::KvOperation::Vanished

mod batch;
mod collect;
mod compare;
mod error;
mod log;
mod memory;
#[cfg(test)]
mod model;
mod phase;
mod progress;
#[cfg(feature = "local")]
mod redb;
mod retry;
mod run;
mod stage;
mod storage;
mod tally;
mod uncommitted;

use std::error::Error;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::{Either, select};
use tokio::sync::{Mutex, watch};
/// Stops a replica. This is the type of `tokio_util`.
pub use tokio_util::sync::CancellationToken;

pub use batch::{Batch, BatchConfig, TypedBatch};
pub use error::ReplicaError;
pub use log::{LogReader, LogStorage};
pub use memory::MemoryStorage;
pub use progress::{ReplicaMonitor, ReplicaProgress};
#[cfg(feature = "local")]
pub use redb::{RedbOptions, RedbReader, RedbScan, RedbStorage, RedbSync};
pub use retry::RetryPolicy;
pub use storage::{Checkpoint, ReplicaStorage, StorageError, StoredVersion};

use self::uncommitted::Uncommitted;
use crate::record::{ByteDeserialize, KeyValue};
use crate::store::{Store, WatchCursor, WatchLink, WatchScope, in_runtime};
use crate::watch::Pulse;

/// Follows a scope of a store and applies its changes, in batches, until it is stopped. This is the
/// short form of [`Replica`], which has all settings.
///
/// `apply` receives the updates in order. After it has returned, the cursor is committed to
/// `storage` together with the applied updates. If it fails, the same batch is retried after a
/// pause, without a limit. When `stop` is cancelled, the collected updates are applied and
/// committed, and the cursor is returned.
///
/// In a spawned task, use a closure that owns its state and gives each future a clone:
/// `move |batch| { let table = table.clone(); async move { … } }`. An `async move` closure is not
/// `FnMut`, because its futures borrow from it.
///
/// ```
/// use std::collections::BTreeMap;
/// use std::sync::{Arc, Mutex};
///
/// use shizuku_kv::replica::{Batch, MemoryStorage};
/// use shizuku_kv::{BatchConfig, KvUpdate, WatchScope, watch_applied};
/// use shizuku_kv::replica::CancellationToken;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = shizuku_kv::connect("memory:").await?.store("routes").await?;
/// store.put("route.home", "10.0.0.1").await?;
///
/// let routes = Arc::new(Mutex::new(BTreeMap::new()));
/// let stop = CancellationToken::new();
/// let apply = async |batch: Batch| {
///     let mut routes = routes.lock().unwrap();
///     for update in batch.updates() {
///         match update {
///             KvUpdate::Put(entry) => drop(routes.insert(entry.key.clone(), entry.value.clone())),
///             KvUpdate::Delete(entry) => drop(routes.remove(&entry.key)),
///             // The initial state is complete. A service would continue.
///             KvUpdate::CaughtUp => stop.cancel(),
///             _ => {}
///         }
///     }
///     Ok::<_, std::convert::Infallible>(())
/// };
/// let storage = MemoryStorage::new();
/// let (scope, config) = (WatchScope::prefix("route."), BatchConfig::new());
/// watch_applied(&store, scope, storage, config, stop.clone(), apply).await?;
/// assert_eq!(routes.lock().unwrap()["route.home"], "10.0.0.1");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As for [`Replica::run`].
pub async fn watch_applied<S, A, F, E>(
    store: &Store,
    scope: impl Into<WatchScope>,
    storage: S,
    batch: BatchConfig,
    stop: CancellationToken,
    apply: A,
) -> Result<Option<WatchCursor>, ReplicaError>
where
    S: ReplicaStorage,
    A: FnMut(Batch) -> F,
    F: Future<Output = Result<(), E>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let mut replica = Replica::new(store, scope).storage(storage).batch(batch).stop_on(stop);
    let end = replica.run(apply).await;
    replica.close().await;
    end
}

/// A local copy of a scope of a store. The module's documentation describes its guarantees.
///
/// ```
/// use shizuku_kv::WatchScope;
/// use shizuku_kv::replica::{Batch, Replica};
/// use shizuku_kv::replica::CancellationToken;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let store = shizuku_kv::connect("memory:").await?.store("routes").await?;
/// let stop = CancellationToken::new();
/// let mut replica = Replica::new(&store, WatchScope::prefix("route.")).stop_on(stop.clone());
/// let mut monitor = replica.monitor();
/// let task = tokio::spawn(async move {
///     let apply = async |batch: Batch| {
///         println!("{} updates", batch.updates().len());
///         Ok::<_, std::convert::Infallible>(())
///     };
///     replica.run(apply).await
/// });
/// assert!(monitor.current().await, "the routes are all there");
/// stop.cancel();
/// task.await??;
/// # Ok(())
/// # }
/// ```
pub struct Replica<S = MemoryStorage> {
    store: Store,
    scope: WatchScope,
    storage: Arc<Mutex<S>>,
    uncommitted: Uncommitted,
    batch: BatchConfig,
    retry: RetryPolicy,
    compare_every: Duration,
    stop: CancellationToken,
    progress: watch::Sender<ReplicaProgress>,
    pulse: Arc<Pulse>,
}

impl Replica {
    /// Returns a replica of a scope, with the defaults: a [`MemoryStorage`], batches as
    /// [`BatchConfig::new`], and retries without a limit. Only dropping its future stops it.
    pub fn new(store: &Store, scope: impl Into<WatchScope>) -> Self {
        Self {
            store: store.clone(),
            scope: scope.into(),
            storage: Arc::default(),
            uncommitted: Uncommitted::default(),
            batch: BatchConfig::default(),
            retry: RetryPolicy::default(),
            compare_every: store.compare_every(),
            stop: CancellationToken::new(),
            progress: watch::Sender::new(ReplicaProgress {
                link: WatchLink::down(SystemTime::now(), "the replica has not been run"),
                ..ReplicaProgress::default()
            }),
            pulse: Arc::default(),
        }
    }
}

impl<S: ReplicaStorage> Replica<S> {
    /// Sets the storage of the replica's state.
    pub fn storage<O: ReplicaStorage>(self, storage: O) -> Replica<O> {
        let Self {
            store,
            scope,
            storage: _,
            uncommitted,
            batch,
            retry,
            compare_every,
            stop,
            progress,
            pulse,
        } = self;
        let storage = Arc::new(Mutex::new(storage));
        Replica {
            store,
            scope,
            storage,
            uncommitted,
            batch,
            retry,
            compare_every,
            stop,
            progress,
            pulse,
        }
    }

    /// Sets the limits of a batch.
    pub fn batch(mut self, batch: BatchConfig) -> Self {
        self.batch = batch;
        self
    }

    /// Sets the policy for a failure of applying or of committing. The default retries without a
    /// limit.
    pub fn retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    /// Ends the run when the token is cancelled. The collected updates are applied and committed,
    /// as far as that works.
    pub fn stop_on(mut self, stop: CancellationToken) -> Self {
        self.stop = stop;
        self
    }

    /// Sets the interval between comparisons with the store: at least 1 s; 60 s by default. Each
    /// run also begins with a comparison.
    ///
    /// A comparison finds entries that left the store without a message. They were evicted because
    /// the store is full, expired without a marker, or were purged by an operator or another
    /// client. They may also be lost by a server that came back older. A comparison is one request
    /// for the store's [figures](crate::StoreFigures). The keys are listed only if the figures
    /// differ from the replica's. The replica resyncs only if a key differs. After listings without
    /// a difference, the next one waits for up to 16 intervals.
    pub fn compare_every(mut self, interval: Duration) -> Self {
        self.compare_every = interval;
        self
    }

    /// Closes the storage in a blocking thread, and returns when it is closed. A dropped replica
    /// closes its storage in the dropping thread, or, with a [`LogStorage`], in the background.
    ///
    /// Dropping the future is safe: the storage is closed nevertheless.
    pub async fn close(self) {
        let mut storage = self.into_storage().await;
        let close = move || {
            if let Err(error) = storage.close() {
                tracing::warn!(%error, "what a replica's storage holds may not be on the disk");
            }
        };
        // If the runtime ends, that closes the storage.
        let _ = tokio::task::spawn_blocking(close).await;
    }

    /// Returns the storage, after the end of any commit that a dropped run has begun. Use it to
    /// close the storage, or to use it elsewhere.
    pub async fn into_storage(self) -> S {
        let mut storage = self.storage;
        loop {
            drop(storage.lock().await);
            match Arc::try_unwrap(storage) {
                Ok(storage) => return storage.into_inner(),
                // The thread of the commit still holds a reference for a moment.
                Err(shared) => storage = shared,
            }
            tokio::task::yield_now().await;
        }
    }

    /// Returns a monitor of the replica's progress, which also works while the replica runs.
    pub fn monitor(&self) -> ReplicaMonitor {
        ReplicaMonitor { progress: self.progress.subscribe(), pulse: Arc::clone(&self.pulse) }
    }

    /// Follows the store and applies its changes, until it is [stopped](Self::stop_on). Then it
    /// applies and commits the collected updates, as far as the first attempt succeeds, and returns
    /// the cursor of the last commit. Returns `None` if no commit had a cursor yet, or a resync was
    /// in progress. It can be run again, and resumes from its checkpoint.
    ///
    /// `apply` receives batches in order, one at a time; the next batch is collected meanwhile. If
    /// it fails, the same batch is retried, as the [policy](Self::retry) says. It may see an update
    /// twice, but never out of order.
    ///
    /// It is an ordinary closure that returns a future: `async |batch| …` is enough if it only
    /// refers to outer variables. One that owns or changes something is
    /// `|batch| { let table = table.clone(); async move { … } }`. If nothing is awaited, use
    /// `|batch| { count += 1; std::future::ready(Ok::<_, Infallible>(())) }`. Its error is anything
    /// that converts to a `Box<dyn Error + Send + Sync>`, as `anyhow::Error` does.
    ///
    /// Dropping the future is safe: at most the last batch was applied and not committed, and the
    /// next run applies it again. A commit that has begun is finished in the background, and only
    /// then the storage is closed.
    ///
    /// # Errors
    /// Returns [`ReplicaError::InvalidConfig`] before any request is sent. Returns
    /// [`ReplicaError::Store`] if the store is gone (`StoreNotFound`), the connection was shut down
    /// (`Closed`), or following is not allowed; outages are waited out. Returns
    /// [`ReplicaError::Apply`] and [`ReplicaError::Storage`] as the [policy](Self::retry) says.
    /// This future also panics if `apply` does.
    pub async fn run<A, F, E>(&mut self, apply: A) -> Result<Option<WatchCursor>, ReplicaError>
    where
        A: FnMut(Batch) -> F,
        F: Future<Output = Result<(), E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        self.batch.validate()?;
        self.retry.validate()?;
        if self.compare_every < Duration::from_secs(1) {
            let allowed = "at least a second";
            return Err(ReplicaError::InvalidConfig { field: "compare_every", allowed });
        }
        in_runtime("watch").map_err(ReplicaError::Store)?;
        let (pulse, store) = (Arc::clone(&self.pulse), self.store.clone());
        pulse.beat();
        let beats = async {
            loop {
                pulse.next(&**store.backend()).await;
            }
        };
        // Runs both in the same future, so that a future that is not polled shows no sign of life.
        match select(pin!(run::run(self, apply)), pin!(beats)).await {
            Either::Left((end, _)) => end,
            Either::Right((never, _)) => never,
        }
    }

    /// As [`run`](Self::run), with records. An update that does not decode is an error in its place
    /// in the batch.
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    pub async fn run_typed<T, A, F, E>(
        &mut self,
        mut apply: A,
    ) -> Result<Option<WatchCursor>, ReplicaError>
    where
        T: KeyValue<Value: ByteDeserialize>,
        A: FnMut(TypedBatch<T>) -> F,
        F: Future<Output = Result<(), E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        self.run(|batch: Batch| apply(TypedBatch::of(&batch))).await
    }
}

impl<S> fmt::Debug for Replica<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica")
            .field("store", &self.store.name())
            .field("scope", &self.scope)
            .field("progress", &*self.progress.borrow())
            .finish_non_exhaustive()
    }
}
