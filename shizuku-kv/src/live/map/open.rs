//! Opens a live map: waits for its whole initial state.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::timeout_at;

use super::LiveMap;
use super::compare::Comparison;
use super::drive::{LiveMapTask, look, report};
use super::status::{LiveMapStatus, LiveMapSyncState};
use super::table::Table;
use crate::live::Task;
use crate::live::status::State;
use crate::record::{ByteDeserialize, KeyValue, KvReadError};
use crate::store::{Deadline, KvError, KvResult, Store, Watch, WatchScope};

/// Deadline of the wait for the initial state. It measures progress, because the state grows with
/// the store: each key that was not known before restarts it. Changes of known keys do not, so that
/// writers cannot extend the wait without end.
pub(super) struct Progress {
    deadline: Deadline,
    keys: u64,
}

impl Progress {
    pub(super) fn within(deadline: Deadline) -> Self {
        Self { deadline, keys: 0 }
    }

    fn see(&mut self, keys: u64) {
        if keys > self.keys {
            self.keys = keys;
            self.deadline = Deadline::after(self.deadline.limit());
        }
    }
}

/// Waits for the initial state, as long as it makes progress within the store's deadline.
pub(crate) async fn live_map<T>(
    store: Store,
    scope: WatchScope,
) -> Result<LiveMap<T::Key, T>, KvReadError>
where
    T: KeyValue<Key: Ord + Clone + 'static, Value: ByteDeserialize> + Send + Sync + 'static,
{
    let mut progress = Progress::within(Deadline::after(store.deadline()));
    let mut comparison = Comparison::new(store.compare_every());
    let (watch, table) = loop {
        let mut watch = begin(&store, &scope).await?;
        comparison.afresh();
        match state::<T>(&mut watch, &mut comparison, &mut progress).await {
            Ok(table) => break (watch, table),
            // The store was recreated meanwhile.
            Err(KvError::CursorExpired { .. }) if !progress.deadline.remaining().is_zero() => {}
            Err(error) => return Err(error.into()),
        }
    };
    report(table.rejections.values());
    let status = LiveMapStatus {
        link: watch.link(),
        sync_state: LiveMapSyncState::Current,
        rejected: table.rejections.size(),
    };
    let seen = table.generation;
    let (sender, states) = watch::channel(State { generation: seen, status });
    let current = Arc::new(ArcSwap::from_pointee(table.clone()));
    // The wait is over. From here on, the watch has the time that it needs.
    let store = store.with_deadline(store.deadline().max(Deadline::DEFAULT));
    let driver = LiveMapTask {
        store,
        scope,
        table,
        current: Arc::clone(&current),
        states: sender,
        comparison,
    };
    let upkeep = driver.store.upkeep();
    let task = tokio::spawn(driver.run(watch));
    Ok(LiveMap { current, states, seen, task: Arc::new(Task(task.abort_handle())), upkeep })
}

/// Reads everything that a watch delivers before its caught-up marker.
pub(super) async fn state<T>(
    watch: &mut Watch,
    comparison: &mut Comparison,
    progress: &mut Progress,
) -> KvResult<Table<T::Key, T>>
where
    T: KeyValue<Key: Ord + Clone, Value: ByteDeserialize>,
{
    let mut table = Table::new();
    loop {
        let deadline = progress.deadline;
        let next = timeout_at(deadline.instant(), watch.next()).await;
        // A watch of keys that change all the time is always ready, so the deadline is checked too.
        let Some(update) = next.ok().filter(|_| !deadline.remaining().is_zero()) else {
            return Err(deadline.timeout("live_map", None));
        };
        let update = update.unwrap_or(Err(KvError::Closed { operation: "live_map" }))?;
        comparison.take(update.entry(), watch.cursor());
        progress.see(comparison.keys());
        match update.into_entry() {
            Some(entry) => drop(table.take(look::<T>(&entry))),
            None => return Ok(table),
        }
        tokio::task::consume_budget().await;
    }
}

/// Opens a watch for a live map, from the start of its scope.
pub(super) async fn begin(store: &Store, scope: &WatchScope) -> KvResult<Watch> {
    store.shared_watch(scope.clone()).await
}
