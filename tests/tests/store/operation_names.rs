//! Errors contain the name of the method, for every method of handles and connections, on every
//! backend.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test fails by panicking"
)]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use shizuku_kv::{
    Connection, FencingToken, KvError, KvResult, StorageType, Store, StoreConfig, VersionToken,
    WatchCursor, WatchScope, connect,
};
use shizuku_kv_tests::{NatsServer, unique, urls};

/// A method by its name, called on a store.
pub(super) type Call<'a> = (&'static str, BoxFuture<'a, KvResult<()>>);

/// A call whose result does not matter.
macro_rules! call {
    ($name:literal, $method:expr) => {
        ($name, async move { $method.await.map(drop) }.boxed())
    };
}

pub(super) fn reads(store: &Store) -> Vec<Call<'_>> {
    vec![
        call!("get", store.get("key")),
        call!("entry", store.entry("key")),
        call!("get_many", store.get_many(["a", "b", "c", "d", "e"])),
        call!("history", store.history("key").unwrap().try_collect()),
        call!("scan", store.scan(WatchScope::All).try_collect()),
        call!("keys", store.keys(WatchScope::All).try_collect()),
    ]
}

pub(super) fn watches(store: &Store) -> Vec<Call<'_>> {
    let cursor = WatchCursor::new([0; 16], 1, SystemTime::UNIX_EPOCH);
    vec![
        call!("watch", store.watch(WatchScope::All)),
        call!("watch_from", store.watch_from(WatchScope::All, cursor)),
    ]
}

pub(super) fn writes(store: &Store) -> Vec<Call<'_>> {
    let version = VersionToken::from_u64(1);
    vec![
        call!("put", store.put("key", "value")),
        call!("create", store.create("key", "value")),
        call!("update", store.update("key", "value", version)),
        call!("delete", store.delete("key")),
        call!("delete_with_version", store.delete_with_version("key", version)),
        call!("purge", store.purge("key")),
    ]
}

pub(super) fn expiring_writes(store: &Store) -> Vec<Call<'_>> {
    let (second, version) = (Duration::from_secs(1), VersionToken::from_u64(1));
    let Some(ttl) = store.ttl() else { return Vec::new() };
    vec![
        call!("put_with_ttl", ttl.put("key", "value", second)),
        call!("create_with_ttl", ttl.create("key", "value", second)),
        call!("update_with_ttl", ttl.update("key", "value", version, second)),
    ]
}

fn fenced_writes(store: &Store) -> Vec<Call<'_>> {
    let (token, version) = (FencingToken::from_u64(1), VersionToken::from_u64(1));
    let Some(fenced) = store.fenced() else { return Vec::new() };
    vec![
        call!("put", fenced.put("key", "value", token)),
        call!("create", fenced.create("key", "value", token)),
        call!("update", fenced.update("key", "value", version, token)),
        call!("delete", fenced.delete("key", token)),
        call!("raise", fenced.raise("key", token)),
    ]
}

fn all(store: &Store) -> Vec<Call<'_>> {
    let others = vec![
        call!("refresh", store.refresh()),
        call!("put_many", async move { store.put_many([("key", "value")]).await.remove(0) }),
    ];
    let single = [reads(store), watches(store), writes(store), expiring_writes(store)];
    single.into_iter().chain([others, fenced_writes(store)]).flatten().collect()
}

async fn assert_named(calls: Vec<Call<'_>>, kind: &str) {
    let mut wrong = Vec::new();
    for (name, call) in calls {
        let error = match call.await {
            Err(error) => error,
            Ok(()) => panic!("{name} succeeded"),
        };
        let (found, operation) = match &error {
            KvError::Timeout { operation, .. } => ("Timeout", *operation),
            KvError::Closed { operation, .. } => ("Closed", *operation),
            KvError::Unsupported { operation, .. } => ("Unsupported", *operation),
            KvError::Unavailable { operation, .. } => ("Unavailable", *operation),
            _ => panic!("{name}: {error:?}"),
        };
        if (found, operation) != (kind, name) || !error.to_string().starts_with(name) {
            wrong.push(format!("{name}: {error}"));
        }
    }
    assert!(wrong.is_empty(), "not {kind} with their names:\n{}", wrong.join("\n"));
}

async fn connections() -> Vec<Arc<dyn Connection>> {
    join_all(urls().iter().map(async |url| connect(url).await.unwrap())).await
}

#[tokio::test]
async fn zero_deadline_names_the_method() {
    for connection in connections().await {
        let config = StoreConfig::new().key_ttl(connection.capabilities().key_ttl);
        let store = connection.store_with_config(&unique("names"), config).await.unwrap();
        assert_named(all(&store.with_deadline(Duration::ZERO)), "Timeout").await;
    }
}

#[tokio::test]
async fn closed_connection_names_the_method() {
    for connection in connections().await {
        let config = StoreConfig::new().key_ttl(connection.capabilities().key_ttl);
        let store = connection.store_with_config(&unique("names"), config).await.unwrap();
        connection.shutdown().await.unwrap();
        assert_named(all(&store), "Closed").await;
        let connection = &connection;
        let calls = vec![
            call!("store", connection.store("names")),
            call!("store_with_config", connection.store_with_config("names", StoreConfig::new())),
            call!("list_stores", connection.list_stores().try_collect()),
            call!("delete_store", connection.delete_store("names")),
            call!("health", connection.health()),
        ];
        assert_named(calls, "Closed").await;
    }
}

/// The name does not depend on the request that failed: reading, creating or changing the store.
#[tokio::test]
async fn opening_names_the_method_in_each_step() {
    let server = NatsServer::builder().jetstream(false).start();
    let connection = connect(&server.url()).await.unwrap();
    let connection = &connection;
    let calls = vec![
        call!("store", connection.store("names")),
        call!("store_with_config", connection.store_with_config("names", StoreConfig::new())),
        call!("list_stores", connection.list_stores().try_collect()),
        call!("delete_store", connection.delete_store("names")),
        call!("health", connection.health()),
    ];
    assert_named(calls, "Unavailable").await;

    let connection = connect(&NatsServer::shared().url()).await.unwrap();
    let (name, connection) = (unique("names"), &connection);
    let replicas = StoreConfig::new().replicas(3).storage(StorageType::Memory);
    let calls =
        vec![call!("store_with_config", connection.store_with_config(&name, replicas.clone()))];
    assert_named(calls, "Unsupported").await;
}
