//! Tests of the task with handmade watches.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::{Duration, UNIX_EPOCH};

use arc_swap::ArcSwap;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::sync::watch;

use super::LiveMapStatus;
use super::compare::Comparison;
use super::drive::{LiveMapTask, read_entry};
use super::open::{Progress, initial_state};
use super::status::LiveMapSyncState;
use super::table::{Finding, Table};
use crate::live::status::State;
use crate::record::{ByteDeserialize, Bytes, DecodeError, KeyValue};
use crate::store::{
    Deadline, Key, KvEntry, KvError, KvOperation, KvUpdate, Store, VersionToken, Watch,
    WatchCursor, WatchLink, WatchScope,
};
use crate::watch::Follower;

/// A record with a number as key and a number as value.
struct Count(u64, Number);

struct Number(u64);

impl ByteDeserialize for Number {
    fn from_bytes(bytes: &Bytes) -> Result<Self, DecodeError> {
        assert_ne!(bytes.as_ref(), b"panic");
        let number = std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok());
        number.map(Self).ok_or_else(|| DecodeError::new("no number"))
    }
}

impl KeyValue for Count {
    type Key = u64;
    type Value = Number;

    fn kv_key(&self) -> u64 {
        self.0
    }

    fn kv_value(&self) -> &Number {
        &self.1
    }

    fn from_kv(key: u64, value: Number) -> Self {
        Self(key, value)
    }
}

fn entry(key: &str, version: u64, value: Option<&str>) -> KvEntry {
    let created = UNIX_EPOCH + Duration::from_secs(version);
    let (key, version) = (Key::new(key).unwrap(), VersionToken::from_u64(version));
    match value {
        Some(value) => {
            KvEntry::put(key, Bytes::copy_from_slice(value.as_bytes()), version, created)
        }
        None => KvEntry::tombstone(key, KvOperation::Delete, version, created),
    }
}

fn put(key: u64, version: u64, value: &str) -> KvUpdate {
    entry(&key.to_string(), version, Some(value)).into()
}

type Items = tokio::sync::mpsc::UnboundedSender<Result<KvUpdate, KvError>>;

fn watch() -> (Items, Watch) {
    let (items, rest) = tokio::sync::mpsc::unbounded_channel();
    let updates =
        stream::unfold(rest, |mut rest| async move { rest.recv().await.map(|item| (item, rest)) });
    let cursor = || WatchCursor::new([0; 16], 0, UNIX_EPOCH);
    (items, Watch::new(updates.map(move |item| item.map(|update| (update, cursor())))))
}

type Current = Arc<ArcSwap<Table<u64, Count>>>;

fn comparison() -> Comparison {
    Comparison::new(std::time::Duration::from_secs(60))
}

async fn store() -> Store {
    crate::connect("memory:").await.unwrap().store("counts").await.unwrap()
}

/// Returns a task with ten values, which has read the store.
async fn task() -> (LiveMapTask<Count>, Current, watch::Receiver<State<LiveMapStatus>>) {
    let store = store().await;
    let mut table = Table::new();
    for key in 0..10 {
        table.apply(read_entry::<Count>(&entry(&key.to_string(), key, Some("0"))));
    }
    let current = Arc::new(ArcSwap::from_pointee(table.clone()));
    let status =
        LiveMapStatus { link: WatchLink::Up, sync_state: LiveMapSyncState::Rereading, rejected: 0 };
    let (states, status) = watch::channel(State { generation: table.generation, status });
    let task = LiveMapTask {
        follower: Follower::shared(&store, WatchScope::All),
        comparison: Comparison::new(store.compare_every()),
        store,
        scope: WatchScope::All,
        table,
        unseen: None,
        rejected: Vec::new(),
        current: Arc::clone(&current),
        states,
    };
    (task, current, status)
}

/// Reads the store again, over a watch.
fn reread(task: &mut LiveMapTask<Count>, watch: Watch) {
    task.follower = Follower::over(&task.store, watch);
    task.begin_reading();
}

/// Applies events until the watch ends. Returns the error.
async fn to_the_end(task: &mut LiveMapTask<Count>) -> KvError {
    loop {
        if let Some(error) = task.step().await {
            return error;
        }
    }
}

fn values(current: &Current) -> Vec<(u64, u64)> {
    current.load().entries.iter().map(|(key, count)| (*key, count.1.0)).collect()
}

/// Polls the future until it waits, with everything that is ready applied.
fn poll_to_rest(future: impl Future) {
    assert!(pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_pending());
}

#[tokio::test]
async fn initial_state_ends_with_marker_or_deadline() {
    let store = store().await;
    let brief = || Progress::within(Deadline::after(Duration::from_millis(50)));
    let (items, watch) = watch();
    let mut follower = Follower::over(&store, watch);
    for key in 0..300 {
        items.send(Ok(put(key, key + 1, "1"))).unwrap();
    }
    // Without the marker, the state is not known to be complete.
    let read = async |follower: &mut Follower| {
        initial_state::<Count>(follower, &mut comparison(), &mut brief()).await
    };
    let late = read(&mut follower).await.err().unwrap();
    assert!(matches!(late, KvError::Timeout { operation: "live_map", .. }), "{late:?}");
    items.send(Ok(KvUpdate::CaughtUp)).unwrap();
    assert_eq!(read(&mut follower).await.unwrap().entries.len(), 0);
    // A key that changes all the time.
    let cursor = WatchCursor::new([0; 16], 0, UNIX_EPOCH);
    let updates = stream::iter(0..).map(move |version| Ok((put(1, version, "1"), cursor)));
    let late = read(&mut Follower::over(&store, Watch::new(updates))).await.err().unwrap();
    assert!(matches!(late, KvError::Timeout { .. }), "{late:?}");
    drop(items);
    let ended = read(&mut follower).await.err().unwrap();
    assert!(matches!(ended, KvError::Closed { .. }), "{ended:?}");
}

/// Returns the outcome of a reading whose updates precede the caught-up marker, each 40 ms after
/// the previous one. The deadline is 50 ms.
async fn read_slowly(
    updates: impl Iterator<Item = KvUpdate> + Send + 'static,
) -> Result<usize, KvError> {
    let (items, watch) = watch();
    let writer = tokio::spawn(async move {
        for update in updates.chain([KvUpdate::CaughtUp]) {
            tokio::time::sleep(Duration::from_millis(40)).await;
            // The reading may have ended.
            let _ = items.send(Ok(update));
        }
        items
    });
    let mut progress = Progress::within(Deadline::after(Duration::from_millis(50)));
    let mut follower = Follower::over(&store().await, watch);
    let table = initial_state::<Count>(&mut follower, &mut comparison(), &mut progress).await;
    drop(writer.await.unwrap());
    Ok(table?.entries.len())
}

/// Each new key restarts the deadline, so that a large state can take longer.
#[tokio::test(start_paused = true)]
async fn state_that_grows_may_take_longer_than_the_deadline() {
    let read = read_slowly((0..10).map(|key| put(key, key + 1, "1"))).await;
    // The marker is 40 ms after the last key.
    assert_eq!(read.unwrap(), 10);
}

/// Writers cannot extend the wait forever.
#[tokio::test(start_paused = true)]
async fn changes_of_known_keys_do_not_extend_the_deadline() {
    let read = read_slowly((0..10).map(|version| put(7, version + 1, "1"))).await;
    assert!(matches!(read, Err(KvError::Timeout { operation: "live_map", .. })), "{read:?}");
}

#[tokio::test]
async fn map_being_read_again_changes_once_at_the_end() {
    let (mut task, current, mut states) = task().await;
    let before = values(&current);
    let (items, watch) = watch();
    reread(&mut task, watch);
    let mut follow = Box::pin(to_the_end(&mut task));
    for key in 5..15 {
        items.send(Ok(put(key, key, if key < 10 { "0" } else { "1" }))).unwrap();
        poll_to_rest(&mut follow);
        assert_eq!(values(&current), before);
        assert!(matches!(
            states.borrow_and_update().status.sync_state,
            LiveMapSyncState::Rereading
        ));
    }
    // One key exists, and its value is rejected.
    items.send(Ok(put(4, 99, "x"))).unwrap();
    items.send(Ok(KvUpdate::CaughtUp)).unwrap();
    poll_to_rest(&mut follow);
    let expected = (4..15).map(|key| (key, u64::from(key >= 10))).collect::<Vec<_>>();
    assert_eq!(values(&current), expected);
    assert_eq!(current.load().generation, 10 + 4 + 5);
    assert!(matches!(states.borrow_and_update().status.sync_state, LiveMapSyncState::Current));
    assert_eq!(states.borrow().status.rejected, 1);
}

#[tokio::test]
async fn interrupted_reading_changes_nothing() {
    let (mut task, current, _states) = task().await;
    let before = values(&current);
    let (items, watch) = watch();
    items.send(Ok(put(3, 100, "7"))).unwrap();
    items.send(Ok(put(4, 101, "x"))).unwrap();
    items.send(Err(KvError::StoreNotFound { store: "counts".to_owned() })).unwrap();
    reread(&mut task, watch);
    let end = to_the_end(&mut task).await;
    assert!(matches!(end, KvError::StoreNotFound { .. }));
    assert_eq!(values(&current), before);
    assert!(current.load().rejections.is_empty());
    // A later reading starts without the interrupted one.
    let (items, watch) = self::watch();
    for key in 0..10 {
        items.send(Ok(put(key, key, "0"))).unwrap();
    }
    items.send(Ok(KvUpdate::CaughtUp)).unwrap();
    drop(items);
    reread(&mut task, watch);
    let end = to_the_end(&mut task).await;
    assert!(matches!(end, KvError::Closed { .. }));
    assert_eq!(values(&current), before);
    assert_eq!((current.load().generation, current.load().rejections.size()), (10, 0));
}

/// Log lines of this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = String::new();
        event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            line.push_str(&format!("{field}={value:?} "));
        });
        self.0.lock().unwrap().push(line);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn rejection_is_logged_once_without_the_value() {
    let (mut task, _current, _states) = task().await;
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    for (version, reported) in [(100, 2), (100, 0), (101, 1)] {
        let (items, watch) = watch();
        items.send(Ok(put(1, version, "hunter2"))).unwrap();
        items.send(Ok(entry("hidden", 7, Some("hunter2")).into())).unwrap();
        items.send(Ok(KvUpdate::CaughtUp)).unwrap();
        drop(items);
        reread(&mut task, watch);
        to_the_end(&mut task).await;
        let lines = std::mem::take(&mut *log.0.lock().unwrap());
        assert_eq!(lines.len(), reported, "{lines:?}");
        assert!(
            lines.iter().all(|line| line.contains("Count") && !line.contains("hunter2")),
            "{lines:?}"
        );
    }
}

/// Neither the map nor its status is published again.
#[tokio::test]
async fn event_without_news_publishes_nothing() {
    let (mut task, current, mut states) = task().await;
    let (links, link) = watch::channel(WatchLink::Up);
    let (_items, watch) = watch();
    task.follower = Follower::over(&task.store, watch.with_link(link));
    let mut follow = Box::pin(to_the_end(&mut task));
    poll_to_rest(&mut follow);
    let published = current.load_full();
    let down = WatchLink::down(UNIX_EPOCH, "test");
    for is_news in [true, false] {
        states.mark_unchanged();
        links.send_replace(down.clone());
        poll_to_rest(&mut follow);
        assert_eq!(states.has_changed().unwrap(), is_news);
        assert!(Arc::ptr_eq(&current.load_full(), &published));
    }
}

#[tokio::test]
async fn ready_updates_are_published_together() {
    let (mut task, current, mut states) = task().await;
    let (items, watch) = watch();
    task.follower = Follower::over(&task.store, watch);
    let mut follow = Box::pin(to_the_end(&mut task));
    poll_to_rest(&mut follow);
    for version in 10..100 {
        items.send(Ok(put(version % 3, version, &version.to_string()))).unwrap();
    }
    let held = current.load_full();
    // Runs with a budget of its own, which is larger than the number of ready updates.
    tokio::task::yield_now().await;
    poll_to_rest(&mut follow);
    assert_eq!(values(&current)[..3], [(0, 99), (1, 97), (2, 98)]);
    assert_eq!(held.entries.get(&0).unwrap().1.0, 0);
    states.mark_unchanged();
    // More updates than one batch takes: the map is published before an endless series ends.
    for version in 100..10_000 {
        items.send(Ok(put(5, version, &version.to_string()))).unwrap();
    }
    let mut seen = Vec::new();
    while values(&current)[5].1 != 9_999 {
        assert!(follow.as_mut().now_or_never().is_none());
        seen.push(values(&current)[5].1);
        tokio::task::yield_now().await;
    }
    assert!(seen.len() > 10, "{seen:?}");
    items.send(Ok(put(6, 10_000, "6"))).unwrap();
    items.send(Err(KvError::StoreNotFound { store: "counts".to_owned() })).unwrap();
    follow.await;
    assert_eq!(values(&current)[6], (6, 6));
}

/// `007` parses to the key 7, whose text differs. Changes of `007` do not affect 7.
#[test]
fn key_with_another_text_is_another_key() {
    let finding = |key: &str, value| read_entry::<Count>(&entry(key, 1, value));
    assert!(matches!(finding("7", Some("1")), Finding::Good { own: 7, .. }));
    assert!(matches!(finding("7", Some("x")), Finding::Bad { own: Some(7), .. }));
    assert!(matches!(finding("7", Some("panic")), Finding::Bad { own: Some(7), .. }));
    assert!(matches!(finding("7", None), Finding::Absent { own: Some(7), .. }));
    for key in ["007", "x", "settings"] {
        assert!(matches!(finding(key, Some("1")), Finding::Bad { own: None, .. }), "{key}");
        assert!(matches!(finding(key, None), Finding::Absent { own: None, .. }), "{key}");
    }
}
