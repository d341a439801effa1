//! Writes: each took effect once or not at all, and the caller learns which.

use std::sync::Arc;
use std::time::Duration;

use super::fixture::writer_of;
use super::{Check, CheckFailure, CheckResult, Fixture};
use crate::store::{
    Atomicity, Deadline, FencingToken, Key, KvError, KvOperation, KvResult, Metadata, Store,
    VersionToken, WatchScope, Write, WriteCondition,
};

/// The checks of this family.
pub const CHECKS: &[Check] = checks! { "writes";
    put_then_get [Write]
        "put stores a value, whatever the key had before.",
    create_makes_an_absent_key [Write, CompareAndSwap]
        "create stores a value if the key was never written.",
    create_over_a_live_value_is_rejected [Write, CompareAndSwap]
        "create over a live value is AlreadyExists, and nothing changes.",
    create_over_a_tombstone_succeeds [Write, CompareAndSwap]
        "create stores a value if the key was deleted or purged, by whatever call and however \
         often.",
    update_swaps [Write, CompareAndSwap]
        "update stores a value if the key has the expected version.",
    update_with_another_version_is_rejected [Write, CompareAndSwap]
        "update of a key with another version is RevisionMismatch, and nothing changes.",
    update_of_a_deleted_key_is_rejected [Write, CompareAndSwap]
        "update of a key that was deleted meanwhile is RevisionMismatch, and the key stays \
         deleted.",
    update_over_the_tombstone_itself_succeeds [Write, CompareAndSwap]
        "update compares with the newest entry, and a tombstone is one.",
    swaps_of_a_key_never_written_are_rejected [Write, CompareAndSwap]
        "A key without an entry has no version to expect: RevisionMismatch, and nothing is \
         written.",
    delete_leaves_a_tombstone [Write]
        "delete makes the key absent and returns the version of the tombstone.",
    deleting_what_is_absent_succeeds [Write]
        "Deleting and purging an absent key succeed.",
    delete_with_version_swaps [Write, CompareAndSwap]
        "delete_with_version deletes the key if it has the expected version.",
    delete_with_another_version_is_rejected [Write, CompareAndSwap]
        "delete_with_version of a key with another version is RevisionMismatch, and nothing \
         changes.",
    put_many_answers_in_order [Write]
        "put_many writes each item and answers in their order.",
    put_many_answers_for_each_item [Write]
        "A rejected item of put_many keeps its position in the results, and the others are \
         written.",
    put_many_keeps_the_order_of_a_key [Write]
        "Writes of one key in put_many take effect in the order given.",
    write_many_makes_every_kind_of_write [Write, CompareAndSwap]
        "write_many makes each write by its own condition, in the order given.",
    entries_carry_author_and_reason [Write]
        "The author and the reason of a write are those of its entry, wherever that is read.",
    rejected_combinations_change_nothing [Write]
        "A combination that no backend supports is Unsupported, and nothing changes.",
    unclaimed_atomic_writes_are_rejected [Write]
        "Atomic writes are Unsupported and change nothing, unless the store claims them.",
};

async fn ensure_value(store: &Store, key: &str, value: &str, version: VersionToken) -> CheckResult {
    let found = store.get(key).await?;
    let found = found.as_ref().map(|entry| (entry.operation, entry.value.as_ref(), entry.version));
    ensure_eq!(
        found,
        Some((KvOperation::Put, value.as_bytes(), version)),
        "the result of get of key {key}"
    );
    Ok(())
}

async fn ensure_deleted(
    store: &Store,
    key: &str,
    by: KvOperation,
    version: VersionToken,
) -> CheckResult {
    ensure!(store.get(key).await?.is_none(), "key {key} was deleted, and get finds it");
    let found = store.entry(key).await?;
    let found = found.as_ref().map(|entry| (entry.operation, entry.value.len(), entry.version));
    ensure_eq!(found, Some((by, 0, version)), "the tombstone that entry finds of key {key}");
    Ok(())
}

fn ensure_mismatch(
    result: KvResult<VersionToken>,
    key: &str,
    expected: VersionToken,
    now: Option<VersionToken>,
) -> CheckResult {
    match result {
        Err(KvError::RevisionMismatch { key: named, expected: named_expected, found }) => {
            ensure_eq!(
                (named.as_str(), named_expected),
                (key, expected),
                "key and version in RevisionMismatch"
            );
            ensure!(
                found.is_none() || found == now,
                "RevisionMismatch names {found:?}, the key is at {now:?}"
            );
            Ok(())
        }
        Err(error) => Err(CheckFailure::new(format!("expected RevisionMismatch, found: {error}"))),
        Ok(_) => Err(CheckFailure::new(format!(
            "a swap of key {key} won with a version that it does not have"
        ))),
    }
}

/// Puts over an absent key, over a value, and over tombstones.
pub async fn put_then_get(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    for value in ["first", "second"] {
        let version = store.put("key", value).await?;
        ensure_value(&store, "key", value, version).await?;
    }
    store.delete("key").await?;
    let version = store.put("key", "third").await?;
    ensure_value(&store, "key", "third", version).await?;
    store.purge("key").await?;
    let version = store.put("key", "fourth").await?;
    ensure_value(&store, "key", "fourth", version).await
}

/// Checks that the value is stored with the returned version.
pub async fn create_makes_an_absent_key(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let version = store.create("key", "value").await?;
    ensure_value(&store, "key", "value", version).await
}

/// Creates over values of `put`, `create` and `update`.
pub async fn create_over_a_live_value_is_rejected(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let mut version = store.put("key", "0").await?;
    for value in ["0", "1", "2"] {
        match store.create("key", "lost").await {
            Err(KvError::AlreadyExists { key, found }) => {
                ensure_eq!(key, "key", "the key in AlreadyExists");
                ensure!(
                    found.is_none_or(|found| found == version),
                    "AlreadyExists names another version"
                );
            }
            Err(error) => {
                return Err(CheckFailure::new(format!("expected AlreadyExists, found: {error}")));
            }
            Ok(_) => return Err(CheckFailure::new("create replaced a live value")),
        }
        ensure_value(&store, "key", value, version).await?;
        let next = if value == "0" { "1" } else { "2" };
        version = store.update("key", next, version).await?;
    }
    Ok(())
}

/// Creates after `delete`, `delete_with_version` and `purge`, each twice, and after deleting a key
/// that was never written.
pub async fn create_over_a_tombstone_succeeds(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let mut version = store.create("key", "value").await?;
    for round in 0..6 {
        match round {
            0 => store.delete("key").await?,
            1 => store.delete_with_version("key", version).await?,
            2 => store.purge("key").await?,
            3 => store.delete("key").await.and(store.delete("key").await)?,
            4 => store.purge("key").await.and(store.purge("key").await)?,
            _ => store.delete("key").await.and(store.purge("key").await)?,
        };
        version = store.create("key", "value").await?;
        ensure_value(&store, "key", "value", version).await?;
        let again = store.create("key", "lost").await;
        ensure_error!(again, KvError::AlreadyExists { .. }, "the second create after a deletion");
    }
    store.delete("never").await?;
    let version = store.create("never", "value").await?;
    ensure_value(&store, "never", "value", version).await
}

/// Makes a chain of updates, each with the version that the previous one returned.
pub async fn update_swaps(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let mut version = store.put("key", "0").await?;
    for value in ["1", "2", "3"] {
        version = store.update("key", value, version).await?;
        ensure_value(&store, "key", value, version).await?;
    }
    Ok(())
}

/// Updates with an earlier version, with that of another key, and with ones that the store never
/// gave.
pub async fn update_with_another_version_is_rejected(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let old = store.put("key", "old").await?;
    let newest = store.put("key", "new").await?;
    let other = store.put("other", "value").await?;
    for wrong in [old, other].into_iter().chain(never_given()?) {
        ensure_mismatch(store.update("key", "lost", wrong).await, "key", wrong, Some(newest))?;
        ensure_value(&store, "key", "new", newest).await?;
    }
    Ok(())
}

/// Returns versions that no store gives, and that a backend may confuse with a special value.
fn never_given() -> CheckResult<[VersionToken; 4]> {
    Ok([
        VersionToken::from_u64(0),
        VersionToken::from_u64(u64::MAX),
        VersionToken::opaque(b"")?,
        VersionToken::opaque(b"no such version!")?,
    ])
}

/// Updates with the version of the value, after `delete` and after `purge`.
pub async fn update_of_a_deleted_key_is_rejected(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let old = store.put("deleted", "value").await?;
    let tombstone = store.delete("deleted").await?;
    ensure_mismatch(store.update("deleted", "lost", old).await, "deleted", old, Some(tombstone))?;
    ensure_deleted(&store, "deleted", KvOperation::Delete, tombstone).await?;
    let old = store.put("purged", "value").await?;
    let tombstone = store.purge("purged").await?;
    ensure_mismatch(store.update("purged", "lost", old).await, "purged", old, Some(tombstone))?;
    ensure_deleted(&store, "purged", KvOperation::Purge, tombstone).await
}

/// Updates with the version that the deletion returned.
pub async fn update_over_the_tombstone_itself_succeeds(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    store.put("key", "old").await?;
    let tombstone = store.delete("key").await?;
    let version = store.update("key", "new", tombstone).await?;
    ensure_value(&store, "key", "new", version).await
}

/// Calls `update` and `delete_with_version`, with the version of another key and with ones that the
/// store never gave.
pub async fn swaps_of_a_key_never_written_are_rejected(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let other = store.put("other", "value").await?;
    for wrong in std::iter::once(other).chain(never_given()?) {
        ensure_mismatch(store.update("absent", "lost", wrong).await, "absent", wrong, None)?;
        ensure_mismatch(store.delete_with_version("absent", wrong).await, "absent", wrong, None)?;
        ensure!(store.entry("absent").await?.is_none(), "a swap that lost left something behind");
    }
    Ok(())
}

/// Calls `delete` and `purge`, each with its own operation in the entry.
pub async fn delete_leaves_a_tombstone(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    store.put("deleted", "value").await?;
    let version = store.delete("deleted").await?;
    ensure_deleted(&store, "deleted", KvOperation::Delete, version).await?;
    store.put("purged", "value").await?;
    let version = store.purge("purged").await?;
    ensure_deleted(&store, "purged", KvOperation::Purge, version).await
}

/// Deletes keys that were never written, and keys that were deleted or purged before.
pub async fn deleting_what_is_absent_succeeds(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    for _ in 0..2 {
        let version = store.delete("deleted").await?;
        ensure_deleted(&store, "deleted", KvOperation::Delete, version).await?;
        let version = store.purge("purged").await?;
        ensure_deleted(&store, "purged", KvOperation::Purge, version).await?;
    }
    Ok(())
}

/// Deletes with the version of `put` and with that of `update`.
pub async fn delete_with_version_swaps(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let version = store.put("key", "value").await?;
    let tombstone = store.delete_with_version("key", version).await?;
    ensure_deleted(&store, "key", KvOperation::Delete, tombstone).await?;
    let version = store.create("key", "value").await?;
    let version = store.update("key", "value", version).await?;
    let tombstone = store.delete_with_version("key", version).await?;
    ensure_deleted(&store, "key", KvOperation::Delete, tombstone).await
}

/// Deletes with an earlier version, with that of another key, with ones that the store never gave,
/// and after a deletion.
pub async fn delete_with_another_version_is_rejected(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let old = store.put("key", "old").await?;
    let newest = store.put("key", "new").await?;
    let other = store.put("other", "value").await?;
    for wrong in [old, other].into_iter().chain(never_given()?) {
        ensure_mismatch(store.delete_with_version("key", wrong).await, "key", wrong, Some(newest))?;
        ensure_value(&store, "key", "new", newest).await?;
    }
    let tombstone = store.delete("key").await?;
    ensure_mismatch(
        store.delete_with_version("key", newest).await,
        "key",
        newest,
        Some(tombstone),
    )?;
    ensure_deleted(&store, "key", KvOperation::Delete, tombstone).await
}

/// Writes none, one, and 700 items.
pub async fn put_many_answers_in_order(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    for count in [0, 1, 700] {
        let items = (0..count).map(|number| (format!("key.{number}"), format!("{count}/{number}")));
        let answers = store.put_many(items).await;
        ensure_eq!(answers.len(), count, "answers of put_many");
        let found = store.get_many((0..count).map(|number| format!("key.{number}"))).await?;
        for (number, (answer, found)) in answers.into_iter().zip(found).enumerate() {
            let (version, value) = (answer?, format!("{count}/{number}"));
            let found = found.as_ref().map(|entry| (entry.value.as_ref(), entry.version));
            ensure_eq!(found, Some((value.as_bytes(), version)), "item {number} of put_many");
        }
    }
    Ok(())
}

/// Writes an invalid key and a value that is too large, between others.
pub async fn put_many_answers_for_each_item(fixture: &Fixture) -> CheckResult {
    let store = fixture.store_with(fixture.config().max_value_size(100)).await?;
    let large = "v".repeat(101);
    let items = [("one", "1"), ("not a key", "2"), ("two", "3"), ("large", &large), ("three", "5")];
    let mut answers =
        store.put_many(items.map(|(key, value)| (key, value.to_owned()))).await.into_iter();
    for key in ["one", "not a key", "two", "large", "three"] {
        let Some(answer) = answers.next() else {
            return Err(CheckFailure::new(format!("put_many has no answer for item {key:?}")));
        };
        match key {
            "not a key" => {
                ensure_error!(
                    answer,
                    KvError::InvalidKey { position: 3, .. },
                    "an item of put_many"
                )
            }
            "large" => {
                let right = matches!(
                    &answer,
                    Err(KvError::ValueTooLarge { key, size: 101, limit: 100 }) if *key == "large"
                );
                ensure!(
                    right,
                    "an item that is too large: expected ValueTooLarge, found {answer:?}"
                );
            }
            key => {
                let found = store.get(key).await?.map(|entry| entry.version);
                ensure_eq!(
                    Some(answer?),
                    found,
                    "the answer for item {key} and the version that it has"
                );
            }
        }
    }
    ensure!(answers.next().is_none(), "put_many has more answers than it was given items");
    ensure!(store.entry("large").await?.is_none(), "a value that is too large was written");
    Ok(())
}

/// Writes one key a hundred times, between others.
pub async fn put_many_keeps_the_order_of_a_key(fixture: &Fixture) -> CheckResult {
    let history = fixture.capabilities().max_history.min(10);
    let store = fixture.store_with(fixture.config().history(history.max(1))).await?;
    let items = (0..100).flat_map(|n: u32| {
        [("same".to_owned(), n.to_string()), (format!("key.{n}"), n.to_string())]
    });
    let mut versions = Vec::new();
    for answer in store.put_many(items).await {
        versions.push(answer?);
    }
    let versions = versions.into_iter().step_by(2).collect::<Vec<_>>();
    let Some(last) = versions.last() else {
        return Err(CheckFailure::new("put_many did not answer"));
    };
    ensure_value(&store, "same", "99", *last).await?;
    let found = store.history("same")?.try_collect().await?;
    let found = found.iter().map(|entry| entry.version).collect::<Vec<_>>();
    let kept = versions.len().saturating_sub(found.len());
    ensure_eq!(
        found,
        versions.get(kept..).unwrap_or_default(),
        "the history of the key that was written often"
    );
    Ok(())
}

/// Every kind of write to one key, so that each depends on the one before, between other keys.
pub async fn write_many_makes_every_kind_of_write(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let (key, other) = (Key::new("key")?, Key::new("other")?);
    let first = store.put("key", "first").await?;
    let no_version = VersionToken::from_u64(u64::MAX);
    let writes = [
        (&key, Write::create("lost")),
        (&other, Write::put("other")),
        (&key, Write::update("second", first)),
        (&key, Write::update("lost", first)),
        (&key, Write::put("third")),
        (&key, Write::delete_with_version(no_version)),
        (&other, Write::delete()),
        (&key, Write::purge()),
        (&key, Write::create("last")),
    ];
    let writes = writes.map(|(key, write)| (key.clone(), write)).to_vec();
    let writer = writer_of(&store)?;
    let answers = writer.write_many(writes, Atomicity::Each, store.deadline()).await;
    let kinds: Vec<_> = answers
        .iter()
        .map(|answer| match answer {
            Ok(_) => "written",
            Err(KvError::AlreadyExists { .. }) => "exists",
            Err(KvError::RevisionMismatch { .. }) => "mismatch",
            Err(_) => "error",
        })
        .collect();
    ensure_eq!(
        kinds,
        [
            "exists", "written", "written", "mismatch", "written", "mismatch", "written",
            "written", "written"
        ],
        "answers of write_many"
    );
    if let Some(Ok(last)) = answers.last() {
        ensure_value(&store, "key", "last", *last).await?;
    }
    ensure!(store.get("other").await?.is_none(), "write_many did not delete a key");
    Ok(())
}

/// A value and a tombstone with them, and both without.
pub async fn entries_carry_author_and_reason(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let key = Key::new("key")?;
    let writer = writer_of(&store)?;
    let author = Metadata::new(Some("deploy@ci"), Some("raise the limit: 5 → 6"))?;
    let reason = Metadata::new(None, Some("cleanup"))?;
    let watch =
        if store.capabilities().watch { Some(store.watch(WatchScope::All).await?) } else { None };
    for (write, expected) in [
        (Write::put("value").with_metadata(Arc::new(author.clone())), Some(&author)),
        (Write::put("value"), None),
        (Write::delete().with_metadata(Arc::new(reason.clone())), Some(&reason)),
        (Write::put("value").with_metadata(Arc::new(reason.clone())), Some(&reason)),
        (Write::purge().with_metadata(Arc::new(author.clone())), Some(&author)),
        (Write::delete(), None),
        (Write::put("").with_metadata(Arc::new(author.clone())), Some(&author)),
    ] {
        fixture.step(format!("{write:?}"));
        let is_deletion = write.is_deletion();
        let version = writer.write(&key, write, Deadline::after(store.deadline())).await?;
        let mut found = vec![
            ("entry", store.entry("key").await?),
            ("history", store.history("key")?.try_collect().await?.pop()),
            (
                "get_many",
                store
                    .backend()
                    .entries(std::slice::from_ref(&key), Deadline::after(store.deadline()))
                    .await?
                    .pop()
                    .flatten(),
            ),
        ];
        if !is_deletion {
            found.push(("scan", store.scan(WatchScope::All).try_collect().await?.pop()));
        }
        if let Some(watch) = &watch {
            let delivered = loop {
                let update = watch.next().await.transpose()?;
                let Some(update) = update else { break None };
                if update.entry().is_some_and(|entry| entry.version == version) {
                    break update.into_entry();
                }
            };
            found.push(("watch", delivered));
        }
        for (read, entry) in found {
            let carried = entry.as_ref().map(|entry| entry.metadata.as_deref());
            ensure_eq!(carried, Some(expected), "author and reason as {read} finds them");
        }
    }
    Ok(())
}

/// Each of them, on a key with a value.
pub async fn rejected_combinations_change_nothing(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let (key, version) = (Key::new("key")?, store.put("key", "value").await?);
    let (ttl, token) = (Duration::from_secs(3600), FencingToken::from_u64(1));
    let mut deletion_of_absent = Write::delete();
    deletion_of_absent.condition = WriteCondition::Absent;
    let mut purge_of_version = Write::purge();
    purge_of_version.condition = WriteCondition::Exactly(version);
    let writer = writer_of(&store)?;
    for write in [
        Write::put("lost").with_ttl(ttl).with_fence(token),
        Write::delete().with_ttl(ttl),
        Write::purge().with_ttl(ttl),
        deletion_of_absent,
        purge_of_version,
        Write::purge().with_fence(token),
    ] {
        fixture.step(format!("{write:?}"));
        let deadline = Deadline::after(store.deadline());
        let written = writer.write(&key, write.clone(), deadline).await;
        ensure_error!(written, KvError::Unsupported { .. }, "{write:?}, which no backend supports");
        ensure_value(&store, "key", "value", version).await?;
        let many = vec![(key.clone(), write.clone())];
        for written in writer.write_many(many, Atomicity::Each, store.deadline()).await {
            ensure_error!(written, KvError::Unsupported { .. }, "{write:?} in write_many");
        }
        ensure_value(&store, "key", "value", version).await?;
    }
    Ok(())
}

/// Two writes, either of which could succeed by itself.
pub async fn unclaimed_atomic_writes_are_rejected(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    if store.capabilities().atomic_writes {
        return Ok(());
    }
    let keys = [Key::new("first")?, Key::new("second")?];
    let writes = keys.map(|key| (key, Write::put("value"))).to_vec();
    let answers = writer_of(&store)?.write_many(writes, Atomicity::All, store.deadline()).await;
    ensure_eq!(answers.len(), 2, "answers to two writes");
    for answer in answers {
        ensure_error!(answer, KvError::Unsupported { .. }, "an atomic write, which is not claimed");
    }
    let written = store.keys(WatchScope::All).try_collect().await?;
    ensure!(written.is_empty(), "a rejected atomic write has written {written:?}");
    Ok(())
}
