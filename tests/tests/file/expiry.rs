//! Expiry, beside atomic writes, on a full disk, and without a writer.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use shizuku_kv::{
    Atomicity, Connection, Key, KvOperation, KvUpdate, Store, StoreConfig, Watch, WatchScope,
    Write, connect,
};
use shizuku_kv_tests::{PATIENCE, eventually};
use tempfile::tempdir;

use crate::process::Process;

fn url(path: &Path) -> String {
    format!("file:{}", path.join("data").display())
}

async fn open(url: &str) -> Store {
    let config = StoreConfig::new().key_ttl(true);
    connect(url).await.unwrap().store_with_config("config", config).await.unwrap()
}

/// Waits until the watch has delivered the expiry of a key.
async fn expires(watch: &Watch, key: &str) {
    let expiry = async {
        loop {
            let update = watch.next().await.unwrap().unwrap();
            let entry = update.into_entry();
            if entry.is_some_and(|e| e.key == *key && e.operation == KvOperation::Expire) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, expiry).await.expect("the expiry");
}

async fn write_all(store: &Store, writes: Vec<(&str, Write)>) -> bool {
    let writes = writes.into_iter().map(|(key, write)| (Key::new(key).unwrap(), write)).collect();
    let writer = store.backend().writer().unwrap();
    writer.write_many(writes, Atomicity::All, PATIENCE).await.iter().all(Result::is_ok)
}

/// The rejected write would have removed the only expiry.
#[tokio::test]
async fn rejected_atomic_write_leaves_the_expiry() {
    let folder = tempdir().unwrap();
    let store = open(&url(folder.path())).await;
    store.put("exists", "value").await.unwrap();
    let watch = store.watch(WatchScope::All).await.unwrap();
    store.ttl().unwrap().put("short", "value", Duration::from_secs(1)).await.unwrap();
    let writes = vec![("short", Write::put("long")), ("exists", Write::create("value"))];
    assert!(!write_all(&store, writes).await);
    expires(&watch, "short").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_writes_do_not_starve_expiries() {
    let folder = tempdir().unwrap();
    let store = open(&url(folder.path())).await;
    let watch = store.watch(WatchScope::key("short").unwrap()).await.unwrap();
    store.ttl().unwrap().put("short", "value", Duration::from_secs(1)).await.unwrap();
    let ends = Arc::new(AtomicBool::new(false));
    let writers = (0..64).map(|number| {
        let (store, ends, key) = (store.clone(), Arc::clone(&ends), format!("key.{number}"));
        tokio::spawn(async move {
            while !ends.load(Ordering::Relaxed) {
                assert!(write_all(&store, vec![(&key, Write::put("value"))]).await);
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    expires(&watch, "short").await;
    ends.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
}

/// The limit on the size of files stands for a disk that cannot be written to.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn expired_key_is_absent_on_a_full_disk() {
    for options in ["", "?exclusive=true", "?shared=true"] {
        let folder = tempdir().unwrap();
        let (mut process, first) =
            Process::with_limit(&format!("{}{options}", url(folder.path())), 65_536);
        assert_eq!(first, "ready");
        process.ask("put other value").parse::<u64>().unwrap();
        process.ask("put_for short 1").parse::<u64>().unwrap();
        process.limit("4096:");
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let answer = process.ask("get short");
            if answer == "none" {
                break;
            }
            assert_eq!(answer, "short", "{options}");
            assert!(std::time::Instant::now() < deadline);
        }
        assert!(!process.ask("put other again").starts_with(|c: char| c.is_ascii_digit()));
        assert_eq!(process.ask("keys"), "other", "{options}");
        assert_eq!(process.ask("get short"), "none", "{options}");
    }
}

/// A scan finds keys that expire while it runs.
#[tokio::test(flavor = "multi_thread")]
async fn scans_end_while_values_expire() {
    let folder = tempdir().unwrap();
    let store = open(&url(folder.path())).await;
    let ends = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (store, ends) = (store.clone(), Arc::clone(&ends));
        async move {
            for round in 0_u64.. {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                let items = (0..64).map(|number| (format!("key.{round:06}.{number}"), "value"));
                let ttl = store.ttl().unwrap();
                let written = ttl.put_many(items, Duration::from_secs(1)).await;
                assert!(written.iter().all(Result::is_ok));
            }
        }
    });
    eventually("the first has expired", async || {
        store.get("key.000000.0").await.unwrap().is_none()
    })
    .await;
    for _ in 0..20 {
        let keys = store.keys(WatchScope::All).try_collect().await.unwrap();
        let page: Vec<_> = keys.iter().take(200).map(Key::as_str).collect();
        store.get_many(page).await.unwrap();
    }
    ends.store(true, Ordering::Relaxed);
    writer.await.unwrap();
}

/// Older entries of the history are hidden like the newest one.
#[tokio::test]
async fn reader_without_a_writer_hides_expired_history() {
    let folder = tempdir().unwrap();
    let (url, age) = (url(folder.path()), Duration::from_secs(2));
    let connection = connect(&url).await.unwrap();
    let config = StoreConfig::new().history(5).max_age(age);
    let store = connection.store_with_config("config", config).await.unwrap();
    for number in 0..4 {
        store.put("key", number.to_string()).await.unwrap();
    }
    let watch = store.watch(WatchScope::key("key").unwrap()).await.unwrap();
    watch.next().await.unwrap().unwrap();
    let cursor = watch.cursor().unwrap();
    for number in 0..3 {
        store.put("key", number.to_string()).await.unwrap();
    }
    drop(watch);
    connection.shutdown().await.unwrap();
    let connection = connect(&format!("{url}?read_only=true")).await.unwrap();
    let store = connection.store("config").await.unwrap();
    eventually("all have expired", async || store.get("key").await.unwrap().is_none()).await;
    let history = store.history("key").unwrap().try_collect().await.unwrap();
    assert!(history.is_empty(), "{history:?}");
    for scope in [WatchScope::All, WatchScope::key("key").unwrap()] {
        let resumed = store.watch_from(scope, cursor).await.unwrap();
        let first = tokio::time::timeout(PATIENCE, resumed.next()).await.unwrap();
        let first = first.unwrap().unwrap();
        assert!(matches!(first, KvUpdate::CaughtUp), "{first:?}");
    }
}
