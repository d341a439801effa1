//! The storages of replicas: each has the trait's guarantees, the suite finds violations, and
//! durable commits survive the end of the process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::panic_in_result_fn,
    reason = "tests report by panicking"
)]

mod broken;
mod can_fail;
mod kill;

use std::time::Duration;

use shizuku_kv::conformance::storage::{StorageNeed, StorageSuite, checks};
use shizuku_kv::replica::{
    LogStorage, MemoryStorage, RedbOptions, RedbStorage, RedbSync, ReplicaStorage, StorageError,
};
use shizuku_kv::snapshot::{SnapshotOptions, SyncPolicy};
use shizuku_kv_tests::is_long;

/// Returns the number of random histories that a storage has to pass.
fn histories() -> usize {
    if is_long() { 300 } else { 4 }
}

#[tokio::test]
async fn storage_in_memory_passes() {
    let suite = StorageSuite::new(|_name| async { Ok(MemoryStorage::new()) }).not_durable();
    let report = suite.histories(histories()).deadline(Duration::from_secs(600)).run().await;
    assert!(report.is_ok(), "{report}");
}

#[tokio::test]
async fn boxed_storage_passes() {
    let open = |_name| async { Ok(Box::new(MemoryStorage::new()) as Box<dyn ReplicaStorage>) };
    let report = StorageSuite::new(open).not_durable().histories(1).run().await;
    assert!(report.is_ok(), "{report}");
}

#[tokio::test]
async fn storage_in_a_log_passes() {
    for sync in [
        SyncPolicy::EveryCheckpoint,
        SyncPolicy::Interval(Duration::from_millis(3)),
        SyncPolicy::Never,
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        // The log is compacted all the time.
        let options = SnapshotOptions::new().sync(sync).compaction_threshold(2000);
        let open = move |name| {
            let path = path.join(name);
            async move { LogStorage::open(path, options).await.map_err(StorageError::fatal) }
        };
        let suite = StorageSuite::new(open).reading(|storage, key| Ok(storage.reader().get(key)));
        let report = suite.histories(histories()).deadline(Duration::from_secs(600)).run().await;
        assert!(report.is_ok(), "{sync:?}:\n{report}");
    }
}

fn redb(options: RedbOptions) -> (tempfile::TempDir, StorageSuite<RedbStorage>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let suite = StorageSuite::new(move |name| RedbStorage::open(path.join(name), options));
    let suite = suite.reading(|storage, key| storage.reader().get(key));
    (directory, suite.histories(histories()).deadline(Duration::from_secs(600)))
}

#[tokio::test]
async fn storage_in_redb_passes() {
    let (_directory, suite) = redb(RedbOptions::new());
    let report = suite.run().await;
    assert!(report.is_ok(), "{report}");
}

/// Commits become durable now and then or at the end, with a cache smaller than the content, and a
/// closed storage is whole. Leaves out checks that take long without a cache.
#[tokio::test]
async fn storage_in_redb_passes_with_other_options() {
    for sync in [RedbSync::Never, RedbSync::Interval(Duration::from_millis(3))] {
        let (_directory, mut suite) =
            redb(RedbOptions::new().sync(sync).cache_size(50_000).check_when_opened(true));
        for check in checks().filter(|check| check.needs.contains(&StorageNeed::Durable)) {
            suite = suite.only(check.name);
        }
        let report = suite
            .only("large_values_are_accepted")
            .only("random_histories_end_as_in_a_map")
            .run()
            .await;
        assert!(report.is_ok(), "{sync:?}:\n{report}");
    }
}
