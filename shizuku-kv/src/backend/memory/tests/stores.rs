//! Stores: their settings and their end.

use super::*;

#[tokio::test(start_paused = true)]
async fn delete_store_ends_watches_and_handles() {
    let connection = MemoryConnection::new();
    let store = connection.store("test").await.unwrap();
    let mut watch = store.watch(WatchScope::All).await.unwrap();
    assert_eq!(next(&mut watch).await, "caught up");
    let mut waiting = Box::pin(watch.next());
    assert!(poll_once(waiting.as_mut()).await.is_pending());
    connection.delete_store("test").await.unwrap();
    assert!(matches!(waiting.await, Some(Err(KvError::StoreNotFound { .. }))));
    assert!(watch.next().await.is_none());
    assert!(matches!(store.get("a").await, Err(KvError::StoreNotFound { .. })));
    assert!(matches!(store.put("a", "1").await, Err(KvError::StoreNotFound { .. })));
    let scan = store.scan(WatchScope::All);
    assert!(matches!(scan.next().await, Some(Err(KvError::StoreNotFound { .. }))));
    assert!(scan.next().await.is_none());
    assert!(matches!(connection.delete_store("test").await, Err(KvError::StoreNotFound { .. })));

    // The next store of that name is another one.
    let again = connection.store("test").await.unwrap();
    assert_eq!(again.put("a", "1").await.unwrap(), VersionToken::from_u64(1));
    assert!(matches!(store.get("a").await, Err(KvError::StoreNotFound { .. })));
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_watches_and_handles() {
    let connection = MemoryConnection::new();
    let store = connection.store("test").await.unwrap();
    let mut watch = store.watch(WatchScope::All).await.unwrap();
    assert_eq!(next(&mut watch).await, "caught up");
    let mut waiting = Box::pin(watch.next());
    assert!(poll_once(waiting.as_mut()).await.is_pending());
    connection.health().await.unwrap();
    connection.shutdown().await.unwrap();
    connection.shutdown().await.unwrap();
    assert!(matches!(waiting.await, Some(Err(KvError::Closed { .. }))));
    assert!(matches!(store.get("a").await, Err(KvError::Closed { operation: "get" })));
    assert!(matches!(store.watch(WatchScope::All).await, Err(KvError::Closed { .. })));
    assert!(matches!(connection.health().await, Err(KvError::Closed { .. })));
    assert!(matches!(connection.store("test").await, Err(KvError::Closed { .. })));
    assert!(matches!(connection.delete_store("test").await, Err(KvError::Closed { .. })));
    assert!(matches!(connection.list_stores().next().await, Some(Err(KvError::Closed { .. }))));
}

#[tokio::test(start_paused = true)]
async fn stores_are_opened_created_and_listed() {
    let connection = MemoryConnection::new();
    let absent = connection.store_with_config("a", StoreConfig::new().must_exist()).await;
    assert!(matches!(absent, Err(KvError::StoreNotFound { .. })));
    assert!(matches!(connection.store("a.b").await, Err(KvError::InvalidStoreName { .. })));
    let first = connection.store("a").await.unwrap();
    let second =
        connection.clone().store_with_config("a", StoreConfig::new().must_exist()).await.unwrap();
    first.put("key", "1").await.unwrap();
    assert!(second.get("key").await.unwrap().is_some());
    assert_eq!(first.max_value_size(), 1_048_416);
    connection.store("b").await.unwrap();
    assert_eq!(connection.list_stores().try_collect().await.unwrap(), ["a", "b"]);
    assert!(MemoryConnection::new().store("a").await.unwrap().get("key").await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn existing_store_is_compared_and_reconciled() {
    let connection = MemoryConnection::new();
    let open = |config| connection.store_with_config("test", config);
    let store = open(StoreConfig::new().history(4).storage(StorageType::File)).await.unwrap();
    for value in ["1", "2", "3"] {
        store.put("a", value).await.unwrap();
    }
    open(StoreConfig::new()).await.unwrap();
    open(StoreConfig::new().history(4).replicas(1).storage(StorageType::File).description(""))
        .await
        .unwrap();

    let wanted = StoreConfig::new().history(2).max_bytes(100).storage(StorageType::Memory);
    match open(wanted.clone()).await.unwrap_err() {
        KvError::ConfigMismatch { differences, .. } => {
            let fields: Vec<_> = differences.iter().map(|difference| difference.field).collect();
            assert_eq!(fields, ["history", "max_bytes", "storage"]);
        }
        other => panic!("{other}"),
    }
    assert_eq!(store.history("a").unwrap().try_collect().await.unwrap().len(), 3);
    open(wanted.clone().reconcile()).await.unwrap();
    open(wanted).await.unwrap();
    let history = store.history("a").unwrap().try_collect().await.unwrap();
    assert_eq!(history.iter().map(text).collect::<Vec<_>>(), ["2", "3"]);

    // The setting conflicts with the existing history.
    let refused = open(StoreConfig::new().key_ttl(true).reconcile()).await.unwrap_err();
    assert!(matches!(refused, KvError::InvalidConfig { field: "key_ttl", .. }), "{refused}");
    open(StoreConfig::new().key_ttl(true).history(1).max_value_size(5).reconcile()).await.unwrap();
    assert!(store.ttl().is_some());
    assert_eq!(store.max_value_size(), 5);

    // A new maximum age counts from the write of each value, also for existing ones.
    advance(3 * SECOND / 2).await;
    store.put("b", "4").await.unwrap();
    open(StoreConfig::new().max_age(SECOND).reconcile()).await.unwrap();
    assert!(store.get("a").await.unwrap().is_none());
    assert!(store.get("b").await.unwrap().is_some());
    advance(SECOND).await;
    assert!(store.get("b").await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn deleted_store_is_closed_after_shutdown() {
    let connection = MemoryConnection::new();
    let store = connection.store("test").await.unwrap();
    connection.delete_store("test").await.unwrap();
    assert!(matches!(store.get("a").await, Err(KvError::StoreNotFound { .. })));
    connection.shutdown().await.unwrap();
    assert!(matches!(store.get("a").await, Err(KvError::Closed { .. })));
    assert!(matches!(store.put("a", "1").await, Err(KvError::Closed { .. })));
    assert!(matches!(store.watch(WatchScope::All).await, Err(KvError::Closed { .. })));
    assert!(matches!(store.scan(WatchScope::All).next().await, Some(Err(KvError::Closed { .. }))));
}

#[tokio::test(start_paused = true)]
async fn debug_shows_no_value() {
    let connection = MemoryConnection::new();
    let store = connection.store("test").await.unwrap();
    store.put("a", "secret").await.unwrap();
    let watch = store.watch(WatchScope::All).await.unwrap();
    let scan = store.scan(WatchScope::All);
    let shown = format!("{connection:?} {store:?} {:?} {watch:?} {scan:?}", store.backend());
    assert!(!shown.contains("secret"), "{shown}");
    assert!(shown.contains("stores: 1"), "{shown}");
}
