//! Holders that die, and the reaction of waiters. A dying process is simulated by a runtime that
//! ends, with everything on it.

use std::time::Duration;

use shizuku_kv::rw_lock::{DistroRwLock, DistroRwLockError, LockLoss, LockOptions};
use shizuku_kv::{Store, WatchScope, connect};
use shizuku_kv_tests::{NatsServer, TcpProxy, unique};
use tokio::runtime::Runtime;

use crate::rw_lock::handles;

const LEASE: Duration = Duration::from_secs(1);

fn lock(store: &Store) -> DistroRwLock {
    let options = LockOptions::new().lease(LEASE).wait(Duration::from_secs(20));
    DistroRwLock::with_options(store, "r", options).unwrap()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Acquires a lock on a runtime of its own, and ends the runtime without a release.
fn dies_holding(stores: &[Store]) {
    let dying = runtime();
    let guard = dying.block_on(async { lock(&stores[0]).write().await.unwrap() });
    dying.shutdown_timeout(Duration::from_secs(5));
    std::mem::forget(guard);
}

#[test]
fn waiter_is_granted_lock_of_dead_process() {
    let living = runtime();
    for stores in living.block_on(handles(3)) {
        dies_holding(&stores);
        living.block_on(async {
            let (one, other) = (lock(&stores[1]), lock(&stores[2]));
            assert!(matches!(one.try_write().await, Err(DistroRwLockError::WouldBlock { .. })));
            let both = tokio::join!(one.read(), other.read());
            let (first, second) = (both.0.unwrap(), both.1.unwrap());
            assert_ne!(first.fencing_token(), second.fencing_token());
            // The dead process leaves nothing, not even its session.
            let state = one.inspect().await.unwrap();
            assert_eq!(state.holders.len(), 2, "{state:?}");
            let sessions =
                stores[1].keys(WatchScope::prefix("rw_lock_session.")).try_collect().await.unwrap();
            assert_eq!(sessions.len(), 2, "{sessions:?}");
        });
    }
}

#[test]
fn try_is_granted_lock_of_dead_process() {
    let living = runtime();
    for stores in living.block_on(handles(2)) {
        dies_holding(&stores);
        living.block_on(async {
            let lock = lock(&stores[1]);
            let is_granted = async {
                while let Err(error) = lock.try_write().await {
                    assert!(matches!(error, DistroRwLockError::WouldBlock { .. }), "{error:?}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), is_granted).await.expect("it is granted");
        });
    }
}

#[tokio::test]
async fn live_holder_keeps_its_lock_while_others_wait() {
    for stores in handles(2).await {
        let held = lock(&stores[0]).write().await.unwrap();
        let options = LockOptions::new().lease(LEASE).wait(3 * LEASE);
        let other = DistroRwLock::with_options(&stores[1], "r", options).unwrap();
        let error = other.write().await.unwrap_err();
        assert!(matches!(error, DistroRwLockError::Timeout { .. }), "{error:?}");
        assert!(held.is_held());
        held.release().await.unwrap();
    }
}

/// Its lease is over before another process acquires the lock. When it is back it knows.
#[tokio::test]
async fn holder_cut_off_is_notified_before_next_grant() {
    let server = NatsServer::start();
    let proxy = TcpProxy::start(server.port()).await;
    let behind = connect(&proxy.url()).await.unwrap().store("b").await.unwrap();
    let around = connect(&server.url()).await.unwrap().store("b").await.unwrap();
    let held = lock(&behind).write().await.unwrap();
    let token = held.fencing_token();
    proxy.refuse(true);
    proxy.cut();
    let next = lock(&around);
    let next = async {
        let guard = next.write().await.unwrap();
        assert!(!held.is_held(), "it is lost by now");
        guard
    };
    let (next, loss) = tokio::join!(next, held.lost());
    assert_eq!(loss, LockLoss::Expired);
    assert!(next.fencing_token() > token);
    proxy.refuse(false);
    let error = held.release().await.unwrap_err();
    assert!(matches!(error, DistroRwLockError::LeaseLost { .. }), "{error:?}");
    assert!(next.is_held());
    // It works again from there, under a session of its own.
    next.release().await.unwrap();
    lock(&behind).write().await.unwrap().release().await.unwrap();
}

/// A wait that is given up leaves nothing, even if it was granted at this moment.
#[tokio::test]
async fn dropped_waits_leave_no_claim() {
    for stores in handles(3).await {
        let (one, other) = (lock(&stores[0]), lock(&stores[1]));
        for round in 0..100_u64 {
            let held = other.write().await.unwrap();
            let wait = one.write();
            let dropped = tokio::time::timeout(Duration::from_micros(round * 40), wait).await;
            drop(held);
            drop(dropped);
        }
        let last = lock(&stores[2]);
        last.write().await.unwrap().release().await.unwrap();
        let state = last.inspect().await.unwrap();
        assert!(state.waiting.is_empty() && state.holders.is_empty(), "{state:?}");
    }
}

/// An unused session ends.
#[tokio::test]
async fn session_without_locks_ends() {
    let connection = connect(&NatsServer::shared().url()).await.unwrap();
    let store = connection.store(&unique("idle")).await.unwrap();
    lock(&store).write().await.unwrap().release().await.unwrap();
    let ended = async {
        while !store
            .keys(WatchScope::prefix("rw_lock_session."))
            .try_collect()
            .await
            .unwrap()
            .is_empty()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), ended).await.expect("the session ends");
    lock(&store).write().await.unwrap().release().await.unwrap();
}
