//! Local copies of a bucket: each change is applied to a state of the caller's own, and the place that is kept says
//! exactly how far that is.
//!
//! A [`Replica`] watches a scope, collects updates into batches ([`BatchConfig`]), and hands each to an `apply` of the
//! caller's. Only when that has returned, the place in the bucket's changes is kept in the replica's [storage](ReplicaStorage),
//! together with what was applied. So, after a crash at any moment:
//!
//! - Everything up to the place that is found was applied. What came after it comes again, so that `apply` may see an
//!   update twice: it has to be of the kind that does no harm, as setting a key is.
//! - Only what was missed comes, and not the whole bucket.
//!
//! Where the bucket no longer holds what followed the place ([`KvError::CursorExpired`]), was deleted and made again, or
//! where the scope is another one than before, the replica repairs itself: it takes the state anew, leaves out what it
//! has, and in the end drops what the bucket does not have any more: such keys come as deletions with the operation
//! [`KvOperation::Vanished`]. Until then no place is kept. For that time the replica remembers some 40 bytes for each key.
//!
//! # What state, and where
//!
//! | the state that `apply` changes | its storage |
//! |---|---|
//! | in memory, filled anew at each start | [`MemoryStorage`]: every start takes the whole state from the bucket |
//! | in memory, and there again after a restart | [`LogStorage`]: state and place in an append-only log |
//! | larger than memory | `RedbStorage`, feature `local` |
//! | in a database of your own | implement [`ReplicaStorage`] over it |
//!
//! The last line is about more than taste. A state that outlives the process in one place, and the replica's storage in
//! another, can part: what was applied and not kept when a crash came is unknown to the storage, so that a repair cannot
//! tell that it has vanished. A state in memory goes with the crash and is filled from the storage.
//!
//! # One at a time
//!
//! A storage belongs to one replica. Those here refuse to be opened twice.
//!
//! [`KvError::CursorExpired`]: crate::KvError::CursorExpired
//! [`KvOperation::Vanished`]: crate::KvOperation::Vanished

mod batch;
mod collect;
mod compare;
mod course;
mod error;
mod log;
mod memory;
#[cfg(test)]
mod model;
mod progress;
#[cfg(feature = "local")]
mod redb;
mod retry;
mod run;
mod stage;
mod storage;
mod tally;
mod unkept;

use std::error::Error;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::{Either, select};
use tokio::sync::{Mutex, watch};
/// Stops a replica: that of `tokio_util`.
pub use tokio_util::sync::CancellationToken;

pub use batch::{Batch, BatchConfig, TypedBatch};
pub use error::ReplicaError;
pub use log::{LogReader, LogStorage};
pub use memory::MemoryStorage;
pub use progress::{ReplicaMonitor, ReplicaProgress};
#[cfg(feature = "local")]
pub use redb::{RedbOptions, RedbReader, RedbScan, RedbStorage, RedbSync};
pub use retry::RetryPolicy;
pub use storage::{Held, ReplicaPlace, ReplicaStorage, StorageError};

use self::unkept::Unkept;
use crate::store::{Pulse, Store, WatchCursor, WatchLink, WatchScope, in_runtime};
use crate::typed::{ByteDeserialize, KeyValue};

/// Follows a scope of a store and applies what changes, in batches, until it is told to stop: the short form of
/// [`Replica`], where everything else can be set.
///
/// `apply` gets the updates in order; when it has returned, the cursor is kept in `storage` together with what was
/// applied. Where it fails the same batch is tried again after a pause, without an end. When `stop` is cancelled, what
/// has come is applied and kept, and the cursor is returned.
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
///             // It is all there: this example has seen enough.
///             KvUpdate::CaughtUp => stop.cancel(),
///             _ => {}
///         }
///     }
///     Ok::<_, std::convert::Infallible>(())
/// };
/// let storage = MemoryStorage::new();
/// watch_applied(&store, WatchScope::prefix("route."), storage, BatchConfig::new(), stop.clone(), apply).await?;
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

/// A local copy of a scope of a store. The module's documentation says what it promises.
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
    unkept: Unkept,
    batch: BatchConfig,
    retry: RetryPolicy,
    compare_every: Duration,
    stop: CancellationToken,
    progress: watch::Sender<ReplicaProgress>,
    pulse: Arc<Pulse>,
}

impl Replica {
    /// A replica of a scope, with the defaults: a [`MemoryStorage`], batches as [`BatchConfig::new`], failures tried again
    /// without an end, no way to stop it but dropping its future.
    pub fn new(store: &Store, scope: impl Into<WatchScope>) -> Self {
        Self {
            store: store.clone(),
            scope: scope.into(),
            storage: Arc::default(),
            unkept: Unkept::default(),
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
    /// Where it keeps what it holds.
    pub fn storage<O: ReplicaStorage>(self, storage: O) -> Replica<O> {
        let Self {
            store,
            scope,
            storage: _,
            unkept,
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
            unkept,
            batch,
            retry,
            compare_every,
            stop,
            progress,
            pulse,
        }
    }

    /// How many updates are applied together.
    pub fn batch(mut self, batch: BatchConfig) -> Self {
        self.batch = batch;
        self
    }

    /// What to do when applying, or keeping what was applied, fails: tried again without an end, unless this says
    /// otherwise.
    pub fn retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    /// Ends the run when it is cancelled: what has come by then is applied and kept, as far as that works.
    pub fn stop_on(mut self, stop: CancellationToken) -> Self {
        self.stop = stop;
        self
    }

    /// Sets the interval between comparisons with the store: at least 1 s; 60 s by default. Each
    /// run also begins with a comparison.
    ///
    /// A comparison finds entries that left the store without a message: evicted because the store
    /// is full, expired without a marker, purged by an operator or another client, or lost by a
    /// server that came back older. It is one request for the store's
    /// [figures](crate::StoreFigures). The keys are listed only if the figures differ from the
    /// replica's. The replica resyncs only if a key differs. After listings without a difference,
    /// the next one waits for up to 16 intervals.
    pub fn compare_every(mut self, interval: Duration) -> Self {
        self.compare_every = interval;
        self
    }

    /// Closes the storage in a thread where that may block, and returns when it is closed. A replica that is dropped
    /// closes it where it is dropped, or, with a [`LogStorage`], in the background.
    ///
    /// Dropping the future is safe: then nobody waits for it.
    pub async fn close(self) {
        let mut storage = self.into_storage().await;
        let close = move || {
            if let Err(error) = storage.close() {
                tracing::warn!(%error, "what a replica's storage holds may not be on the disk");
            }
        };
        // Where the runtime ends, it is closed by that.
        let _ = tokio::task::spawn_blocking(close).await;
    }

    /// The storage, when a commit that was begun by a run that was dropped has ended. For one that is to be closed, or used
    /// elsewhere.
    pub async fn into_storage(self) -> S {
        let mut storage = self.storage;
        loop {
            drop(storage.lock().await);
            match Arc::try_unwrap(storage) {
                Ok(storage) => return storage.into_inner(),
                // Whoever had it has it no longer, but for a moment.
                Err(shared) => storage = shared,
            }
            tokio::task::yield_now().await;
        }
    }

    /// Tells how far it is, also while it runs.
    pub fn monitor(&self) -> ReplicaMonitor {
        ReplicaMonitor { progress: self.progress.subscribe(), pulse: Arc::clone(&self.pulse) }
    }

    /// Follows the store and applies what changes, until it is told to [stop](Self::stop_on): then what has come is applied
    /// and kept, as far as that works at the first try, and the cursor is returned up to which everything is; `None` where
    /// there is none yet, or a repair was under way. It can be run again, and goes on where it was.
    ///
    /// `apply` gets batches in order, one at a time; while it works the next one is collected. When it fails, the same
    /// batch comes again, as the [policy](Self::retry) says. It may see an update twice, never one out of order.
    ///
    /// It is an ordinary closure that returns a future: `async |batch| …` will do where it only refers to what is outside.
    /// One that owns or changes something is `|batch| { let table = table.clone(); async move { … } }`; where nothing is
    /// awaited, `|batch| { count += 1; std::future::ready(Ok::<_, Infallible>(())) }`. Its error is anything that becomes a
    /// `Box<dyn Error + Send + Sync>`, as `anyhow::Error` does.
    ///
    /// Dropping the future is safe: at most the last batch was applied and not kept, and it comes again with the next run.
    /// A commit that has begun is finished in the background, and a storage is closed only then.
    ///
    /// # Errors
    /// [`ReplicaError::InvalidConfig`] before anything is done. [`ReplicaError::Store`] when the store is gone
    /// (`StoreNotFound`), the connection was shut down (`Closed`), or following is not allowed; outages are waited out.
    /// [`ReplicaError::Apply`] and [`ReplicaError::Storage`] as the [policy](Self::retry) says. A panic of `apply` is
    /// one of this future.
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
        // In the same future, so that a future that is not polled shows no sign of life.
        match select(pin!(run::run(self, apply)), pin!(beats)).await {
            Either::Left((end, _)) => end,
            Either::Right((never, _)) => never,
        }
    }

    /// As [`run`](Self::run), with records. What does not decode is an error in its place in the batch.
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
