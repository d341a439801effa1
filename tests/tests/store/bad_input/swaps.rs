//! Conflicts: the error names the version that was found, and not the value.

use std::sync::Arc;

use shizuku_kv::{Connection, KeyValue, KeyValueWrite, KvError, Store, VersionToken};

use super::{Note, SECRET, new_store, shown, store_error};

on_each_backend! {
    conflict_names_the_version_found,
}

/// Calls every write that compares, with a version that the key does not have.
async fn assert_swaps_lose(
    store: &Store,
    key: &str,
    expected: VersionToken,
    found: Option<VersionToken>,
) {
    let note = Note(key.to_owned(), SECRET.to_owned());
    for error in [
        store.update(key, SECRET, expected).await.unwrap_err(),
        store.delete_with_version(key, expected).await.unwrap_err(),
        store_error(note.write_to_atomically(store, expected).await.unwrap_err()),
        store_error(Note::delete_atomically(store, key, expected).await.unwrap_err()),
    ] {
        let KvError::RevisionMismatch { key: named, expected: wanted, found: told, .. } = &error
        else {
            panic!("{error:?}")
        };
        assert_eq!((named.as_str(), *wanted, *told), (key, expected, found), "{error}");
        let text = error.to_string();
        assert!(text.contains(key) && text.contains(&expected.to_string()), "{text}");
        assert!(error.is_conflict() && !error.is_retryable(), "{text}");
        assert!(!shown(&error).contains(SECRET), "{error:?}");
    }
}

async fn conflict_names_the_version_found(connection: Arc<dyn Connection>) {
    let store = new_store(&connection).await;
    let first = store.put("key", "one").await.unwrap();
    let second = store.update("key", "two", first).await.unwrap();
    assert_swaps_lose(&store, "key", first, Some(second)).await;
    assert_swaps_lose(&store, "never", first, None).await;
    let note = Note("key".to_owned(), SECRET.to_owned());
    for error in [
        store.create("key", SECRET).await.unwrap_err(),
        store_error(note.create_write(&store).await.unwrap_err()),
    ] {
        let KvError::AlreadyExists { key, found, .. } = &error else { panic!("{error:?}") };
        assert_eq!((key.as_str(), *found), ("key", Some(second)), "{error}");
        assert!(error.is_conflict() && !error.is_retryable());
        assert!(!shown(&error).contains(SECRET), "{error:?}");
    }
    for is_purge in [false, true] {
        let version = store.put("key", "three").await.unwrap();
        let tombstone =
            if is_purge { store.purge("key").await } else { store.delete("key").await }.unwrap();
        assert_swaps_lose(&store, "key", version, Some(tombstone)).await;
    }
}
