//! A store that is deleted and recreated while a listing or the state of a watch is read. Its
//! sequences start over, so that its leader has nothing newer than the messages of the deleted
//! store.

use std::sync::Arc;

use serde_json::{Value, json};
use shizuku_kv::{
    Connection, KvError, KvUpdate, ReadConsistency, Store, StoreConfig, WatchScope, connect,
};
use shizuku_kv_tests::{NatsServer, eventually};

const KEYS: usize = 15;

/// Number of keys that a reader has received when the store is changed: less than half of the ten
/// of a request.
const READ: usize = 3;

/// Number of keys that are read before the rest is known to be in transit.
const READ_LATER: usize = 8;

/// A server that delivers ten messages to a request, and the store `b` with [`KEYS`] keys.
struct World {
    server: NatsServer,
    connection: Arc<dyn Connection>,
    store: Store,
}

impl World {
    async fn new() -> Self {
        let server =
            NatsServer::builder().jetstream_config("limits: { max_request_batch: 10 }").start();
        let connection = connect(&server.url()).await.unwrap();
        let store = connection.store("b").await.unwrap();
        for number in 0..KEYS {
            store.put(format!("key.{number:02}"), "old").await.unwrap();
        }
        Self { server, connection, store }
    }

    async fn api(&self, subject: &str, request: &Value) -> Value {
        let client = self.server.client().await;
        let answer =
            client.request(format!("$JS.API.{subject}"), request.to_string().into()).await.unwrap();
        serde_json::from_slice(&answer.payload).unwrap()
    }

    /// Removes a key that has not been delivered, so that the consumer's count proves nothing.
    async fn purge_one(&self) {
        let purged = self.api("STREAM.PURGE.KV_b", &json!({ "filter": "$KV.b.key.12" })).await;
        assert_eq!(purged["purged"], 1, "{purged}");
    }

    /// Recreates the store once the rest of the old one is in the reader's queue.
    async fn recreate(&self) {
        eventually("everything is delivered", async || {
            let list = self.api("CONSUMER.LIST.KV_b", &json!({})).await;
            list["consumers"][0]["delivered"]["consumer_seq"] == KEYS - 1
        })
        .await;
        self.connection.delete_store("b").await.unwrap();
        let store = self.connection.store("b").await.unwrap();
        store.put("new", "value").await.unwrap();
    }
}

#[tokio::test]
async fn listing_of_a_recreated_store_is_an_error() {
    let world = World::new().await;
    let scan = world.store.scan(WatchScope::All);
    for _ in 0..READ {
        scan.next().await.unwrap().unwrap();
    }
    world.purge_one().await;
    for _ in READ..READ_LATER {
        scan.next().await.unwrap().unwrap();
    }
    world.recreate().await;
    let error = loop {
        match scan.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("complete, with the keys of a store that is gone"),
        }
    };
    assert_list_again(&error);
}

#[tokio::test]
async fn watch_of_a_recreated_store_is_not_caught_up() {
    let world = World::new().await;
    let mut watch = world.store.watch(WatchScope::All).await.unwrap();
    for _ in 0..READ {
        super::next(&mut watch).await.unwrap();
    }
    world.purge_one().await;
    for _ in READ..READ_LATER {
        super::next(&mut watch).await.unwrap();
    }
    world.recreate().await;
    let error = loop {
        match super::next(&mut watch).await {
            Ok(KvUpdate::CaughtUp) => panic!("caught up with a store that is gone"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, KvError::CursorExpired { .. }), "{error}");
}

/// The consumer is lost with the store, before the second request. The new store ends before or
/// after the position of the listing.
#[tokio::test]
async fn listing_that_resumes_in_a_recreated_store_is_an_error() {
    let world = World::new().await;
    for (keys_only, history, added) in
        [(false, 1, 1), (true, 1, 20_000), (false, 5, 20_000), (true, 5, 1)]
    {
        println!("keys only: {keys_only}, history {history}, {added} new keys");
        let config = || StoreConfig::new().history(history);
        world.connection.delete_store("b").await.unwrap();
        let store = world.connection.store_with_config("b", config()).await.unwrap();
        put(&store, "old", 9_000).await;
        let (scan, keys) = (store.scan(WatchScope::All), store.keys(WatchScope::All));
        if keys_only {
            keys.next().await.unwrap().unwrap();
        } else {
            scan.next().await.unwrap().unwrap();
        }
        world.connection.delete_store("b").await.unwrap();
        let store = world.connection.store_with_config("b", config()).await.unwrap();
        put(&store, "new", added).await;
        let rest = if keys_only {
            keys.try_collect().await.map(drop)
        } else {
            scan.try_collect().await.map(drop)
        };
        assert_list_again(&rest.unwrap_err());
    }
}

async fn put(store: &Store, prefix: &str, count: usize) {
    let items = (0..count).map(|number| (format!("{prefix}.{number}"), "value"));
    assert!(store.put_many(items).await.iter().all(Result::is_ok));
}

#[track_caller]
fn assert_list_again(error: &KvError) {
    assert!(
        matches!(error, KvError::Unavailable { reason, .. } if reason.contains("list it again")),
        "{error}"
    );
    assert!(error.is_retryable() && error.to_string().contains("recreated"), "{error}");
}

/// A server, and its store `b` with 100 keys whose values take several answers.
async fn with_large_values(value: u8) -> (NatsServer, Arc<dyn Connection>, Vec<String>) {
    let server = NatsServer::start();
    let connection = connect(&server.url()).await.unwrap();
    let names: Vec<_> = (0..100).map(|number| format!("key.{number}")).collect();
    put_large(&connection.store("b").await.unwrap(), &names, value).await;
    (server, connection, names)
}

async fn put_large(store: &Store, names: &[String], value: u8) {
    let items = names.iter().map(|name| (name, vec![value; 200_000]));
    assert!(store.put_many(items).await.iter().all(Result::is_ok));
}

const CONSISTENCIES: [ReadConsistency; 2] = [ReadConsistency::Any, ReadConsistency::Leader];

/// The keys fit into one request, and their values do not fit into one answer.
#[tokio::test]
async fn listing_of_exact_keys_of_recreated_store_is_an_error() {
    for consistency in CONSISTENCIES {
        let (_server, connection, names) = with_large_values(1).await;
        let config = StoreConfig::new().consistency(consistency);
        let store = connection.store_with_config("b", config).await.unwrap();
        let scan = store.scan(WatchScope::keys(&names).unwrap());
        scan.next().await.unwrap().unwrap();
        connection.delete_store("b").await.unwrap();
        put_large(&connection.store("b").await.unwrap(), &names, 2).await;
        assert_list_again(&scan.try_collect().await.unwrap_err());
    }
}

/// The handle still has the settings of the deleted store.
#[tokio::test]
async fn exact_keys_after_a_recreation_are_of_the_new_store() {
    for consistency in CONSISTENCIES {
        let (_server, connection, names) = with_large_values(1).await;
        let config = StoreConfig::new().consistency(consistency);
        let store = connection.store_with_config("b", config).await.unwrap();
        connection.delete_store("b").await.unwrap();
        put_large(&connection.store("b").await.unwrap(), &names, 2).await;
        let found = store.scan(WatchScope::keys(&names).unwrap()).try_collect().await.unwrap();
        assert_eq!(found.len(), names.len());
        assert!(found.iter().all(|entry| entry.value[0] == 2));
    }
}
