//! Work on many entries, which is done in pieces.

use std::sync::Mutex;
use std::thread::{self, ThreadId};

use bytes::Bytes;

use super::super::lock::tests::YIELDS;
use super::super::scan::PAGE;
use super::*;

#[tokio::test]
async fn loop_around_an_operation_lets_other_tasks_run() {
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
    // Short-lived handles and streams count together.
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
async fn loop_of_reads_sees_the_write_of_another_task() {
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

/// Returns a store in which many values are due to expire.
async fn with_due_expiries() -> Store {
    let store = store(StoreConfig::new().key_ttl(true)).await;
    for number in 0..10 * EXPIRY {
        store.ttl().unwrap().put(format!("k.{number:05}"), "1", SECOND).await.unwrap();
    }
    advance(SECOND).await;
    store
}

#[tokio::test(start_paused = true)]
async fn many_expiries_let_other_tasks_run_and_hide_expired_values() {
    let last = format!("k.{:05}", 10 * EXPIRY - 1);

    let store = with_due_expiries().await;
    let turns = bystander();
    assert!(store.get(last.as_str()).await.unwrap().is_none());
    assert!(turns.load(Ordering::Relaxed) >= 9, "{turns:?}");

    let store = with_due_expiries().await;
    assert!(store.scan(WatchScope::All).try_collect().await.unwrap().is_empty());
    let store = with_due_expiries().await;
    assert_eq!(keys(&store, WatchScope::All).await, Vec::<String>::new());
    let store = with_due_expiries().await;
    assert!(store.get_many([last.as_str()]).await.unwrap()[0].is_none());
    let store = with_due_expiries().await;
    let history = store.history(last.as_str()).unwrap().try_collect().await.unwrap();
    assert!(history.iter().all(KvEntry::is_tombstone));
    let store = with_due_expiries().await;
    store.create(last.as_str(), "2").await.unwrap();

    let store = with_due_expiries().await;
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

/// Settings that concern every entry are applied in pieces. No operation observes a partial result.
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

    // The caller is dropped halfway. The settings apply nevertheless, to the last key too.
    let mut half = Box::pin(reconcile(StoreConfig::new().max_age(SECOND)));
    assert!(poll_once(half.as_mut()).await.is_pending());
    drop(half);
    advance(SECOND).await;
    assert!(store.get(key(10 * EXPIRY - 1)).await.unwrap().is_none());
    assert_eq!(keys(&store, WatchScope::All).await, Vec::<String>::new());
}

/// All keys are written again while a watch reads the initial state. They are more than one pull
/// may visit.
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
    // A later key is not part of the initial state.
    store.put("k.new", "3").await.unwrap();
    let turns = bystander();
    assert_eq!(next(&mut watch).await, "k.00000=2");
    assert!(turns.swap(0, Ordering::Relaxed) >= 9);
    // The key moves to the end, and is still pending.
    store.put(key(7), "4").await.unwrap();
    let rest: Vec<String> = ready(&mut watch).await;
    let caught_up = rest.iter().position(|shown| shown == "caught up").unwrap();
    let index = |wanted: &str| rest.iter().position(|shown| shown == wanted).unwrap();
    assert!(index("k.00007=4") < caught_up);
    assert!(index(&format!("{}=2", key(count - 1))) < caught_up);
    assert_eq!(rest.len(), count + 1);
}

/// A value that records the thread that has freed it.
struct Freed(Arc<Mutex<Option<ThreadId>>>);

impl AsRef<[u8]> for Freed {
    fn as_ref(&self) -> &[u8] {
        b"value"
    }
}

impl Drop for Freed {
    fn drop(&mut self) {
        *self.0.lock().unwrap() = Some(thread::current().id());
    }
}

#[tokio::test]
async fn deleting_a_store_of_many_keys_frees_them_on_another_thread() {
    let connection = MemoryConnection::new();
    let store = connection.store("test").await.unwrap();
    for number in 0..=WALK {
        store.put(format!("k.{number}"), "1").await.unwrap();
    }
    let freed_by = Arc::new(Mutex::new(None));
    store.put("last", Bytes::from_owner(Freed(Arc::clone(&freed_by)))).await.unwrap();
    connection.delete_store("test").await.unwrap();
    assert!(matches!(store.get("k.1").await, Err(KvError::StoreNotFound { .. })));
    let freed_by = freed_by.lock().unwrap().unwrap();
    assert_ne!(freed_by, thread::current().id());
}

#[tokio::test(start_paused = true)]
async fn deadline_passed_during_expiries_writes_nothing() {
    let store = with_due_expiries().await;
    let (writer, key) = (store.backend().writer().unwrap(), Key::new("a").unwrap());
    let late =
        writer.write(&key, Write::put("1"), Deadline::after(Duration::ZERO)).await.unwrap_err();
    assert!(
        matches!(&late, KvError::Timeout { operation: "put", key: Some(found), .. } if *found == key),
        "{late:?}"
    );
    assert!(store.get("a").await.unwrap().is_none());
}

/// Between two pieces, a thread that waits for the lock runs first.
#[tokio::test(start_paused = true)]
async fn work_in_pieces_yields_between_them() {
    let expiring = with_due_expiries().await;
    YIELDS.set(0);
    expiring.get("k.00000").await.unwrap();
    assert!(YIELDS.take() >= 9, "expiries");

    let store = store(StoreConfig::new()).await;
    let count = 4 * WALK;
    let key = |number: usize| format!("k.{number:05}");
    for number in 0..count {
        store.put(key(number), "1").await.unwrap();
    }
    assert_eq!(YIELDS.take(), 0, "puts");
    assert_eq!(keys(&store, WatchScope::All).await.len(), count);
    assert!(YIELDS.take() >= count / PAGE - 1, "keys");
    store.get_many((0..count).map(key)).await.unwrap();
    assert!(YIELDS.take() >= count / PAGE - 1, "get_many");
    let mut watch = store.watch(WatchScope::prefix("absent")).await.unwrap();
    assert_eq!(next(&mut watch).await, "caught up");
    assert!(YIELDS.take() >= 3, "watch of absent keys");
    let mut watch = store.watch(WatchScope::prefix(key(count - 1))).await.unwrap();
    for number in 0..count {
        store.put(key(number), "2").await.unwrap();
    }
    YIELDS.set(0);
    assert_eq!(next(&mut watch).await, format!("{}=2", key(count - 1)));
    assert!(YIELDS.take() >= 3, "search for the pending keys");
}
