//! Expiries, by the stopped clock.

use super::*;

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
