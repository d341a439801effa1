//! Lifecycle: the end of a connection, the data that survives it, and several connections at a
//! time.

use std::sync::Arc;

use super::observe::Observer;
use super::{Check, CheckFailure, CheckResult, Fixture};
use crate::store::{Connection, KvError, KvUpdate, Store, VersionToken, WatchCursor, WatchScope};

/// The checks of this family. They need a suite that can open connections.
pub const CHECKS: &[Check] = checks! { "lifecycle", true;
    shutdown_ends_the_connection [Write]
        "After shutdown every operation of the connection returns Closed, and a second shutdown \
         is not an error.",
    shutdown_ends_its_stores [Write]
        "After shutdown every operation of the connection's stores returns Closed.",
    shutdown_ends_swaps [Write, CompareAndSwap]
        "After shutdown every operation of the connection's stores returns Closed.",
    shutdown_ends_watches [Write, Watch]
        "A watch whose connection is shut down ends with Closed.",
    values_survive_the_connection [Write, Persistent]
        "Acknowledged writes exist when the store is opened again, with the same versions.",
    cursors_survive_the_connection [Write, Watch, WatchResume, Persistent]
        "A cursor is valid on a later connection to the same server or file.",
    connections_share_their_stores [Write, Watch, Shared]
        "Other connections see the same stores, and writes arrive at their watches.",
    connections_end_alone [Write, Watch, Shared]
        "Shutting a connection down does not end others.",
};

/// Shuts down twice, and then calls every operation of a connection.
pub async fn shutdown_ends_the_connection(fixture: &Fixture) -> CheckResult {
    let connection = fixture.connection();
    let store = fixture.store().await?;
    store.put("key", "value").await?;
    connection.health().await?;
    connection.shutdown().await?;
    ensure_error!(connection.health().await, KvError::Closed { .. }, "health after shutdown");
    connection.shutdown().await?;
    let config = fixture.config();
    let opened = connection.store_with_config(store.name(), config).await;
    ensure_error!(opened, KvError::Closed { .. }, "opening a store after shutdown");
    let listed = connection.list_stores().try_collect().await;
    ensure_error!(listed, KvError::Closed { .. }, "list_stores after shutdown");
    let deleted = connection.delete_store(store.name()).await;
    ensure_error!(deleted, KvError::Closed { .. }, "delete_store after shutdown");
    Ok(())
}

/// Calls reads and unconditional writes.
pub async fn shutdown_ends_its_stores(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    store.put("key", "value").await?;
    fixture.connection().shutdown().await?;
    ensure_error!(store.get("key").await, KvError::Closed { .. }, "get");
    ensure_error!(store.entry("key").await, KvError::Closed { .. }, "entry");
    ensure_error!(store.get_many(["key", "other"]).await, KvError::Closed { .. }, "get_many");
    ensure_error!(store.history("key")?.try_collect().await, KvError::Closed { .. }, "history");
    ensure_error!(store.scan(WatchScope::All).try_collect().await, KvError::Closed { .. }, "scan");
    ensure_error!(store.keys(WatchScope::All).try_collect().await, KvError::Closed { .. }, "keys");
    ensure_error!(store.put("key", "value").await, KvError::Closed { .. }, "put");
    ensure_error!(store.delete("key").await, KvError::Closed { .. }, "delete");
    ensure_error!(store.purge("key").await, KvError::Closed { .. }, "purge");
    for answer in store.put_many([("key", "value"), ("other", "value")]).await {
        ensure_error!(answer, KvError::Closed { .. }, "put_many");
    }
    Ok(())
}

/// Creates, updates and deletes by version.
pub async fn shutdown_ends_swaps(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let version: VersionToken = store.put("key", "value").await?;
    fixture.connection().shutdown().await?;
    ensure_error!(store.create("new", "value").await, KvError::Closed { .. }, "create");
    ensure_error!(store.update("key", "value", version).await, KvError::Closed { .. }, "update");
    let deleted = store.delete_with_version("key", version).await;
    ensure_error!(deleted, KvError::Closed { .. }, "delete_with_version");
    Ok(())
}

/// Checks a live watch, an unread one, and one that is opened afterwards.
pub async fn shutdown_ends_watches(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    store.put("key", "value").await?;
    let mut live = Observer::open(fixture, &store, WatchScope::All).await?;
    live.state().await?;
    let mut unread = store.watch(WatchScope::All).await?;
    fixture.connection().shutdown().await?;
    fixture.step("waiting for a watch to end whose connection was shut down");
    for watch in [live.watch(), &mut unread] {
        loop {
            match watch.next().await {
                // Updates in transit may still arrive.
                Some(Ok(KvUpdate::CaughtUp | KvUpdate::Put(_) | KvUpdate::Delete(_))) => {}
                Some(Err(KvError::Closed { .. })) => break,
                Some(Err(error)) => {
                    return Err(CheckFailure::new(format!(
                        "expected the watch to end with Closed, found: {error}"
                    )));
                }
                None => return Err(CheckFailure::new("the watch ended without Closed")),
            }
        }
        ensure!(watch.next().await.is_none(), "a watch goes on after the error that ended it");
    }
    let late = match store.watch(WatchScope::All).await {
        Ok(watch) => watch.next().await.transpose(),
        Err(error) => Err(error),
    };
    ensure_error!(late, KvError::Closed { .. }, "a watch after shutdown");
    Ok(())
}

async fn open_again(fixture: &Fixture, store: &Store) -> CheckResult<(Arc<dyn Connection>, Store)> {
    fixture.connection().shutdown().await?;
    let connection = fixture.connect().await?;
    let store = connection.store_with_config(store.name(), fixture.config().must_exist()).await?;
    Ok((connection, store))
}

/// Checks values, tombstones and versions.
pub async fn values_survive_the_connection(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    for answer in
        store.put_many((0..100).map(|number| (format!("key.{number}"), format!("{number}")))).await
    {
        answer?;
    }
    store.put("empty", "").await?;
    store.delete("key.1").await?;
    let before = store.entry("key.1").await?;
    let (connection, again) = open_again(fixture, &store).await?;
    ensure_eq!(
        again.entry("key.1").await?,
        before,
        "a tombstone that was written on a connection before"
    );
    ensure!(again.get("empty").await?.is_some(), "an empty value did not survive the connection");
    ensure_eq!(
        again.keys(WatchScope::All).try_collect().await?.len(),
        100,
        "keys that survived the connection"
    );
    let Some(entry) = again.get("key.2").await? else {
        return Err(CheckFailure::new("a value did not survive the connection"));
    };
    ensure_eq!(entry.value, "2", "a value that was written on a connection before");
    if again.capabilities().compare_and_swap {
        again.update("key.2", "new", entry.version).await?;
    }
    connection.shutdown().await?;
    Ok(())
}

/// Resumes from bytes.
pub async fn cursors_survive_the_connection(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    store.put("before", "value").await?;
    let mut observer = Observer::open(fixture, &store, WatchScope::All).await?;
    observer.state().await?;
    let bytes = observer.cursor()?.to_bytes();
    let version = store.put("after", "value").await?;
    drop(observer);
    let (connection, again) = open_again(fixture, &store).await?;
    let cursor = WatchCursor::from_bytes(&bytes)?;
    let mut observer = Observer::resume(fixture, &again, WatchScope::All, cursor).await?;
    let found = observer.state().await?;
    let found = found.iter().map(|entry| (entry.key.as_str(), entry.version)).collect::<Vec<_>>();
    ensure_eq!(found, [("after", version)], "updates after the cursor");
    let version = again.put("live", "value").await?;
    observer.reach("live", version).await?;
    connection.shutdown().await?;
    Ok(())
}

/// Writes through one connection; reads, watches and swaps through the other.
pub async fn connections_share_their_stores(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let other = fixture.connect().await?;
    let there = other.store_with_config(store.name(), fixture.config().must_exist()).await?;
    let mut observer = Observer::open(fixture, &there, WatchScope::All).await?;
    observer.state().await?;
    let version = store.put("key", "value").await?;
    observer.reach("key", version).await?;
    let found = there.get("key").await?.map(|entry| entry.version);
    ensure_eq!(found, Some(version), "the version that another connection finds");
    if store.capabilities().compare_and_swap {
        let next = there.update("key", "swapped", version).await?;
        let lost = store.update("key", "lost", version).await;
        ensure_error!(
            lost,
            KvError::RevisionMismatch { .. },
            "update with a version that another replaced"
        );
        observer.reach("key", next).await?;
    }
    other.shutdown().await?;
    Ok(())
}

/// Continues to read, write and watch through the other connection.
pub async fn connections_end_alone(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let other = fixture.connect().await?;
    let there = other.store_with_config(store.name(), fixture.config().must_exist()).await?;
    let mut observer = Observer::open(fixture, &there, WatchScope::All).await?;
    observer.state().await?;
    fixture.connection().shutdown().await?;
    let version = there.put("key", "value").await?;
    observer.reach("key", version).await?;
    other.health().await?;
    other.shutdown().await?;
    Ok(())
}
