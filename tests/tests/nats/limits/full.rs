//! Full stores.

use std::fmt::Debug;
use std::time::Duration;

use serde_json::json;
use shizuku_kv::{KvResult, StorageType, Store, StoreConfig, VersionToken, connect};
use shizuku_kv_tests::{NatsCluster, NatsServer};

use super::{World, assert_rejected, within};

#[track_caller]
fn assert_full<T: Debug>(result: KvResult<T>, words: &[&str]) {
    assert_rejected(result, "StoreFull", false, words);
}

/// Writes small values under new keys until the store rejects one. Returns the accepted keys, and
/// the rejection.
async fn fill(store: &Store, value: &str) -> (Vec<String>, KvResult<VersionToken>) {
    let mut keys = Vec::new();
    loop {
        let key = format!("key-{:05}", keys.len());
        match store.put(key.as_str(), value.to_owned()).await {
            Ok(_) => keys.push(key),
            rejected => return (keys, rejected),
        }
        assert!(keys.len() < 5000, "no limit");
    }
}

/// Every key can be deleted in each way, although a tombstone has more headers than a small value
/// has bytes.
#[tokio::test]
async fn full_store_is_emptied() {
    for storage in [StorageType::File, StorageType::Memory] {
        for value in
            ["", "x", "a value that is longer than the headers of a tombstone are, by some bytes"]
        {
            let config = StoreConfig::new().max_bytes(8 * 1024).storage(storage);
            let (_world, store) = World::with_store(NatsServer::builder(), config).await;
            let (keys, rejected) = within("fill", fill(&store, value)).await;
            assert_full(rejected, &["maximum bytes", "delete keys", "raise"]);
            for (number, key) in keys.iter().enumerate() {
                let deleted = match number % 3 {
                    0 => store.delete(key.as_str()).await,
                    1 => store.purge(key.as_str()).await,
                    _ => {
                        let version = store.get(key.as_str()).await.unwrap().unwrap().version;
                        let deleted = store.delete_with_version(key.as_str(), version).await;
                        if deleted.is_err() && value.len() < 20 {
                            // The expected version is a header too, which a plain put does not
                            // have.
                            assert_full(deleted, &["use delete()", "max_bytes"]);
                            store.delete(key.as_str()).await
                        } else {
                            deleted
                        }
                    }
                };
                deleted.unwrap_or_else(|error| {
                    panic!("{storage:?} {value:?} {key} of {}: {error}", keys.len())
                });
            }
            for key in &keys {
                assert_eq!(store.get(key.as_str()).await.unwrap(), None);
            }
        }
    }
}

/// With a history a tombstone is one more message, even over a larger value. The server rejects a
/// purge too, because its rollup frees room only after the message is stored. A key with a full
/// history replaces its oldest version.
#[tokio::test]
async fn full_store_with_history_says_raise() {
    for (storage, history) in [
        (StorageType::File, 3),
        (StorageType::File, 64),
        (StorageType::Memory, 3),
        (StorageType::Memory, 64),
    ] {
        let config = StoreConfig::new().max_bytes(60_000).history(history).storage(storage);
        let (world, store) = World::with_store(NatsServer::builder(), config).await;
        for key in ["deep-0", "deep-1"] {
            for _ in 0..history {
                store.put(key, vec![0; 200]).await.unwrap();
            }
        }
        let mut keys = Vec::new();
        for value in [vec![0_u8; 15_000], vec![0; 10]] {
            loop {
                let key = format!("key-{:05}", keys.len());
                match store.put(key.as_str(), value.clone()).await {
                    Ok(_) => keys.push(key),
                    Err(error) => {
                        let words = &["maximum bytes", "purge keys", "raise max_bytes"];
                        assert_full::<()>(Err(error), words);
                        break;
                    }
                }
            }
        }
        // Writes until no tombstone has room either.
        let mut absent = 0;
        while store.delete(format!("abs-{absent:05}")).await.is_ok() {
            absent += 1;
        }
        let version = store.get(keys[0].as_str()).await.unwrap().unwrap().version;
        for rejected in [
            store.delete(keys[0].as_str()).await,
            store.purge(keys[0].as_str()).await,
            store.delete_with_version(keys[0].as_str(), version).await,
        ] {
            let text = rejected.as_ref().unwrap_err().to_string();
            assert!(
                !text.contains("than the value") && !text.contains("without a version"),
                "{text}"
            );
            assert_full(rejected, &["maximum bytes", "history", "raise max_bytes"]);
        }
        assert_eq!(store.get(keys[0].as_str()).await.unwrap().unwrap().version, version);
        store.delete("deep-0").await.unwrap();
        store.purge("deep-1").await.unwrap();
        // The way out.
        let raised = StoreConfig::new().max_bytes(61_000).reconcile();
        world.connection.store_with_config("s", raised).await.unwrap();
        for key in &keys {
            store.purge(key.as_str()).await.unwrap();
        }
        store.put("new", vec![0; 15_000]).await.unwrap();
    }
}

/// From 2.12 on, the servers of a replicated stream count a message before it replaces another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_store_with_replicas_says_raise() {
    let cluster = NatsCluster::start().await;
    let connection = connect(&cluster.url()).await.unwrap();
    let config = StoreConfig::new().replicas(3).max_bytes(32 * 1024);
    let store = connection.store_with_config("s", config).await.unwrap();
    store.put("large", vec![0; 15_000]).await.unwrap();
    let (_, rejected) = fill(&store, "value").await;
    assert_full(rejected, &["maximum bytes", "raise max_bytes"]);
    let mut absent = 0;
    while store.delete(format!("a-{absent:03}")).await.is_ok() {
        absent += 1;
    }
    let deleted = store.delete("large").await;
    if cluster.node(0).is_at_least(2, 12) {
        assert_full(deleted, &["several replicas", "raise max_bytes, then purge()"]);
        let raised = StoreConfig::new().max_bytes(33 * 1024).reconcile();
        connection.store_with_config("s", raised).await.unwrap();
        store.purge("large").await.unwrap();
    } else {
        deleted.unwrap();
    }
    store.put("new", vec![0; 10_000]).await.unwrap();
}

/// Another client has raised the history, so that a purge must not become a deletion, which would
/// leave the older value in the history.
#[tokio::test]
async fn full_store_with_raised_history_still_purges() {
    let config = StoreConfig::new().max_bytes(8 * 1024);
    let (world, store) = World::with_store(NatsServer::builder(), config).await;
    store.put("key", "x").await.unwrap();
    world.change(|stream| stream["max_msgs_per_subject"] = json!(2)).await;
    store.put("key", "y").await.unwrap();
    fill(&store, "value").await.1.unwrap_err();
    match store.purge("key").await {
        Ok(_) => {
            let history = store.history("key").unwrap().try_collect().await.unwrap();
            assert_eq!(history.len(), 1, "{history:?}");
        }
        rejected => assert_full(rejected, &["history", "raise max_bytes"]),
    }
}

/// Servers before 2.14 reject a message that is as large as the one it replaces.
#[tokio::test]
async fn full_store_takes_value_of_same_size() {
    let config = StoreConfig::new().max_bytes(8 * 1024);
    let (world, store) = World::with_store(NatsServer::builder(), config).await;
    let (keys, _) = fill(&store, "value").await;
    for key in &keys {
        let again = store.put(key.as_str(), "other").await;
        if world.server.is_at_least(2, 14) {
            again.unwrap();
        } else {
            assert_full(again, &["maximum bytes", "raise"]);
        }
    }
    assert_full(store.put(keys[0].as_str(), "longer").await, &["raise"]);
}

/// A foreign client's values have no headers, so that their tombstones are larger in any form.
#[tokio::test]
async fn full_store_that_rejects_deletion_says_raise() {
    let config = StoreConfig::new().max_bytes(8 * 1024);
    let (world, store) = World::with_store(NatsServer::builder(), config).await;
    let jetstream = async_nats::jetstream::new(world.client.clone());
    let mut number = 0;
    loop {
        let sent = jetstream.publish(format!("$KV.s.k{number:04}"), "".into()).await.unwrap();
        if sent.await.is_err() {
            break;
        }
        number += 1;
    }
    let deleted = store.delete("k0000").await;
    assert_full(deleted, &["maximum bytes", "raise max_bytes", "tombstone"]);
    let text = store.delete("k0000").await.unwrap_err().to_string();
    assert!(!text.contains("delete keys"), "{text}");
}

#[tokio::test]
async fn max_bytes_lowered_under_handle_is_full() {
    let (world, store) = World::with_store(NatsServer::builder(), StoreConfig::new()).await;
    for number in 0..50 {
        store.put(format!("key-{number}"), vec![0; 100]).await.unwrap();
    }
    world.change(|stream| stream["max_bytes"] = json!(1024)).await;
    assert_full(store.put("new", "x").await, &["maximum bytes", "raise"]);
    store.delete("key-1").await.unwrap();
}

#[tokio::test]
async fn max_msgs_reached_is_full() {
    let (world, store) = World::with_store(NatsServer::builder(), StoreConfig::new()).await;
    world.change(|stream| stream["max_msgs"] = json!(3)).await;
    let (keys, rejected) = fill(&store, "value").await;
    assert_eq!(keys.len(), 3);
    assert_full(rejected, &["maximum messages", "max_msgs"]);
    store.put(keys[0].as_str(), "a longer value").await.unwrap();
    store.delete(keys[0].as_str()).await.unwrap();
    // The tombstone is a message too.
    assert_full(store.put("new", "x").await, &["raise", "max_msgs"]);
}

#[tokio::test]
async fn discard_new_per_subject_names_the_setting() {
    let (world, store) = World::with_store(NatsServer::builder(), StoreConfig::new()).await;
    world.change(|stream| stream["discard_new_per_subject"] = json!(true)).await;
    store.put("key", "value").await.unwrap();
    let words = &["maximum messages per subject", "discard_new_per_subject"];
    assert_full(store.put("key", "other").await, words);
    assert_full(store.delete("key").await, words);
}

/// The account counts every byte, so that no write succeeds any more, not even a tombstone.
#[tokio::test]
async fn account_storage_full_says_raise() {
    for (limit, storage) in
        [("max_store: 64KB", StorageType::File), ("max_mem: 64KB", StorageType::Memory)]
    {
        let server = NatsServer::builder().config(&format!(
            "accounts {{ A: {{ jetstream: {{ {limit} }}, users: [ {{ user: a, password: p }} ] }} }}
             no_auth_user: a"
        ));
        let (_world, store) = World::with_store(server, StoreConfig::new().storage(storage)).await;
        let (keys, rejected) = within("fill", fill(&store, &"x".repeat(1000))).await;
        let words = &["resource limits exceeded for account (10002); delete keys, ", "raise"];
        assert_full(rejected, words);
        // A message smaller than the remaining room is accepted, also a tombstone.
        store.delete(keys[0].as_str()).await.unwrap();
        assert_eq!(store.get(keys[0].as_str()).await.unwrap(), None);
        let (_, rejected) = within("fill", fill(&store, "")).await;
        assert_full(rejected, &["10002", "raise"]);
        if let Err(error) = store.delete(format!("absent-{}", "x".repeat(1000))).await {
            assert!(!error.to_string().contains("delete keys"), "{error}");
            assert_full::<()>(Err(error), &["10002", "raise"]);
        } else {
            panic!("there was room for a tombstone of 1000 bytes");
        }
    }
}

/// The limit of the whole server.
#[tokio::test]
async fn server_storage_full_says_raise() {
    for (limit, storage) in [
        ("max_file_store: 64KB", StorageType::File),
        ("max_memory_store: 64KB", StorageType::Memory),
    ] {
        let server = NatsServer::builder().jetstream_config(limit);
        let (_world, store) = World::with_store(server, StoreConfig::new().storage(storage)).await;
        let (keys, rejected) = within("fill", fill(&store, &"x".repeat(1000))).await;
        assert_full(rejected, &["(10", "); delete another store, ", "raise"]);
        // Therefore the error does not advise to delete keys.
        let deleted = store.delete(keys[0].as_str()).await;
        assert_full(deleted, &["(10", "a tombstone needs room too: raise"]);
    }
}

/// The rejection arrives while the library looks up the write.
#[tokio::test]
async fn rejection_after_search_began_is_told() {
    let config = StoreConfig::new().max_bytes(8 * 1024).deadline(Duration::from_secs(8));
    let (mut world, store) = World::with_store(NatsServer::builder(), config).await;
    let (_, full) = fill(&store, "value").await;
    assert_full(full, &["maximum bytes"]);
    world.server.pause();
    let write = tokio::spawn(async move { store.put("another-key", "value").await });
    // Longer than the share of the deadline after which the lookup begins.
    let mut write = std::pin::pin!(write);
    let early = tokio::time::timeout(Duration::from_secs(3), write.as_mut()).await;
    assert!(early.is_err(), "answered by a paused server: {early:?}");
    world.server.resume();
    let rejected = within("the rejection", write).await.unwrap();
    assert_full(rejected, &["maximum bytes", "raise"]);
}
