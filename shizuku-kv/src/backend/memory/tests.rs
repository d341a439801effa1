//! The backend through the handle that users hold, with tokio's time stopped.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, advance, timeout};

use super::MemoryConnection;
use super::log::{EXPIRY, MARKER_TTL, WALK};
use crate::store::{
    Connection, Deadline, Key, KvEntry, KvError, KvOperation, KvUpdate, StorageType, Store,
    StoreConfig, VersionToken, Watch, WatchCursor, WatchScope, Write,
};

const SECOND: Duration = Duration::from_secs(1);

async fn store(config: StoreConfig) -> Store {
    MemoryConnection::new().store_with_config("test", config).await.unwrap()
}

/// A store whose values expire `seconds` after they were written.
async fn ageing(seconds: u64) -> Store {
    store(StoreConfig::new().max_age(Duration::from_secs(seconds))).await
}

fn shape(update: &KvUpdate) -> String {
    match update {
        KvUpdate::CaughtUp => "caught up".to_owned(),
        KvUpdate::Put(entry) => format!("{}={}", entry.key, text(entry)),
        KvUpdate::Delete(entry) => format!("{} {:?}", entry.key, entry.operation),
    }
}

fn text(entry: &KvEntry) -> String {
    String::from_utf8(entry.value.to_vec()).unwrap()
}

/// The next update; a watch that has none in an hour of stopped time has none.
async fn next(watch: &mut Watch) -> String {
    shape(&timeout(Duration::from_secs(3600), watch.next()).await.unwrap().unwrap().unwrap())
}

/// Polls a future once.
async fn poll_once<T>(mut future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
}

/// Everything that the watch has without waiting; that it lets others run in between is not
/// waiting.
async fn ready(watch: &mut Watch) -> Vec<String> {
    let mut updates = Vec::new();
    loop {
        let mut next = pin!(watch.next());
        let update = match poll_once(next.as_mut()).await {
            Poll::Pending => poll_once(next).await,
            ready => ready,
        };
        let Poll::Ready(Some(update)) = update else { return updates };
        updates.push(shape(&update.unwrap()));
    }
}

/// A task that counts how often it got to run.
fn bystander() -> Arc<AtomicUsize> {
    let turns = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&turns);
    tokio::spawn(async move {
        loop {
            counter.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    });
    turns
}

async fn keys(store: &Store, scope: WatchScope) -> Vec<String> {
    store.keys(scope).try_collect().await.unwrap().iter().map(Key::to_string).collect()
}

fn reason(error: KvError) -> &'static str {
    match error {
        KvError::CursorExpired { reason, .. } => reason,
        other => panic!("not an expired cursor: {other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn reads_see_what_was_written() {
    let store = store(StoreConfig::new().history(2)).await;
    let first = store.create("a", "1").await.unwrap();
    let second = store.update("a", "2", first).await.unwrap();
    store.put("b", "").await.unwrap();
    store.delete("c").await.unwrap();
    assert_eq!(store.get("a").await.unwrap().unwrap().version, second);
    assert!(store.get("b").await.unwrap().unwrap().value.is_empty());
    assert!(store.get("c").await.unwrap().is_none());
    assert_eq!(store.entry("c").await.unwrap().unwrap().operation, KvOperation::Delete);
    let many = store.get_many(["c", "a", "x", "a"]).await.unwrap();
    let many: Vec<_> = many.iter().map(|entry| entry.as_ref().map(text)).collect();
    assert_eq!(many, [None, Some("2".to_owned()), None, Some("2".to_owned())]);
    let history = store.history("a").unwrap().try_collect().await.unwrap();
    assert_eq!(history.iter().map(text).collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(keys(&store, WatchScope::All).await, ["a", "b"]);
    assert_eq!(keys(&store, WatchScope::key("b").unwrap()).await, ["b"]);
}

#[tokio::test(start_paused = true)]
async fn conflicts_name_the_version_that_was_found() {
    let store = store(StoreConfig::new()).await;
    let first = store.put("a", "1").await.unwrap();
    let second = store.put("a", "2").await.unwrap();
    match store.update("a", "3", first).await.unwrap_err() {
        KvError::RevisionMismatch { expected, found, .. } => {
            assert_eq!((expected, found), (first, Some(second)));
        }
        other => panic!("{other}"),
    }
    match store.create("a", "3").await.unwrap_err() {
        KvError::AlreadyExists { found, .. } => assert_eq!(found, Some(second)),
        other => panic!("{other}"),
    }
    match store.delete_with_version("never", first).await.unwrap_err() {
        KvError::RevisionMismatch { found, .. } => assert_eq!(found, None),
        other => panic!("{other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn many_are_written_in_order() {
    let store = store(StoreConfig::new().max_value_size(3)).await;
    let items = (0..600).map(|number| (format!("k.{}", number % 2), number.to_string()));
    assert!(store.put_many(items).await.iter().all(Result::is_ok));
    assert_eq!(text(&store.get("k.1").await.unwrap().unwrap()), "599");
    let answers = store.put_many([("a", "1"), ("a..b", "2"), ("b", "long"), ("c", "3")]).await;
    assert!(answers[0].is_ok() && answers[3].is_ok());
    assert!(matches!(answers[1], Err(KvError::InvalidKey { .. })));
    assert!(matches!(answers[2], Err(KvError::ValueTooLarge { size: 4, limit: 3, .. })));
}

#[tokio::test(start_paused = true)]
async fn a_full_store_says_so() {
    let store = store(StoreConfig::new().max_bytes(10)).await;
    store.put("a", "12345").await.unwrap();
    let full = store.put("b", "12345").await.unwrap_err();
    assert!(matches!(full, KvError::StoreFull { .. }), "{full}");
    assert!(full.to_string().contains("10 bytes"), "{full}");
    store.put("a", "123456789").await.unwrap();
    store.delete("a").await.unwrap();
    store.put("b", "12345").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_value_expires_when_the_clock_gets_there() {
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
async fn times_to_live_are_there_when_asked_for() {
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
    // A plain write takes the time to live away.
    store.put("lease", "4").await.unwrap();
    advance(60 * SECOND).await;
    assert!(store.get("lease").await.unwrap().is_some());
    let short = ttl.put("lease", "5", SECOND / 2).await.unwrap_err();
    assert!(matches!(short, KvError::InvalidConfig { .. }), "{short}");
}

#[tokio::test(start_paused = true)]
async fn an_expiry_wakes_a_sleeping_watch_on_time() {
    let store = store(StoreConfig::new().key_ttl(true)).await;
    let ttl = store.ttl().unwrap();
    ttl.put("late", "1", 3 * SECOND).await.unwrap();
    ttl.put("early", "2", SECOND).await.unwrap();
    let mut watch = store.watch(WatchScope::All).await.unwrap();
    assert_eq!(ready(&mut watch).await, ["late=1", "early=2", "caught up"]);
    let start = Instant::now();
    // The clock of the test runs on by itself when there is nothing to do but wait.
    assert_eq!(next(&mut watch).await, "early Expire");
    assert_eq!(start.elapsed().as_secs(), 1);
    assert_eq!(next(&mut watch).await, "late Expire");
    assert_eq!(start.elapsed().as_secs(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_end_of_life_that_comes_nearer_wakes_earlier() {
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
async fn a_watch_gives_the_state_then_what_changes() {
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
async fn an_empty_scope_is_caught_up_at_once() {
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
async fn with_history_the_state_is_the_newest_and_then_comes_everything() {
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
async fn a_slow_reader_skips_and_never_goes_back() {
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
async fn a_key_that_is_written_during_the_state_is_still_part_of_it() {
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
async fn a_key_that_never_rests_does_not_hold_up_the_marker() {
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
async fn no_wake_up_is_lost() {
    let store = store(StoreConfig::new()).await;
    let reader = store.clone();
    let reading = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let watch = reader.watch(WatchScope::key("turn").unwrap()).await.unwrap();
            // Each answers the other: one that is lost, and both wait for ever.
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
async fn a_cursor_continues_where_the_watch_was() {
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
async fn a_cursor_with_a_gap_behind_it_is_refused() {
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
    // A watch that stood there all the time has the same gap before it.
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

#[tokio::test(start_paused = true)]
async fn a_watch_that_listens_outlives_its_tombstones() {
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

#[tokio::test(start_paused = true)]
async fn a_scan_meets_each_key_that_stays_exactly_once() {
    let store = store(StoreConfig::new()).await;
    for number in 0..1000 {
        store.put(format!("stays.{number:04}"), "1").await.unwrap();
        store.put(format!("goes.{number:04}"), "1").await.unwrap();
    }
    let mut random = fastrand::Rng::with_seed(1);
    let mut met = BTreeMap::<String, usize>::new();
    let scan = store.scan(WatchScope::All);
    while let Some(entry) = scan.next().await {
        *met.entry(entry.unwrap().key.to_string()).or_default() += 1;
        let number = random.u32(..1000);
        store.put(format!("stays.{number:04}"), "2").await.unwrap();
        store.put(format!("comes.{number:04}"), "1").await.unwrap();
        store.delete(format!("goes.{:04}", random.u32(..1000))).await.unwrap();
    }
    assert!(met.values().all(|&times| times == 1));
    assert_eq!(met.keys().filter(|key| key.starts_with("stays.")).count(), 1000);
}

#[tokio::test(start_paused = true)]
async fn a_scan_stays_in_its_scope_and_leaves_out_the_dead() {
    let store = store(StoreConfig::new()).await;
    for number in 0..700 {
        store.put(format!("a.{number:03}"), "").await.unwrap();
        store.put(format!("b.{number:03}"), "").await.unwrap();
    }
    for number in 0..600 {
        store.delete(format!("b.{number:03}")).await.unwrap();
    }
    assert_eq!(keys(&store, WatchScope::prefix("b.")).await.len(), 100);
    assert_eq!(keys(&store, WatchScope::prefixes(["b.69", "a.00", "a.001", "x"])).await.len(), 20);
    assert_eq!(keys(&store, WatchScope::key("a.5").unwrap()).await.len(), 0);
    assert_eq!(keys(&store, WatchScope::Prefixes(vec![])).await.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn deleting_the_store_ends_what_is_open() {
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

    // The next of that name is another store.
    let again = connection.store("test").await.unwrap();
    assert_eq!(again.put("a", "1").await.unwrap(), VersionToken::from_u64(1));
    assert!(matches!(store.get("a").await, Err(KvError::StoreNotFound { .. })));
}

#[tokio::test(start_paused = true)]
async fn shutting_down_ends_everything() {
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
async fn stores_are_opened_made_and_listed() {
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
async fn an_existing_store_is_compared_and_reconciled() {
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

    // With the history that is there it does not go together.
    let refused = open(StoreConfig::new().key_ttl(true).reconcile()).await.unwrap_err();
    assert!(matches!(refused, KvError::InvalidConfig { field: "key_ttl", .. }), "{refused}");
    open(StoreConfig::new().key_ttl(true).history(1).max_value_size(5).reconcile()).await.unwrap();
    assert!(store.ttl().is_some());
    assert_eq!(store.max_value_size(), 5);

    // A new maximum age counts from when each value was written, also those that are there.
    advance(3 * SECOND / 2).await;
    store.put("b", "4").await.unwrap();
    open(StoreConfig::new().max_age(SECOND).reconcile()).await.unwrap();
    assert!(store.get("a").await.unwrap().is_none());
    assert!(store.get("b").await.unwrap().is_some());
    advance(SECOND).await;
    assert!(store.get("b").await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_new_maximum_age_wakes_a_watch_that_waits() {
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

#[tokio::test]
async fn a_loop_around_an_operation_starves_nobody() {
    let store = store(StoreConfig::new().key_ttl(true)).await;
    let turns = bystander();
    let ran = |turns: &AtomicUsize| turns.swap(0, Ordering::Relaxed);
    for number in 0..2000 {
        store.put(format!("k.{number}"), "1").await.unwrap();
    }
    assert!(ran(&turns) >= 25, "puts");
    for _ in 0..2000 {
        store.get("k.1").await.unwrap();
    }
    assert!(ran(&turns) >= 25, "gets");
    // Handles and streams of a moment count together.
    for _ in 0..2000 {
        store.scan(WatchScope::key("k.1").unwrap()).next().await.unwrap().unwrap();
    }
    assert!(ran(&turns) >= 25, "short scans");
    assert_eq!(store.scan(WatchScope::All).try_collect().await.unwrap().len(), 2000);
    assert!(ran(&turns) >= 25, "scan");
    assert_eq!(store.keys(WatchScope::All).try_collect().await.unwrap().len(), 2000);
    assert!(ran(&turns) >= 25, "keys");
    let watch = store.watch(WatchScope::All).await.unwrap();
    while watch.next().await.unwrap().unwrap() != KvUpdate::CaughtUp {}
    assert!(ran(&turns) >= 25, "watch");
    store.put_many((0..2000).map(|number| (format!("k.{number}"), "2"))).await;
    assert!(ran(&turns) >= 25, "put_many");
    store.get_many((0..2000).map(|number| format!("k.{number}"))).await.unwrap();
    assert!(ran(&turns) >= 7, "get_many");
}

#[tokio::test]
async fn a_poll_loop_sees_what_another_task_writes() {
    let store = store(StoreConfig::new()).await;
    let writer = store.clone();
    tokio::spawn(async move { writer.put("flag", "up").await });
    for _ in 0..10_000 {
        if store.get("flag").await.unwrap().is_some() {
            return;
        }
    }
    panic!("the other task never ran");
}

/// A store in which a lot has expired that nobody has noticed yet.
async fn after_a_storm() -> Store {
    let store = store(StoreConfig::new().key_ttl(true)).await;
    for number in 0..10 * EXPIRY {
        store.ttl().unwrap().put(format!("k.{number:05}"), "1", SECOND).await.unwrap();
    }
    advance(SECOND).await;
    store
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_expiries_keeps_nobody_waiting_and_shows_nothing_dead() {
    let last = format!("k.{:05}", 10 * EXPIRY - 1);

    let store = after_a_storm().await;
    let turns = bystander();
    assert!(store.get(last.as_str()).await.unwrap().is_none());
    assert!(turns.load(Ordering::Relaxed) >= 9, "{turns:?}");

    let store = after_a_storm().await;
    assert!(store.scan(WatchScope::All).try_collect().await.unwrap().is_empty());
    let store = after_a_storm().await;
    assert_eq!(keys(&store, WatchScope::All).await, Vec::<String>::new());
    let store = after_a_storm().await;
    assert!(store.get_many([last.as_str()]).await.unwrap()[0].is_none());
    let store = after_a_storm().await;
    let history = store.history(last.as_str()).unwrap().try_collect().await.unwrap();
    assert!(history.iter().all(KvEntry::is_tombstone));
    let store = after_a_storm().await;
    store.create(last.as_str(), "2").await.unwrap();

    let store = after_a_storm().await;
    let watch = store.watch(WatchScope::All).await.unwrap();
    let mut expired = 0;
    while let update = watch.next().await.unwrap().unwrap()
        && let Some(entry) = update.entry()
    {
        assert!(entry.is_tombstone());
        expired += 1;
    }
    assert_eq!(expired, 10 * EXPIRY);
}

/// Settings that concern every entry are applied in pieces, and are seen by no operation by halves.
#[tokio::test(start_paused = true)]
async fn reconcile_of_many_keys_lets_other_tasks_run() {
    let connection = MemoryConnection::new();
    let store = connection.store_with_config("test", StoreConfig::new().history(2)).await.unwrap();
    let key = |number: usize| format!("k.{number:05}");
    for number in (0..10 * EXPIRY).chain(0..10 * EXPIRY) {
        store.put(key(number), "1").await.unwrap();
    }
    let turns = bystander();
    let reconcile = |config: StoreConfig| connection.store_with_config("test", config.reconcile());
    reconcile(StoreConfig::new().history(1)).await.unwrap();
    assert!(turns.swap(0, Ordering::Relaxed) >= 9);
    let all = store.history(key(10 * EXPIRY - 1)).unwrap().try_collect().await.unwrap();
    assert_eq!(all.len(), 1);

    // The caller gives up in the midst of it. The settings hold all the same, for the last key too.
    let mut half = Box::pin(reconcile(StoreConfig::new().max_age(SECOND)));
    assert!(poll_once(half.as_mut()).await.is_pending());
    drop(half);
    advance(SECOND).await;
    assert!(store.get(key(10 * EXPIRY - 1)).await.unwrap().is_none());
    assert_eq!(keys(&store, WatchScope::All).await, Vec::<String>::new());
}

/// All keys are written again while a watch reads the state, more than it may look at under one
/// lock.
#[tokio::test]
async fn catching_up_with_many_rewritten_keys_lets_other_tasks_run() {
    let store = store(StoreConfig::new()).await;
    let count = 10 * WALK;
    let key = |number: usize| format!("k.{number:05}");
    for number in 0..count {
        store.put(key(number), "1").await.unwrap();
    }
    let mut watch = store.watch(WatchScope::prefix("k.")).await.unwrap();
    assert_eq!(next(&mut watch).await, "k.00000=1");
    for number in 0..count {
        store.put(key(number), "2").await.unwrap();
    }
    // A key that came later is not part of the state.
    store.put("k.new", "3").await.unwrap();
    let turns = bystander();
    assert_eq!(next(&mut watch).await, "k.00000=2");
    assert!(turns.swap(0, Ordering::Relaxed) >= 9);
    // Moves to the end, and is still owed.
    store.put(key(7), "4").await.unwrap();
    let rest: Vec<String> = ready(&mut watch).await;
    let caught_up = rest.iter().position(|shown| shown == "caught up").unwrap();
    let place = |wanted: &str| rest.iter().position(|shown| shown == wanted).unwrap();
    assert!(place("k.00007=4") < caught_up);
    assert!(place(&format!("{}=2", key(count - 1))) < caught_up);
    assert_eq!(rest.len(), count + 1);
}

#[tokio::test]
async fn deleting_a_store_of_many_keys_does_not_block_the_thread() {
    let connection = MemoryConnection::new();
    let store = connection.store("test").await.unwrap();
    for number in 0..=WALK {
        store.put(format!("k.{number}"), "1").await.unwrap();
    }
    let mut deleting = Box::pin(connection.delete_store("test"));
    // Another thread frees the entries.
    assert!(poll_once(deleting.as_mut()).await.is_pending());
    assert!(matches!(store.get("k.1").await, Err(KvError::StoreNotFound { .. })));
    deleting.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_passes_in_a_storm_leaves_nothing_written() {
    let store = after_a_storm().await;
    let (writer, key) = (store.backend().writer().unwrap(), Key::new("a").unwrap());
    let late =
        writer.write(&key, Write::put("1"), Deadline::after(Duration::ZERO)).await.unwrap_err();
    assert!(
        matches!(&late, KvError::Timeout { operation: "put", key: Some(found), .. } if *found == key),
        "{late:?}"
    );
    assert!(store.get("a").await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn after_the_shutdown_a_deleted_store_is_closed_too() {
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
async fn nothing_shows_a_value() {
    let connection = MemoryConnection::new();
    let store = connection.store("test").await.unwrap();
    store.put("a", "secret").await.unwrap();
    let watch = store.watch(WatchScope::All).await.unwrap();
    let scan = store.scan(WatchScope::All);
    let shown = format!("{connection:?} {store:?} {:?} {watch:?} {scan:?}", store.backend());
    assert!(!shown.contains("secret"), "{shown}");
    assert!(shown.contains("stores: 1"), "{shown}");
}
