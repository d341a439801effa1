//! Connecting to NATS, staying connected, and ending: every accepted and every rejected way, and no
//! call hangs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test fails by panicking, and its name says what it shows"
)]

mod authentication;
mod outages;
mod reaching;
mod removed_user;
mod renewal;
mod runtimes;
mod shutdown;
mod tls;
mod unanswered;

use std::future::Future;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::BoxFuture;
use shizuku_kv::{
    Connection, KvError, KvResult, KvUpdate, NatsConnection, NatsConnectionConfig, Store,
    StoreConfig, VersionToken, Watch, WatchScope, nats_connect,
};
use shizuku_kv_tests::{PATIENCE, eventually, unique};

/// Deadline in tests without an answer.
const SHORT: Duration = Duration::from_millis(700);

/// Maximum time that a busy machine may take beyond a deadline. Every default deadline is longer
/// than both together.
const GRACE: Duration = Duration::from_secs(4);

/// Awaits a future that has to end by a deadline.
async fn within<T>(deadline: Duration, what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(deadline + GRACE, future)
        .await
        .unwrap_or_else(|_| panic!("{what} did not end within {deadline:?} and {GRACE:?}"))
}

/// Returns the error of connecting with a deadline of [`SHORT`].
async fn refused(config: NatsConnectionConfig) -> KvError {
    let shown = format!("{config:?}");
    within(SHORT, &shown, nats_connect(config.connect_timeout(SHORT))).await.expect_err(&shown)
}

/// Returns the error of connecting to a server that answers.
async fn rejected(config: NatsConnectionConfig) -> KvError {
    let shown = format!("{config:?}");
    within(PATIENCE, &shown, nats_connect(config.connect_timeout(PATIENCE)))
        .await
        .expect_err(&shown)
}

fn config(url: &str) -> NatsConnectionConfig {
    NatsConnectionConfig::from_url(url).unwrap()
}

async fn works(connection: &dyn Connection) {
    connection.health().await.unwrap();
    let store = connection.store(&unique("works")).await.unwrap();
    let version = store.put("key", "value").await.unwrap();
    assert_eq!(store.get("key").await.unwrap().unwrap().version, version);
}

/// Opens a store with the default settings.
async fn opened(connection: &dyn Connection, name: &str) -> Store {
    opened_with(connection, name, StoreConfig::new()).await
}

/// Opens a store. On a busy machine, its creation may take longer than the deadline of the
/// connection, and is repeated.
async fn opened_with(connection: &dyn Connection, name: &str, config: StoreConfig) -> Store {
    let mut store = None;
    eventually("the store is opened", async || {
        store = connection.store_with_config(name, config.clone()).await.ok();
        store.is_some()
    })
    .await;
    store.unwrap()
}

/// Connects and uses the connection.
async fn lets_in(config: NatsConnectionConfig) -> NatsConnection {
    let shown = format!("{config:?}");
    let connection = nats_connect(config).await.unwrap_or_else(|error| panic!("{shown}: {error}"));
    works(&connection).await;
    connection
}

/// Returns a port on which nothing listens.
pub(crate) fn closed_port() -> u16 {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Creates a file with this text, in a folder of the same lifetime.
fn file(name: &str, text: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

/// Returns every operation.
fn operations<'a>(
    connection: &'a dyn Connection,
    store: &'a Store,
    [updated, deleted]: [VersionToken; 2],
) -> Vec<(&'static str, BoxFuture<'a, KvResult<()>>)> {
    async fn first<T>(item: Option<KvResult<T>>) -> KvResult<()> {
        item.expect("an item, be it an error").map(drop)
    }
    vec![
        ("get", Box::pin(async { store.get("key").await.map(drop) })),
        ("entry", Box::pin(async { store.entry("key").await.map(drop) })),
        ("get_many_of_one", Box::pin(async { store.get_many(["key"]).await.map(drop) })),
        (
            "get_many",
            Box::pin(async { store.get_many((0..50).map(|i| format!("k{i}"))).await.map(drop) }),
        ),
        ("history", Box::pin(async { first(store.history("key")?.next().await).await })),
        ("scan", Box::pin(async { first(store.scan(WatchScope::All).next().await).await })),
        ("keys", Box::pin(async { first(store.keys(WatchScope::prefix("k")).next().await).await })),
        ("put", Box::pin(async { store.put("w.put", "x").await.map(drop) })),
        ("create", Box::pin(async { store.create("w.create", "x").await.map(drop) })),
        ("update", Box::pin(async move { store.update("w.update", "x", updated).await.map(drop) })),
        ("delete", Box::pin(async { store.delete("w.delete").await.map(drop) })),
        (
            "delete_with_version",
            Box::pin(async move {
                store.delete_with_version("w.delete_with_version", deleted).await.map(drop)
            }),
        ),
        ("purge", Box::pin(async { store.purge("w.purge").await.map(drop) })),
        (
            "put_many",
            Box::pin(async {
                let mut answers =
                    store.put_many((0..50).map(|i| (format!("w.many.{i}"), "x"))).await;
                assert_eq!(answers.len(), 50);
                assert!(
                    answers.iter().all(Result::is_err) || answers.iter().all(Result::is_ok),
                    "{answers:?}"
                );
                answers.remove(0).map(drop)
            }),
        ),
        ("watch", Box::pin(async { store.watch(WatchScope::All).await.map(drop) })),
        ("store", Box::pin(async { connection.store("other").await.map(drop) })),
        (
            "store_with_config",
            Box::pin(async {
                connection
                    .store_with_config(store.name(), StoreConfig::new().must_exist())
                    .await
                    .map(drop)
            }),
        ),
        ("list_stores", Box::pin(async { first(connection.list_stores().next().await).await })),
        ("delete_store", Box::pin(async { connection.delete_store("other").await })),
        ("health", Box::pin(async { connection.health().await })),
    ]
}

/// Returns the next update, which must be one of this key.
async fn next_of(watch: &mut Watch, key: &str) -> KvUpdate {
    let update =
        within(PATIENCE, "the watch", watch.next()).await.expect("the watch goes on").unwrap();
    assert_eq!(update.entry().map(|entry| entry.key.as_str()), Some(key), "{update:?}");
    update
}

async fn caught_up(store: &Store, scope: WatchScope) -> Watch {
    let watch = store.watch(scope).await.unwrap();
    while watch.next().await.unwrap().unwrap() != KvUpdate::CaughtUp {}
    watch
}
