//! Readers that end together with their connection leave nothing on the server.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shizuku_kv::replica::{Batch, Replica};
use shizuku_kv::{
    Connection, KeyValue, KeyValueRead, KvUpdate, LiveRead, LiveStatic, StaticKeyIndexedValue,
    Store, WatchScope, connect,
};
use shizuku_kv_tests::{NatsServer, TcpProxy, eventually, unique};
use tokio::runtime::Runtime;

use super::next;

#[derive(Clone, Debug, Serialize, Deserialize, StaticKeyIndexedValue)]
#[kv(key = "config.pool", codec = json)]
struct Pool {
    size: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize, KeyValue)]
#[kv(key = "user.{id}", codec = json)]
struct User {
    id: u64,
}

/// Every kind of reader of one store, each with a consumer, until it is dropped.
struct Readers(
    #[allow(dead_code, reason = "held until it is dropped")] Vec<Box<dyn std::any::Any + Send>>,
);

impl Readers {
    async fn open(store: &Store) -> Self {
        let mut watch = store.watch(WatchScope::All).await.unwrap();
        while next(&mut watch).await.unwrap() != KvUpdate::CaughtUp {}
        let untouched = store.watch(WatchScope::prefix("user.")).await.unwrap();
        let (scan, keys) = (store.scan(WatchScope::All), store.keys(WatchScope::All));
        scan.next().await.unwrap().unwrap();
        keys.next().await.unwrap().unwrap();
        let store = &store.with_deadline(Duration::from_secs(60));
        let pool = Pool::live(store).await.unwrap();
        let users = User::live_map(store).await.unwrap();
        let typed = User::watch_all(store).await.unwrap();
        let mut replica = Replica::new(store, WatchScope::All);
        let mut monitor = replica.monitor();
        let task = tokio::spawn(async move {
            replica.run(|_: Batch| std::future::ready(Ok::<_, std::convert::Infallible>(()))).await
        });
        assert!(monitor.current().await);
        Self(vec![
            Box::new(watch),
            Box::new(untouched),
            Box::new(scan),
            Box::new(keys),
            Box::new(pool),
            Box::new(users),
            Box::new(typed),
            Box::new(AbortOnDrop(task.abort_handle())),
        ])
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn filled() -> (String, Arc<dyn Connection>, Store) {
    let server = NatsServer::shared();
    let name = unique("dropped");
    let connection = connect(&server.url()).await.unwrap();
    let store = connection.store(&name).await.unwrap();
    store.put("config.pool", r#"{"size":1}"#).await.unwrap();
    // More than a listing reads ahead.
    let items = (0..9_000).map(|id| (format!("user.{id}"), format!(r#"{{"id":{id}}}"#)));
    assert!(store.put_many(items).await.iter().all(Result::is_ok));
    (name, connection, store)
}

/// The server deletes consumers without a reader after 60 s; the tests wait for 20 s at most.
async fn none_are_left(name: &str) {
    let server = NatsServer::shared();
    eventually("no consumer is left", async || server.consumers(name).await.is_empty()).await;
}

#[tokio::test]
async fn end_of_a_connection_deletes_the_consumers_of_readers() {
    for (is_shutdown, is_dropped_before) in [(true, false), (true, true), (false, false)] {
        println!("shutdown: {is_shutdown}, dropped before: {is_dropped_before}");
        let (name, connection, store) = filled().await;
        let mut readers = Some(Readers::open(&store).await);
        assert!(NatsServer::shared().consumers(&name).await.len() >= 6);
        if is_dropped_before {
            readers = None;
        }
        if is_shutdown {
            connection.shutdown().await.unwrap();
        } else {
            drop((connection, store, readers.take()));
        }
        none_are_left(&name).await;
        drop(readers);
    }
}

/// No other reference keeps the client. The client's own task, on another thread, may find the
/// client gone before it has written anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn last_watch_deletes_its_consumer_with_the_connection() {
    let (name, connection, store) = filled().await;
    let mut watches = Vec::new();
    for _ in 0..50 {
        let store = connect(&NatsServer::shared().url()).await.unwrap().store(&name).await.unwrap();
        let mut watch = store.watch(WatchScope::All).await.unwrap();
        next(&mut watch).await.unwrap();
        watches.push(watch);
    }
    drop(watches);
    none_are_left(&name).await;
    drop((connection, store));
}

/// Messages for the client are on their way. If the client closed its socket before the answer, the
/// connection would end, and the deletion with it.
#[tokio::test]
async fn deletion_is_answered_before_its_connection_ends() {
    let server = NatsServer::shared();
    for end in ["drop", "shutdown", "drop on a thread", "drop on a runtime that ends"] {
        println!("{end}");
        let name = unique("dropped");
        let direct = connect(&server.url()).await.unwrap();
        let written = direct.store(&name).await.unwrap();
        let proxy = TcpProxy::start(server.port()).await;
        let connection = connect(&proxy.url()).await.unwrap();
        let store = connection.store(&name).await.unwrap();
        let watch = store.watch(WatchScope::All).await.unwrap();
        assert_eq!(server.consumers(&name).await.len(), 1);
        proxy.delay_requests(Duration::from_millis(500));
        let ended = async {
            if end == "shutdown" {
                connection.shutdown().await.unwrap();
                return;
            }
            let all = (connection, store, watch);
            if end == "drop" {
                return drop(all);
            }
            let thread = std::thread::spawn(move || {
                let runtime = Runtime::new().unwrap();
                let _entered = (end == "drop on a runtime that ends").then(|| runtime.enter());
                drop(all);
            });
            thread.join().unwrap();
        };
        let deleted = eventually("no consumer is left", async || {
            written.put("config.pool", "1").await.unwrap();
            server.consumers(&name).await.is_empty()
        });
        tokio::join!(ended, deleted);
    }
}

/// The runtime ends right after the shutdown.
#[test]
fn shutdown_deletes_consumers_before_its_runtime_ends() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let name = runtime.block_on(async {
        let (name, connection, store) = filled().await;
        let mut watch = store.watch(WatchScope::All).await.unwrap();
        next(&mut watch).await.unwrap();
        let other = store.watch(WatchScope::All).await.unwrap();
        drop(other);
        connection.shutdown().await.unwrap();
        drop(watch);
        name
    });
    drop(runtime);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(none_are_left(&name));
}
