//! A replica and its settings.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

#[allow(unused_imports, reason = "named in the documentation")]
use super::LogStorage;
use super::uncommitted::Uncommitted;
use super::{
    BatchConfig, MemoryStorage, ReplicaMonitor, ReplicaProgress, ReplicaStorage, RetryPolicy,
};
use crate::store::{Store, WatchLink, WatchScope};
use crate::watch::Pulse;

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
    pub(super) store: Store,
    pub(super) scope: WatchScope,
    pub(super) storage: Arc<Mutex<S>>,
    pub(super) uncommitted: Uncommitted,
    pub(super) batch: BatchConfig,
    pub(super) retry: RetryPolicy,
    pub(super) compare_every: Duration,
    pub(super) stop: CancellationToken,
    pub(super) progress: watch::Sender<ReplicaProgress>,
    pub(super) pulse: Arc<Pulse>,
}

impl Replica {
    /// Returns a replica of a scope, with the defaults: a [`MemoryStorage`], the batches of
    /// [`BatchConfig::new`], and unlimited retries. Without [`stop_on`](Self::stop_on), only
    /// dropping the future of a run stops that run.
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

    /// Sets the policy for failures of `apply` and of the storage. The default retries without a
    /// limit.
    pub fn retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    /// Ends the run when the token is cancelled. The collected updates are applied and committed,
    /// as far as the first attempt succeeds.
    pub fn stop_on(mut self, stop: CancellationToken) -> Self {
        self.stop = stop;
        self
    }

    /// Sets the interval between comparisons with the store: at least 1 s, 60 s by default. Each
    /// run also begins with a comparison.
    ///
    /// A comparison finds entries that left the store without a message. Such entries were evicted
    /// because the store is full, expired without a marker, or were purged by an operator or
    /// another client. A server that was restored from an older copy may also have lost entries. A
    /// comparison is one request for the store's [figures](crate::StoreFigures). The keys are
    /// listed only if these figures differ from those of the replica. The replica resyncs only if a
    /// key differs. After listings without a difference, the next one waits for up to 16 intervals.
    pub fn compare_every(mut self, interval: Duration) -> Self {
        self.compare_every = interval;
        self
    }

    /// Closes the storage in a blocking thread, and returns when the storage is closed. A dropped
    /// replica closes its storage in the dropping thread. A [`LogStorage`] is closed in the
    /// background.
    ///
    /// Dropping the future is safe: the storage is closed nevertheless.
    pub async fn close(self) {
        let mut storage = self.into_storage().await;
        let close = move || {
            if let Err(error) = storage.close() {
                tracing::warn!(%error, "cannot close the storage of a replica, its last updates may not be durable");
            }
        };
        // The end of the runtime closes the storage too.
        let _ = tokio::task::spawn_blocking(close).await;
    }

    /// Returns the storage, after the end of any commit that a dropped run has begun. The caller
    /// can then close the storage, or use it for another replica.
    pub async fn into_storage(self) -> S {
        let mut storage = self.storage;
        loop {
            drop(storage.lock().await);
            match Arc::try_unwrap(storage) {
                Ok(storage) => return storage.into_inner(),
                // The thread of the commit keeps a reference for a short time.
                Err(shared) => storage = shared,
            }
            tokio::task::yield_now().await;
        }
    }

    /// Returns a monitor of the replica's progress, which also works while the replica runs.
    pub fn monitor(&self) -> ReplicaMonitor {
        ReplicaMonitor { progress: self.progress.subscribe(), pulse: Arc::clone(&self.pulse) }
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
