//! Several processes and one folder, in each mode.

use std::fs;

use shizuku_kv::{KvError, KvUpdate, Store, StoreConfig, Watch, WatchScope, connect};
use shizuku_kv_tests::{PATIENCE, eventually};
use tempfile::{TempDir, tempdir};

use crate::process::{Process, STORE};

fn folder() -> (TempDir, String) {
    let folder = tempdir().unwrap();
    let url = format!("file:{}/data", folder.path().display());
    (folder, url)
}

async fn open(url: &str) -> Store {
    let config = StoreConfig::new().key_ttl(true);
    connect(url).await.unwrap().store_with_config(STORE, config).await.unwrap()
}

async fn value(store: &Store, key: &str) -> Option<String> {
    let entry = store.get(key).await.unwrap()?;
    Some(String::from_utf8(entry.value.to_vec()).unwrap())
}

/// Returns the next update in words.
async fn next(watch: &Watch) -> String {
    let update = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
    match update {
        KvUpdate::CaughtUp => "caught up".to_owned(),
        update => {
            let entry = update.into_entry().unwrap();
            let value = String::from_utf8(entry.value.to_vec()).unwrap();
            format!("{} {:?} {value}", entry.key, entry.operation)
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn second_writer_is_rejected_with_the_holder() {
    let (_folder, url) = folder();
    let holder = Process::ready(&format!("{url}?label=the-holder"));
    for (options, way_out) in [
        ("", "read_only=true"),
        ("?shared=true", "shared=true"),
        ("?exclusive=true", "read_only=true"),
    ] {
        let error = connect(&format!("{url}{options}")).await.unwrap_err();
        assert!(matches!(error, KvError::Unavailable { .. }), "{error}");
        let text = error.to_string();
        for part in [&holder.id().to_string(), "the-holder", "single", way_out, &url[5..]] {
            assert!(text.contains(part), "{part:?} is missing in {text}");
        }
    }
    // A reader, however, follows the commits.
    let mut reader = Process::ready(&format!("{url}?read_only=true"));
    assert_eq!(reader.ask("get key"), "none");
}

#[tokio::test(flavor = "multi_thread")]
async fn exclusive_holder_rejects_readers_too() {
    let (_folder, url) = folder();
    let holder = Process::ready(&format!("{url}?exclusive=true"));
    let error = connect(&format!("{url}?read_only=true")).await.unwrap_err().to_string();
    assert!(error.contains(&holder.id().to_string()) && error.contains("shared=true"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn writer_without_shared_is_rejected_with_the_url() {
    let (_folder, url) = folder();
    let holder = Process::ready(&format!("{url}?shared=true"));
    let error = connect(&url).await.unwrap_err().to_string();
    assert!(error.contains(&holder.id().to_string()) && error.contains("?shared=true"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_watches_the_writer_of_another_process() {
    let (_folder, url) = folder();
    let mut writer = Process::ready(&url);
    writer.ask("put before 1");
    let store = open(&format!("{url}?read_only=true")).await;
    assert!(!store.capabilities().write);
    assert!(matches!(store.put("key", "value").await, Err(KvError::Unsupported { .. })));
    let watch = store.watch(WatchScope::All).await.unwrap();
    assert_eq!(next(&watch).await, "before Put 1");
    assert_eq!(next(&watch).await, "caught up");
    for number in 0..20 {
        writer.ask(&format!("put key {number}"));
        assert_eq!(next(&watch).await, format!("key Put {number}"));
        assert_eq!(value(&store, "key").await, Some(number.to_string()));
    }
    writer.ask("put_for short 1");
    assert_eq!(next(&watch).await, "short Put short");
    assert_eq!(next(&watch).await, "short Expire ");
    assert_eq!(value(&store, "short").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_of_a_reader_outlives_killed_writers() {
    let (_folder, url) = folder();
    let mut writer = Process::ready(&url);
    writer.ask("put key first");
    let store = open(&format!("{url}?read_only=true")).await;
    let watch = store.watch(WatchScope::All).await.unwrap();
    assert_eq!(next(&watch).await, "key Put first");
    assert_eq!(next(&watch).await, "caught up");
    for number in 0..3 {
        writer.send("write_on busy 0");
        assert!(next(&watch).await.starts_with("busy"));
        writer.kill();
        writer = Process::ready(&url);
        writer.ask(&format!("put key {number}"));
        let expected = format!("key Put {number}");
        while next(&watch).await != expected {}
    }
}

/// The process is killed, so that nothing applies the expiry.
#[tokio::test(flavor = "multi_thread")]
async fn reader_hides_expired_values_without_a_writer() {
    let (_folder, url) = folder();
    let mut writer = Process::ready(&url);
    writer.ask("put_for short 1");
    writer.kill();
    let store = open(&format!("{url}?read_only=true")).await;
    let is_gone = async || store.get("short").await.unwrap().is_none();
    eventually("the value has expired", is_gone).await;
    assert!(store.keys(WatchScope::All).try_collect().await.unwrap().is_empty());
    let writer = Process::ready(&url);
    let entry = async || store.entry("short").await.unwrap().is_some_and(|e| e.is_tombstone());
    eventually("the next writer writes the tombstone", entry).await;
    drop(writer);
}

#[tokio::test(flavor = "multi_thread")]
async fn owner_file_of_a_killed_process_is_stale() {
    let (folder, url) = folder();
    let mut writer = Process::ready(&url);
    let version = writer.ask("put key value");
    let owner = folder.path().join("data/owner.json");
    let before = fs::read_to_string(&owner).unwrap();
    assert!(before.contains(&writer.id().to_string()), "{before}");
    writer.kill();
    assert!(owner.exists());
    let store = open(&url).await;
    assert!(store.put("other", "1").await.unwrap().to_string() > version);
    assert_eq!(value(&store, "key").await.as_deref(), Some("value"));
    assert!(fs::read_to_string(&owner).unwrap().contains(&std::process::id().to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_processes_write_watch_and_expire() {
    let (_folder, url) = folder();
    let url = format!("{url}?shared=true");
    let store = open(&url).await;
    let watch = store.watch(WatchScope::All).await.unwrap();
    assert_eq!(next(&watch).await, "caught up");
    let mut other = Process::ready(&url);
    let mut last = 0;
    for number in 0..20 {
        let theirs: u64 = other.ask(&format!("put theirs {number}")).parse().unwrap();
        let ours = store.put("ours", number.to_string()).await.unwrap().as_u64().unwrap();
        assert!(last < theirs && theirs < ours, "{last} {theirs} {ours}");
        last = ours;
        assert_eq!(next(&watch).await, format!("theirs Put {number}"));
        assert_eq!(next(&watch).await, format!("ours Put {number}"));
        assert_eq!(other.ask("get ours"), number.to_string());
    }
    // Each of both processes would write the tombstone.
    other.ask("put_for short 1");
    assert_eq!(next(&watch).await, "short Put short");
    assert_eq!(next(&watch).await, "short Expire ");
    store.put("end", "1").await.unwrap();
    assert_eq!(next(&watch).await, "end Put 1");
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_is_held_by_one_process_of_a_shared_folder() {
    let (_folder, url) = folder();
    let url = format!("{url}?shared=true");
    let mut first = Process::ready(&url);
    let mut second = Process::ready(&url);
    let token: u64 = first.ask("lock resource").parse().unwrap();
    second.send("lock resource");
    first.ask("unlock");
    let next: u64 = second.answer().unwrap().parse().unwrap();
    assert!(next > token);
    // A killed holder is evicted after its lease.
    first.send("lock resource");
    second.kill();
    let last: u64 = first.answer().unwrap().parse().unwrap();
    assert!(last > next);
}

/// A read transaction that stayed open would keep every page that is overwritten meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn paused_readers_do_not_let_the_file_grow() {
    let (folder, url) = folder();
    let store = open(&format!("{url}?exclusive=true")).await;
    let write_all = async || {
        for page in 0..20 {
            let items = (0..250).map(|key| (format!("key.{page}.{key}"), vec![page; 400]));
            for written in store.put_many(items).await {
                written.unwrap();
            }
        }
    };
    write_all().await;
    write_all().await;
    let len = || fs::metadata(folder.path().join("data/shizuku.redb")).unwrap().len();
    let before = len();
    let (scan, watch) = (store.scan(WatchScope::All), store.watch(WatchScope::All).await.unwrap());
    scan.next().await.unwrap().unwrap();
    watch.next().await.unwrap().unwrap();
    for _ in 0..5 {
        write_all().await;
    }
    assert!(len() <= before + before / 10, "{before} bytes have become {}", len());
    assert_eq!(scan.try_collect().await.unwrap().len(), 20 * 250 - 1);
    while next(&watch).await != "caught up" {}
}
