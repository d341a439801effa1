//! The end of a connection: dropped calls and handles leave no thread and no lock behind.

use std::fs;
use std::path::Path;
use std::time::Duration;

use shizuku_kv::{Connection, FileConnection, KvError, KvUpdate, Store, WatchScope, connect};
use shizuku_kv_tests::{PATIENCE, eventually, rerun};
use tempfile::tempdir;

use crate::process::Process;

/// Marks the process whose threads are counted.
const CHILD: &str = "SHIZUKU_FILE_ENDS";

fn url(path: &Path) -> String {
    format!("file:{}", path.display())
}

/// The queued calls hold the last handles on the database.
#[test]
fn dropping_a_runtime_with_queued_writes_closes_the_folder() {
    let folder = tempdir().unwrap();
    let url = url(&folder.path().join("data"));
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for _ in 0..20 {
        let first = runtime();
        first.block_on(async {
            let store = connected(&url).await;
            let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
            for task in 0..100 {
                let (store, begun) = (store.clone(), begun.clone());
                tokio::spawn(async move {
                    let _ = begun.send(());
                    for number in 0_u64.. {
                        let _ = store.put(format!("key.{task}"), number.to_string()).await;
                    }
                });
            }
            for _ in 0..100 {
                begins.recv().await.unwrap();
            }
            store.put("last", "value").await.unwrap();
        });
        drop(first);
    }
    runtime().block_on(async { drop(connected(&url).await) });
}

/// Connects as soon as an earlier connection is closed, which happens in the background.
async fn connected(url: &str) -> Store {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        match connect(url).await {
            Ok(connection) => return connection.store("config").await.unwrap(),
            Err(error) if std::time::Instant::now() > deadline => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

fn threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("shizuku-kv")).count()
}

/// In a process of its own, whose threads are counted.
#[cfg(target_os = "linux")]
#[test]
fn connects_beside_a_stopped_writer_lose_no_thread() {
    let mut command = rerun(module_path!(), "connects_beside_a_stopped_process");
    let output = command.env(CHILD, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("tries"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the test above starts it as a process of its own; by itself it does nothing"]
async fn connects_beside_a_stopped_process() {
    if std::env::var(CHILD).is_err() {
        return;
    }
    let folder = tempdir().unwrap();
    let url = format!("{}?shared=true", url(&folder.path().join("data")));
    let mut process = Process::ready(&url);
    process.send("write_on theirs 0");
    // Stopped while it holds the lock of the writers, so that opening has to wait.
    let mut blocked = None;
    for _ in 0..200 {
        process.answer().unwrap();
        process.signal("-STOP");
        let opening = tokio::spawn({
            let url = url.clone();
            async move { connect(&url).await }
        });
        match tokio::time::timeout(Duration::from_millis(500), opening).await {
            Ok(opened) => drop(opened.unwrap().unwrap()),
            Err(_) => {
                blocked = Some(());
                break;
            }
        }
        process.signal("-CONT");
    }
    blocked.expect("a process that was stopped while it writes");
    let tries = (0..400).map(|_| {
        let url = url.clone();
        tokio::spawn(async move { connect(&url).await.unwrap_err() })
    });
    let tries: Vec<_> = tries.collect();
    for tried in tries {
        let error = tried.await.unwrap();
        assert!(error.is_retryable(), "{error}");
        let text = error.to_string();
        assert!(text.contains(&process.id().to_string()), "the process is not named: {text}");
    }
    println!("400 tries");
    assert!(threads() <= 2, "{} threads", threads());
    process.signal("-CONT");
    drop(connect(&url).await.unwrap());
    eventually("all threads end", async || threads() == 0).await;
}

/// Failed writes do not keep a watch from ending that waits for a change.
#[tokio::test(flavor = "multi_thread")]
async fn removed_folder_ends_a_watch_beside_writes() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("data");
    let store = connect(&url(&path)).await.unwrap().store("config").await.unwrap();
    let watch = store.watch(WatchScope::All).await.unwrap();
    assert!(matches!(watch.next().await, Some(Ok(KvUpdate::CaughtUp))));
    fs::remove_dir_all(&path).unwrap();
    // More often than the writer looks at the file while it is idle.
    let writes = async {
        loop {
            let _ = store.put("key", "value").await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let ended = async {
        tokio::select! {
            update = watch.next() => update,
            () = writes => None,
        }
    };
    let update = tokio::time::timeout(PATIENCE, ended).await.expect("the watch does not end");
    let error = update.unwrap().unwrap_err().to_string();
    assert!(error.contains("removed"), "{error}");
}

/// Neither a backup nor its draft keeps the folder, and a copy that was not published is an error.
#[tokio::test(flavor = "multi_thread")]
async fn only_one_of_two_backups_to_a_folder_succeeds() {
    let folder = tempdir().unwrap();
    let connection = FileConnection::open(&url(&folder.path().join("data"))).await.unwrap();
    let store = connection.store("config").await.unwrap();
    for number in 0..40 {
        store.put(format!("key.{number}"), vec![1; 100_000]).await.unwrap();
    }
    let copy = folder.path().join("copy");
    let (first, second) = tokio::join!(connection.backup(&copy), connection.backup(&copy));
    assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
    let error = first.and(second).unwrap_err();
    assert!(matches!(error, KvError::InvalidConfig { .. }), "{error}");
    let restored = connect(&url(&copy)).await.unwrap().store("config").await.unwrap();
    assert!(restored.get("key.39").await.unwrap().is_some());
}

/// A copy of a large database takes longer than the test has patience for its end.
#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_a_backup() {
    let folder = tempdir().unwrap();
    let connection = FileConnection::open(&url(&folder.path().join("data"))).await.unwrap();
    let store = connection.store("config").await.unwrap();
    let items = (0..600).map(|number| (format!("key.{number}"), vec![1; 200_000]));
    assert!(store.put_many(items).await.iter().all(Result::is_ok));
    let copy = folder.path().join("copy");
    let backup = tokio::spawn({
        let (connection, copy) = (connection.clone(), copy.clone());
        async move { connection.backup(&copy).await }
    });
    eventually("the copy has begun", async || copy.exists()).await;
    connection.shutdown().await.unwrap();
    if backup.await.unwrap().is_err() {
        eventually("the rest is removed", async || !copy.exists()).await;
    }
}
