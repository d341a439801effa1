//! Servers with a small `max_payload`: every request whose size depends on the user's input.

use std::error::Error;

use shizuku_kv::{KvError, ReadConsistency, StoreConfig, WatchScope, connect};
use shizuku_kv_tests::NatsServer;

use super::{PATIENCE, World, assert_rejected, within};

fn keys(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{number:04}.{}", "k".repeat(200))).collect()
}

#[tokio::test]
async fn get_many_respects_small_max_payload() {
    for consistency in [ReadConsistency::Any, ReadConsistency::Leader] {
        let config = StoreConfig::new().consistency(consistency);
        let (_world, store) =
            World::with_store(NatsServer::builder().max_payload(2048), config).await;
        let keys = keys(600);
        let items = keys.iter().map(|key| (key.as_str(), "value"));
        assert!(store.put_many(items).await.iter().all(Result::is_ok));
        let found =
            within("get_many", store.get_many(keys.iter().map(String::as_str))).await.unwrap();
        assert!(found.iter().all(Option::is_some));
    }
}

/// The longest key alone exceeds the size of a request.
#[tokio::test]
async fn get_many_reads_keys_over_max_payload() {
    let (_world, store) =
        World::with_store(NatsServer::builder().max_payload(700), StoreConfig::new()).await;
    let keys: Vec<String> = (0..8).map(|number| format!("{number}{}", "k".repeat(1000))).collect();
    for key in &keys {
        store.put(key.as_str(), "value").await.unwrap();
    }
    let found = within("get_many", store.get_many(keys.iter().map(String::as_str))).await.unwrap();
    assert!(found.iter().all(Option::is_some));
    // A request to the leader has the key in the payload.
    let absent = "a".repeat(1000);
    let words = &["max_payload", "raise"];
    assert_rejected(store.get(absent.as_str()).await, "LimitReached", false, words);
}

#[tokio::test]
async fn watches_and_scans_respect_small_max_payload() {
    let (_world, store) =
        World::with_store(NatsServer::builder().max_payload(2048), StoreConfig::new()).await;
    let keys = keys(60);
    let items = keys.iter().map(|key| (key.as_str(), "value"));
    assert!(store.put_many(items).await.iter().all(Result::is_ok));
    let scope = WatchScope::keys(keys.iter().map(String::as_str)).unwrap();
    let watch = store.watch(scope.clone()).await.unwrap();
    for _ in 0..=keys.len() {
        within("state", watch.next()).await.unwrap().unwrap();
    }
    let scanned = within("scan", store.scan(scope.clone()).try_collect()).await.unwrap();
    assert_eq!(scanned.len(), keys.len());
    let listed = within("keys", store.keys(scope).try_collect()).await.unwrap();
    assert_eq!(listed.len(), keys.len());
    let prefixes = keys.iter().map(|key| format!("{key}."));
    let none = store.scan(WatchScope::prefixes(prefixes));
    assert!(within("scan", none.next()).await.is_none());
}

#[tokio::test]
async fn settings_over_max_payload_name_the_limit() {
    let world = World::new(NatsServer::builder().max_payload(1024)).await;
    let config = StoreConfig::new().description("x".repeat(2000));
    let opened = world.connection.store_with_config("s", config).await;
    assert_rejected(opened, "LimitReached", false, &["max_payload", "raise"]);
}

#[tokio::test]
async fn value_over_max_payload_is_too_large() {
    // The configured limit of a store may be larger than the payload.
    for config in [StoreConfig::new(), StoreConfig::new().max_value_size(1 << 20)] {
        println!("{config:?}");
        let (_world, store) =
            World::with_store(NatsServer::builder().max_payload(1024), config).await;
        let words = &["2000 bytes", "limit"];
        assert_rejected(store.put("key", vec![0; 2000]).await, "ValueTooLarge", false, words);
        let many = store.put_many([("key", vec![0; 2000])]).await.remove(0);
        assert_rejected(many, "ValueTooLarge", false, words);
        let version = store.put("key", vec![0; store.max_value_size()]).await.unwrap();
        store.update("key", vec![1; store.max_value_size()], version).await.unwrap();
    }
}

#[tokio::test]
async fn max_payload_lowered_under_handle_is_too_large() {
    let config = StoreConfig::new().deadline(PATIENCE);
    let (mut world, store) = World::with_store(NatsServer::builder(), config).await;
    let version = store.put("key", vec![0; 5000]).await.unwrap();
    world.server.restart_with(|server| server.max_payload(1024));
    within("health", world.connection.health()).await.unwrap();
    assert_rejected(
        store.put("key", vec![0; 5000]).await,
        "ValueTooLarge",
        false,
        &["5000 bytes", "limit"],
    );
    // Stored values can still be read.
    let found = store.get("key").await.unwrap().unwrap();
    assert_eq!((found.version, found.value.len()), (version, 5000));
    assert_eq!(store.scan(WatchScope::All).try_collect().await.unwrap().len(), 1);
}

/// Whether the error of a write in flight names the limit: the server's words have reached the
/// client before the end of the connection.
#[track_caller]
fn is_unknown_by_limit(error: &KvError) -> bool {
    assert!(matches!(error, KvError::OutcomeUnknown { .. }), "{error:?}");
    error.source().is_some_and(|cause| cause.to_string().contains("max_payload"))
}

/// The server does not notify the clients. It ends a connection that sends more.
#[tokio::test]
async fn max_payload_lowered_by_reload_is_too_large() {
    let config = StoreConfig::new().deadline(PATIENCE);
    let server = NatsServer::builder().config("max_payload: 1000000");
    let (mut world, store) = World::with_store(server, config).await;
    let connection = connect(&world.server.url()).await.unwrap();
    let other =
        connection.store_with_config("s", StoreConfig::new().deadline(PATIENCE)).await.unwrap();
    let version = store.put("key", "small").await.unwrap();
    world.server.reload("max_payload: 2000");
    let words = &["50000 bytes", "limit"];
    assert_rejected(store.put("key", vec![0; 50_000]).await, "ValueTooLarge", false, words);
    assert_eq!(store.get("key").await.unwrap().unwrap().version, version);
    assert!(store.max_value_size() < 2000);
    store.put("key", "small").await.unwrap();
    // Later writes may have been sent on the next connection.
    let value = |number: usize| vec![0; if number == 100 { 50_000 } else { 100 }];
    let items = (0..200).map(|number| (format!("key-{number}"), value(number)));
    let mut answers = within("put_many", other.put_many(items)).await;
    let rejected = answers.remove(100);
    // The client loses the words if a write behind the rejected one fails before it has read them.
    let has_words = !matches!(rejected, Err(KvError::OutcomeUnknown { .. }));
    if has_words {
        assert_rejected(rejected, "ValueTooLarge", false, words);
    }
    for error in answers.into_iter().filter_map(Result::err) {
        assert_eq!(is_unknown_by_limit(&error), has_words, "{error:?}");
    }
    // The next greeting tells the limit.
    assert_rejected(other.put("key", vec![0; 50_000]).await, "ValueTooLarge", false, words);
    assert!(other.max_value_size() < 2000);
}

#[tokio::test]
async fn max_payload_raised_by_reload_counts_after_reconnect() {
    let config = StoreConfig::new().deadline(PATIENCE);
    let server = NatsServer::builder().config("max_payload: 2000");
    let (mut world, store) = World::with_store(server, config).await;
    world.server.reload("max_payload: 1000000");
    let words = &["50000 bytes", "limit"];
    assert_rejected(store.put("key", vec![0; 50_000]).await, "ValueTooLarge", false, words);
    let other = connect(&world.server.url()).await.unwrap().store("s").await.unwrap();
    other.put("key", vec![0; 50_000]).await.unwrap();
    world.server.restart();
    within("health", world.connection.health()).await.unwrap();
    store.put("key", vec![0; 50_000]).await.unwrap();
}

/// No server reports the limit of an account. The library knows it only after a connection has
/// ended because of it.
#[tokio::test]
async fn max_payload_of_account_is_too_large() {
    let server = NatsServer::builder().config(
        "accounts { A: { jetstream: enabled, limits: { max_payload: 1000 }, users: [ { user: a, password: p } ] } }
         no_auth_user: a",
    );
    let (world, store) = World::with_store(server, StoreConfig::new().deadline(PATIENCE)).await;
    let words = &["50000 bytes", "limit"];
    assert_rejected(store.put("key", vec![0; 50_000]).await, "ValueTooLarge", false, words);
    let ended = || world.server.log().matches("maximum payload exceeded").count();
    assert_eq!(ended(), 1, "{}", world.server.log());
    assert_rejected(store.put("key", vec![0; 50_000]).await, "ValueTooLarge", false, words);
    let many = store.put_many([("key", vec![0; 50_000])]).await.remove(0);
    assert_rejected(many, "ValueTooLarge", false, words);
    assert!(store.max_value_size() < 50_000);
    assert_eq!(ended(), 1, "{}", world.server.log());
    store.put("key", "small").await.unwrap();
    // Requests of that size, too.
    let keys = || (0..60).map(|number| format!("{number:04}.long.key.of.a.request"));
    let scope = WatchScope::keys(keys()).unwrap();
    assert_rejected(
        store.watch(scope.clone()).await,
        "LimitReached",
        false,
        &["max_payload", "raise"],
    );
    let watch = store.watch(scope).await.unwrap();
    within("state", watch.next()).await.unwrap().unwrap();
    assert_eq!(store.get_many(keys()).await.unwrap().len(), 60);
}
