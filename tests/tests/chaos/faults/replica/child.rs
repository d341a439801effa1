//! The process with the replica.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use shizuku_kv::replica::{Batch, LogStorage, Replica};
use shizuku_kv::snapshot::{SnapshotOptions, SyncPolicy};
use shizuku_kv::{BatchConfig, Connection, Store, StoreConfig, WatchScope, connect};
use shizuku_kv_tests::{Random, rerun};

use super::journal;

pub(super) const LOG: &str = "replica.log";

const PLAN: &str = "SHIZUKU_REPLICA_PLAN";

/// The process, which does not outlive the test.
pub(super) struct Process(Child);

impl Process {
    /// Starts it: this test binary, with the test below.
    pub(super) fn start(url: &str, bucket: &str, home: &Path, seed: u64) -> Self {
        let plan = [url, bucket, home.to_str().expect("a path"), &seed.to_string()].join("\n");
        let process = rerun(module_path!(), "a_process_with_a_replica")
            .env(PLAN, plan)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        Self(process.expect("it can be started"))
    }

    /// Kills it, as a crash would.
    pub(super) fn crash(mut self) {
        assert!(self.0.try_wait().expect("a process").is_none(), "the replica has ended by itself");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ends this process when its parent ends, however that ends, because the input then closes.
fn end_with_the_parent() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(1);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the tests of replicas start it as a process of its own; by itself it does nothing"]
async fn a_process_with_a_replica() {
    let Ok(plan) = std::env::var(PLAN) else { return };
    end_with_the_parent();
    let mut lines = plan.lines();
    let mut line = || lines.next().expect("a part of the plan").to_owned();
    let (url, bucket, home, seed) = (line(), line(), PathBuf::from(line()), line());
    let mut random = Random::new(seed.parse().expect("a number"), "child");

    let store = store(&url, &bucket).await;
    let sync = match random.below(3) {
        0 => SyncPolicy::EveryCheckpoint,
        1 => SyncPolicy::Interval(Duration::from_millis(50)),
        _ => SyncPolicy::Never,
    };
    // The log is compacted all the time.
    let options = SnapshotOptions::new().sync(sync).compaction_threshold(4096);
    let storage = LogStorage::open(home.join(LOG), options).await.expect("the log can be opened");
    let mut journal = OpenOptions::new()
        .create(true)
        .append(true)
        .open(home.join(journal::FILE))
        .expect("a file");
    let mut note = move |text: &str| journal.write_all(text.as_bytes()).expect("it can be written");
    note("\nrun\n");
    let batch = BatchConfig::new().window(Duration::from_millis(2)).max_updates(20);
    let mut replica = Replica::new(&store, WatchScope::All).storage(storage).batch(batch);
    let monitor = replica.monitor();
    let apply = |batch: Batch| {
        if random.once_in(20) {
            return std::future::ready(Err("it does not always work"));
        }
        let resynced = monitor.progress().resyncs > 0;
        note(&journal::written(&batch, resynced));
        std::future::ready(Ok(()))
    };
    let ended = replica.run(apply).await;
    panic!("the replica has ended: {ended:?}");
}

/// Opens the store, however long that takes.
async fn store(url: &str, bucket: &str) -> Store {
    loop {
        if let Ok(connection) = connect(url).await
            && let Ok(store) =
                connection.store_with_config(bucket, StoreConfig::new().must_exist()).await
        {
            return store;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
