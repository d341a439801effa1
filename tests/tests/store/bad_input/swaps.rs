//! Swaps with a version that the key does not have, and creations over a value, write nothing.

use std::sync::Arc;

use shizuku_kv::{Connection, KeyValue, KeyValueWrite, KvError, Store, VersionToken};

use super::{Note, SECRET, new_store, on_both_backends, shown, store_error};

on_both_backends! {
    a_swap_with_a_wrong_version_writes_nothing,
    a_swap_of_a_deleted_key_writes_nothing,
    a_swap_of_a_key_that_was_never_written_writes_nothing,
    a_create_over_a_live_key_writes_nothing,
}

#[track_caller]
fn assert_mismatch(error: &KvError, wanted: (&str, VersionToken, Option<VersionToken>)) {
    match error {
        KvError::RevisionMismatch { key, expected, found, .. } => {
            assert_eq!((key.as_str(), *expected, *found), wanted, "{error}");
        }
        _ => panic!("{error:?}"),
    }
    let text = error.to_string();
    assert!(text.contains(wanted.0) && text.contains(&wanted.1.to_string()), "{text}");
    assert!(error.is_conflict() && !error.is_retryable(), "{text}");
}

/// Returns versions other than `version`.
fn other_versions(version: VersionToken) -> [VersionToken; 7] {
    let number = version.as_u64().unwrap();
    [
        VersionToken::from_u64(number - 1),
        VersionToken::from_u64(number + 1),
        VersionToken::from_u64(0),
        VersionToken::from_u64(u64::MAX),
        VersionToken::opaque(b"").unwrap(),
        VersionToken::opaque(&number.to_be_bytes()).unwrap(),
        VersionToken::opaque(b"another backend!").unwrap(),
    ]
}

/// Calls every write that compares, with a version that must not match.
async fn assert_swaps_lose(
    store: &Store,
    key: &str,
    expected: VersionToken,
    found: Option<VersionToken>,
) {
    let updated = store.update(key, SECRET, expected).await.unwrap_err();
    let deleted = store.delete_with_version(key, expected).await.unwrap_err();
    let note = Note(key.to_owned(), SECRET.to_owned());
    let written = note.write_to_atomically(store, expected).await.unwrap_err();
    assert!(written.is_conflict());
    let removed = Note::delete_atomically(store, key, expected).await.unwrap_err();
    assert!(removed.is_conflict());
    for error in [updated, deleted, store_error(written), store_error(removed)] {
        // A version that the backend cannot have assigned may be rejected without a request.
        let KvError::RevisionMismatch { found: told, .. } = &error else { panic!("{error:?}") };
        let is_of_here = expected.as_u64().is_some_and(|number| number > 0);
        assert!(is_of_here || told.is_none() || *told == found, "{error:?}");
        assert_mismatch(&error, (key, expected, if is_of_here { found } else { *told }));
        assert!(!shown(&error).contains(SECRET), "{error:?}");
    }
}

async fn a_swap_with_a_wrong_version_writes_nothing(connection: Arc<dyn Connection>) {
    let store = new_store(&connection).await;
    let first = store.put("key", "one").await.unwrap();
    let other = store.put("other", "x").await.unwrap();
    let second = store.update("key", "two", first).await.unwrap();
    for wrong in other_versions(second).into_iter().chain([first, other]) {
        assert_swaps_lose(&store, "key", wrong, Some(second)).await;
    }
    let entry = store.get("key").await.unwrap().unwrap();
    assert_eq!((&entry.value[..], entry.version), (&b"two"[..], second));
}

async fn a_swap_of_a_deleted_key_writes_nothing(connection: Arc<dyn Connection>) {
    let store = new_store(&connection).await;
    for purge in [false, true] {
        let key = if purge { "purged" } else { "deleted" };
        let version = store.put(key, "x").await.unwrap();
        let tombstone =
            if purge { store.purge(key).await } else { store.delete(key).await }.unwrap();
        assert_ne!(version, tombstone);
        assert_swaps_lose(&store, key, version, Some(tombstone)).await;
        for wrong in other_versions(tombstone) {
            assert_swaps_lose(&store, key, wrong, Some(tombstone)).await;
        }
        assert_eq!(store.get(key).await.unwrap(), None);
        assert_eq!(
            store.entry(key).await.unwrap().unwrap().version,
            tombstone,
            "nothing was written"
        );
    }
}

async fn a_swap_of_a_key_that_was_never_written_writes_nothing(connection: Arc<dyn Connection>) {
    let store = new_store(&connection).await;
    let other = store.put("other", "x").await.unwrap();
    for version in other_versions(other).into_iter().chain([other]) {
        assert_swaps_lose(&store, "never", version, None).await;
    }
    assert_eq!(store.entry("never").await.unwrap(), None);
    assert_eq!(store.get("other").await.unwrap().unwrap().version, other);
}

async fn a_create_over_a_live_key_writes_nothing(connection: Arc<dyn Connection>) {
    let store = new_store(&connection).await;
    for value in ["x", ""] {
        let version = store.put("key", value).await.unwrap();
        let note = Note("key".to_owned(), SECRET.to_owned());
        for error in [
            store.create("key", SECRET).await.unwrap_err(),
            store_error(note.create_write(&store).await.unwrap_err()),
        ] {
            match &error {
                KvError::AlreadyExists { key, found, .. } => {
                    assert_eq!((key.as_str(), *found), ("key", Some(version)), "{error}");
                }
                _ => panic!("{error:?}"),
            }
            assert!(error.is_conflict() && !error.is_retryable());
            assert!(!shown(&error).contains(SECRET), "{error:?}");
        }
        let entry = store.get("key").await.unwrap().unwrap();
        assert_eq!((&entry.value[..], entry.version), (value.as_bytes(), version));
    }
}
