//! Limits of an account.

use shizuku_kv::{StorageType, StoreConfig, WatchScope, connect};
use shizuku_kv_tests::{NatsServer, NatsServerBuilder};

use super::{SHORT, World, assert_rejected};

/// Returns a server whose only account has these limits for JetStream.
fn limited(limits: &str) -> NatsServerBuilder {
    NatsServer::builder().config(&format!(
        "accounts {{ A: {{ jetstream: {{ {limits} }}, users: [ {{ user: a, password: p }} ] }} }}
         no_auth_user: a"
    ))
}

#[tokio::test]
async fn max_streams_reached_names_the_limit() {
    let world = World::new(limited("max_streams: 1")).await;
    world.connection.store("first").await.unwrap();
    let words = &["maximum number of streams reached", "max_streams", "delete_store"];
    assert_rejected(world.connection.store("second").await, "LimitReached", false, words);
    world.connection.delete_store("first").await.unwrap();
    world.connection.store("second").await.unwrap();
}

#[tokio::test]
async fn max_consumers_of_account_names_the_limit() {
    let (_world, store) =
        World::with_store(limited("max_consumers: 1"), StoreConfig::new().deadline(4 * SHORT))
            .await;
    let _watch = store.watch(WatchScope::All).await.unwrap();
    let words = &["maximum consumers limit reached", "max_consumers"];
    assert_rejected(store.watch(WatchScope::prefix("a.")).await, "LimitReached", true, words);
    assert_rejected(store.keys(WatchScope::All).try_collect().await, "LimitReached", true, words);
}

#[tokio::test]
async fn reserved_storage_names_the_limit() {
    for (limit, storage) in
        [("max_store: 64KB", StorageType::File), ("max_mem: 64KB", StorageType::Memory)]
    {
        let world = World::new(limited(limit)).await;
        let config = StoreConfig::new().max_bytes(1024 * 1024).storage(storage);
        let opened = world.connection.store_with_config("s", config.clone()).await;
        assert_rejected(opened, "LimitReached", false, &["insufficient", "resources", "max_bytes"]);
        let small = config.max_bytes(1024);
        world.connection.store_with_config("s", small.clone()).await.unwrap();
        let raised = small.max_bytes(1024 * 1024).reconcile();
        let opened = world.connection.store_with_config("s", raised).await;
        assert_rejected(opened, "LimitReached", false, &["insufficient", "resources", "max_bytes"]);
    }
}

#[tokio::test]
async fn required_max_bytes_is_invalid_config() {
    let world = World::new(limited("max_bytes_required: true, max_store: 1MB")).await;
    assert_rejected(
        world.connection.store("s").await,
        "InvalidConfig",
        false,
        &["max_bytes", "set"],
    );
    world.connection.store_with_config("s", StoreConfig::new().max_bytes(1024)).await.unwrap();
}

#[tokio::test]
async fn max_bytes_over_largest_stream_is_invalid_config() {
    let world = World::new(limited("disk_max_stream_bytes: 10KB, max_store: 1MB")).await;
    let opened =
        world.connection.store_with_config("s", StoreConfig::new().max_bytes(20 * 1024)).await;
    assert_rejected(opened, "InvalidConfig", false, &["max_bytes", "exceeds account limit"]);
}

#[tokio::test]
async fn account_without_jetstream_is_unavailable() {
    let server = NatsServer::builder().config(
        "accounts { A: { users: [ { user: a, password: p } ] } }
         no_auth_user: a",
    );
    let server = server.start();
    let connection = connect(&server.url()).await.unwrap();
    let words = &["JetStream is not enabled", "for the account"];
    assert_rejected(connection.store("s").await, "Unavailable", true, words);
    assert_rejected(connection.health().await, "Unavailable", true, words);
    assert_rejected(connection.delete_store("s").await, "Unavailable", true, words);
    assert_rejected(connection.list_stores().try_collect().await, "Unavailable", true, words);
}

#[tokio::test]
async fn jetstream_taken_from_account_is_unavailable() {
    let config = StoreConfig::new().deadline(super::PATIENCE);
    let (mut world, store) = World::with_store(limited("max_streams: 1"), config).await;
    world.server.reload(
        "accounts { A: { users: [ { user: a, password: p } ] } }
         no_auth_user: a",
    );
    let words = &["JetStream is not enabled", "for the account"];
    assert_rejected(store.get("key").await, "Unavailable", true, words);
    assert_rejected(store.put("key", "value").await, "Unavailable", true, words);
    assert_rejected(store.create("key", "value").await, "Unavailable", true, words);
    assert_rejected(store.purge("key").await, "Unavailable", true, words);
    let many = store.put_many([("key", "value")]).await.remove(0);
    assert_rejected(many, "Unavailable", true, words);
}

#[tokio::test]
async fn replicas_without_cluster_are_unsupported() {
    let world = World::new(NatsServer::builder()).await;
    let opened = world.connection.store_with_config("s", StoreConfig::new().replicas(3)).await;
    assert_rejected(opened, "Unsupported", false, &["replicas", "not enough servers"]);
}
