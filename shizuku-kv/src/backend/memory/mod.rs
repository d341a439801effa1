//! The memory backend: stores that live as long as the process, for unit tests and for data that
//! need not outlive it.
//!
//! It is also the reference for the meaning of the contract, and mirrors a NATS bucket. A program
//! that was tested on it therefore behaves the same there (ADR 0013):
//!
//! - A store is a log, numbered from 1. Each write, deletions and expiries included, takes the next
//!   number, which is the key's version. The newest entries of each key are held, as many as the
//!   history allows.
//! - Nothing runs in the background. If many calls are answered in a row, or if many entries have
//!   expired at once, the task yields now and then. A loop around an operation therefore starves no
//!   other task.
//! - No operation locks a store for a long time, however large the store is. Work on many entries
//!   is done in pieces, between which other operations run, including those of other threads (ADR
//!   0077). Expired entries or new settings may not have been applied to all entries yet. An
//!   operation that finds such work applies the rest first, so that no partial result is visible.
//! - Every operation first applies what has expired by tokio's clock, in the order in which it fell
//!   due. A waiting watch wakes up for it by itself. If a test pauses the time, values expire when
//!   the test moves the clock.
//! - If values expire (a maximum age, or times to live), tombstones expire an hour after their
//!   write, or after the maximum age if that is shorter. Otherwise they are held forever.
//!   Tombstones of locks, and of deletions with a fencing token, are held forever unless the store
//!   has a maximum age.
//! - If tombstones expire and the history is 1, a purge leaves the tombstone of a deletion.
//! - A cursor is accepted while the store holds every entry after it, or can be sure of it. It
//!   expires when the oldest entry held is beyond the next one, and when a tombstone after it was
//!   forgotten.
//! - The limit on bytes counts the keys and values that are held after the write. It never rejects
//!   a deletion.
//! - Storage and replicas are recorded and compared, without an effect.

mod lock;
mod log;
#[cfg(test)]
mod log_model;
mod scan;
mod shared;
mod store;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_core::future::BoxFuture;
use futures_util::stream;

use self::shared::{End, StoreState};
use self::store::{CAPABILITIES, MemoryStore};
use crate::store::{
    Connection, ConnectionCapabilities, Deadline, KvError, KvResult, KvStream, OpenStores, Store,
    StoreConfig, check_store_name, in_runtime,
};

/// Stores in the memory of this process.
///
/// Each [`new`](Self::new) creates a separate world: stores of the same name in two of them are
/// unrelated. Clones share their stores. The stored data is freed with the last clone, handle and
/// watch, or by [`shutdown`](Connection::shutdown).
///
/// Times to live and maximum ages run on tokio's clock, so that a test with paused time decides
/// when values expire.
#[derive(Clone, Default)]
pub struct MemoryConnection {
    world: Arc<Mutex<World>>,
}

#[derive(Default)]
struct World {
    stores: BTreeMap<String, Arc<StoreState>>,
    handles: Arc<OpenStores>,
    /// Shared with all stores, deleted ones included.
    closed: Arc<AtomicBool>,
}

impl World {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

impl MemoryConnection {
    /// Creates a connection to a new world without stores.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the stores, for an operation. Like every backend this one requires a runtime, so
    /// that a program that runs here runs elsewhere too.
    fn open(&self, operation: &'static str) -> KvResult<MutexGuard<'_, World>> {
        in_runtime(operation)?;
        let world = self.lock();
        if world.is_closed() { Err(KvError::Closed { operation }) } else { Ok(world) }
    }

    fn existing_or_new(
        &self,
        operation: &'static str,
        name: &str,
        config: &StoreConfig,
    ) -> KvResult<Arc<StoreState>> {
        let mut world = self.open(operation)?;
        if let Some(shared) = world.stores.get(name) {
            return Ok(Arc::clone(shared));
        }
        if config.must_exist {
            return Err(KvError::StoreNotFound { store: name.to_owned() });
        }
        let shared = Arc::new(StoreState::new(name, config.clone(), Arc::clone(&world.closed)));
        world.stores.insert(name.to_owned(), Arc::clone(&shared));
        Ok(shared)
    }

    async fn open_store(
        &self,
        operation: &'static str,
        name: &str,
        config: StoreConfig,
    ) -> KvResult<Store> {
        check_store_name(name)?;
        config.validate()?;
        let deadline = config.operation_deadline();
        let shared = loop {
            let shared = self.existing_or_new(operation, name, &config)?;
            match shared.open_with(operation, &config).await {
                Ok(()) => break shared,
                // The store was deleted in this moment, and is not in the list any more.
                Err(KvError::StoreNotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        };
        let store = Store::new(Arc::new(MemoryStore::new(shared)), deadline);
        self.lock().handles.add(&store);
        Ok(store)
    }
}

impl fmt::Debug for MemoryConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let world = self.lock();
        f.debug_struct("MemoryConnection")
            .field("stores", &world.stores.len())
            .field("closed", &world.is_closed())
            .finish_non_exhaustive()
    }
}

impl Connection for MemoryConnection {
    fn capabilities(&self) -> ConnectionCapabilities {
        CAPABILITIES
    }

    fn store<'a>(&'a self, name: &'a str) -> BoxFuture<'a, KvResult<Store>> {
        Box::pin(self.open_store("store", name, StoreConfig::new()))
    }

    fn store_with_config<'a>(
        &'a self,
        name: &'a str,
        config: StoreConfig,
    ) -> BoxFuture<'a, KvResult<Store>> {
        Box::pin(self.open_store("store_with_config", name, config))
    }

    fn list_stores(&self) -> KvStream<String> {
        let names =
            self.open("list_stores").map(|world| world.stores.keys().cloned().collect::<Vec<_>>());
        match names {
            Ok(names) => KvStream::new(stream::iter(names.into_iter().map(Ok))),
            Err(error) => KvStream::error(error),
        }
    }

    fn delete_store<'a>(&'a self, name: &'a str) -> BoxFuture<'a, KvResult<()>> {
        Box::pin(async move {
            check_store_name(name)?;
            let removed = self.open("delete_store")?.stores.remove(name);
            match removed {
                Some(shared) => {
                    shared.end(End::Deleted).free().await;
                    Ok(())
                }
                None => Err(KvError::StoreNotFound { store: name.to_owned() }),
            }
        })
    }

    fn health(&self) -> BoxFuture<'_, KvResult<()>> {
        Box::pin(async move { self.open("health").map(drop) })
    }

    fn shutdown(&self) -> BoxFuture<'_, KvResult<()>> {
        Box::pin(async move {
            in_runtime("shutdown")?;
            let handles = Arc::clone(&self.lock().handles);
            let released = handles.close(Deadline::after(Deadline::DEFAULT)).await;
            let stores = {
                let mut world = self.lock();
                world.closed.store(true, Ordering::Release);
                mem::take(&mut world.stores)
            };
            // All have ended before the first is freed, even if the caller gives up meanwhile.
            let ended: Vec<_> =
                stores.into_values().map(|shared| shared.end(End::Closed)).collect();
            for store in ended {
                store.free().await;
            }
            released
        })
    }
}
