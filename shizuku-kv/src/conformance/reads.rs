//! Reads: of single keys, of many, and of the stored history of one.

use super::{Check, CheckFailure, CheckResult, Fixture};
use crate::store::{
    KvEntry, KvError, KvOperation, ReadConsistency, Store, StoreConfig, WatchScope,
};

/// The checks of this family.
pub const CHECKS: &[Check] = checks! { "reads";
    what_was_never_written_is_absent []
        "A key that was never written has no value, no entry and no history.",
    get_many_keeps_the_order [Write]
        "get_many answers in the order of its keys, twice for a repeated key, and with None for \
         an absent one.",
    get_many_takes_many_keys [Write]
        "get_many answers for any number of keys.",
    entry_shows_tombstones [Write]
        "entry returns the newest entry, even a tombstone. get and get_many find a deleted key \
         absent.",
    history_is_the_oldest_first [Write, History]
        "history returns the stored entries of a key, the oldest first, tombstones included.",
    history_is_bounded [Write, History]
        "A store keeps as many versions of a key as its settings say, tombstones included.",
    history_is_one_by_default [Write]
        "A store keeps only the newest version of a key by default.",
    history_is_of_one_key [Write, History]
        "history has no entries of other keys, not even of those that begin with the key.",
    purge_drops_the_history [Write, History]
        "purge removes all stored entries of a key except the tombstone.",
    figures_count_every_key_that_has_an_entry [Write, Watch]
        "Figures count the keys that have an entry, tombstones included, and include no entry \
         after their position.",
    a_store_reads_its_own_writes [Write]
        "A read sees every write that was acknowledged before it began, on a single server.",
    the_leader_reads_its_own_writes [Write, LeaderReads]
        "A store that was opened with ReadConsistency::Leader reads its own writes.",
    the_clock_is_that_of_the_entries [Write]
        "The store's clock, if it is available, is between the times of an entry before and one \
         after.",
};

/// Compares times of entries and the clock, in turn.
pub async fn the_clock_is_that_of_the_entries(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let mut earlier = None;
    for _ in 0..5 {
        store.put("key", "value").await?;
        let entry = store.entry("key").await?;
        let created =
            entry.ok_or_else(|| CheckFailure::new("the written entry is missing"))?.created;
        ensure!(
            earlier.is_none_or(|earlier| earlier <= created),
            "an entry is older than the clock before it"
        );
        let Some(now) = store.time().await? else { return Ok(()) };
        ensure!(created <= now, "the clock is behind an entry");
        earlier = Some(now);
    }
    Ok(())
}

/// Calls `get`, `entry`, `get_many` and `history`.
pub async fn what_was_never_written_is_absent(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    ensure!(store.get("absent").await?.is_none(), "get finds a key that was never written");
    ensure!(store.entry("absent").await?.is_none(), "entry finds a key that was never written");
    ensure_eq!(
        store.get_many(["absent", "a.b"]).await?,
        [None, None],
        "get_many of keys never written"
    );
    ensure_eq!(
        store.history("absent")?.try_collect().await?,
        [],
        "the history of a key never written"
    );
    Ok(())
}

fn values(entries: &[Option<KvEntry>]) -> Vec<Option<&[u8]>> {
    entries.iter().map(|entry| entry.as_ref().map(|entry| entry.value.as_ref())).collect()
}

/// Requests keys in an order other than that of their names or writes: one twice, an absent, a
/// deleted and a purged one.
pub async fn get_many_keeps_the_order(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    for key in ["a", "b", "c", "deleted", "purged"] {
        store.put(key, key).await?;
    }
    store.delete("deleted").await?;
    store.purge("purged").await?;
    let found = store.get_many(["c", "absent", "a", "deleted", "b", "c", "purged", "a"]).await?;
    let (a, b, c): (&[u8], &[u8], &[u8]) = (b"a", b"b", b"c");
    let expected = [Some(c), None, Some(a), None, Some(b), Some(c), None, Some(a)];
    ensure_eq!(values(&found), expected, "the values of get_many");
    ensure_eq!(store.get_many(Vec::<&str>::new()).await?, [], "get_many of no keys");
    Ok(())
}

/// Requests 2,500 keys, most of them absent.
pub async fn get_many_takes_many_keys(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let keys = (0..2500).map(|number| format!("key.{number}")).collect::<Vec<_>>();
    for answer in store.put_many(keys.iter().step_by(7).map(|key| (key, key.clone()))).await {
        answer?;
    }
    let found = store.get_many(&keys).await?;
    ensure_eq!(found.len(), keys.len(), "answers of get_many");
    for (number, (key, found)) in keys.iter().zip(&found).enumerate() {
        let expected = (number % 7 == 0).then_some(key.as_bytes());
        let value = found.as_ref().map(|entry| entry.value.as_ref());
        ensure_eq!(value, expected, "the result of get_many for key {key}");
    }
    Ok(())
}

/// Reads after `delete` and `purge`, until the key is written again.
pub async fn entry_shows_tombstones(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    for (key, operation) in [("deleted", KvOperation::Delete), ("purged", KvOperation::Purge)] {
        store.put(key, "value").await?;
        let version =
            if key == "deleted" { store.delete(key).await? } else { store.purge(key).await? };
        let found = store.entry(key).await?;
        let found =
            found.map(|entry| (entry.key.as_str().to_owned(), entry.operation, entry.version));
        ensure_eq!(found, Some((key.to_owned(), operation, version)), "the tombstone of key {key}");
        ensure!(store.get(key).await?.is_none(), "get finds the {key} key");
        ensure_eq!(store.get_many([key]).await?, [None], "get_many of the {key} key");
        store.put(key, "again").await?;
        let found = store.entry(key).await?.map(|entry| entry.operation);
        ensure_eq!(found, Some(KvOperation::Put), "the entry of a key that was written again");
    }
    Ok(())
}

async fn history(store: &Store, key: &str) -> CheckResult<Vec<(KvOperation, String)>> {
    let entries = store.history(key)?.try_collect().await?;
    for entry in &entries {
        ensure_eq!(entry.key, key, "the key of an entry in the history of another");
    }
    let shown =
        |entry: &KvEntry| (entry.operation, String::from_utf8_lossy(&entry.value).into_owned());
    Ok(entries.iter().map(shown).collect())
}

/// Reads values and a tombstone between them.
pub async fn history_is_the_oldest_first(fixture: &Fixture) -> CheckResult {
    let versions = fixture.capabilities().max_history.min(4);
    let store = fixture.store_with(fixture.config().history(versions)).await?;
    store.put("key", "1").await?;
    store.put("key", "2").await?;
    store.delete("key").await?;
    store.put("key", "3").await?;
    let all = [
        (KvOperation::Put, "1".to_owned()),
        (KvOperation::Put, "2".to_owned()),
        (KvOperation::Delete, String::new()),
        (KvOperation::Put, "3".to_owned()),
    ];
    let expected = all.get(all.len() - usize::from(versions)..).unwrap_or_default();
    ensure_eq!(history(&store, "key").await?, expected, "the history of put, put, delete, put");
    Ok(())
}

/// Makes twice as many writes as the store keeps.
pub async fn history_is_bounded(fixture: &Fixture) -> CheckResult {
    let most = fixture.capabilities().max_history;
    for versions in [2, most.min(10)] {
        let store = fixture.store_with(fixture.config().history(versions)).await?;
        for number in 0..versions * 2 {
            store.put("key", format!("{number}")).await?;
        }
        store.delete("key").await?;
        let found = history(&store, "key").await?;
        let mut expected = (versions + 1..versions * 2)
            .map(|number| (KvOperation::Put, number.to_string()))
            .collect::<Vec<_>>();
        expected.push((KvOperation::Delete, String::new()));
        ensure_eq!(found, expected, "the history of a store that keeps {versions} versions");
    }
    Ok(())
}

/// Reads the newest value, or the tombstone.
pub async fn history_is_one_by_default(fixture: &Fixture) -> CheckResult {
    let store = fixture.store_with(StoreConfig { history: None, ..fixture.config() }).await?;
    for value in ["1", "2", "3"] {
        store.put("key", value).await?;
    }
    ensure_eq!(history(&store, "key").await?, [(KvOperation::Put, "3".to_owned())], "the history");
    store.delete("key").await?;
    let expected = [(KvOperation::Delete, String::new())];
    ensure_eq!(history(&store, "key").await?, expected, "the history of a deleted key");
    Ok(())
}

/// Uses parents, children and neighbours.
pub async fn history_is_of_one_key(fixture: &Fixture) -> CheckResult {
    let store = fixture.store_with(fixture.config().history(2)).await?;
    for key in ["a", "a.b", "a.b.c", "a.bc", "a.b", "A.b"] {
        store.put(key, key).await?;
    }
    let twice = [(KvOperation::Put, "a.b".to_owned()), (KvOperation::Put, "a.b".to_owned())];
    ensure_eq!(history(&store, "a.b").await?, twice, "the history of a.b");
    ensure_eq!(
        history(&store, "a").await?,
        [(KvOperation::Put, "a".to_owned())],
        "the history of a"
    );
    Ok(())
}

/// Also checks that no earlier entry comes back with the next write.
pub async fn purge_drops_the_history(fixture: &Fixture) -> CheckResult {
    let versions = fixture.capabilities().max_history.min(5);
    let store = fixture.store_with(fixture.config().history(versions)).await?;
    store.put("other", "1").await?;
    store.put("other", "2").await?;
    for value in ["1", "2", "3"] {
        store.put("key", value).await?;
    }
    store.purge("key").await?;
    let purged = (KvOperation::Purge, String::new());
    ensure_eq!(
        history(&store, "key").await?,
        std::slice::from_ref(&purged),
        "the history after a purge"
    );
    store.put("key", "4").await?;
    let expected = [purged, (KvOperation::Put, "4".to_owned())];
    ensure_eq!(history(&store, "key").await?, expected, "the history after a purge and a put");
    ensure_eq!(history(&store, "other").await?.len(), 2, "entries in the history of another key");
    Ok(())
}

async fn ensure_reads_own_writes(store: &Store) -> CheckResult {
    for number in 0..100 {
        let version = store.put("key", format!("{number}")).await?;
        let found = match number % 4 {
            0 => store.get("key").await?,
            1 => store.entry("key").await?,
            2 => store.get_many(["key"]).await?.pop().flatten(),
            _ => store.history("key")?.try_collect().await?.pop(),
        };
        let found = found.map(|entry| entry.version);
        ensure_eq!(found, Some(version), "the version read after write {number}");
        let version = store.delete("key").await?;
        let found = store.entry("key").await?.map(|entry| entry.version);
        ensure_eq!(found, Some(version), "the version read after deletion {number}");
    }
    Ok(())
}

/// Puts and deletes a hundred times each, and reads each write right away.
pub async fn a_store_reads_its_own_writes(fixture: &Fixture) -> CheckResult {
    ensure_reads_own_writes(&fixture.store().await?).await
}

/// Does the same on a store that reads from the leader.
pub async fn the_leader_reads_its_own_writes(fixture: &Fixture) -> CheckResult {
    let config = fixture.config().consistency(ReadConsistency::Leader);
    ensure_reads_own_writes(&fixture.store_with(config).await?).await
}

/// Checks the whole store and a prefix. A backend may have no figures, or no need for them.
pub async fn figures_count_every_key_that_has_an_entry(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    for key in ["a.one", "a.two", "a.three", "b"] {
        store.put(key, "1").await?;
    }
    store.put("a.one", "2").await?;
    store.delete("a.two").await?;
    store.purge("a.three").await?;
    store.delete("never").await?;
    for (scope, expected) in [(WatchScope::All, 5), (WatchScope::prefix("a."), 3)] {
        let figures = match store.figures(&scope).await {
            Err(KvError::Unsupported { .. }) => continue,
            figures => figures?,
        };
        let watch = store.watch(scope.clone()).await?;
        while watch.next().await.transpose()?.is_some_and(|update| update.entry().is_some()) {}
        let position = watch.cursor().map_or(0, |cursor| cursor.position());
        ensure!(figures.newest <= position, "the figures of {scope:?} are newer than its state");
        if let Some(keys) = figures.keys {
            ensure_eq!(keys, expected, "the keys that have an entry");
        }
    }
    Ok(())
}
