//! A process that is stopped while it writes: every operation of the others ends, and no thread is
//! lost.

use std::fs;
use std::time::Duration;

use shizuku_kv::{Connection, KvError, Store, Watch, WatchScope, connect};
use shizuku_kv_tests::{PATIENCE, Random, eventually, is_long, rerun, seed};
use tempfile::tempdir;

use crate::process::{Process, STORE};

/// Deadline of the operations beside a stopped process.
const DEADLINE: Duration = Duration::from_millis(200);

/// Has the options of the process whose threads are counted.
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
    for mode in ["?shared=true", "?read_only=true"] {
        let mut command = rerun(module_path!(), "operations_beside_a_stopped_writer");
        let output = command.env(CHILD, mode).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        println!("{mode}: {text}");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("were withdrawn"));
    }
}

/// Results of the operations beside a stopped process.
#[derive(Debug, Default)]
struct Ends {
    done: usize,
    late: usize,
    withdrawn: usize,
    unknown: usize,
    /// Errors that name the stopped process.
    named: usize,
}

impl Ends {
    /// Counts the result of an operation, and returns whether it was withdrawn or rejected.
    fn count<T>(&mut self, result: Result<T, KvError>, is_write: bool, stopped: u32) -> bool {
        let error = match result {
            Ok(_) => {
                self.done += 1;
                return false;
            }
            // redb has begun the commit, and waits for the stopped process within it.
            Err(KvError::OutcomeUnknown { .. }) if is_write => {
                self.unknown += 1;
                return false;
            }
            Err(error) => error,
        };
        let is_late = matches!(error, KvError::Timeout { .. } | KvError::Unavailable { .. });
        assert!(is_late && error.is_retryable(), "{error}");
        self.named += usize::from(error.to_string().contains(&stopped.to_string()));
        *(if is_write { &mut self.withdrawn } else { &mut self.late }) += 1;
        is_write
    }
}

/// Reads in every way. Each read ends by its deadline.
async fn read(store: &Store, ends: &mut Ends, stopped: u32) {
    let all = WatchScope::All;
    let (get, entry) = (store.get("after").await, store.entry("theirs.0.1").await);
    ends.count(get, false, stopped);
    ends.count(entry, false, stopped);
    ends.count(store.get_many(&["after", "absent"]).await, false, stopped);
    let history = store.history("after").unwrap().try_collect().await;
    ends.count(history, false, stopped);
    ends.count(store.keys(all.clone()).try_collect().await, false, stopped);
    ends.count(store.scan(all.clone()).next().await.transpose(), false, stopped);
    let watch = match store.watch(all).await {
        Ok(watch) => watch,
        Err(error) => {
            ends.count(Err::<(), _>(error), false, stopped);
            return;
        }
    };
    // A watch has no deadline: it continues when the process does.
    if let Ok(update) = tokio::time::timeout(DEADLINE, watch.next()).await {
        ends.count(update.unwrap(), false, stopped);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the test above starts it as a process of its own; by itself it does nothing"]
async fn operations_beside_a_stopped_writer() {
    let Ok(mode) = std::env::var(CHILD) else { return };
    let folder = tempdir().unwrap();
    let url = format!("file:{}/data", folder.path().display());
    let (ours, theirs) = match mode.as_str() {
        "?shared=true" => (format!("{url}{mode}"), format!("{url}{mode}")),
        mode => (format!("{url}{mode}"), url),
    };
    let mut process = Process::ready(&theirs);
    let connection = connect(&ours).await.unwrap();
    let store = connection.store(STORE).await.unwrap();
    let writes = store.capabilities().write;
    let watch = store.watch(WatchScope::All).await.unwrap();
    let before = threads();
    process.send("write_on theirs 0");
    let hurried = store.with_deadline(DEADLINE);
    let mut random = Random::new(seed(), "stops");
    let mut ends = Ends::default();
    for moment in 0..moments() {
        for _ in 0..random.below(10) {
            process.answer().unwrap();
        }
        tokio::time::sleep(Duration::from_micros(random.below(2000))).await;
        process.signal("-STOP");
        let key = format!("ours.{moment}");
        let operations = async {
            let mut is_withdrawn = false;
            if writes {
                let put = hurried.put(key.as_str(), "value").await;
                is_withdrawn = ends.count(put, true, process.id());
            }
            read(&hurried, &mut ends, process.id()).await;
            is_withdrawn
        };
        let is_withdrawn = tokio::time::timeout(PATIENCE, operations).await.unwrap();
        process.signal("-CONT");
        if writes {
            store.put("after", moment.to_string()).await.unwrap();
        }
        if is_withdrawn {
            // It is known not to have happened, and did not happen before the later write.
            let entry = store.entry(key.as_str()).await.unwrap();
            assert!(entry.is_none(), "{entry:?}");
        }
        continues(&store, &mut process, &watch).await;
    }
    println!("{ends:?}: {} writes were withdrawn", ends.withdrawn);
    // Finding the process takes longer than it may only on a very slow machine.
    assert!(ends.named > 0 || ends.withdrawn == 0, "no error names the stopped process");
    let is_left = async || threads() == before;
    eventually("as many threads as before", is_left).await;
    process.signal("-STOP");
    process.kill();
    if writes {
        let is_free = async || store.put("after", "the end").await.is_ok();
        eventually("a killed process blocks nothing", is_free).await;
    }
    store.get("after").await.unwrap();
}

/// Waits until the process has written after its stop, and a watch that was open meanwhile has
/// delivered that.
async fn continues(store: &Store, process: &mut Process, watch: &Watch) {
    let newest = async |scope: &str| {
        let entries = store.scan(WatchScope::prefix(scope)).try_collect().await.unwrap();
        entries.iter().filter_map(|entry| entry.version.as_u64()).max().unwrap_or_default()
    };
    let stopped_at = newest("theirs.").await;
    let mut version = 0;
    while version <= stopped_at {
        let answer = process.answer().unwrap();
        version = answer.rsplit(' ').next().unwrap().parse().expect("no error of the process");
    }
    let delivered = async {
        loop {
            let update = watch.next().await.unwrap().unwrap();
            let entry = update.into_entry();
            if entry.is_some_and(|entry| entry.version.as_u64() >= Some(version)) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, delivered).await.expect("the watch continues");
}

/// A database that is opened later than its deadline is closed again.
#[tokio::test(flavor = "multi_thread")]
async fn connecting_beside_a_stopped_writer_ends() {
    let folder = tempdir().unwrap();
    let url = format!("file:{}/data?shared=true", folder.path().display());
    let mut process = Process::ready(&url);
    process.send("write_on theirs 0");
    process.answer().unwrap();
    process.signal("-STOP");
    let connected = tokio::time::timeout(PATIENCE, connect(&url)).await.unwrap();
    assert!(connected.as_ref().is_ok() || connected.is_err_and(|error| error.is_retryable()));
    process.signal("-CONT");
    connect(&url).await.unwrap();
}
