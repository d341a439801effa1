//! Locks in a full store.

use futures_util::future::join_all;
use shizuku_kv::rw_lock::DistroRwLockError;
use shizuku_kv::{Connection, KvError, Store, StoreConfig, WatchScope, connect};
use shizuku_kv_tests::{NatsServer, unique, urls};

use crate::rw_lock::{LEASE, in_line, lock, runtime, start_waiting, within};

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
    within(async {
        loop {
            let found = store.scan(WatchScope::prefix("rw_lock_session."));
            let found = found.try_collect().await.unwrap();
            let entry = found.iter().find(|entry| entry.key.as_str().contains(&session)).unwrap();
            let value: serde_json::Value = serde_json::from_slice(&entry.value).unwrap();
            if value["renewal"].as_u64().unwrap() >= times {
                break;
            }
            tokio::time::sleep(LEASE / 60).await;
        }
    })
    .await;
}

/// Holders renew and release, waiters are granted, dead ones are evicted. Only new claims need
/// room.
///
/// `reserve` is the number of bytes that are left free.
async fn holders_keep_locks(url: &str, reserve: usize) {
    let connection = connect(url).await.unwrap();
    let config = StoreConfig::new().max_bytes(64 * 1024);
    let name = unique("full");
    let store = connection.store_with_config(&name, config).await.unwrap();
    let other = connection.store(&name).await.unwrap();
    let held = lock(&store, "r").write().await.unwrap();
    let mut readers = Vec::new();
    for number in 1..=20 {
        let lock = lock(&other, "r");
        readers.push(tokio::spawn(async move { lock.read().await.unwrap() }));
        in_line(&self::lock(&store, "r"), number).await;
    }
    // A process dies while another waits for it, when there is no room any more.
    let dying = runtime();
    let dead = lock(&store, "dead");
    std::mem::forget(dying.spawn(async move { dead.write().await.unwrap() }).await.unwrap());
    let heir = start_waiting(&lock(&other, "dead"));
    in_line(&lock(&store, "dead"), 1).await;
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
        let reader = within(reader).await.unwrap();
        assert!(reader.is_held());
        reader.release().await.unwrap();
    }
    within(heir).await.unwrap().unwrap().release().await.unwrap();
    // Another claim has room after one has left.
    lock(&store, "r").write().await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn holders_keep_locks_in_full_store() {
    let server = NatsServer::shared();
    // Older servers reject an overwrite of the same size if there is no room for the message as
    // well.
    let reserve = if server.is_at_least(2, 14) { 0 } else { 1024 };
    let url = server.url();
    let on_each = urls().into_iter().map(async |each| {
        holders_keep_locks(&each, if each == url { reserve } else { 0 }).await;
    });
    join_all(on_each).await;
}
