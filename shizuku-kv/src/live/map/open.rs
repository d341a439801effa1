//! Opens a live map: waits for its whole initial state.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::timeout_at;

use super::LiveMap;
use super::compare::Comparison;
use super::drive::{LiveMapTask, log_rejections, read_entry};
use super::status::{LiveMapStatus, LiveMapSyncState};
use super::table::Table;
use crate::live::status::State;
use crate::live::stream::TaskHandle;
use crate::record::{ByteDeserialize, KeyValue, KvReadError};
use crate::store::{Deadline, KvError, KvResult, Store, WatchScope};
use crate::watch::{Event, Follower, upkeep};

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
    let mut follower = Follower::shared(&store, scope.clone());
    let table = initial_state::<T>(&mut follower, &mut comparison, &mut progress).await?;
    log_rejections(table.rejections.values());
    let status = LiveMapStatus {
        link: follower.link().clone(),
        sync_state: LiveMapSyncState::Current,
        rejected: table.rejections.size(),
    };
    let seen = table.generation;
    let (sender, states) = watch::channel(State { generation: seen, status });
    let current = Arc::new(ArcSwap::from_pointee(table.clone()));
    // The wait is over. From here on, the watch has the time that it needs.
    let store = store.with_deadline(store.deadline().max(Deadline::DEFAULT));
    follower.set_store(store.clone());
    let upkeep = upkeep(&store);
    let task = LiveMapTask {
        store,
        scope,
        follower,
        table,
        unseen: None,
        rejected: Vec::new(),
        current: Arc::clone(&current),
        states: sender,
        comparison,
    };
    let task = tokio::spawn(task.run());
    Ok(LiveMap { current, states, seen, task: TaskHandle::new(task.abort_handle()), upkeep })
}

/// Reads all updates of a watch before its caught-up marker. Begins again if the store was
/// recreated meanwhile.
pub(super) async fn initial_state<T>(
    follower: &mut Follower,
    comparison: &mut Comparison,
    progress: &mut Progress,
) -> KvResult<Table<T::Key, T>>
where
    T: KeyValue<Key: Ord + Clone, Value: ByteDeserialize>,
{
    let mut table = Table::new();
    loop {
        let deadline = progress.deadline;
        let next = timeout_at(deadline.instant(), follower.next()).await;
        // A watch of keys that change all the time is always ready, so the deadline is checked too.
        let Some(event) = next.ok().filter(|_| !deadline.remaining().is_zero()) else {
            return Err(deadline.timeout("live_map", None));
        };
        match event {
            Event::Opened => {
                comparison.start_over();
                table = Table::new();
            }
            Event::Update(update) => {
                comparison.record(update.entry(), follower.cursor());
                progress.see(comparison.keys());
                if let Some(entry) = update.into_entry() {
                    drop(table.apply(read_entry::<T>(&entry)));
                }
            }
            Event::CaughtUp { .. } => {
                comparison.record(None, follower.cursor());
                return Ok(table);
            }
            Event::LinkChanged | Event::Lost(KvError::CursorExpired { .. }) => {}
            Event::Lost(error) | Event::Closed(error) => return Err(error),
        }
        tokio::task::consume_budget().await;
    }
}
