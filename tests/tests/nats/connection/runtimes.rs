//! Runtimes that end under a connection, and callers without one: one final error that names the
//! cause.

use std::time::Duration;

use futures_util::FutureExt;
use shizuku_kv::replica::{Replica, ReplicaError};
use shizuku_kv::rw_lock::{DistroRwLock, DistroRwLockError, LeaderElection, LockOptions};
use shizuku_kv::{
    Connection, KvError, LiveStatic, LiveSyncState, StaticKeyIndexedValue, Store, StoreConfig,
    WatchScope, connect,
};
use shizuku_kv_tests::{NatsServer, eventually, unique, urls};
use tokio::runtime::{Builder, Runtime};

use super::{SHORT, caught_up, operations, within};

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, StaticKeyIndexedValue)]
#[kv(key = "config.pool", codec = json)]
struct Pool {
    size: u32,
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Ends a runtime and everything that runs on it.
fn end(runtime: Runtime) {
    runtime.shutdown_timeout(Duration::from_secs(10));
}

#[track_caller]
fn assert_names_the_end(what: &str, error: &KvError) {
    assert!(!error.is_retryable(), "{what}: {error:?}");
    assert!(
        error.to_string().contains("runtime that opened this connection has ended"),
        "{what}: {error}"
    );
}

#[track_caller]
fn assert_names_the_lack(what: &str, error: &KvError) {
    assert!(!error.is_retryable(), "{what}: {error:?}");
    assert!(error.to_string().contains("no tokio runtime"), "{what}: {error}");
}

#[test]
fn operations_after_their_runtime_ended_fail_for_good() {
    let (own, other) = (runtime(), runtime());
    let (connection, store, version) = own.block_on(async {
        let connection = connect(&NatsServer::shared().url()).await.unwrap();
        let store = connection.store(&unique("runtime")).await.unwrap();
        let version = store.put("key", "x").await.unwrap();
        (connection, store, version)
    });
    end(own);
    other.block_on(async {
        for (what, operation) in operations(&*connection, &store, [version; 2]) {
            let error = within(SHORT, what, operation).await.expect_err(what);
            assert_names_the_end(what, &error);
        }
        let error = within(SHORT, "shutdown", connection.shutdown()).await.unwrap_err();
        assert_names_the_end("shutdown", &error);
        within(SHORT, "a second shutdown", connection.shutdown()).await.unwrap();
        drop((connection, store));
    });
}

#[test]
fn streams_open_while_their_runtime_ends_fail_for_good() {
    let (own, other) = (runtime(), runtime());
    let (mut watch, mut unpolled, scan, waiting) = own.block_on(async {
        let connection = connect(&NatsServer::shared().url()).await.unwrap();
        let store = connection.store(&unique("runtime")).await.unwrap();
        store.put_many((0..20_000).map(|i| (format!("k.{i}"), "x"))).await;
        let scan = store.scan(WatchScope::All);
        scan.next().await.unwrap().unwrap();
        let watch = caught_up(&store, WatchScope::prefix("none.")).await;
        let unpolled = store.watch(WatchScope::prefix("none.")).await.unwrap();
        let waits = caught_up(&store, WatchScope::prefix("none.")).await;
        let waiting = other.spawn(async move { waits.next().await });
        (watch, unpolled, scan, waiting)
    });
    end(own);
    other.block_on(async {
        let ended = within(SHORT, "a waiting watch", waiting).await.unwrap();
        assert_names_the_end("a waiting watch", &ended.unwrap().unwrap_err());
        for watch in [&mut watch, &mut unpolled] {
            let error = loop {
                match within(SHORT, "a watch", watch.next()).await.expect("an error comes first") {
                    Ok(_) => {}
                    Err(error) => break error,
                }
            };
            assert_names_the_end("a watch", &error);
            assert!(watch.next().await.is_none());
        }
        // Entries that had arrived are delivered; the others are not reported as absent.
        let mut delivered = 1;
        let error = loop {
            match within(SHORT, "a scan", scan.next()).await {
                Some(Ok(_)) => delivered += 1,
                Some(Err(error)) => break Some(error),
                None => break None,
            }
        };
        match error {
            Some(error) => assert_names_the_end("a scan", &error),
            None => assert_eq!(delivered, 20_000, "the scan ended as if that were all"),
        }
    });
}

#[test]
fn followers_of_an_ended_runtime_end() {
    let (own, other) = (runtime(), runtime());
    let store = own.block_on(async {
        let connection = connect(&NatsServer::shared().url()).await.unwrap();
        let store = connection.store(&unique("runtime")).await.unwrap();
        store.put("config.pool", r#"{"size":1}"#).await.unwrap();
        store
    });
    let (mut live, guard) = other.block_on(async {
        let live = Pool::live(&store).await.unwrap();
        let guard = lock(&store).write().await.unwrap();
        (live, guard)
    });
    end(own);
    other.block_on(async {
        let changed = within(SHORT, "a live value", live.changed()).await;
        assert!(changed.is_err(), "{changed:?}");
        let LiveSyncState::Ended { error, .. } = live.status().sync_state else {
            panic!("{live:?}")
        };
        assert_names_the_end("a live value", &error);
        eventually("the hold is lost", async || !guard.is_held()).await;
        for (what, result) in [
            ("try_write", lock(&store).try_write().await.map(drop)),
            ("write", within(SHORT, "write", lock(&store).write()).await.map(drop)),
            ("inspect", lock(&store).inspect().await.map(drop)),
        ] {
            match result.expect_err(what) {
                DistroRwLockError::Store { source, .. } => assert_names_the_end(what, &source),
                error => panic!("{what}: {error:?}"),
            }
        }
        drop((live, guard));
    });
}

fn lock(store: &Store) -> DistroRwLock {
    let options = LockOptions::new().lease(Duration::from_secs(2)).wait(Duration::from_secs(20));
    DistroRwLock::with_options(store, "r", options).unwrap()
}

/// Each future is ready when it is polled for the first time, so that no executor is needed.
fn at_once<T>(what: &str, future: impl Future<Output = T>) -> T {
    future.now_or_never().unwrap_or_else(|| panic!("{what} waits for something"))
}

#[test]
fn calls_outside_a_runtime_are_one_error() {
    let own = runtime();
    for url in urls() {
        assert_names_the_lack("connect", &at_once("connect", connect(&url)).unwrap_err());
        let (connection, store, version, watch, scan) = own.block_on(async {
            let connection = connect(&url).await.unwrap();
            let store = connection.store(&unique("runtime")).await.unwrap();
            let version = store.put("key", "x").await.unwrap();
            let watch = caught_up(&store, WatchScope::All).await;
            (connection, store.clone(), version, watch, store.scan(WatchScope::All))
        });
        for (what, operation) in operations(&*connection, &store, [version; 2]) {
            assert_names_the_lack(what, &at_once(what, operation).expect_err(what));
        }
        let error = at_once("a watch", watch.next()).unwrap().unwrap_err();
        assert_names_the_lack("a watch", &error);
        let error = at_once("a scan", scan.next()).unwrap().unwrap_err();
        assert_names_the_lack("a scan", &error);
        let error =
            at_once("watch_from", store.watch_from(WatchScope::All, watch.cursor().unwrap()));
        assert_names_the_lack("watch_from", &error.unwrap_err());
        assert!(at_once("live", Pool::live(&store)).is_err());
        for (what, result) in [
            ("write", at_once("write", lock(&store).write()).map(drop)),
            ("try_read", at_once("try_read", lock(&store).try_read()).map(drop)),
            ("inspect", at_once("inspect", lock(&store).inspect()).map(drop)),
            ("break_lock", at_once("break_lock", lock(&store).break_lock()).map(drop)),
        ] {
            match result.expect_err(what) {
                DistroRwLockError::Store { source, .. } => assert_names_the_lack(what, &source),
                error => panic!("{what}: {error:?}"),
            }
        }
        let apply = |_| std::future::ready(Ok::<_, std::convert::Infallible>(()));
        let mut replica = Replica::new(&store, WatchScope::All);
        match at_once("a replica", replica.run(apply)).unwrap_err() {
            ReplicaError::Store(error) => assert_names_the_lack("a replica", &error),
            error => panic!("{error:?}"),
        }
        let election = LeaderElection::new(&store, "job", "me").unwrap();
        assert!(at_once("campaign", election.campaign()).is_err());
        // The server and the bucket are intact.
        own.block_on(async {
            assert!(store.get("key").await.unwrap().is_some());
            connection.health().await.unwrap();
        });
        assert_names_the_lack("shutdown", &at_once("shutdown", connection.shutdown()).unwrap_err());
        drop((watch, scan, store, connection));
    }
}

/// A watch and a scan that waited on a runtime that has ended continue on another.
#[test]
fn streams_outlive_a_runtime_that_only_polled_them() {
    let own = runtime();
    for url in urls() {
        let (_connection, store, watch) = own.block_on(async {
            let connection = connect(&url).await.unwrap();
            let config = StoreConfig::new().max_age(Duration::from_secs(3600));
            let store = connection.store_with_config(&unique("runtime"), config).await.unwrap();
            store.put("key", "x").await.unwrap();
            let watch = caught_up(&store, WatchScope::All).await;
            (connection, store, watch)
        });
        let polling = runtime();
        polling.block_on(async {
            let waits = tokio::time::timeout(Duration::from_millis(50), watch.next()).await;
            assert!(waits.is_err(), "{waits:?}");
        });
        end(polling);
        runtime().block_on(async {
            let written = store.clone();
            let put = own.spawn(async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                written.put("key", "y").await
            });
            let update =
                within(Duration::from_secs(5), "the watch", watch.next()).await.unwrap().unwrap();
            assert_eq!(update.entry().unwrap().version, put.await.unwrap().unwrap());
        });
    }
}
