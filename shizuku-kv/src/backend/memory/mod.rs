//! The memory backend: stores that live as long as the process, for unit tests and for what need not outlive it.
//!
//! It is also the reference for the meaning of the contract, and mirrors what a NATS bucket does, so that a program
//! that was tested on it behaves the same there:
//!
//! - A store is a log, numbered from 1. Each write, deletions and expiries included, takes the next number, which is
//!   the key's version. Of each key the newest entries are held, as many as the history allows.
//! - Nothing runs in the background. Where many calls are answered one after the other, and where much has expired at
//!   once, the task steps aside now and then, so that a loop around an operation starves nobody.
//! - Every operation first applies what has expired by tokio's clock, in the order in
//!   which it fell due; a watch that waits wakes up for it by itself. With the time paused by a test, values expire when
//!   the test moves the clock.
//! - If values expire (a maximum age, or times to live), tombstones expire an hour after they were
//!   written, or after the maximum age if that is shorter. Otherwise they are held for ever.
//!   Tombstones of locks, and of deletions with a fencing token, are held for ever unless there is
//!   a maximum age.
//! - If tombstones expire and the history is 1, a purge leaves the tombstone of a deletion.
//! - A cursor is honoured while the store holds every entry after it, or can be sure of it: it expires when the oldest
//!   entry held is beyond the next one, and when a tombstone after it was forgotten.
//! - The limit on bytes counts the keys and values that are held after the write. Deletions are never refused by it.
//! - Storage and replicas are taken note of and compared, and change nothing.

mod log;
#[cfg(test)]
mod log_model;
mod scan;
mod shared;
mod store;
#[cfg(test)]
mod tests;
mod watch;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use futures_core::future::BoxFuture;
use futures_util::stream;

use self::shared::{End, Shared};
use self::store::MemoryStore;
use crate::store::{
    Connection, ConnectionCapabilities, Deadline, KvError, KvResult, KvStream, OpenStores, Store,
    StoreConfig, check_store_name, in_runtime,
};

const CAPABILITIES: ConnectionCapabilities = ConnectionCapabilities {
    write: true,
    compare_and_swap: true,
    watch: true,
    watch_resume: true,
    max_history: 64,
    max_age: true,
    key_ttl: true,
    fenced_writes: true,
    expiry_events: true,
    leader_reads: true,
    persistent: false,
    shared: false,
};

/// Stores in the memory of this process.
///
/// Each [`new`](Self::new) is a world of its own: stores of the same name in two of them have nothing to do with each
/// other. Clones share their stores. What is stored goes with the last clone, handle and watch, or with
/// [`shutdown`](Connection::shutdown).
///
/// Times to live and maximum ages run on tokio's clock, so that a test with paused time decides when values expire.
#[derive(Clone, Default)]
pub struct MemoryConnection {
    world: Arc<Mutex<World>>,
}

#[derive(Default)]
struct World {
    stores: BTreeMap<String, Arc<Shared>>,
    handles: Arc<OpenStores>,
    /// Known to the stores too, those that were deleted included.
    closed: Arc<AtomicBool>,
}

impl World {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

impl MemoryConnection {
    /// A connection to a new world without stores.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stores, for an operation. Like every backend this one requires a runtime, so that a
    /// program that runs here runs elsewhere too.
    fn open(&self, operation: &'static str) -> KvResult<MutexGuard<'_, World>> {
        in_runtime(operation)?;
        let world = self.lock();
        if world.is_closed() { Err(KvError::Closed { operation }) } else { Ok(world) }
    }

    fn existing_or_new(&self, name: &str, config: &StoreConfig) -> KvResult<Arc<Shared>> {
        let mut world = self.open("store")?;
        if let Some(shared) = world.stores.get(name) {
            return Ok(Arc::clone(shared));
        }
        if config.must_exist {
            return Err(KvError::StoreNotFound { store: name.to_owned() });
        }
        let shared = Arc::new(Shared::new(name, config.clone(), Arc::clone(&world.closed)));
        world.stores.insert(name.to_owned(), Arc::clone(&shared));
        Ok(shared)
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

    fn store_with_config<'a>(
        &'a self,
        name: &'a str,
        config: StoreConfig,
    ) -> BoxFuture<'a, KvResult<Store>> {
        Box::pin(async move {
            check_store_name(name)?;
            config.validate()?;
            let deadline = config.operation_deadline();
            let shared = loop {
                let shared = self.existing_or_new(name, &config)?;
                match shared.open_with(&config).await {
                    Ok(()) => break shared,
                    // It was deleted in this moment, and is not among the stores any more.
                    Err(KvError::StoreNotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            };
            let store = Store::new(Arc::new(MemoryStore::new(shared)), deadline);
            self.lock().handles.add(&store);
            Ok(store)
        })
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
                    shared.end(End::Deleted);
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
            for shared in stores.into_values() {
                shared.end(End::Closed);
            }
            released
        })
    }
}

/// After how many answers in a row a task lets others run.
const BUDGET: u32 = 64;

thread_local! {
    /// How many answers this thread has given since one last let others run. Whichever tasks they were for: no task gets
    /// more than its share, and some give way a little early.
    static ANSWERS: Cell<u32> = const { Cell::new(0) };
}

/// Counts an answer that nobody had to wait for, and lets other tasks run where there were many: an operation that is
/// always ready would otherwise keep its thread for as long as it is called in a loop.
async fn share() {
    let answers = ANSWERS.get() + 1;
    ANSWERS.set(answers % BUDGET);
    if answers == BUDGET {
        yield_once().await;
    }
}

/// Lets other tasks run before going on.
async fn yield_once() {
    let mut yielded = false;
    poll_fn(|context| {
        if mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
