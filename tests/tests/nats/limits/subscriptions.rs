//! A connection that has more subscriptions than its server allows after a restart.

use std::sync::Arc;

use shizuku_kv::{Connection, KvError, Store, StoreConfig, Watch, WatchScope, connect};
use shizuku_kv_tests::{NatsServer, eventually};

use super::{SHORT, World, assert_rejected};

/// Number of connections. The client subscribes in an arbitrary order when it reconnects, so that
/// the answers of at least one of them are over the limit.
const CONNECTIONS: usize = 4;

const WATCHES: usize = 10;

async fn with_watches(server: &NatsServer) -> (Arc<dyn Connection>, Store, Vec<Watch>) {
    let connection = connect(&server.url()).await.unwrap();
    let config = StoreConfig::new().deadline(4 * SHORT);
    let store = connection.store_with_config("s", config).await.unwrap();
    let mut watches = Vec::new();
    for number in 0..WATCHES {
        watches.push(store.watch(WatchScope::prefix(format!("p{number}."))).await.unwrap());
    }
    (connection, store, watches)
}

/// Watches that are not read keep their subscriptions.
#[tokio::test]
async fn answers_over_max_subscriptions_name_the_limit() {
    let (mut world, _store) = World::with_store(NatsServer::builder(), StoreConfig::new()).await;
    let mut all = Vec::new();
    for _ in 0..CONNECTIONS {
        all.push(with_watches(&world.server).await);
    }
    world.server.restart_with(|server| server.config("max_subscriptions: 1"));
    let mut rejected = 0;
    for (connection, store, mut watches) in all {
        // Watches that are read retry, which must not keep others from running.
        let read = watches.pop().unwrap();
        tokio::spawn(async move { while read.next().await.is_some() {} });
        eventually("the server has answered, or has told why not", async || {
            matches!(connection.health().await, Ok(()) | Err(KvError::LimitReached { .. }))
        })
        .await;
        if connection.health().await.is_ok() {
            continue;
        }
        rejected += 1;
        let words = &["maximum subscriptions exceeded", "max_subscriptions"];
        assert_rejected(store.get("key").await, "LimitReached", true, words);
        assert_rejected(store.put("key", "value").await, "LimitReached", true, words);
        assert_rejected(store.watch(WatchScope::All).await, "LimitReached", true, words);
        drop(watches);
        eventually("the answers have room", async || store.put("key", "value").await.is_ok()).await;
    }
    assert!(rejected > 0, "the answers came first on every connection");
}

#[tokio::test]
async fn answers_over_max_subscriptions_precede_watches() {
    let (mut world, _store) = World::with_store(NatsServer::builder(), StoreConfig::new()).await;
    let mut all = Vec::new();
    for _ in 0..CONNECTIONS {
        let (connection, store, watches) = with_watches(&world.server).await;
        for watch in watches {
            tokio::spawn(async move { while watch.next().await.is_some() {} });
        }
        all.push((connection, store));
    }
    world.server.restart_with(|server| server.config("max_subscriptions: 3"));
    for (connection, store) in all {
        eventually("the connection works", async || connection.health().await.is_ok()).await;
        store.put("key", "value").await.unwrap();
    }
}
