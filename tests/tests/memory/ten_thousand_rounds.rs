//! Ten thousand rounds of short-lived keys, watches, stores and handles leave no memory allocated.

use std::convert::Infallible;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shizuku_kv::replica::{MemoryStorage, Replica};
use shizuku_kv::rw_lock::DistroRwLock;
use shizuku_kv::{
    Connection, KeyValue, KvUpdate, LiveStatic, MemoryConnection, StaticKeyIndexedValue, Store,
    StoreConfig, WatchScope,
};

use super::{ALONE, allocated, allocated_at_most};

const ROUNDS: usize = 10_000;

/// Time after which the tasks of a round have freed what they held.
const REST: Duration = Duration::from_millis(100);

/// Maximum number of bytes that may remain of all rounds together: tables that have grown once, and
/// blocks of channels.
const LEFT: usize = 64 * 1024;

#[derive(Serialize, Deserialize, StaticKeyIndexedValue)]
#[kv(key = "config.name", codec = json)]
struct Name {
    name: String,
}

async fn rounds(what: &str, round: impl AsyncFn(usize)) {
    for number in 0..ROUNDS / 10 {
        round(number).await;
    }
    let before = allocated(REST).await;
    for number in 0..ROUNDS {
        round(number).await;
    }
    let after = allocated_at_most(before + LEFT - 1, REST).await;
    println!("{what}: {before} bytes before, {after} after");
    assert!(after < before + LEFT, "{what}: {before} bytes before, {after} after");
}

async fn store(connection: &MemoryConnection, config: StoreConfig) -> Store {
    connection.store_with_config("store", config).await.unwrap()
}

/// Keys that are created and removed for good: the store frees everything that it recorded of each.
#[tokio::test(start_paused = true)]
async fn rounds_leave_nothing_in_the_memory_backend() {
    let _alone = ALONE.lock().await;
    let connection = MemoryConnection::new();
    let second = Duration::from_secs(1);
    let aged = store(&connection, StoreConfig::new().max_age(second).history(3)).await;
    rounds("new keys of a store with a maximum age", async |number| {
        aged.put(format!("key.{number}"), "value").await.unwrap();
        aged.put(format!("key.{number}"), "other").await.unwrap();
        tokio::time::advance(second).await;
    })
    .await;
    let plain = connection.store("plain").await.unwrap();
    rounds("the same keys of a plain store", async |number| {
        let key = format!("key.{}", number % 10);
        let version = plain.put(key.as_str(), "value").await.unwrap();
        plain.delete_with_version(key.as_str(), version).await.unwrap();
        plain.purge(key.as_str()).await.unwrap();
    })
    .await;
    plain.put("key.0", "value").await.unwrap();
    rounds("watches, scans and listings", async |_| {
        let watch = plain.watch(WatchScope::All).await.unwrap();
        while watch.next().await.unwrap().unwrap() != KvUpdate::CaughtUp {}
        // The reader waits, and is dropped.
        assert!(tokio::time::timeout(second, watch.next()).await.is_err());
        assert!(plain.scan(WatchScope::All).next().await.unwrap().is_ok());
        assert!(plain.keys(WatchScope::All).next().await.unwrap().is_ok());
    })
    .await;
    rounds("stores", async |number| {
        let name = format!("store-{number}");
        connection.store(&name).await.unwrap().put("key", "value").await.unwrap();
        connection.delete_store(&name).await.unwrap();
    })
    .await;
    rounds("settings", async |number| {
        let age = Duration::from_secs(1000 + number as u64 % 2);
        let config = StoreConfig::new().max_age(age).reconcile();
        connection.store_with_config("plain", config).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn rounds_leave_nothing_in_a_handle() {
    let _alone = ALONE.lock().await;
    let connection = MemoryConnection::new();
    let store = store(&connection, StoreConfig::new()).await;
    Name { name: "a".to_owned() }.write_to_anyway(&store).await.unwrap();
    rounds("live values", async |_| {
        let live = Name::live(&store).await.unwrap();
        assert_eq!(live.load().name, "a");
    })
    .await;
    rounds("live values without a waiter", async |_| {
        let given_up = tokio::time::timeout(Duration::ZERO, Name::live(&store)).await;
        drop(given_up);
    })
    .await;
    rounds("locks", async |number| {
        let lock = DistroRwLock::new(&store, format!("resource.{}", number % 10)).unwrap();
        lock.write().await.unwrap().release().await.unwrap();
    })
    .await;
    rounds("replicas", async |_| {
        let mut replica = Replica::new(&store, WatchScope::All).storage(MemoryStorage::new());
        let mut monitor = replica.monitor();
        let run = replica.run(async |_| Ok::<(), Infallible>(()));
        tokio::select! {
            _ = run => {}
            _ = monitor.current() => {}
        }
    })
    .await;
}
