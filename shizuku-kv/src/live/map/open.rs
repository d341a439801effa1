//! Opening a live map: all of its state is waited for.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::timeout_at;

use super::LiveMap;
use super::compare::Comparison;
use super::drive::{Driver, look, report};
use super::status::{LiveMapStanding, LiveMapStatus};
use super::table::Table;
use crate::live::Task;
use crate::live::status::State;
use crate::store::{Deadline, KvError, KvResult, Store, Watch, WatchScope};
use crate::typed::{ByteDeserialize, KeyValue, KvReadError};

/// Waits for the state, for as long as the store's deadline.
pub(crate) async fn live_map<T>(
    store: Store,
    scope: WatchScope,
) -> Result<LiveMap<T::Key, T>, KvReadError>
where
    T: KeyValue<Key: Ord + Clone + 'static, Value: ByteDeserialize> + Send + Sync + 'static,
{
    let deadline = Deadline::after(store.deadline());
    let mut comparison = Comparison::new(store.compare_every());
    let (watch, table) = loop {
        let mut watch = begin(&store, &scope).await?;
        comparison.afresh();
        match state::<T>(&mut watch, &mut comparison, deadline).await {
            Ok(table) => break (watch, table),
            // The store was made again meanwhile.
            Err(KvError::CursorExpired { .. }) if !deadline.remaining().is_zero() => {}
            Err(error) => return Err(error.into()),
        }
    };
    report(table.rejections.values());
    let status = LiveMapStatus {
        link: watch.link(),
        standing: LiveMapStanding::Current,
        rejected: table.rejections.size(),
    };
    let seen = table.generation;
    let (sender, states) = watch::channel(State { generation: seen, status });
    let current = Arc::new(ArcSwap::from_pointee(table.clone()));
    // What was waited for is over; from here on the watch has the time that it needs.
    let store = store.with_deadline(store.deadline().max(Deadline::DEFAULT));
    let driver =
        Driver { store, scope, table, current: Arc::clone(&current), states: sender, comparison };
    let upkeep = driver.store.upkeep();
    let task = tokio::spawn(driver.run(watch));
    Ok(LiveMap { current, states, seen, task: Arc::new(Task(task.abort_handle())), upkeep })
}

/// All that a watch delivers before its caught-up marker.
pub(super) async fn state<T>(
    watch: &mut Watch,
    comparison: &mut Comparison,
    deadline: Deadline,
) -> KvResult<Table<T::Key, T>>
where
    T: KeyValue<Key: Ord + Clone, Value: ByteDeserialize>,
{
    let mut table = Table::new();
    loop {
        let next = timeout_at(deadline.instant(), watch.next()).await;
        // What changes all the time is always ready.
        let Some(update) = next.ok().filter(|_| !deadline.remaining().is_zero()) else {
            return Err(deadline.timeout("live_map", None));
        };
        let update = update.unwrap_or(Err(KvError::Closed { operation: "live_map" }))?;
        comparison.take(update.entry(), watch.cursor());
        match update.into_entry() {
            Some(entry) => drop(table.take(look::<T>(&entry))),
            None => return Ok(table),
        }
        tokio::task::consume_budget().await;
    }
}

/// A watch that a live map follows, from the start of its scope.
pub(super) async fn begin(store: &Store, scope: &WatchScope) -> KvResult<Watch> {
    store.shared_watch(scope.clone()).await
}
