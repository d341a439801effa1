//! The backend through the handle that users hold, with tokio's time stopped.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, advance, timeout};

mod expiry;
mod pieces;
mod watches;

use super::MemoryConnection;
use super::log::EXPIRY;
use super::log::follow::WALK;
use crate::backend::embedded::MARKER_TTL;
use crate::store::{
    Connection, Deadline, Key, KvEntry, KvError, KvUpdate, Store, StoreConfig, Watch, WatchCursor,
    WatchScope, Write,
};

const SECOND: Duration = Duration::from_secs(1);

async fn store(config: StoreConfig) -> Store {
    MemoryConnection::new().store_with_config("test", config).await.unwrap()
}

/// Returns a store whose values expire `seconds` after their write.
async fn ageing(seconds: u64) -> Store {
    store(StoreConfig::new().max_age(Duration::from_secs(seconds))).await
}

fn shape(update: &KvUpdate) -> String {
    match update {
        KvUpdate::CaughtUp => "caught up".to_owned(),
        KvUpdate::Put(entry) => format!("{}={}", entry.key, text(entry)),
        KvUpdate::Delete(entry) => format!("{} {:?}", entry.key, entry.operation),
    }
}

fn text(entry: &KvEntry) -> String {
    String::from_utf8(entry.value.to_vec()).unwrap()
}

/// Returns the next update. Fails if the watch has none in an hour of stopped time.
async fn next(watch: &mut Watch) -> String {
    shape(&timeout(Duration::from_secs(3600), watch.next()).await.unwrap().unwrap().unwrap())
}

/// Polls a future once.
async fn poll_once<T>(mut future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
}

/// Returns all updates that the watch has without waiting. Yielding to other tasks does not count
/// as waiting.
async fn ready(watch: &mut Watch) -> Vec<String> {
    let mut updates = Vec::new();
    loop {
        let mut next = pin!(watch.next());
        let update = match poll_once(next.as_mut()).await {
            Poll::Pending => poll_once(next).await,
            ready => ready,
        };
        let Poll::Ready(Some(update)) = update else { return updates };
        updates.push(shape(&update.unwrap()));
    }
}

/// Starts a task that counts how often it runs.
fn bystander() -> Arc<AtomicUsize> {
    let turns = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&turns);
    tokio::spawn(async move {
        loop {
            counter.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    });
    turns
}

async fn keys(store: &Store, scope: WatchScope) -> Vec<String> {
    store.keys(scope).try_collect().await.unwrap().iter().map(Key::to_string).collect()
}

fn reason(error: KvError) -> &'static str {
    match error {
        KvError::CursorExpired { reason, .. } => reason,
        other => panic!("not an expired cursor: {other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn deleted_store_is_closed_after_shutdown() {
    let connection = MemoryConnection::new();
    let store = connection.store("test").await.unwrap();
    connection.delete_store("test").await.unwrap();
    assert!(matches!(store.get("a").await, Err(KvError::StoreNotFound { .. })));
    connection.shutdown().await.unwrap();
    assert!(matches!(store.get("a").await, Err(KvError::Closed { .. })));
    assert!(matches!(store.put("a", "1").await, Err(KvError::Closed { .. })));
    assert!(matches!(store.watch(WatchScope::All).await, Err(KvError::Closed { .. })));
    assert!(matches!(store.scan(WatchScope::All).next().await, Some(Err(KvError::Closed { .. }))));
}
