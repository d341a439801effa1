//! Watches and cursors.

use super::*;

#[tokio::test(start_paused = true)]
async fn watch_delivers_the_initial_state_then_changes() {
    let store = store(StoreConfig::new()).await;
    for (key, value) in [("a.1", "1"), ("b", "2"), ("a.2", "3"), ("a.1", "4")] {
        store.put(key, value).await.unwrap();
    }
    store.delete("a.3").await.unwrap();
    let mut watch = store.watch(WatchScope::prefix("a.")).await.unwrap();
    assert!(watch.cursor().is_none());
    assert_eq!(ready(&mut watch).await, ["a.2=3", "a.1=4", "a.3 Delete", "caught up"]);
    store.put("b", "5").await.unwrap();
    assert_eq!(ready(&mut watch).await, Vec::<String>::new());
    store.put("a.1", "6").await.unwrap();
    store.purge("a.1").await.unwrap();
    store.put("a.2", "7").await.unwrap();
    assert_eq!(ready(&mut watch).await, ["a.1 Purge", "a.2=7"]);
}

#[tokio::test(start_paused = true)]
async fn watch_of_an_empty_scope_is_caught_up_at_once() {
    let store = store(StoreConfig::new()).await;
    let mut all = store.watch(WatchScope::All).await.unwrap();
    assert_eq!(ready(&mut all).await, ["caught up"]);
    assert_eq!(all.cursor().unwrap().position(), 0);
    store.put("other", "1").await.unwrap();
    let scopes = [
        WatchScope::prefix("mine"),
        WatchScope::key("mine").unwrap(),
        WatchScope::Prefixes(vec![]),
    ];
    for scope in scopes {
        let mut watch = store.watch(scope).await.unwrap();
        assert_eq!(ready(&mut watch).await, ["caught up"]);
        assert_eq!(watch.cursor().unwrap().position(), 1);
    }
    assert_eq!(ready(&mut all).await, ["other=1"]);
}

#[tokio::test(start_paused = true)]
async fn watch_with_history_delivers_the_newest_then_every_entry() {
    let store = store(StoreConfig::new().history(5)).await;
    for value in ["1", "2"] {
        store.put("a", value).await.unwrap();
    }
    let mut watch = store.watch(WatchScope::key("a").unwrap()).await.unwrap();
    assert_eq!(ready(&mut watch).await, ["a=2", "caught up"]);
    for value in ["3", "4"] {
        store.put("a", value).await.unwrap();
    }
    assert_eq!(ready(&mut watch).await, ["a=3", "a=4"]);
}

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
async fn key_written_during_the_initial_state_comes_before_the_marker() {
    let store = store(StoreConfig::new()).await;
    for key in ["a", "b", "c"] {
        store.put(key, "1").await.unwrap();
    }
    let mut watch = store.watch(WatchScope::All).await.unwrap();
    assert_eq!(next(&mut watch).await, "a=1");
    store.put("new", "2").await.unwrap();
    store.put("b", "2").await.unwrap();
    store.put("newer", "2").await.unwrap();
    let rest = ["c=1", "new=2", "b=2", "caught up", "newer=2"];
    assert_eq!(ready(&mut watch).await, rest);

    let mut watch = store.watch(WatchScope::key("a").unwrap()).await.unwrap();
    store.put("a", "3").await.unwrap();
    store.purge("a").await.unwrap();
    assert_eq!(ready(&mut watch).await, ["a Purge", "caught up"]);
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
async fn cursor_resumes_at_the_position_of_the_watch() {
    let store = store(StoreConfig::new()).await;
    for key in ["a", "b", "c"] {
        store.put(key, "1").await.unwrap();
    }
    let mut watch = store.watch(WatchScope::All).await.unwrap();
    assert_eq!(next(&mut watch).await, "a=1");
    let cursor = WatchCursor::from_bytes(&watch.cursor().unwrap().to_bytes()).unwrap();
    assert_eq!(cursor.as_of(), store.get("a").await.unwrap().unwrap().created);
    drop(watch);
    store.delete("b").await.unwrap();
    let mut resumed = store.watch_from(WatchScope::All, cursor).await.unwrap();
    assert_eq!(ready(&mut resumed).await, ["c=1", "b Delete", "caught up"]);
    let at_end = resumed.cursor().unwrap();
    assert_eq!(at_end.position(), 4);
    let mut resumed = store.watch_from(WatchScope::key("a").unwrap(), at_end).await.unwrap();
    assert_eq!(ready(&mut resumed).await, ["caught up"]);
    store.put("a", "2").await.unwrap();
    assert_eq!(ready(&mut resumed).await, ["a=2"]);
}

#[tokio::test(start_paused = true)]
async fn cursor_before_a_gap_is_rejected() {
    let connection = MemoryConnection::new();
    let store =
        connection.store_with_config("test", StoreConfig::new().key_ttl(true)).await.unwrap();
    let mut watch = store.watch(WatchScope::All).await.unwrap();
    assert_eq!(next(&mut watch).await, "caught up");
    let empty = watch.cursor().unwrap();
    let refused = async |cursor| {
        let now = connection.store("test").await.unwrap();
        reason(now.watch_from(WatchScope::All, cursor).await.unwrap_err())
    };

    store.put("a", "1").await.unwrap();
    store.put("b", "2").await.unwrap();
    assert_eq!(ready(&mut watch).await, ["a=1", "b=2"]);
    let second = watch.cursor().unwrap();
    store.put("a", "3").await.unwrap();
    assert!(refused(empty).await.contains("no longer holds"));
    let ahead = WatchCursor::new(*second.incarnation(), 4, second.as_of());
    assert!(refused(ahead).await.contains("ahead"));

    store.delete("a").await.unwrap();
    advance(MARKER_TTL).await;
    assert!(refused(second).await.contains("forgotten"));
    // A watch that stays at this position has the same gap.
    let ended = timeout(SECOND, watch.next()).await.unwrap().unwrap();
    assert!(reason(ended.unwrap_err()).contains("forgotten"));
    assert!(watch.next().await.is_none());

    connection.delete_store("test").await.unwrap();
    connection.store("test").await.unwrap();
    assert!(refused(empty).await.contains("another store"));
    let other = connection.store("other").await.unwrap();
    assert!(
        reason(other.watch_from(WatchScope::All, empty).await.unwrap_err())
            .contains("another store")
    );
}
