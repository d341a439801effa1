//! Shutting a connection down releases its locks.

use std::time::Duration;

use shizuku_kv::rw_lock::{DistroRwLock, DistroRwLockError, LeaderElection, LockLoss, LockOptions};
use shizuku_kv::{Connection, KvError, WatchScope, connect};
use shizuku_kv_tests::{NatsServer, TcpProxy, unique};

use crate::rw_lock::{in_line, start_waiting};

/// Live guards, guards that were just dropped, functions without guards, terms, and waiting claims.
#[tokio::test]
async fn shutdown_releases_locks_and_ends_sessions() {
    let server = NatsServer::shared();
    let name = unique("shutdown");
    let observer = connect(&server.url()).await.unwrap().store(&name).await.unwrap();
    let other = |resource: &str| DistroRwLock::new(&observer, resource).unwrap();
    let connection = connect(&server.url()).await.unwrap();
    let [store, another] =
        [connection.store(&name).await.unwrap(), connection.store(&name).await.unwrap()];
    let guard = DistroRwLock::new(&store, "guard").unwrap().write().await.unwrap();
    let reader = DistroRwLock::new(&another, "reader").unwrap().read().await.unwrap();
    DistroRwLock::acquire_write(&store, "process").await.unwrap();
    let term = LeaderElection::new(&store, "job", "me").unwrap().campaign().await.unwrap();
    let busy = other("busy").write().await.unwrap();
    let waiting = start_waiting(&DistroRwLock::new(&store, "busy").unwrap());
    in_line(&other("busy"), 1).await;
    drop(DistroRwLock::new(&store, "dropped").unwrap().write().await.unwrap());
    // The handles are dropped too, as at the end of a program.
    drop((store, another));
    connection.shutdown().await.unwrap();

    assert!(!guard.is_held() && !reader.is_held() && !term.is_leader());
    assert_eq!(guard.lost().await, LockLoss::StoreGone);
    for resource in ["guard", "reader", "process", "dropped"] {
        other(resource).try_write().await.unwrap().release().await.unwrap();
    }
    assert!(other("busy").inspect().await.unwrap().waiting.is_empty());
    // Other processes would wait for the lease of each session. Only `busy` has one left.
    assert_eq!(
        observer.keys(WatchScope::prefix("rw_lock_session.")).try_collect().await.unwrap().len(),
        1
    );
    let ended = waiting.await.unwrap().unwrap_err();
    assert!(
        matches!(&ended, DistroRwLockError::Store { source: KvError::Closed { .. }, .. }),
        "{ended:?}"
    );
    let lost = guard.release().await.unwrap_err();
    assert!(
        matches!(lost, DistroRwLockError::LeaseLost { reason: LockLoss::StoreGone, .. }),
        "{lost:?}"
    );
    busy.release().await.unwrap();
    connection.shutdown().await.unwrap();
}

/// Sessions without handles end by themselves, and the shutdown begins at the same time. Otherwise
/// each run of a short program would leave a key that looks alive.
#[tokio::test]
async fn shutdown_deletes_session_keys_of_dropped_handles() {
    let server = NatsServer::shared();
    let name = unique("shutdown");
    let observer = connect(&server.url()).await.unwrap().store(&name).await.unwrap();
    for round in 0..15 {
        let connection = connect(&server.url()).await.unwrap();
        let store = connection.store(&name).await.unwrap();
        let guard = DistroRwLock::new(&store, "r").unwrap().write().await.unwrap();
        match round % 3 {
            0 => {
                guard.release().await.unwrap();
                drop(store);
            }
            1 => {
                drop(guard);
                drop(store);
            }
            _ => {
                drop(store);
                drop(guard);
            }
        }
        connection.shutdown().await.unwrap();
    }
    let left = observer.keys(WatchScope::prefix("rw_lock_session.")).try_collect().await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn shutdown_of_memory_ends_holds() {
    let connection = connect("memory:").await.unwrap();
    let store = connection.store("s").await.unwrap();
    let guard = DistroRwLock::new(&store, "r").unwrap().write().await.unwrap();
    connection.shutdown().await.unwrap();
    assert!(!guard.is_held());
    assert_eq!(guard.lost().await, LockLoss::StoreGone);
}

/// The server is gone: no lock can be released, and `shutdown` reports that within the deadline of
/// the connection.
#[tokio::test]
async fn shutdown_without_a_server_ends_within_its_deadline() {
    let server = NatsServer::start();
    let proxy = TcpProxy::start(server.port()).await;
    let connection = connect(&proxy.url()).await.unwrap();
    let store = connection.store("s").await.unwrap();
    let options = LockOptions::new().lease(Duration::from_secs(60));
    let lock = DistroRwLock::with_options(&store, "r", options).unwrap();
    let guard = lock.write().await.unwrap();
    proxy.refuse(true);
    proxy.cut();
    let ended = tokio::time::timeout(Duration::from_secs(15), connection.shutdown()).await;
    ended.expect("it ends").unwrap_err();
    assert!(!guard.is_held());
}
