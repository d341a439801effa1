//! Keys: one grammar on every backend, checked before any request is sent.

use std::time::Duration;

use super::{Check, CheckFailure, CheckResult, Fixture};
use crate::store::{KvError, KvResult, Store, VersionToken, WatchScope};

/// The checks of this family.
pub const CHECKS: &[Check] = checks! { "keys";
    invalid_keys_are_rejected_by_reads []
        "A string that is not a key is InvalidKey with the position of its first offending byte.",
    invalid_keys_are_rejected_by_writes [Write]
        "A string that is not a key is InvalidKey with the position of its first offending byte, \
         and nothing is written.",
    invalid_keys_are_rejected_with_a_time_to_live [Write, KeyTtl]
        "A string that is not a key is InvalidKey with the position of its first offending byte, \
         and nothing is written.",
    every_allowed_character_works [Write]
        "Keys are tokens of A-Z a-z 0-9 _ = / - joined by single dots.",
    the_longest_key_works [Write]
        "A key may have 1,024 bytes.",
    similar_keys_are_different_keys [Write]
        "Keys are compared byte by byte. A key does not affect keys of which it is a prefix.",
};

/// Returns strings that are not keys, each with the position of its first offending byte.
fn invalid_keys() -> Vec<(String, usize)> {
    let mut keys = [
        ("", 0),
        (".", 0),
        (".a", 0),
        ("a.", 1),
        ("a.b.", 3),
        ("a..b", 2),
        ("a.b..c", 4),
        (" ", 0),
        ("a b", 1),
        ("a\t", 1),
        ("a\n", 1),
        ("a\0b", 1),
        ("*", 0),
        ("a*", 1),
        ("a.*", 2),
        (">", 0),
        ("a.>", 2),
        ("$a", 0),
        ("a:b", 1),
        ("a\\b", 1),
        ("a%20", 1),
        ("a+b", 1),
        ("ä", 0),
        ("aé", 1),
        ("key.日本", 4),
        ("_kv", 0),
        ("_kv.x", 0),
        ("_kvx", 0),
    ]
    .map(|(key, position)| (key.to_owned(), position))
    .to_vec();
    keys.push(("k".repeat(1025), 1024));
    keys.push((format!("{}.a", "k".repeat(1023)), 1024));
    keys
}

fn ensure_invalid<T>(
    result: KvResult<T>,
    position: usize,
    operation: &str,
    key: &str,
) -> CheckResult {
    let shown = key.chars().take(12).collect::<String>();
    match result {
        Err(KvError::InvalidKey { position: found, .. }) => {
            ensure_eq!(found, position, "the offending byte that {operation} names in {shown:?}");
            Ok(())
        }
        Err(error) => {
            let message = format!(
                "{operation} of the invalid key {shown:?}: expected InvalidKey, found: {error}"
            );
            Err(CheckFailure::new(message))
        }
        Ok(_) => Err(CheckFailure::new(format!("{operation} accepted the invalid key {shown:?}"))),
    }
}

async fn ensure_empty(store: &Store) -> CheckResult {
    let found = store.scan(WatchScope::All).try_collect().await?.len();
    ensure_eq!(found, 0, "entries in a store to which nothing valid was written");
    Ok(())
}

/// Calls `get`, `entry`, `get_many`, `history`, and reads the scope of one key.
pub async fn invalid_keys_are_rejected_by_reads(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    for (key, at) in invalid_keys() {
        ensure_invalid(store.get(&key).await, at, "get", &key)?;
        ensure_invalid(store.entry(&key).await, at, "entry", &key)?;
        ensure_invalid(store.get_many(["valid", &key]).await, at, "get_many", &key)?;
        ensure_invalid(store.history(&key), at, "history", &key)?;
        ensure_invalid(WatchScope::key(&key), at, "a scope", &key)?;
    }
    Ok(())
}

/// Calls every write, and `put_many` with an invalid item in the middle. The store is empty
/// afterwards.
pub async fn invalid_keys_are_rejected_by_writes(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let version = VersionToken::from_u64(1);
    for (key, at) in invalid_keys() {
        ensure_invalid(store.put(&key, "value").await, at, "put", &key)?;
        ensure_invalid(store.create(&key, "value").await, at, "create", &key)?;
        ensure_invalid(store.update(&key, "value", version).await, at, "update", &key)?;
        ensure_invalid(store.delete(&key).await, at, "delete", &key)?;
        ensure_invalid(
            store.delete_with_version(&key, version).await,
            at,
            "delete_with_version",
            &key,
        )?;
        ensure_invalid(store.purge(&key).await, at, "purge", &key)?;
        let answers = store.put_many([(key.as_str(), "value")]).await;
        ensure_eq!(answers.len(), 1, "answers of put_many for one item");
        for answer in answers {
            ensure_invalid(answer, at, "put_many", &key)?;
        }
    }
    ensure_empty(&store).await
}

/// Calls every write with a time to live.
pub async fn invalid_keys_are_rejected_with_a_time_to_live(fixture: &Fixture) -> CheckResult {
    let store = fixture.store_with(fixture.config().key_ttl(true)).await?;
    let Some(ttl) = store.ttl() else {
        return Err(CheckFailure::new(
            "the store was opened with times to live and does not have them",
        ));
    };
    let (version, span) = (VersionToken::from_u64(1), Duration::from_secs(60));
    for (key, at) in invalid_keys() {
        ensure_invalid(ttl.put(&key, "value", span).await, at, "put", &key)?;
        ensure_invalid(ttl.create(&key, "value", span).await, at, "create", &key)?;
        ensure_invalid(ttl.update(&key, "value", version, span).await, at, "update", &key)?;
    }
    ensure_empty(&store).await
}

async fn ensure_usable(store: &Store, keys: &[String]) -> CheckResult {
    for key in keys {
        let version = store.put(key, key.clone()).await?;
        let entry = store.get(key).await?;
        let found =
            entry.as_ref().map(|entry| (entry.key.as_str(), entry.value.as_ref(), entry.version));
        ensure_eq!(
            found,
            Some((key.as_str(), key.as_bytes(), version)),
            "the result of get of the key"
        );
    }
    let mut found = store.keys(WatchScope::All).try_collect().await?;
    found.sort_unstable();
    let mut expected = keys.iter().map(String::as_str).collect::<Vec<_>>();
    expected.sort_unstable();
    ensure_eq!(found, expected, "the keys of the store");
    Ok(())
}

/// Uses each character alone, and all of them in one token, at the beginning, the middle and the
/// end of keys.
pub async fn every_allowed_character_works(fixture: &Fixture) -> CheckResult {
    const ALL: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_=/-";
    let store = fixture.store().await?;
    let mut keys = ALL.chars().map(String::from).collect::<Vec<_>>();
    keys.extend([ALL.to_owned(), format!("a.{ALL}.b"), format!("{ALL}.{ALL}")]);
    keys.extend(
        ["-.-", "/a/", "=.=", "_", "_k.v", "a._kv", "kv", "1.2.3.4.5.6.7.8.9.10"].map(String::from),
    );
    keys.sort_unstable();
    keys.dedup();
    ensure_usable(&store, &keys).await
}

/// Uses one token of 1,024 bytes, and as many tokens as fit.
pub async fn the_longest_key_works(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let tokens = format!("{}bb", "a.".repeat(511));
    ensure_eq!(tokens.len(), 1024, "the length of the key that is made of tokens");
    ensure_usable(&store, &["k".repeat(1024), tokens]).await?;
    store.delete("k".repeat(1024)).await?;
    ensure_eq!(
        store.keys(WatchScope::All).try_collect().await?.len(),
        1,
        "keys after one was deleted"
    );
    Ok(())
}

/// Uses keys in other case, prefixes and children. Deleting one leaves the others.
pub async fn similar_keys_are_different_keys(fixture: &Fixture) -> CheckResult {
    let store = fixture.store().await?;
    let keys =
        ["a", "A", "a.a", "a.A", "a.a.a", "aa", "a-a", "a/a", "a=a", "a_a"].map(String::from);
    ensure_usable(&store, &keys).await?;
    for deleted in ["a", "a.a"] {
        store.purge(deleted).await?;
        for key in keys.iter().filter(|key| *key != "a" && *key != "a.a") {
            ensure!(store.get(key).await?.is_some(), "deleting {deleted} deleted {key} too");
        }
    }
    Ok(())
}
