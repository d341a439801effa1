//! Copies of a folder, and files that other programs change or leave behind.

use std::fs;
use std::io::Write;
use std::path::Path;

use shizuku_kv::{Connection, FileConnection, KvError, Store, StoreConfig, WatchScope, connect};
use shizuku_kv_tests::{PATIENCE, eventually};
use tempfile::tempdir;

fn url(path: &Path) -> String {
    format!("file:{}", path.display())
}

async fn open(path: &Path) -> (FileConnection, Store) {
    let connection = FileConnection::open(&url(path)).await.unwrap();
    let store = connection.store("config").await.unwrap();
    (connection, store)
}

/// Both folders have assigned the same versions to different values.
#[tokio::test]
async fn cursor_of_the_original_is_rejected_by_a_copy() {
    let folder = tempdir().unwrap();
    let (original, copy) = (folder.path().join("original"), folder.path().join("copy"));
    let (connection, store) = open(&original).await;
    for number in 0..10 {
        store.put(format!("key.{number}"), "both").await.unwrap();
    }
    connection.shutdown().await.unwrap();
    fs::create_dir(&copy).unwrap();
    fs::copy(original.join("shizuku.redb"), copy.join("shizuku.redb")).unwrap();

    let (connection, store) = open(&original).await;
    for number in 0..5 {
        store.put(format!("original.{number}"), "value").await.unwrap();
    }
    let watch = store.watch(WatchScope::All).await.unwrap();
    let mut cursors = Vec::new();
    for _ in 0..16 {
        watch.next().await.unwrap().unwrap();
        cursors.push(watch.cursor().unwrap());
    }
    // They are accepted where they are from.
    for cursor in &cursors {
        drop(store.watch_from(WatchScope::All, *cursor).await.unwrap());
    }
    drop(watch);
    connection.shutdown().await.unwrap();

    let (_connection, store) = open(&copy).await;
    let at_end = store.watch_from(WatchScope::All, cursors[9]).await;
    assert!(at_end.is_ok(), "the last change that both have");
    for written in [5, 10] {
        while store.keys(WatchScope::prefix("copy.")).try_collect().await.unwrap().len() < written {
            let number = fastrand::u64(..);
            store.put(format!("copy.{number}"), "value").await.unwrap();
        }
        for cursor in [&cursors[14], &cursors[15]] {
            let resumed = store.watch_from(WatchScope::All, *cursor).await;
            let error = resumed.expect_err("a cursor of the original");
            assert!(matches!(error, KvError::CursorExpired { .. }), "{error}");
        }
    }
}

/// The caught-up marker of a watch that began before other writes.
#[tokio::test(flavor = "multi_thread")]
async fn cursor_of_a_caught_up_watch_is_accepted() {
    let folder = tempdir().unwrap();
    let (_connection, store) = open(&folder.path().join("data")).await;
    for number in 0..300 {
        store.put(format!("key.{number}"), "value").await.unwrap();
    }
    for scope in [WatchScope::All, WatchScope::key("key.299").unwrap()] {
        let watch = store.watch(scope.clone()).await.unwrap();
        for number in 0..10 {
            store.put(format!("other.{number}"), "value").await.unwrap();
            store.put(format!("key.{number}"), "again").await.unwrap();
        }
        loop {
            let update = watch.next().await.unwrap().unwrap();
            let cursor = watch.cursor().unwrap();
            drop(store.watch_from(scope.clone(), cursor).await.unwrap());
            if update.into_entry().is_none() {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_folder_is_noticed_by_every_reader() {
    for options in ["", "?read_only=true", "?shared=true"] {
        let folder = tempdir().unwrap();
        let path = folder.path().join("data");
        let (connection, store) = open(&path).await;
        store.put("key", "value").await.unwrap();
        connection.shutdown().await.unwrap();
        let connection = connect(&format!("{}{options}", url(&path))).await.unwrap();
        let store = connection.store("config").await.unwrap();
        let watch = store.watch(WatchScope::All).await.unwrap();
        watch.next().await.unwrap().unwrap();
        watch.next().await.unwrap().unwrap();
        fs::remove_dir_all(&path).unwrap();
        let text = store.get("key").await.unwrap_err().to_string();
        assert!(text.contains("removed") && text.contains("data"), "{text}");
        let end = tokio::time::timeout(PATIENCE, watch.next()).await.expect("the watch ends");
        let text = end.unwrap().unwrap_err().to_string();
        assert!(text.contains("removed"), "{options}: {text}");
    }
}

/// A part of the file is missing for a while, as on a disk that fails.
#[tokio::test(flavor = "multi_thread")]
async fn reader_works_again_after_a_failed_read() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("data");
    let (connection, store) = open(&path).await;
    let items = (0..60).map(|number| (format!("key.{number}"), vec![1; 50_000]));
    assert!(store.put_many(items).await.iter().all(Result::is_ok));
    connection.shutdown().await.unwrap();
    let connection = connect(&format!("{}?read_only=true", url(&path))).await.unwrap();
    let store = connection.store("config").await.unwrap();
    let file = path.join("shizuku.redb");
    let content = fs::read(&file).unwrap();
    let opened = fs::OpenOptions::new().write(true).open(&file).unwrap();
    opened.set_len(8192).unwrap();
    let mut failed = 0;
    for number in 0..60 {
        failed += usize::from(store.get(format!("key.{number}")).await.is_err());
    }
    assert!(failed > 0);
    (&opened).write_all(&content).unwrap();
    let reads = async || store.get("key.59").await.is_ok_and(|entry| entry.is_some());
    eventually("reads work again", reads).await;
}

#[tokio::test]
async fn empty_database_file_stays_empty() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("data");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("shizuku.redb"), "").unwrap();
    for options in ["", "?shared=true", "?exclusive=true", "?read_only=true"] {
        let error = connect(&format!("{}{options}", url(&path))).await.unwrap_err();
        assert!(matches!(error, KvError::InvalidUrl { .. }), "{options}: {error}");
        assert_eq!(fs::read(path.join("shizuku.redb")).unwrap().len(), 0);
    }
}

#[cfg(unix)]
#[tokio::test]
async fn planted_link_in_a_folder_is_not_followed() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("data");
    let (connection, _) = open(&path).await;
    connection.shutdown().await.unwrap();
    let victim = folder.path().join("victim");
    fs::write(&victim, "content").unwrap();
    std::os::unix::fs::symlink(&victim, path.join("owner.json.new")).unwrap();
    let (_connection, _store) = open(&path).await;
    assert_eq!(fs::read_to_string(&victim).unwrap(), "content");
    assert!(path.join("owner.json").exists());
}

#[tokio::test]
async fn leftovers_of_killed_processes_are_removed() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("data");
    let (connection, _) = open(&path).await;
    connection.shutdown().await.unwrap();
    for name in ["shizuku.redb.0123456789abcdef.new", "owner-0123456789abcdef.new"] {
        fs::write(path.join(name), "part").unwrap();
    }
    let (_connection, _store) = open(&path).await;
    let mut names: Vec<_> = fs::read_dir(&path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["owner.json", "shizuku.redb"]);
}

/// Two connections stand for two processes.
#[tokio::test]
async fn value_over_a_limit_lowered_elsewhere_is_rejected() {
    let folder = tempdir().unwrap();
    let url = format!("{}?shared=true", url(&folder.path().join("data")));
    let store = connect(&url).await.unwrap().store("config").await.unwrap();
    let lowered = StoreConfig::new().max_value_size(100).reconcile();
    connect(&url).await.unwrap().store_with_config("config", lowered).await.unwrap();
    let error = store.put("key", vec![1; 1000]).await.unwrap_err();
    assert!(matches!(error, KvError::ValueTooLarge { limit: 100, .. }), "{error}");
    assert!(store.get("key").await.unwrap().is_none());
}
