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
                tracing::warn!(%error, "cannot close a replica's storage, its last updates may not be durable");
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
