//! The operations of beyond-slipstream in each case.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use slipstream::snapshot::{self, DEFAULT_COMPACT_THRESHOLD, SnapshotWriter};
use slipstream::{
    AppendLogSnapshot, BatchConfig, ExpiryRepair, KvEntry, KvStore, KvUpdate, SnapshotStore,
    VersionToken, WatchCursor, WatchScope, watch_applied_owned,
};
use tokio::sync::watch;

use crate::buckets::{VALUE, key};

/// Timeout, because without a marker the program would wait for a missing key forever.
const PATIENCE: Duration = Duration::from_secs(1200);

/// The settings of slipstream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) batch: BatchConfig,
    /// Length of a log in bytes at which it is compacted.
    pub(crate) threshold: u64,
}

impl Settings {
    /// Returns settings without compaction, which are the best for a log without superseded
    /// entries.
    pub(crate) fn bare(batch: BatchConfig) -> Self {
        Self { batch, threshold: u64::MAX }
    }

    pub(crate) fn default() -> Self {
        Self { batch: BatchConfig::default(), threshold: DEFAULT_COMPACT_THRESHOLD }
    }
}

/// A snapshot that has all expected updates, and the time that this took.
pub(crate) struct Current {
    pub(crate) took: Duration,
    fold: AppendLogSnapshot,
}

impl Current {
    /// Follows a bucket, from the content of the log until this number of further updates is
    /// applied and in the log. The caller has to give the number, because slipstream has no
    /// caught-up marker.
    pub(crate) async fn reach(
        store: &Arc<dyn KvStore>,
        log: &Path,
        settings: Settings,
        expected: usize,
    ) -> Self {
        let start = Instant::now();
        // It blocks, but no other work has to run here meanwhile.
        let (cursor, fold) = AppendLogSnapshot::open(log, settings.threshold).unwrap();
        let applied = AtomicUsize::new(0);
        let took = OnceLock::new();
        let (stop, stopped) = watch::channel(false);
        let followed = watch_applied_owned(
            store.watcher().unwrap(),
            WatchScope::All,
            Some(cursor),
            ExpiryRepair::Relist(store.reader()),
            Some(fold),
            None,
            settings.batch,
            |update: &KvUpdate| matches!(update, KvUpdate::Put(_)).then_some(()),
            |batch: Vec<()>| {
                applied.fetch_add(batch.len(), Ordering::Relaxed);
            },
            // This runs after the log has committed the batch.
            |_| {
                if applied.load(Ordering::Relaxed) >= expected && took.set(start.elapsed()).is_ok()
                {
                    stop.send_replace(true);
                }
            },
            stopped,
        );
        let end =
            tokio::time::timeout(PATIENCE, followed).await.expect("slipstream to get them all");
        end.result.unwrap();
        assert_eq!(applied.into_inner(), expected);
        Self { took: took.into_inner().unwrap(), fold: end.store.unwrap() }
    }

    /// Checks that this number of keys is present.
    pub(crate) fn check(&self, keys: usize) {
        assert!(!self.fold.cursor().is_none());
        assert_eq!(self.fold.get(&key(keys - 1)).unwrap().unwrap().value, VALUE);
        // Checks one key in a hundred, because counting would copy the whole state.
        for number in (0..keys).step_by(100) {
            assert!(self.fold.get(&key(number)).unwrap().is_some());
        }
    }
}

/// Returns this number of updates, each of another key.
pub(crate) fn updates(keys: usize) -> Vec<KvUpdate> {
    let entry = |number| KvEntry {
        key: key(number),
        value: VALUE.to_vec(),
        version: VersionToken::from_u64(number as u64 + 1),
    };
    (0..keys).map(|number| KvUpdate::Put(entry(number))).collect()
}

/// Writes them to a new log, with a checkpoint after every `each` of them.
pub(crate) fn append(updates: &[KvUpdate], each: usize, log: &Path) -> (SnapshotWriter, Duration) {
    let start = Instant::now();
    let mut writer = SnapshotWriter::open(log, u64::MAX).unwrap();
    let mut appended = 0;
    for some in updates.chunks(each) {
        for update in some {
            writer.write_update(update).unwrap();
        }
        appended += some.len();
        assert!(!writer.checkpoint(&WatchCursor::from_u64(appended as u64)).unwrap());
    }
    (writer, start.elapsed())
}

pub(crate) fn load(log: &Path, keys: usize) -> Duration {
    let start = Instant::now();
    let snapshot = snapshot::load(log).unwrap().unwrap();
    let took = start.elapsed();
    assert_eq!(snapshot.entries.len(), keys);
    assert_eq!(snapshot.entries[&key(keys - 1)].value, VALUE);
    took
}
