//! Starts replicas.

use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio_util::sync::CancellationToken;

use super::run::run;
use super::{Batch, BatchConfig, Replica, ReplicaError, ReplicaStorage, TypedBatch};
use crate::record::{ByteDeserialize, KeyValue};
use crate::store::{Store, WatchCursor, WatchScope, in_runtime};

/// Follows a scope of a store and applies its changes, in batches, until `stop` is cancelled. This
/// is the short form of [`Replica`], which has all settings.
///
/// `apply` receives the updates in order. After it has returned, the cursor is committed to
/// `storage` together with the applied updates. If `apply` fails, the same batch is retried after a
/// pause, without a limit. When `stop` is cancelled, the collected updates are applied and
/// committed, and the cursor is returned.
///
/// In a spawned task, use a closure that owns its state and gives each future a clone: `move
/// |batch| { let table = table.clone(); async move { … } }`. An `async move` closure is not
/// `FnMut`, because its futures borrow from the closure.
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

impl<S: ReplicaStorage> Replica<S> {
    /// Follows the store and applies its changes, until the replica is [stopped](Self::stop_on).
    /// Then the collected updates are applied and committed, as far as the first attempt succeeds.
    /// Returns the cursor of the last commit. Returns `None` if no commit had a cursor yet, or a
    /// resync was in progress. The replica can be run again, and resumes from its checkpoint.
    ///
    /// `apply` receives batches in order, one at a time. The next batch is collected meanwhile. If
    /// `apply` fails, the same batch is retried by the [policy](Self::retry). An update may be
    /// applied twice, but never out of order.
    ///
    /// `apply` is an ordinary closure that returns a future. `async |batch| …` is enough if the
    /// closure only refers to outer variables. A closure that owns or changes a value is `|batch| {
    /// let table = table.clone(); async move { … } }`. If nothing is awaited, use `|batch| { count
    /// += 1; std::future::ready(Ok::<_, Infallible>(())) }`. The error can be any type that
    /// converts to a `Box<dyn Error + Send + Sync>`, such as `anyhow::Error`.
    ///
    /// Dropping the future is safe: at most the last batch was applied and not committed, and the
    /// next run applies it again. A commit that has begun is finished in the background before the
    /// storage is closed.
    ///
    /// # Errors
    /// Returns [`ReplicaError::InvalidConfig`] before any request is sent. Returns
    /// [`ReplicaError::Store`] if the store is gone (`StoreNotFound`), the connection was shut down
    /// (`Closed`), or this user may not follow the scope. Outages are not errors. Returns
    /// [`ReplicaError::Apply`] and [`ReplicaError::Storage`] by the [policy](Self::retry). This
    /// future also panics if `apply` does.
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
        // Both run in the same future, so that a future that is not polled shows no sign of life.
        match select(pin!(run(self, apply)), pin!(beats)).await {
            Either::Left((end, _)) => end,
            Either::Right((never, _)) => never,
        }
    }

    /// Like [`run`](Self::run), with records. An update that does not decode is an error at its
    /// position in the batch.
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
