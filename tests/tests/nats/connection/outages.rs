//! Servers that are killed, restarted and paused: every operation ends by its deadline, and
//! succeeds afterwards.

use std::time::Duration;

use futures_util::future::join_all;
use shizuku_kv::{
    Connection, KvError, ReadConsistency, StoreConfig, WatchScope, connect, nats_connect,
};
use shizuku_kv_tests::{NatsServer, eventually};

use super::{SHORT, caught_up, config, lets_in, opened, opened_with, operations, refused, within};

#[tokio::test]
async fn operation_waits_for_a_server_that_comes_back() {
    let mut server = NatsServer::start();
    let connection = connect(&server.url()).await.unwrap();
    let store = connection.store("config").await.unwrap().with_deadline(Duration::from_secs(60));
    let version = store.put("key", "x").await.unwrap();
    server.kill();
    eventually("the server is missed", async || {
        store.with_deadline(Duration::from_millis(100)).get("key").await.is_err()
    })
    .await;
    let reading = tokio::spawn({
        let store = store.clone();
        async move { store.get("key").await }
    });
    let writing = tokio::spawn(async move { store.update("key", "y", version).await });
    tokio::task::yield_now().await;
    server.restart();
    reading.await.unwrap().unwrap();
    writing.await.unwrap().unwrap();
}

#[tokio::test]
async fn operations_without_a_server_end_by_their_deadline() {
    let mut server = NatsServer::start();
    let connection = nats_connect(config(&server.url()).deadline(SHORT)).await.unwrap();
    let store = opened(&connection, "config").await;
    let version = store.put("key", "x").await.unwrap();
    let store = store.with_deadline(SHORT);
    server.kill();
    eventually("the server is missed", async || {
        store.with_deadline(Duration::from_millis(100)).get("key").await.is_err()
    })
    .await;
    let ends =
        operations(&connection, &store, [version; 2]).into_iter().map(async |(what, operation)| {
            let error = within(SHORT, what, operation).await.expect_err(what);
            // No outcome is unknown, because no request was sent.
            assert!(
                matches!(error, KvError::Unavailable { .. } | KvError::Timeout { .. }),
                "{what}: {error:?}"
            );
            assert!(error.is_retryable(), "{what}: {error:?}");
        });
    join_all(ends).await;
    // Invalid input still has its own error.
    assert!(matches!(store.put("a b", "x").await, Err(KvError::InvalidKey { .. })));
    assert!(matches!(store.put("key", vec![0; 1 << 21]).await, Err(KvError::ValueTooLarge { .. })));
}

/// Calls every operation while a server does not answer.
async fn ends_by_its_deadline_while_the_server_is_paused(consistency: ReadConsistency) {
    let mut server = NatsServer::start();
    let connection = nats_connect(config(&server.url()).deadline(SHORT)).await.unwrap();
    let settings = StoreConfig::new().consistency(consistency);
    let store = opened_with(&connection, "config", settings).await;
    let mut versions = Vec::new();
    for key in ["key", "w.update", "w.delete", "w.delete_with_version", "w.purge"] {
        versions.push((key, store.put(key, "before").await.unwrap()));
    }
    opened(&connection, "other").await;
    let watch = caught_up(&store, WatchScope::All).await;
    let cursor = watch.cursor().unwrap();
    let store = store.with_deadline(SHORT);

    server.pause();
    let mut all = operations(&connection, &store, [versions[1].1, versions[3].1]);
    all.push((
        "watch_from",
        Box::pin(async { store.watch_from(WatchScope::All, cursor).await.map(drop) }),
    ));
    let ends = all.into_iter().map(async |(what, operation)| {
        let error = within(SHORT, what, operation).await.expect_err(what);
        (what, error)
    });
    let errors = join_all(ends).await;
    server.resume();

    for (what, error) in &errors {
        match error {
            KvError::Timeout { .. } | KvError::Unavailable { .. } => assert!(error.is_retryable()),
            KvError::OutcomeUnknown { .. } => assert!(!error.is_retryable()),
            _ => panic!("{what}: {error:?}"),
        }
    }
    // Every operation works again.
    let patience = Duration::from_secs(45);
    let store = store.with_deadline(patience);
    let last = within(patience, "put", store.put("after", "x")).await.unwrap();
    eventually("health", async || connection.health().await.is_ok()).await;
    within(patience, "get", store.get("key")).await.unwrap().unwrap();
    let keys = within(patience, "keys", store.keys(WatchScope::All).try_collect()).await.unwrap();
    assert!(keys.len() >= 4, "{keys:?}");
    loop {
        let update = within(patience, "the watch", watch.next()).await.unwrap().unwrap();
        if update.entry().is_some_and(|entry| entry.version == last) {
            break;
        }
    }
    // A write that was reported as not made was not made: `after` was written after all requests in
    // transit.
    for (what, error) in &errors {
        let key = match *what {
            "put_many" => "w.many.0".to_owned(),
            what => format!("w.{what}"),
        };
        if matches!(error, KvError::OutcomeUnknown { .. }) {
            continue;
        }
        let before =
            versions.iter().find(|(before, _)| *before == key).map(|(_, version)| *version);
        let now = store.entry(&key).await.unwrap().map(|entry| entry.version);
        assert_eq!(now, before, "{what} was not to have happened: {error:?}");
    }
}

#[tokio::test]
async fn operations_on_a_silent_server_end_by_their_deadline() {
    for consistency in [ReadConsistency::Any, ReadConsistency::Leader] {
        println!("{consistency:?}");
        ends_by_its_deadline_while_the_server_is_paused(consistency).await;
    }
}

#[tokio::test]
async fn connect_to_paused_server_ends_within_its_timeout() {
    let mut server = NatsServer::start();
    server.pause();
    let error = refused(config(&server.url())).await;
    assert!(matches!(error, KvError::Timeout { .. } | KvError::Unavailable { .. }), "{error:?}");
    server.resume();
    lets_in(config(&server.url())).await;
}
