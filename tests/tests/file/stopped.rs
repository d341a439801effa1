//! A process that is stopped while it writes: every operation of the others ends, and no thread is
//! lost.

use std::fs;
use std::time::Duration;

use shizuku_kv::{KvError, StoreConfig, WatchScope, connect};
use shizuku_kv_tests::{PATIENCE, Random, eventually, is_long, rerun, seed};
use tempfile::tempdir;

use crate::process::{Process, STORE};

/// Deadline of the operations beside a stopped process.
const DEADLINE: Duration = Duration::from_millis(200);

/// Marks the process whose threads are counted.
const CHILD: &str = "SHIZUKU_FILE_STOPPED";

fn moments() -> usize {
    if is_long() { 400 } else { 20 }
}

/// Returns the number of threads of the database of this process.
fn threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("shizuku-kv")).count()
}

/// In a process of its own, whose threads are counted.
#[test]
fn stopped_writer_lets_every_operation_end() {
    let mut command = rerun(module_path!(), "operations_beside_a_stopped_writer");
    let output = command.env(CHILD, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("were withdrawn"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the test above starts it as a process of its own; by itself it does nothing"]
async fn operations_beside_a_stopped_writer() {
    if std::env::var(CHILD).is_err() {
        return;
    }
    let folder = tempdir().unwrap();
    let url = format!("file:{}/data?shared=true", folder.path().display());
    let connection = connect(&url).await.unwrap();
    let config = StoreConfig::new().key_ttl(true);
    let store = connection.store_with_config(STORE, config).await.unwrap();
    let before = threads();
    let mut process = Process::ready(&url);
    process.send("write_on theirs");
    let hurried = store.with_deadline(DEADLINE);
    let mut random = Random::new(seed(), "stops");
    let (mut blocked, mut named, mut written, mut unknown) = (0, 0, 0, 0);
    for moment in 0..moments() {
        for _ in 0..random.below(10) {
            process.answer().unwrap();
        }
        process.signal("-STOP");
        let operations = async {
            let key = format!("ours.{moment}");
            let put = hurried.put(key.as_str(), "value").await;
            let (get, keys) = (hurried.get("ours.0").await, hurried.keys(WatchScope::All));
            let _ = keys.next().await;
            (key, put, get)
        };
        let (key, put, get) = tokio::time::timeout(PATIENCE, operations).await.unwrap();
        assert!(get.is_ok() || get.as_ref().is_err_and(|error| error.is_retryable()), "{get:?}");
        match put {
            Ok(_) => written += 1,
            // redb has begun the commit, and waits for the stopped process within it.
            Err(KvError::OutcomeUnknown { .. }) => unknown += 1,
            Err(error) => {
                blocked += 1;
                assert!(error.is_retryable(), "{error}");
                named += usize::from(error.to_string().contains(&process.id().to_string()));
                process.signal("-CONT");
                // It was withdrawn, and is known not to have happened.
                let entry = store.entry(key.as_str()).await.unwrap();
                assert!(entry.is_none(), "{entry:?}");
            }
        }
        process.signal("-CONT");
        store.put("after", moment.to_string()).await.unwrap();
    }
    println!("{blocked} writes were withdrawn, {written} were made, {unknown} are unknown");
    // Finding the process takes longer than it may only on a very slow machine.
    assert!(named > 0 || blocked == 0, "no error names the stopped process");
    assert_eq!(threads(), before);
    process.signal("-STOP");
    process.kill();
    let is_free = async || store.put("after", "the end").await.is_ok();
    eventually("a killed process blocks nothing", is_free).await;
}

/// A database that is opened later than its deadline is closed again.
#[tokio::test(flavor = "multi_thread")]
async fn connecting_beside_a_stopped_writer_ends() {
    let folder = tempdir().unwrap();
    let url = format!("file:{}/data?shared=true", folder.path().display());
    let mut process = Process::ready(&url);
    process.send("write_on theirs");
    process.answer().unwrap();
    process.signal("-STOP");
    let connected = tokio::time::timeout(PATIENCE, connect(&url)).await.unwrap();
    assert!(connected.as_ref().is_ok() || connected.is_err_and(|error| error.is_retryable()));
    process.signal("-CONT");
    connect(&url).await.unwrap();
}
