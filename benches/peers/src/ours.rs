//! The operations of shizuku-kv in each case.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use shizuku_kv::replica::{Batch, LogStorage, Replica};
use shizuku_kv::snapshot::{self, SnapshotOptions, SnapshotWriter, SyncPolicy};
use shizuku_kv::{Key, KvEntry, KvUpdate, Store, VersionToken, WatchCursor, WatchScope};
use tokio_util::sync::CancellationToken;

use crate::buckets::{VALUE, key};

/// Options without syncing and compaction.
pub(crate) fn bare() -> SnapshotOptions {
    synced(SyncPolicy::Never)
}

/// Options without compaction.
pub(crate) fn synced(policy: SyncPolicy) -> SnapshotOptions {
    SnapshotOptions::new().sync(policy).compaction_threshold(u64::MAX)
}

/// A replica that has caught up, and the time that this took.
pub(crate) struct Current {
    pub(crate) took: Duration,
    pub(crate) applied: usize,
    /// Keeps the state alive.
    _replica: Replica<LogStorage>,
}

impl Current {
    /// Follows a bucket, from the content of the log to the caught-up marker and its commit.
    pub(crate) async fn reach(
        store: &Store,
        log: &Path,
        options: SnapshotOptions,
        keys: usize,
    ) -> Self {
        let start = Instant::now();
        let storage = LogStorage::open(log, options).await.unwrap();
        let state = storage.reader();
        let stop = CancellationToken::new();
        let mut replica =
            Replica::new(store, WatchScope::All).storage(storage).stop_on(stop.clone());
        let mut applied = 0;
        let apply = |batch: Batch| {
            applied +=
                batch.updates().iter().filter(|update| matches!(update, KvUpdate::Put(_))).count();
            if batch.is_caught_up() {
                stop.cancel();
            }
            std::future::ready(Ok::<_, std::convert::Infallible>(()))
        };
        let cursor = replica.run(apply).await.unwrap();
        let took = start.elapsed();
        assert!(cursor.is_some());
        assert_eq!(state.len(), keys);
        assert_eq!(state.get(&key(keys - 1)).unwrap().value, VALUE.as_slice());
        Self { took, applied, _replica: replica }
    }
}

/// Returns this number of updates, each of another key.
pub(crate) fn updates(keys: usize) -> Vec<KvUpdate> {
    let created = SystemTime::now();
    let entry = |number| {
        let version = VersionToken::from_u64(number as u64 + 1);
        KvEntry::put(Key::new(key(number)).unwrap(), VALUE.to_vec().into(), version, created)
    };
    (0..keys).map(|number| KvUpdate::Put(entry(number))).collect()
}

/// Writes them to a new log, with a checkpoint after every `each` of them.
pub(crate) fn append(updates: &[KvUpdate], each: usize, log: &Path) -> (SnapshotWriter, Duration) {
    let start = Instant::now();
    let (mut writer, _) = SnapshotWriter::open(log, bare()).unwrap();
    let mut appended = 0;
    for some in updates.chunks(each) {
        for update in some {
            writer.append(update).unwrap();
        }
        appended += some.len();
        let cursor = WatchCursor::new([7; 16], appended as u64, SystemTime::UNIX_EPOCH);
        writer.checkpoint(Some(&cursor)).unwrap();
    }
    (writer, start.elapsed())
}

pub(crate) fn load(log: &Path, keys: usize) -> Duration {
    let start = Instant::now();
    let snapshot = snapshot::load(log).unwrap();
    let took = start.elapsed();
    assert_eq!(snapshot.entries.len(), keys);
    assert_eq!(snapshot.entries.get(&key(keys - 1)).unwrap().value, VALUE.as_slice());
    took
}
