//! Read-write locks in memory and on a server, without faults of the network: the grants, their
//! order, and the errors of invalid uses. `locks::faults` covers the rest.

mod bad_use;
mod election;
mod foreign;
mod full_stores;
mod holding;
mod leases;
mod lost_holds;
mod presumed_dead;
mod processors;
mod session_keys;
mod shutdown;
mod waits;

use std::time::Duration;

use shizuku_kv::Store;
use shizuku_kv::rw_lock::{DistroRwLock, DistroRwLockError, LockOptions, WriteGuard};
use shizuku_kv_tests::eventually;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// Minimum lease, for sessions that have to end: a dead holder is evicted after little more.
const SHORT_LEASE: Duration = Duration::from_secs(1);

/// Lease for sessions that have to survive a stall of the machine for a few seconds.
const LEASE: Duration = Duration::from_secs(4);

/// Timeout for everything that has to happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// Returns handles to the same store, each for one simulated process.
///
/// Handles that are opened separately share nothing except the store, like different processes.
async fn handles(number: usize) -> Vec<Vec<Store>> {
    shizuku_kv_tests::handles("locks", number).await
}

fn options() -> LockOptions {
    LockOptions::new().lease(LEASE).wait(2 * PATIENCE)
}

fn lock(store: &Store, resource: &str) -> DistroRwLock {
    DistroRwLock::with_options(store, resource, options()).unwrap()
}

/// Waits until this many are queued.
async fn in_line(lock: &DistroRwLock, number: usize) {
    let is_so = async || lock.inspect().await.is_ok_and(|state| state.waiting.len() == number);
    eventually("they are queued", is_so).await;
}

fn start_waiting(lock: &DistroRwLock) -> JoinHandle<Result<WriteGuard, DistroRwLockError>> {
    let lock = lock.clone();
    tokio::spawn(async move { lock.write().await })
}

/// Awaits a future that has to end before long.
async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("not within {PATIENCE:?}"))
}

/// Returns the runtime of a simulated process, which dies with it.
fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Acquires a lock on a runtime of its own, and ends the runtime without a release.
fn dies_holding(store: &Store, resource: &str, lease: Duration) {
    let dying = runtime();
    let options = options().lease(lease);
    let lock = DistroRwLock::with_options(store, resource, options).unwrap();
    std::mem::forget(dying.block_on(lock.write()).unwrap());
    dying.shutdown_timeout(Duration::from_secs(5));
}
