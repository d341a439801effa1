//! A replica that is stopped and resumed while others write, over a log that outlives it.

use std::convert::Infallible;
use std::time::Duration;

use shizuku_kv::replica::{Batch, CancellationToken, LogReader, LogStorage};
use shizuku_kv::snapshot::{SnapshotOptions, SyncPolicy};
use shizuku_kv::{BatchConfig, Store, VersionToken, WatchScope, watch_applied};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::differential::ledger::{Ledger, Side};

/// Timeout for the replica to agree with the store, once all writes have ended.
const SETTLED_WITHIN: Duration = Duration::from_secs(45);

/// A replica of a whole store.
pub(crate) struct Mirror {
    store: Store,
    home: TempDir,
    running: Option<Running>,
}

struct Running {
    state: LogReader,
    stop: CancellationToken,
    task: JoinHandle<Result<(), String>>,
}

impl Mirror {
    pub(crate) fn new(store: &Store) -> Self {
        Self { store: store.clone(), home: tempfile::tempdir().unwrap(), running: None }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub(crate) async fn start(&mut self) -> Result<(), String> {
        let options = SnapshotOptions::new().sync(SyncPolicy::Never);
        let storage = LogStorage::open(self.home.path().join("replica"), options).await;
        let storage = storage.map_err(|error| format!("the replica's log: {error}"))?;
        let (state, stop, store) = (storage.reader(), CancellationToken::new(), self.store.clone());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let apply = async |_: Batch| Ok::<_, Infallible>(());
            let batches = BatchConfig::new().window(Duration::from_millis(1));
            let applied =
                watch_applied(&store, WatchScope::All, storage, batches, stopped, apply).await;
            applied.map(drop).map_err(|error| format!("the replica: {error}"))
        });
        self.running = Some(Running { state, stop, task });
        Ok(())
    }

    pub(crate) async fn stop(&mut self) -> Result<(), String> {
        let Some(Running { stop, task, .. }) = self.running.take() else { return Ok(()) };
        stop.cancel();
        task.await.map_err(|error| format!("the replica: {error}"))?
    }

    /// Waits until the replica holds exactly the live keys of the store.
    pub(crate) async fn settle(&mut self, ledger: &Ledger) -> Result<(), String> {
        if !self.is_running() {
            self.start().await?;
        }
        let end = Instant::now() + SETTLED_WITHIN;
        let expected: Vec<(String, VersionToken)> = ledger
            .live(&WatchScope::All)
            .into_iter()
            .map(|(key, write)| (key.to_string(), write.versions[Side::Nats.index()]))
            .collect();
        loop {
            let Some(running) = &self.running else { return Ok(()) };
            let mut held = Vec::new();
            running.state.for_each(|entry| held.push((entry.key().to_owned(), entry.version())));
            held.sort_by(|one, other| one.0.cmp(&other.0));
            if held == expected {
                return self.stop().await;
            }
            if running.task.is_finished() || Instant::now() >= end {
                let only = |these: &[(String, VersionToken)], those: &[(String, VersionToken)]| {
                    these
                        .iter()
                        .filter(|one| !those.contains(one))
                        .take(5)
                        .cloned()
                        .collect::<Vec<_>>()
                };
                return Err(format!(
                    "the replica has {:?} that the store does not have and lacks {:?}; stopping it: {:?}",
                    only(&held, &expected),
                    only(&expected, &held),
                    self.stop().await,
                ));
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}
