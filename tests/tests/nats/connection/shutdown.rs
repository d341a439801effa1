//! Ending a connection: writes are flushed, everything else is closed, and nothing waits for ever.

use std::time::Duration;

use shizuku_kv::{Connection, KvError, WatchScope, connect, nats_connect};
use shizuku_kv_tests::{NatsServer, PATIENCE, TcpProxy, eventually, unique};
use tokio::task::JoinSet;

use super::{SHORT, caught_up, config, opened, operations, within};

#[tokio::test]
async fn shutdown_flushes_writes_and_closes_everything() {
    const WRITES: usize = 300;
    let server = NatsServer::shared();
    let (name, connection) = (unique("shutdown"), connect(&server.url()).await.unwrap());
    let store = connection.store(&name).await.unwrap();
    let version = store.put("key", "x").await.unwrap();
    let watch = caught_up(&store, WatchScope::prefix("none.")).await;

    let writes: Vec<_> = (0..WRITES)
        .map(|i| {
            let store = store.clone();
            tokio::spawn(async move { store.put(format!("w.{i}"), i.to_string()).await })
        })
        .collect();
    // On this runtime of one thread they are all sent after some turns, a few dozen in each.
    for _ in 0..WRITES {
        tokio::task::yield_now().await;
    }
    connection.shutdown().await.unwrap();
    let mut versions = Vec::new();
    for (i, write) in writes.into_iter().enumerate() {
        versions.push(write.await.unwrap().unwrap_or_else(|error| panic!("write {i}: {error}")));
    }

    for (what, operation) in operations(&*connection, &store, [version; 2]) {
        let error = within(SHORT, what, operation).await.expect_err(what);
        assert!(matches!(error, KvError::Closed { .. }), "{what}: {error:?}");
        assert!(
            !error.is_retryable() && error.to_string().contains("shut down"),
            "{what}: {error}"
        );
    }
    let ended = within(SHORT, "the watch", watch.next()).await;
    assert!(matches!(ended, Some(Err(KvError::Closed { .. }))), "{ended:?}");
    assert!(watch.next().await.is_none());
    within(SHORT, "a second shutdown", connection.shutdown()).await.unwrap();
    drop(connection);

    let other = connect(&server.url()).await.unwrap().store(&name).await.unwrap();
    for (i, version) in versions.into_iter().enumerate() {
        let entry = other.get(format!("w.{i}")).await.unwrap().unwrap();
        assert_eq!((entry.version, &entry.value[..]), (version, i.to_string().as_bytes()));
    }
}

#[tokio::test]
async fn write_during_shutdown_lands_or_fails() {
    const WRITES: usize = 1000;
    let server = NatsServer::shared();
    let (name, connection) = (unique("shutdown"), connect(&server.url()).await.unwrap());
    let store = connection.store(&name).await.unwrap();
    let mut writes = JoinSet::new();
    for i in 0..WRITES {
        let store = store.clone();
        writes.spawn(async move { (i, store.put(format!("w.{i}"), "x").await) });
    }
    connection.shutdown().await.unwrap();
    let results = writes.join_all().await;
    let other = connect(&server.url()).await.unwrap().store(&name).await.unwrap();
    let mut unknown = 0;
    for (i, result) in results {
        let there = other.get(format!("w.{i}")).await.unwrap().map(|entry| entry.version);
        match result {
            Ok(version) => assert_eq!(there, Some(version)),
            Err(KvError::Closed { .. }) => assert_eq!(there, None, "write {i} was to be refused"),
            Err(KvError::OutcomeUnknown { .. }) => unknown += 1,
            Err(error) => panic!("write {i}: {error:?}"),
        }
    }
    assert_eq!(unknown, 0, "unknown outcomes of {WRITES} writes, on an unbroken connection");
}

#[tokio::test]
async fn scan_during_shutdown_is_complete_or_fails() {
    const KEYS: usize = 3000;
    let connection = connect(&NatsServer::shared().url()).await.unwrap();
    let store = connection.store(&unique("shutdown")).await.unwrap();
    let written = store.put_many((0..KEYS).map(|i| (format!("k.{i}"), "x"))).await;
    assert!(written.iter().all(Result::is_ok));
    let scan = store.scan(WatchScope::All);
    scan.next().await.unwrap().unwrap();
    connection.shutdown().await.unwrap();
    let mut count = 1;
    loop {
        match within(store.deadline(), "the scan", scan.next()).await {
            Some(Ok(_)) => count += 1,
            Some(Err(error)) => {
                assert!(matches!(error, KvError::Closed { .. }), "{error:?}");
                break;
            }
            None => {
                assert_eq!(count, KEYS, "the scan ended as if that were all");
                break;
            }
        }
    }
}

#[tokio::test]
async fn waiting_operation_and_watch_end_with_shutdown() {
    let mut server = NatsServer::start();
    let connection = connect(&server.url()).await.unwrap();
    let store = connection.store("config").await.unwrap().with_deadline(Duration::from_secs(60));
    let watch = caught_up(&store, WatchScope::All).await;
    server.kill();
    eventually("the server is missed", async || {
        store.with_deadline(Duration::from_millis(100)).get("key").await.is_err()
    })
    .await;
    let watching = tokio::spawn(async move { (watch.next().await, watch.next().await.is_none()) });
    let getting = tokio::spawn(async move { store.get("key").await });
    tokio::task::yield_now().await;
    // No server can be flushed to, so only the end of the call matters.
    let _ = within(SHORT, "shutdown", connection.shutdown()).await;
    let got = within(SHORT, "get", getting).await.unwrap();
    assert!(matches!(got, Err(KvError::Closed { .. })), "{got:?}");
    let (ended, then) = within(PATIENCE, "the watch", watching).await.unwrap();
    assert!(matches!(ended, Some(Err(KvError::Closed { .. }))) && then, "{ended:?}");
}

#[tokio::test]
async fn shutdown_that_cannot_flush_fails_and_closes() {
    let mut server = NatsServer::start();
    let connection = nats_connect(config(&server.url()).deadline(SHORT)).await.unwrap();
    let store = opened(&connection, "config").await.with_deadline(Duration::from_secs(60));
    let version = store.put("key", "x").await.unwrap();
    server.pause();
    let writing = tokio::spawn({
        let store = store.clone();
        async move { store.put("key", "y").await }
    });
    tokio::task::yield_now().await;
    let error = within(SHORT, "shutdown", connection.shutdown()).await.unwrap_err();
    assert!(matches!(error, KvError::Timeout { .. } | KvError::Unavailable { .. }), "{error:?}");
    // The write is in transit, so that its outcome is unknown.
    let written = within(SHORT, "put", writing).await.unwrap();
    assert!(matches!(written, Err(KvError::OutcomeUnknown { .. })), "{written:?}");
    for (what, operation) in operations(&connection, &store, [version; 2]) {
        let error = within(SHORT, what, operation).await.expect_err(what);
        assert!(matches!(error, KvError::Closed { .. }), "{what}: {error:?}");
    }
    within(SHORT, "a second shutdown", connection.shutdown()).await.unwrap();
}

/// The task that passes on the answers must not keep the connection.
#[tokio::test]
async fn dropped_or_shut_down_connection_is_closed() {
    let server = NatsServer::start();
    let proxy = TcpProxy::start(server.port()).await;
    let connection = connect(&proxy.url()).await.unwrap();
    let store = connection.store("b").await.unwrap();
    store.put("key", "value").await.unwrap();
    assert_eq!(proxy.connections(), 1);
    drop(connection);
    assert!(store.get("key").await.unwrap().is_some());
    drop(store);
    eventually("the connection is gone", async || proxy.connections() == 0).await;
    let connection = connect(&proxy.url()).await.unwrap();
    assert_eq!(proxy.connections(), 1);
    connection.shutdown().await.unwrap();
    eventually("the connection is gone", async || proxy.connections() == 0).await;
}
