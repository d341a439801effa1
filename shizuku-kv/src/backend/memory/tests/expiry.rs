//! Expiries, by the stopped clock.

use super::*;

#[tokio::test(start_paused = true)]
async fn value_expires_when_the_clock_reaches_its_age() {
    let store = ageing(10).await;
    let version = store.put("a", "1").await.unwrap();
    advance(9 * SECOND).await;
    assert!(store.get("a").await.unwrap().is_some());
    advance(SECOND).await;
    assert!(store.get("a").await.unwrap().is_none());
    let tombstone = store.entry("a").await.unwrap().unwrap();
    assert_eq!(tombstone.operation, KvOperation::Expire);
    assert_ne!(tombstone.version, version);
    assert_eq!(keys(&store, WatchScope::All).await, Vec::<String>::new());
    assert!(matches!(store.update("a", "2", version).await, Err(KvError::RevisionMismatch { .. })));
    store.create("a", "2").await.unwrap();
    advance(10 * SECOND).await;
    store.create("a", "3").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn times_to_live_exist_if_the_store_has_them() {
    let without = store(StoreConfig::new()).await;
    assert!(without.ttl().is_none());
    assert!(!without.capabilities().key_ttl);

    let store = store(StoreConfig::new().key_ttl(true)).await;
    assert!(store.capabilities().key_ttl);
    let ttl = store.ttl().unwrap();
    let version = ttl.put("lease", "1", SECOND).await.unwrap();
    advance(SECOND / 2).await;
    ttl.update("lease", "2", version, SECOND).await.unwrap();
    advance(SECOND / 2).await;
    assert!(store.get("lease").await.unwrap().is_some());
    advance(SECOND / 2).await;
    assert!(store.get("lease").await.unwrap().is_none());
    ttl.create("lease", "3", SECOND).await.unwrap();
    // A plain write removes the time to live.
    store.put("lease", "4").await.unwrap();
    advance(60 * SECOND).await;
    assert!(store.get("lease").await.unwrap().is_some());
    let short = ttl.put("lease", "5", SECOND / 2).await.unwrap_err();
    assert!(matches!(short, KvError::InvalidConfig { .. }), "{short}");
}

#[tokio::test(start_paused = true)]
async fn waiting_watch_wakes_for_an_expiry_on_time() {
    let store = store(StoreConfig::new().key_ttl(true)).await;
    let ttl = store.ttl().unwrap();
    ttl.put("late", "1", 3 * SECOND).await.unwrap();
    ttl.put("early", "2", SECOND).await.unwrap();
    let mut watch = store.watch(WatchScope::All).await.unwrap();
    assert_eq!(ready(&mut watch).await, ["late=1", "early=2", "caught up"]);
    let start = Instant::now();
    // The test's clock advances by itself while every task waits.
    assert_eq!(next(&mut watch).await, "early Expire");
    assert_eq!(start.elapsed().as_secs(), 1);
    assert_eq!(next(&mut watch).await, "late Expire");
    assert_eq!(start.elapsed().as_secs(), 3);
}

#[tokio::test(start_paused = true)]
async fn waiting_watch_wakes_for_an_earlier_expiry() {
    let store = store(StoreConfig::new().key_ttl(true)).await;
    store.ttl().unwrap().put("a", "1", 100 * SECOND).await.unwrap();
    let mut watch = store.watch(WatchScope::prefix("b")).await.unwrap();
    assert_eq!(next(&mut watch).await, "caught up");
    let mut waiting = Box::pin(watch.next());
    assert!(poll_once(waiting.as_mut()).await.is_pending());
    store.ttl().unwrap().put("b", "2", SECOND).await.unwrap();
    assert_eq!(shape(&waiting.await.unwrap().unwrap()), "b=2");
    let start = Instant::now();
    assert_eq!(next(&mut watch).await, "b Expire");
    assert_eq!(start.elapsed().as_secs(), 1);
}

#[tokio::test(start_paused = true)]
async fn waiting_watch_wakes_after_a_new_maximum_age() {
    let connection = MemoryConnection::new();
    let store = connection.store("test").await.unwrap();
    store.put("a", "1").await.unwrap();
    let mut watch = store.watch(WatchScope::All).await.unwrap();
    assert_eq!(ready(&mut watch).await, ["a=1", "caught up"]);
    let mut waiting = Box::pin(watch.next());
    assert!(poll_once(waiting.as_mut()).await.is_pending());
    let start = Instant::now();
    connection
        .store_with_config("test", StoreConfig::new().max_age(5 * SECOND).reconcile())
        .await
        .unwrap();
    let update = timeout(60 * SECOND, waiting).await.unwrap().unwrap().unwrap();
    assert_eq!((shape(&update).as_str(), start.elapsed().as_secs()), ("a Expire", 5));
}

#[tokio::test(start_paused = true)]
async fn watch_continues_after_its_tombstones_expire() {
    let store = ageing(1).await;
    let mut watch = store.watch(WatchScope::All).await.unwrap();
    assert_eq!(next(&mut watch).await, "caught up");
    store.put("a", "1").await.unwrap();
    assert_eq!(ready(&mut watch).await, ["a=1"]);
    advance(10 * MARKER_TTL).await;
    assert_eq!(next(&mut watch).await, "a Expire");
    advance(MARKER_TTL).await;
    assert!(store.entry("a").await.unwrap().is_none());
    assert_eq!(ready(&mut watch).await, Vec::<String>::new());
    store.put("a", "2").await.unwrap();
    assert_eq!(ready(&mut watch).await, ["a=2"]);
}
