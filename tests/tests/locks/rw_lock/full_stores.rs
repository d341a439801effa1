//! Locks in a full store.

use std::sync::Arc;
use std::time::Duration;

use shizuku_kv::rw_lock::{DistroRwLock, DistroRwLockError, LockOptions};
use shizuku_kv::{Connection, KvError, Store, StoreConfig, WatchScope, connect};
use shizuku_kv_tests::{NatsServer, unique};

const LEASE: Duration = Duration::from_secs(1);

fn lock(store: &Store, resource: &str) -> DistroRwLock {
    let options = LockOptions::new().lease(LEASE).wait(Duration::from_secs(20));
    DistroRwLock::with_options(store, resource, options).unwrap()
}

/// Fills the store until not one more byte fits.
async fn fill(store: &Store) {
    let mut number = 0;
    for size in [4096, 256, 16, 1, 0] {
        loop {
            number += 1;
            match store.put(format!("fill.{number:06}"), vec![b'x'; size]).await {
                Ok(_) => {}
                Err(KvError::StoreFull { .. }) => break,
                Err(error) => panic!("{error:?}"),
            }
        }
    }
    let mut size = 0;
    while store.put("fill.last", vec![b'x'; size]).await.is_ok() {
        size += 1;
    }
}

/// Waits until the session of the lock's holder was renewed this many times.
async fn renewed(store: &Store, resource: &str, times: u64) {
    let session = lock(store, resource).inspect().await.unwrap().holders[0].claim.session.clone();
    let renewed = async {
        loop {
            let found =
                store.scan(WatchScope::prefix("rw_lock_session.")).try_collect().await.unwrap();
            let value = found
                .iter()
                .find(|entry| entry.key.as_str().contains(&session))
                .unwrap()
                .value
                .clone();
            let value: serde_json::Value = serde_json::from_slice(&value).unwrap();
            if value["renewal"].as_u64().unwrap() >= times {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), renewed).await.expect("it is renewed");
}

/// Holders renew and release, waiters are granted, dead ones are evicted. Only new claims need
/// room.
///
/// `reserve` is the number of bytes that are left free.
async fn a_full_store_costs_no_holder_its_lock(connection: Arc<dyn Connection>, reserve: usize) {
    let config = StoreConfig::new().max_bytes(64 * 1024);
    let name = unique("full");
    let store = connection.store_with_config(&name, config).await.unwrap();
    let other = connection.store(&name).await.unwrap();
    let held = lock(&store, "r").write().await.unwrap();
    let mut readers = Vec::new();
    for number in 1..=20 {
        let lock = lock(&other, "r");
        readers.push(tokio::spawn(async move { lock.read().await.unwrap() }));
        crate::rw_lock::in_line(&self::lock(&store, "r"), number).await;
    }
    // A process dies while another waits for it, when there is no room any more.
    let dying =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let dead = lock(&store, "dead");
    std::mem::forget(dying.spawn(async move { dead.write().await.unwrap() }).await.unwrap());
    let dead = lock(&other, "dead");
    let heir = tokio::spawn(async move { dead.write().await.unwrap() });
    crate::rw_lock::in_line(&lock(&store, "dead"), 1).await;
    other.put("reserve", vec![b'x'; reserve]).await.unwrap();
    fill(&other).await;
    if reserve > 0 {
        other.delete("reserve").await.unwrap();
    }
    dying.shutdown_background();
    // The number of the renewal becomes longer.
    renewed(&store, "r", 11).await;
    assert!(held.is_held());
    if reserve == 0 {
        // The dead session has left room.
        fill(&other).await;
        let error = lock(&store, "new").try_write().await.unwrap_err();
        let is_full =
            matches!(error, DistroRwLockError::Store { source: KvError::StoreFull { .. }, .. });
        assert!(is_full, "{error:?}");
    }
    held.release().await.unwrap();
    for reader in readers {
        let reader = tokio::time::timeout(Duration::from_secs(10), reader).await.unwrap().unwrap();
        assert!(reader.is_held());
        reader.release().await.unwrap();
    }
    let heir =
        tokio::time::timeout(Duration::from_secs(10), heir).await.expect("the dead one is evicted");
    heir.unwrap().release().await.unwrap();
    // Another claim has room after one has left.
    lock(&store, "r").write().await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn holders_keep_locks_in_full_store_in_memory() {
    a_full_store_costs_no_holder_its_lock(connect("memory:").await.unwrap(), 0).await;
}

#[tokio::test]
async fn holders_keep_locks_in_full_bucket() {
    let server = NatsServer::shared();
    // Older servers reject an overwrite of the same size if there is no room for the message as
    // well.
    let reserve = if server.is_at_least(2, 14) { 0 } else { 1024 };
    a_full_store_costs_no_holder_its_lock(connect(&server.url()).await.unwrap(), reserve).await;
}
