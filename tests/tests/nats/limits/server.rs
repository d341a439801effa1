//! Limits of a server.

use std::error::Error as _;

use futures_util::future::join_all;
use shizuku_kv::{KvUpdate, ReadConsistency, StorageType, StoreConfig, WatchScope, connect};
use shizuku_kv_tests::{NatsServer, eventually};

use super::{PATIENCE, SHORT, World, assert_rejected, within};

#[tokio::test]
async fn server_without_jetstream_is_unavailable() {
    let server = NatsServer::builder().jetstream(false).start();
    let connection = connect(&server.url()).await.unwrap();
    let words = &["JetStream is not enabled", "-js"];
    assert_rejected(connection.store("s").await, "Unavailable", true, words);
    assert_rejected(connection.health().await, "Unavailable", true, words);
}

/// A server without JetStream answers no request about it, like a leaf node that is cut off.
#[tokio::test]
async fn jetstream_turned_off_by_restart_is_unavailable() {
    let config = StoreConfig::new().deadline(4 * SHORT);
    let (mut world, store) = World::with_store(NatsServer::builder(), config).await;
    world.server.restart_with(|server| server.jetstream(false));
    eventually("the server has no JetStream", async || {
        let health = world.connection.health().await;
        health.is_err_and(|error| error.to_string().contains("JetStream is not enabled"))
    })
    .await;
    let words = &["JetStream is not enabled", "-js"];
    assert_rejected(store.put("key", "value").await, "Unavailable", true, words);
    assert_rejected(store.put_many([("key", "value")]).await.remove(0), "Unavailable", true, words);
    assert_rejected(store.get("key").await, "Unavailable", true, words);
}

#[tokio::test]
async fn storage_of_server_names_the_limit() {
    for (limit, storage) in [
        ("max_file_store: 64KB", StorageType::File),
        ("max_memory_store: 64KB", StorageType::Memory),
    ] {
        let world = World::new(NatsServer::builder().jetstream_config(limit)).await;
        let config = StoreConfig::new().max_bytes(1024 * 1024).storage(storage);
        let opened = world.connection.store_with_config("s", config).await;
        assert_rejected(opened, "LimitReached", false, &["insufficient", "resources", "max_bytes"]);
    }
}

/// The server silently drops the oldest requests.
#[tokio::test]
async fn full_request_queue_is_retried() {
    let server = NatsServer::builder().jetstream_config("request_queue_limit: 50");
    let config = StoreConfig::new().consistency(ReadConsistency::Leader).deadline(PATIENCE);
    let (_world, store) = World::with_store(server, config).await;
    store.put("key", "value").await.unwrap();
    let reads = (0..150).map(|_| store.get("key"));
    for read in within("reads", join_all(reads)).await {
        assert!(read.unwrap().is_some());
    }
}

/// The server allows fewer messages in one request than we ask for.
#[tokio::test]
async fn max_request_batch_is_adopted() {
    let server = NatsServer::builder().jetstream_config("limits: { max_request_batch: 10 }");
    let (_world, store) = World::with_store(server, StoreConfig::new()).await;
    let items = (0..100).map(|number| (format!("key-{number}"), "value"));
    assert!(store.put_many(items).await.iter().all(Result::is_ok));
    let keys = within("keys", store.keys(WatchScope::All).try_collect()).await.unwrap();
    assert_eq!(keys.len(), 100);
    let watch = store.watch(WatchScope::All).await.unwrap();
    for _ in 0..100 {
        assert!(within("state", watch.next()).await.unwrap().unwrap().entry().is_some());
    }
    assert_eq!(within("marker", watch.next()).await.unwrap().unwrap(), KvUpdate::CaughtUp);
}

#[tokio::test]
async fn shorter_duplicate_window_is_adopted() {
    let server = NatsServer::builder().jetstream_config("limits: { duplicate_window: 10s }");
    for max_age in [None, Some(std::time::Duration::from_secs(3600))] {
        let (_world, store) =
            World::with_store(server.clone(), StoreConfig::new().max_age(max_age)).await;
        store.put("key", "value").await.unwrap();
    }
}

/// One subscription more than the connection may have, because each of these needs one.
#[tokio::test]
async fn max_subscriptions_reached_names_the_limit() {
    let server = NatsServer::builder().config("max_subscriptions: 2");
    let (_world, store) = World::with_store(server, StoreConfig::new().deadline(PATIENCE)).await;
    for number in 0..8 {
        store.put(format!("key-{number}"), "value").await.unwrap();
    }
    let watch = store.watch(WatchScope::All).await.unwrap();
    within("state", watch.next()).await.unwrap().unwrap();
    let store = store.with_deadline(4 * SHORT);
    let words = &["maximum subscriptions exceeded", "max_subscriptions"];
    assert_rejected(store.watch(WatchScope::prefix("a.")).await, "LimitReached", true, words);
    assert_rejected(store.keys(WatchScope::All).try_collect().await, "LimitReached", true, words);
    // Several keys are then requested one by one.
    let keys = (0..8).map(|number| format!("key-{number}"));
    assert!(store.get_many(keys).await.unwrap().iter().all(Option::is_some));
    store.put("key-0", "value").await.unwrap();
}

/// The server ends the connection without naming the message.
#[tokio::test]
async fn max_control_line_names_the_limit() {
    let server = NatsServer::builder().config("max_control_line: 512");
    let (_world, store) = World::with_store(server, StoreConfig::new().deadline(SHORT)).await;
    let long = "k".repeat(1000);
    let written = store.put(long.as_str(), "value").await;
    assert_rejected(written.clone(), "OutcomeUnknown", false, &["not known"]);
    let cause = written.unwrap_err().source().map(ToString::to_string).unwrap_or_default();
    assert!(cause.contains("max_control_line"), "{cause}");
    assert_rejected(store.get(long.as_str()).await, "LimitReached", false, &["max_control_line"]);
    let after = store.with_deadline(PATIENCE);
    within("another", after.put("key", "value")).await.unwrap();
}
