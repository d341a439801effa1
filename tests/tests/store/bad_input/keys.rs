//! Strings that are not keys, and prefixes with which no key can start.

use std::convert::Infallible;
use std::fmt::Debug;

use shizuku_kv::replica::{Replica, ReplicaError};
use shizuku_kv::{
    Key, KeyValue, KeyValueRead, KeyValueWrite, KvError, KvReadError, KvWriteError, LiveRead,
    WatchScope,
};

use super::{Note, memory_store, store_error};

/// Returns strings that are not keys: position of the first offending byte, its description, and a
/// part of the reason.
fn invalid_keys() -> Vec<(String, usize, &'static str, &'static str)> {
    let cases = [
        ("a..b", 2, "'.'", "empty token"),
        (".a", 0, "'.'", "empty token"),
        ("a.", 1, "'.'", "empty token"),
        (".", 0, "'.'", "empty token"),
        ("a b", 1, "' '", "joined by single dots"),
        ("a*", 1, "'*'", "joined by single dots"),
        ("*", 0, "'*'", "joined by single dots"),
        (">", 0, "'>'", "joined by single dots"),
        ("a.>", 2, "'>'", "joined by single dots"),
        ("", 0, "nothing", "at least one token"),
        ("ä", 0, "'ä'", "joined by single dots"),
        ("a.bä", 3, "'ä'", "joined by single dots"),
        ("a\0b", 1, r"'\0'", "joined by single dots"),
        ("a\r\nb", 1, r"'\r'", "joined by single dots"),
        ("_kv.x", 0, "\"_kv\"", "reserved"),
    ];
    let mut cases = cases
        .map(|(key, position, found, reason)| (key.to_owned(), position, found, reason))
        .to_vec();
    cases.push(("a".repeat(1025), 1024, "1025 bytes", "at most 1024"));
    cases
}

#[track_caller]
fn assert_invalid_key<T: Debug>(
    result: Result<T, KvError>,
    case: &(String, usize, &str, &str),
    operation: &str,
) {
    let (invalid, expected_position, expected_found, expected_reason) = case;
    let error = result.expect_err(operation);
    let text = error.to_string();
    match &error {
        KvError::InvalidKey { key, position, found, reason, .. } => {
            assert_eq!(position, expected_position, "{operation} of {invalid:?}: {text}");
            assert!(found.contains(expected_found), "{operation} of {invalid:?}: {text}");
            assert!(reason.contains(expected_reason), "{operation} of {invalid:?}: {text}");
            assert!(
                invalid.starts_with(key.trim_end_matches('…')),
                "{operation} of {invalid:?}: {text}"
            );
        }
        _ => panic!("{operation} of {invalid:?}: {error:?}"),
    }
    assert!(text.contains(&format!("byte {expected_position}")), "{text}");
    assert!(text.contains(expected_found) && text.contains(expected_reason), "{text}");
    assert!(text.len() < 400, "an error is for people: {text}");
    assert!(!error.is_retryable() && !error.is_conflict(), "{text}");
}

#[track_caller]
fn read_store_error(error: KvReadError) -> KvError {
    match error {
        KvReadError::Store(error) => error,
        error => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn invalid_key_is_named_by_every_typed_operation() {
    let store = memory_store().await;
    let version = store.put("good", "x").await.unwrap();
    for case in &invalid_keys() {
        let key = case.0.as_str();
        assert_invalid_key(Key::new(key), case, "Key::new");
        assert_invalid_key(key.parse::<Key>(), case, "parse");
        assert_invalid_key(WatchScope::key(key), case, "WatchScope::key");
        assert_invalid_key(store.put(key, "x").await, case, "put");
        let note = Note(key.to_owned(), "x".to_owned());
        let read = |result: Result<_, KvReadError>| result.map_err(read_store_error);
        let written = |result: Result<_, KvWriteError>| result.map_err(store_error);
        assert_invalid_key(read(Note::read_from(&store, key).await.map(drop)), case, "read_from");
        assert_invalid_key(
            read(Note::atomic_read_from(&store, key).await.map(drop)),
            case,
            "atomic_read_from",
        );
        assert_invalid_key(
            read(Note::history_read_from(&store, key).await.map(drop)),
            case,
            "history_read_from",
        );
        assert_invalid_key(read(Note::watch(&store, key).await.map(drop)), case, "watch");
        assert_invalid_key(written(note.write_to_anyway(&store).await), case, "write_to_anyway");
        assert_invalid_key(
            written(note.write_to_atomically(&store, version).await),
            case,
            "write_to_atomically",
        );
        assert_invalid_key(written(note.create_write(&store).await), case, "create_write");
        assert_invalid_key(
            written(Note::write_many(&store, [&note]).await.remove(0)),
            case,
            "write_many",
        );
        assert_invalid_key(written(Note::delete_anyway(&store, key).await), case, "delete_anyway");
        let deleted = Note::delete_atomically(&store, key, version).await;
        assert_invalid_key(written(deleted), case, "delete_atomically");
        assert_invalid_key(written(Note::purge(&store, key).await), case, "purge");
        let modified =
            Note::modify(&store, key, |_| -> Option<_> { panic!("there is nothing to change") })
                .await;
        assert_invalid_key(modified.map_err(store_error), case, "modify");
    }
    assert_eq!(store.keys(WatchScope::All).try_collect().await.unwrap(), ["good"]);
}

#[tokio::test]
async fn prefix_of_no_key_is_rejected_with_the_way_out() {
    let store = memory_store().await;
    store.put("user.=C3=BC.7", "x").await.unwrap();
    for (prefix, position, way_out) in [
        ("user.ü.", 5, "the derived function, such as UserKey::scope_tenant()"),
        ("user.acme com.", 9, "escapes it"),
        ("user..", 5, "non-empty tokens"),
        (".user", 0, "joined by single dots"),
        ("user.*", 5, "`orders.` selects the keys of `orders.>`"),
        ("_kv", 0, "reserved"),
    ] {
        let case = &(prefix.to_owned(), position, "", way_out);
        for scope in [WatchScope::prefix(prefix), WatchScope::prefixes(["user.", prefix])] {
            assert_invalid_key(store.keys(scope.clone()).try_collect().await, case, "keys");
            assert_invalid_key(store.scan(scope.clone()).try_collect().await, case, "scan");
            assert_invalid_key(store.watch(scope.clone()).await.map(drop), case, "watch");
            let live = Note::live_map_scope(&store, scope.clone()).await.map(drop);
            assert_invalid_key(live.map_err(read_store_error), case, "live_map_scope");
            // A replica ends, and does not wait for updates that never come.
            let replica = Replica::new(&store, scope).run(async |_| Ok::<_, Infallible>(())).await;
            let Err(ReplicaError::Store(error)) = replica else { panic!("{replica:?}") };
            assert_invalid_key(Err::<(), _>(error), case, "a replica");
        }
    }
    // These are allowed: an empty prefix, a part of a token, and whole tokens.
    for prefix in ["", "us", "user.", "user.=C3"] {
        let found = store.keys(WatchScope::prefix(prefix)).try_collect().await.unwrap();
        assert_eq!(found, ["user.=C3=BC.7"], "{prefix:?}");
    }
}
