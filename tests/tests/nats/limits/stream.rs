//! Settings of a stream that an operator or another client has made.

use std::fmt::Debug;

use futures_util::StreamExt;
use serde_json::json;
use shizuku_kv::{KvResult, KvUpdate, StoreConfig, WatchScope};
use shizuku_kv_tests::{NatsServer, eventually};

use super::{PATIENCE, SHORT, World, assert_rejected, within};

#[track_caller]
fn assert_unsupported<T: Debug>(result: KvResult<T>, words: &[&str]) {
    assert_rejected(result, "Unsupported", false, words);
}

#[tokio::test]
async fn sealed_stream_is_unsupported() {
    let (world, store) = World::with_store(NatsServer::builder(), StoreConfig::new()).await;
    let version = store.put("key", "value").await.unwrap();
    world.change(|stream| stream["sealed"] = json!(true)).await;
    let words = &["sealed"];
    assert_unsupported(store.put("key", "x").await, words);
    assert_unsupported(store.create("new", "x").await, words);
    assert_unsupported(store.update("key", "x", version).await, words);
    assert_unsupported(store.delete("key").await, words);
    let many = store.put_many([("key", "x")]).await.remove(0);
    assert_unsupported(many, words);
    assert_eq!(store.get("key").await.unwrap().unwrap().version, version);
}

#[tokio::test]
async fn purge_without_rollups_is_unsupported() {
    let (world, store) = World::with_store(NatsServer::builder(), StoreConfig::new()).await;
    store.put("key", "value").await.unwrap();
    world
        .change(|stream| {
            stream["allow_rollup_hdrs"] = json!(false);
            stream["deny_purge"] = json!(true);
        })
        .await;
    assert_unsupported(store.purge("key").await, &["allow_rollup_hdrs", "delete()"]);
    store.delete("key").await.unwrap();
}

/// Nothing is acknowledged, so that each write waits and is then looked up. It works.
#[tokio::test]
async fn stream_without_acks_takes_writes() {
    let (world, store) = World::with_store(NatsServer::builder(), StoreConfig::new()).await;
    world.change(|stream| stream["no_ack"] = json!(true)).await;
    let store = store.with_deadline(SHORT);
    let version = store.put("key", "value").await.unwrap();
    assert_eq!(store.get("key").await.unwrap().unwrap().version, version);
    store.update("key", "other", version).await.unwrap();
}

#[tokio::test]
async fn max_consumers_reached_names_the_limit() {
    let (world, store) = World::with_stream(|stream| stream["max_consumers"] = json!(1)).await;
    let store = store.unwrap().with_deadline(4 * SHORT);
    store.put("key", "value").await.unwrap();
    let watch = store.watch(WatchScope::All).await.unwrap();
    let words = &["maximum consumers limit reached", "max_consumers"];
    assert_rejected(store.watch(WatchScope::prefix("other.")).await, "LimitReached", true, words);
    assert_rejected(store.scan(WatchScope::All).try_collect().await, "LimitReached", true, words);
    assert_rejected(store.keys(WatchScope::All).try_collect().await, "LimitReached", true, words);
    assert_rejected(store.history("key").unwrap().try_collect().await, "LimitReached", true, words);
    // It clears on its own.
    let patient = store.with_deadline(super::PATIENCE);
    let mut second = std::pin::pin!(patient.watch(WatchScope::prefix("other.")));
    let early = tokio::time::timeout(SHORT, second.as_mut()).await;
    assert!(early.is_err(), "opened, or given up, without room: {early:?}");
    drop(watch);
    within("another watch", second).await.map(drop).unwrap();
    drop(world);
}

/// Our consumers request 60 s without a reader.
#[tokio::test]
async fn consumer_limits_of_stream_are_adopted() {
    let (world, store) = World::with_stream(|stream| {
        stream["consumer_limits"] =
            json!({ "inactive_threshold": 10_000_000_000_u64, "max_ack_pending": 10 });
    })
    .await;
    let store = store.unwrap();
    store.put("key", "value").await.unwrap();
    let watch = store.watch(WatchScope::All).await.unwrap();
    for _ in 0..2 {
        within("state", watch.next()).await.unwrap().unwrap();
    }
    assert_eq!(store.keys(WatchScope::All).try_collect().await.unwrap(), ["key"]);
    // Lowers the limit further under the open handle, which the server allows without longer-lived
    // consumers.
    drop(watch);
    eventually("the consumers are gone", async || world.server.consumers("s").await.is_empty())
        .await;
    world
        .change(|stream| {
            stream["consumer_limits"] =
                json!({ "inactive_threshold": 5_000_000_000_u64, "max_ack_pending": 5 })
        })
        .await;
    assert_eq!(store.keys(WatchScope::All).try_collect().await.unwrap(), ["key"]);
}

/// The creation that the server rejected is deleted twice, the second time after the watch has
/// opened.
#[tokio::test]
async fn late_deletion_of_a_rejected_consumer_spares_the_next_one() {
    let limited = |seconds: u64| json!({ "inactive_threshold": seconds * 1_000_000_000 });
    let (world, store) = World::with_stream(|stream| stream["consumer_limits"] = limited(10)).await;
    let store = store.unwrap();
    store.put("key", "value").await.unwrap();
    world.change(|stream| stream["consumer_limits"] = limited(5)).await;
    let mut deletions = world.client.subscribe("$JS.API.CONSUMER.DELETE.KV_s.>").await.unwrap();
    let watch = store.watch(WatchScope::key("key").unwrap()).await.unwrap();
    for _ in 0..2 {
        within("state", watch.next()).await.unwrap().unwrap();
    }
    let consumers = world.server.consumers("s").await;
    assert_eq!(consumers.len(), 1);
    for _ in 0..2 {
        within("a deletion", deletions.next()).await.unwrap();
    }
    assert_eq!(world.server.consumers("s").await, consumers);
}

/// A value that fits below the limit fits together with our headers.
#[tokio::test]
async fn max_msg_size_lowered_under_handle_is_value_too_large() {
    let (world, store) = World::with_store(NatsServer::builder(), StoreConfig::new()).await;
    store.put("key", vec![0; 5000]).await.unwrap();
    world.change(|stream| stream["max_msg_size"] = json!(1024)).await;
    assert_rejected(
        store.put("key", vec![0; 5000]).await,
        "ValueTooLarge",
        false,
        &["5000 bytes", "limit of"],
    );
    let many = store.put_many([("key", vec![0; 5000])]).await.remove(0);
    assert_rejected(many, "ValueTooLarge", false, &["5000 bytes", "limit of"]);
    store.put("key", vec![0; store.max_value_size()]).await.unwrap();
    store.delete("key").await.unwrap();
}

/// A tombstone consists of headers.
#[tokio::test]
async fn max_msg_size_below_headers_names_the_limit() {
    let (world, store) = World::with_store(NatsServer::builder(), StoreConfig::new()).await;
    let version = store.put("key", "").await.unwrap();
    world.change(|stream| stream["max_msg_size"] = json!(20)).await;
    assert_rejected(store.delete("key").await, "LimitReached", false, &["max_msg_size", "raise"]);
    let deleted = store.delete_with_version("key", version).await;
    assert_rejected(deleted, "LimitReached", false, &["max_msg_size", "raise"]);
    assert_rejected(store.put("key", vec![0; 100]).await, "ValueTooLarge", false, &["limit of"]);
}

#[tokio::test]
async fn mirror_is_unsupported() {
    let world = World::new(NatsServer::builder()).await;
    world.connection.store("origin").await.unwrap();
    world
        .api("STREAM.CREATE.KV_s", &json!({ "name": "KV_s", "mirror": { "name": "KV_origin" } }))
        .await;
    assert_unsupported(world.connection.store("s").await, &["mirror", "original"]);
}

/// Messages of such streams are removed as soon as each consumer has acknowledged them.
#[tokio::test]
async fn other_retention_is_unsupported() {
    for retention in ["interest", "workqueue"] {
        let (_world, store) =
            World::with_stream(|stream| stream["retention"] = json!(retention)).await;
        assert_unsupported(store, &[retention, "`retention`"]);
    }
}

#[tokio::test]
async fn subjects_of_another_stream_are_named() {
    let world = World::new(NatsServer::builder()).await;
    world.api("STREAM.CREATE.ALL", &json!({ "name": "ALL", "subjects": ["$KV.s.>"] })).await;
    let opened = world.connection.store("s").await;
    assert_unsupported(opened, &["\"s\"", "another stream", "subjects overlap"]);
}

/// Without direct gets the leader answers.
#[tokio::test]
async fn reads_work_without_direct_gets() {
    let (world, store) = World::with_store(NatsServer::builder(), StoreConfig::new()).await;
    store.put("key", "value").await.unwrap();
    world.change(|stream| stream["allow_direct"] = json!(false)).await;
    assert_eq!(store.get("key").await.unwrap().unwrap().value, "value");
    let many = store.get_many(["key", "a", "b", "c", "d"]).await.unwrap();
    assert!(many[0].is_some() && many[1..].iter().all(Option::is_none));
}

/// The caller has to change a setting that the server does not accept.
#[tokio::test]
async fn rejected_setting_is_invalid_config() {
    let world = World::new(NatsServer::builder()).await;
    let config = StoreConfig::new().description("x".repeat(5000));
    let opened = world.connection.store_with_config("s", config).await;
    assert_rejected(opened, "InvalidConfig", false, &["description is too long"]);
}

#[tokio::test]
async fn times_to_live_turned_off_are_unsupported() {
    let world = World::new(NatsServer::builder()).await;
    if !world.server.is_at_least(2, 11) {
        let opened =
            world.connection.store_with_config("s", StoreConfig::new().key_ttl(true)).await;
        assert_unsupported(opened, &["2.11"]);
        return;
    }
    let store =
        world.connection.store_with_config("s", StoreConfig::new().key_ttl(true)).await.unwrap();
    let hour = std::time::Duration::from_secs(3600);
    store.ttl().unwrap().put("key", "value", hour).await.unwrap();
    let ttl = store.ttl().unwrap();
    world.change(|stream| stream["subject_delete_marker_ttl"] = json!(0)).await;
    store.refresh().await.unwrap();
    assert_unsupported(ttl.put("key", "value", hour).await, &["times to live"]);
}

#[tokio::test]
async fn changed_subjects_are_named() {
    let config = StoreConfig::new().deadline(PATIENCE);
    let (world, store) = World::with_store(NatsServer::builder(), config).await;
    store.put("key", "value").await.unwrap();
    world.change(|stream| stream["subjects"] = json!(["$KV.s.part.>"])).await;
    let words = &["`subjects` are [\"$KV.s.part.>\"]", "$KV.s.>", "change them"];
    assert_unsupported(store.put("key", "other").await, words);
    assert_unsupported(store.create("new", "value").await, words);
    assert_unsupported(store.delete("key").await, words);
    assert_unsupported(store.put_many([("key", "other")]).await.remove(0), words);
    store.put("part.key", "value").await.unwrap();
    assert_eq!(store.get("key").await.unwrap().unwrap().value, "value");
}

/// The settings that reject nothing.
#[tokio::test]
async fn other_settings_reject_nothing() {
    let (_world, store) = World::with_stream(|stream| {
        stream["republish"] = json!({ "src": ">", "dest": "copy.>" });
        stream["compression"] = json!("s2");
        stream["deny_delete"] = json!(true);
        stream["max_age"] = json!(3_600_000_000_000_u64);
        stream["duplicate_window"] = json!(100_000_000);
        stream["metadata"] = json!({ "team": "x" });
    })
    .await;
    let store = store.unwrap();
    let version = store.create("key", "value").await.unwrap();
    store.update("key", "other", version).await.unwrap();
    store.delete("key").await.unwrap();
    store.purge("key").await.unwrap();
    let watch = store.watch(WatchScope::All).await.unwrap();
    loop {
        if matches!(within("state", watch.next()).await.unwrap().unwrap(), KvUpdate::CaughtUp) {
            break;
        }
    }
}
