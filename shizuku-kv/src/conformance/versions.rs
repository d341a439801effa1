//! Versions: every write gives the key one that it never had.

use std::collections::HashSet;

use super::cursors::written;
use super::{Check, CheckResult, Fixture};
use crate::store::{KvError, VersionToken, WatchScope};

/// The checks of this family.
pub const CHECKS: &[Check] = checks! { "versions";
    reads_return_the_version_that_the_write_returned [Write]
        "The version that a write returns is the version of the entry that reads find.",
    swaps_return_the_version_of_their_entry [Write, CompareAndSwap]
        "The version that create, update and delete_with_version return is that of the entry \
         that reads find.",
    every_write_changes_the_version [Write]
        "Every write to a key, deletions included, gives it a version that it never had before.",
    a_version_never_comes_back [Write, CompareAndSwap]
        "A superseded version never matches again, even for the same value.",
    versions_are_positions_of_cursors [Write, Watch, OrderedVersions]
        "The version of each write is the position of the cursor after it, and larger than all \
         before, on whatever key.",
    versions_can_be_stored [Write, CompareAndSwap]
        "A version converts to bytes and back, and still compares.",
};

/// Calls `get`, `entry`, `get_many`, `history` and `scan` after `put`, `put_many`, `delete` and
/// `purge`.
pub async fn reads_return_the_version_that_the_write_returned(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let mut live =
        vec![("one", store.put("one", "1").await?), ("two", store.put("two", "2").await?)];
    live[0].1 = store.put("one", "1").await?;
    for (key, answer) in
        ["three", "four"].into_iter().zip(store.put_many([("three", "3"), ("four", "4")]).await)
    {
        live.push((key, answer?));
    }
    let many = store.get_many(live.iter().map(|(key, _)| *key)).await?;
    let scan = store.scan(WatchScope::All).try_collect().await?;
    for ((key, version), many) in live.into_iter().zip(many) {
        let get = store.get(key).await?.map(|entry| entry.version);
        let entry = store.entry(key).await?.map(|entry| entry.version);
        let history = store.history(key)?.try_collect().await?;
        let history = history.last().map(|entry| entry.version);
        let scan = scan.iter().find(|entry| entry.key == key).map(|entry| entry.version);
        let found = [get, entry, many.map(|entry| entry.version), history, scan];
        ensure_eq!(
            found,
            [Some(version); 5],
            "get, entry, get_many, history and scan of key {key}"
        );
    }
    for (key, version) in [("one", store.delete("one").await?), ("two", store.purge("two").await?)]
    {
        let found = store.entry(key).await?.map(|entry| entry.version);
        ensure_eq!(found, Some(version), "the version of the tombstone of key {key}");
    }
    Ok(())
}

/// Calls `entry` after each.
pub async fn swaps_return_the_version_of_their_entry(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let created = store.create("key", "1").await?;
    ensure_eq!(
        store.entry("key").await?.map(|e| e.version),
        Some(created),
        "the version after create"
    );
    let updated = store.update("key", "2", created).await?;
    ensure_eq!(
        store.entry("key").await?.map(|e| e.version),
        Some(updated),
        "the version after update"
    );
    let deleted = store.delete_with_version("key", updated).await?;
    ensure_eq!(
        store.entry("key").await?.map(|e| e.version),
        Some(deleted),
        "the version after the deletion"
    );
    let again = store.create("key", "1").await?;
    ensure_eq!(
        store.entry("key").await?.map(|e| e.version),
        Some(again),
        "the version after the next create"
    );
    Ok(())
}

/// Writes the same value, deletes absent keys, and makes many writes at once.
pub async fn every_write_changes_the_version(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let mut versions = vec![
        store.put("key", "same").await?,
        store.put("key", "same").await?,
        store.delete("key").await?,
        store.delete("key").await?,
        store.put("key", "same").await?,
        store.purge("key").await?,
        store.purge("key").await?,
        store.put("key", "same").await?,
    ];
    for answer in store.put_many([("key", "same"), ("key", "same")]).await {
        versions.push(answer?);
    }
    let different = versions.iter().collect::<HashSet<_>>().len();
    ensure_eq!(different, versions.len(), "different versions after that many writes to one key");
    Ok(())
}

/// Updates, deletes and creates with the earlier value.
pub async fn a_version_never_comes_back(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let first = store.create("key", "same").await?;
    let second = store.update("key", "other", first).await?;
    let third = store.update("key", "same", second).await?;
    let deleted = store.delete("key").await?;
    let purged = store.purge("key").await?;
    let newest = store.create("key", "same").await?;
    for old in [first, second, third, deleted, purged] {
        let update = store.update("key", "lost", old).await;
        ensure_error!(update, KvError::RevisionMismatch { .. }, "update with a version of before");
        let delete = store.delete_with_version("key", old).await;
        ensure_error!(
            delete,
            KvError::RevisionMismatch { .. },
            "a deletion with a version of before"
        );
    }
    store.update("key", "won", newest).await?;
    Ok(())
}

/// Swaps with versions that went through `to_bytes` and `from_bytes`.
pub async fn versions_can_be_stored(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let mut version = store.create("key", "0").await?;
    for _ in 0..3 {
        let bytes = version.to_bytes();
        ensure!(
            bytes.len() <= VersionToken::MAX_LEN + 1,
            "a version is {} bytes long",
            bytes.len()
        );
        let stored = VersionToken::from_bytes(&bytes)?;
        ensure_eq!(stored, version, "a version that went through bytes");
        version = store.update("key", "next", stored).await?;
    }
    Ok(())
}

/// Makes a few writes of several keys, and compares their versions with the cursors after them.
pub async fn versions_are_positions_of_cursors(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let (steps, _observer) = written(fixture, &store).await?;
    let mut newest = 0;
    for (key, version, cursor) in steps {
        let position = cursor.position();
        ensure_eq!(
            version.as_u64(),
            Some(position),
            "the version of {key:?}, after which the cursor is at {position}"
        );
        ensure!(position > newest, "{key:?} has the version {position} after {newest}");
        newest = position;
    }
    Ok(())
}
