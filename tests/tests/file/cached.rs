//! Gets that are answered from memory, while writes, deletions of stores and other programs change
//! what they have to return.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use shizuku_kv::{Connection, KvError, Store, connect};
use shizuku_kv_tests::eventually;
use tempfile::tempdir;

/// The modes in which no other process writes.
const MODES: [&str; 2] = ["", "?exclusive=true"];

async fn number(store: &Store, key: &str) -> u64 {
    let entry = store.get(key).await.unwrap();
    entry.map_or(0, |entry| String::from_utf8_lossy(&entry.value).parse().unwrap())
}

/// A get sees every acknowledged write, and returns no older value than a get that ended before it
/// began.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn gets_during_writes_never_go_back() {
    const KEYS: [&str; 3] = ["first", "second", "third"];
    const WRITES: u64 = 300;
    for options in MODES {
        let folder = tempdir().unwrap();
        let url = format!("file:{}/data{options}", folder.path().display());
        let store = connect(&url).await.unwrap().store("config").await.unwrap();
        // For each key, a number that every later get must reach.
        let lowest: Arc<[AtomicU64; 3]> = Arc::default();
        let mut tasks = Vec::new();
        for (index, key) in KEYS.into_iter().enumerate() {
            let (writer, known) = (store.clone(), Arc::clone(&lowest));
            tasks.push(tokio::spawn(async move {
                for value in 1..=WRITES {
                    writer.put(key, value.to_string()).await.unwrap();
                    known[index].fetch_max(value, Ordering::AcqRel);
                }
            }));
            for _ in 0..4 {
                let (reader, known) = (store.clone(), Arc::clone(&lowest));
                tasks.push(tokio::spawn(async move {
                    loop {
                        let before = known[index].load(Ordering::Acquire);
                        let found = number(&reader, key).await;
                        assert!(found >= before, "{key}: {found} after {before}");
                        known[index].fetch_max(found, Ordering::AcqRel);
                        if found == WRITES {
                            break;
                        }
                        tokio::task::yield_now().await;
                    }
                }));
            }
        }
        for task in tasks {
            task.await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_store_answers_no_repeated_get() {
    for options in MODES {
        let folder = tempdir().unwrap();
        let url = format!("file:{}/data{options}", folder.path().display());
        let connection = connect(&url).await.unwrap();
        let store = connection.store("config").await.unwrap();
        store.put("key", "1").await.unwrap();
        for key in ["key", "absent"] {
            number(&store, key).await;
        }
        connection.delete_store("config").await.unwrap();
        for key in ["key", "absent"] {
            let error = store.get(key).await.unwrap_err();
            assert!(matches!(error, KvError::StoreNotFound { .. }), "{error}");
        }
        let recreated = connection.store("config").await.unwrap();
        assert_eq!(number(&recreated, "key").await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_folder_ends_repeated_gets() {
    for options in MODES {
        let folder = tempdir().unwrap();
        let path = folder.path().join("data");
        let url = format!("file:{}{options}", path.display());
        let store = connect(&url).await.unwrap().store("config").await.unwrap();
        store.put("key", "1").await.unwrap();
        number(&store, "key").await;
        fs::remove_dir_all(&path).unwrap();
        eventually("a get fails", async || match store.get("key").await {
            Ok(entry) => {
                assert!(entry.is_some_and(|entry| entry.value == "1"));
                false
            }
            Err(error) => error.to_string().contains("removed"),
        })
        .await;
    }
}
