//! Watches and cursors.

use super::*;

#[tokio::test(start_paused = true)]
async fn slow_reader_skips_and_never_goes_back() {
    let store = store(StoreConfig::new()).await;
    let mut watch = store.watch(WatchScope::All).await.unwrap();
    assert_eq!(ready(&mut watch).await, ["caught up"]);
    for number in 0..100 {
        store.put(format!("k.{}", number % 3), number.to_string()).await.unwrap();
    }
    assert_eq!(next(&mut watch).await, "k.1=97");
    store.put("k.2", "100").await.unwrap();
    assert_eq!(ready(&mut watch).await, ["k.0=99", "k.2=100"]);
}

#[tokio::test(start_paused = true)]
async fn busy_key_does_not_delay_the_marker() {
    let store = store(StoreConfig::new()).await;
    store.put("hot", "0").await.unwrap();
    let mut watch = store.watch(WatchScope::All).await.unwrap();
    let mut updates = Vec::new();
    for number in 1..4 {
        store.put("hot", number.to_string()).await.unwrap();
        updates.push(next(&mut watch).await);
    }
    assert_eq!(updates, ["hot=1", "caught up", "hot=3"]);
}

#[tokio::test]
async fn two_watches_that_answer_each_other_lose_no_wake_up() {
    let store = store(StoreConfig::new()).await;
    let reader = store.clone();
    let reading = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let watch = reader.watch(WatchScope::key("turn").unwrap()).await.unwrap();
            // Each thread answers the other. After one lost wake, both would wait forever.
            for turn in 0..2000 {
                loop {
                    let update =
                        timeout(60 * SECOND, watch.next()).await.unwrap().unwrap().unwrap();
                    let value = update.entry().map(text);
                    if value == Some(format!("ping {turn}")) {
                        break;
                    }
                }
                reader.put("turn", format!("pong {turn}")).await.unwrap();
            }
        });
    });
    let watch = store.watch(WatchScope::key("turn").unwrap()).await.unwrap();
    for turn in 0..2000 {
        store.put("turn", format!("ping {turn}")).await.unwrap();
        loop {
            let update = timeout(60 * SECOND, watch.next()).await.unwrap().unwrap().unwrap();
            if update.entry().map(text) == Some(format!("pong {turn}")) {
                break;
            }
        }
    }
    reading.join().unwrap();
}

#[tokio::test(start_paused = true)]
async fn cursor_has_the_time_of_its_entry() {
    let store = store(StoreConfig::new()).await;
    for key in ["a", "b"] {
        store.put(key, "1").await.unwrap();
        advance(SECOND).await;
    }
    let mut watch = store.watch(WatchScope::All).await.unwrap();
    assert_eq!(next(&mut watch).await, "a=1");
    let created = store.get("a").await.unwrap().unwrap().created;
    assert_eq!(watch.cursor().unwrap().as_of(), created);
}

/// The conformance suite covers only a wait that begins after the end.
#[tokio::test(start_paused = true)]
async fn waiting_watch_ends_with_its_store_or_connection() {
    for is_shutdown in [false, true] {
        let connection = MemoryConnection::new();
        let store = connection.store("test").await.unwrap();
        let mut watch = store.watch(WatchScope::All).await.unwrap();
        assert_eq!(next(&mut watch).await, "caught up");
        let mut waiting = Box::pin(watch.next());
        assert!(poll_once(waiting.as_mut()).await.is_pending());
        if is_shutdown {
            connection.shutdown().await.unwrap();
        } else {
            connection.delete_store("test").await.unwrap();
        }
        match timeout(SECOND, waiting).await.unwrap().unwrap().unwrap_err() {
            KvError::Closed { .. } => assert!(is_shutdown, "closed after a deletion"),
            KvError::StoreNotFound { .. } => assert!(!is_shutdown, "not found after a shutdown"),
            error => panic!("shutdown: {is_shutdown}: {error:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn cursor_before_a_gap_is_rejected() {
    let connection = MemoryConnection::new();
    let store =
        connection.store_with_config("test", StoreConfig::new().key_ttl(true)).await.unwrap();
    let mut watch = store.watch(WatchScope::All).await.unwrap();
    assert_eq!(next(&mut watch).await, "caught up");
    let empty = watch.cursor().unwrap();
    let rejected = async |cursor| {
        let now = connection.store("test").await.unwrap();
        reason(now.watch_from(WatchScope::All, cursor).await.unwrap_err())
    };

    store.put("a", "1").await.unwrap();
    store.put("b", "2").await.unwrap();
    assert_eq!(ready(&mut watch).await, ["a=1", "b=2"]);
    let second = watch.cursor().unwrap();
    store.put("a", "3").await.unwrap();
    assert!(rejected(empty).await.contains("no longer holds"));
    let ahead = WatchCursor::new(*second.incarnation(), 4, second.as_of());
    assert!(rejected(ahead).await.contains("ahead"));

    store.delete("a").await.unwrap();
    advance(MARKER_TTL).await;
    assert!(rejected(second).await.contains("forgotten"));
    // A watch that stays at this position has the same gap.
    let ended = timeout(SECOND, watch.next()).await.unwrap().unwrap();
    assert!(reason(ended.unwrap_err()).contains("forgotten"));
    assert!(watch.next().await.is_none());

    connection.delete_store("test").await.unwrap();
    connection.store("test").await.unwrap();
    assert!(rejected(empty).await.contains("another store"));
    let other = connection.store("other").await.unwrap();
    assert!(
        reason(other.watch_from(WatchScope::All, empty).await.unwrap_err())
            .contains("another store")
    );
}
