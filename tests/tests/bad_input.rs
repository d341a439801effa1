//! Bad input: refused before anything is sent, with an error that names what is wrong, the same on both backends.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test fails by panicking, and its name says what it shows"
)]

use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::os::unix::ffi::OsStringExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shizuku_kv::{
    ConfigDifference, Connection, JsonByteDes, JsonByteSer, Key, KeyValue, KeyValueRead, KeyValueWrite,
    KvError, KvReadError, KvUpdate, KvWriteError, StaticKeyIndexedValue, StorageType, Store, StoreConfig,
    TypedUpdate, URL_VARIABLE, VersionToken, WatchScope, connect, connect_from_env,
};
use shizuku_kv_tests::{NatsServer, unique};

/// In every value that must not be shown.
const SECRET: &str = "hunter2";

/// Runs each case on both backends, as tests of their own.
macro_rules! on_both_backends {
    ($($case:ident,)*) => {
        mod on_memory {
            $(
                #[tokio::test]
                async fn $case() {
                    super::$case(super::connect("memory:").await.unwrap()).await;
                }
            )*
        }
        mod on_nats {
            $(
                #[tokio::test]
                async fn $case() {
                    let server = super::NatsServer::shared();
                    super::$case(super::connect(&server.url()).await.unwrap()).await;
                }
            )*
        }
    };
}

on_both_backends! {
    an_invalid_key_is_refused_by_every_operation,
    an_invalid_key_is_refused_by_every_typed_operation,
    one_invalid_key_among_many_refuses_the_read_and_only_its_own_write,
    the_longest_key_works,
    a_prefix_that_is_no_key_selects_nothing,
    a_value_over_the_limit_is_refused_by_every_write,
    a_value_of_exactly_the_limit_works,
    the_configured_limit_holds,
    one_value_over_the_limit_refuses_only_its_own_write,
    a_value_that_does_not_decode_is_a_typed_error_without_its_content,
    a_value_that_does_not_decode_hides_none_of_the_others,
    a_value_that_does_not_decode_does_not_stop_a_watch,
    a_value_that_does_not_decode_is_not_modified,
    a_swap_with_a_wrong_version_writes_nothing,
    a_swap_of_a_deleted_key_writes_nothing,
    a_swap_of_a_key_that_was_never_written_writes_nothing,
    a_create_over_a_live_key_writes_nothing,
    a_name_that_is_none_is_refused,
    a_setting_that_cannot_work_is_refused_and_nothing_is_made,
    a_config_mismatch_names_each_field_with_wanted_and_found,
    a_store_that_must_exist_is_not_made,
    a_time_to_live_that_cannot_be_kept_is_refused,
    a_deadline_without_end_is_a_deadline,
}

async fn new_store(connection: &Arc<dyn Connection>) -> Store {
    connection.store(&unique("bad-input")).await.unwrap()
}

/// Everything that is no key: position of the first offending byte, what is found there, and a part of the reason.
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
    let mut cases =
        cases.map(|(key, position, found, reason)| (key.to_owned(), position, found, reason)).to_vec();
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
        KvError::InvalidKey { key, position, found, reason } => {
            assert_eq!(position, expected_position, "{operation} of {invalid:?}: {text}");
            assert!(found.contains(expected_found), "{operation} of {invalid:?}: {text}");
            assert!(reason.contains(expected_reason), "{operation} of {invalid:?}: {text}");
            assert!(invalid.starts_with(key.trim_end_matches('…')), "{operation} of {invalid:?}: {text}");
        }
        _ => panic!("{operation} of {invalid:?}: {error:?}"),
    }
    assert!(text.contains(&format!("byte {expected_position}")), "{text}");
    assert!(text.contains(expected_found) && text.contains(expected_reason), "{text}");
    assert!(text.len() < 400, "an error is for people: {text}");
    assert!(!error.is_retryable() && !error.is_conflict(), "{text}");
}

#[track_caller]
fn store_error(error: KvWriteError) -> KvError {
    match error {
        KvWriteError::Store(error) => error,
        error => panic!("{error:?}"),
    }
}

#[track_caller]
fn read_store_error(error: KvReadError) -> KvError {
    match error {
        KvReadError::Store(error) => error,
        error => panic!("{error:?}"),
    }
}

async fn an_invalid_key_is_refused_by_every_operation(connection: Arc<dyn Connection>) {
    let store = new_store(&connection).await;
    let version = store.put("good", "x").await.unwrap();
    for case in &invalid_keys() {
        let key = case.0.as_str();
        assert_invalid_key(Key::new(key), case, "Key::new");
        assert_invalid_key(key.parse::<Key>(), case, "parse");
        assert_invalid_key(WatchScope::key(key), case, "WatchScope::key");
        assert_invalid_key(store.get(key).await, case, "get");
        assert_invalid_key(store.entry(key).await, case, "entry");
        assert_invalid_key(store.get_many([key]).await, case, "get_many");
        assert_invalid_key(store.history(key), case, "history");
        assert_invalid_key(store.put(key, "x").await, case, "put");
        assert_invalid_key(store.create(key, "x").await, case, "create");
        assert_invalid_key(store.update(key, "x", version).await, case, "update");
        assert_invalid_key(store.delete(key).await, case, "delete");
        assert_invalid_key(store.delete_with_version(key, version).await, case, "delete_with_version");
        assert_invalid_key(store.purge(key).await, case, "purge");
        assert_invalid_key(store.put_many([(key, "x")]).await.remove(0), case, "put_many");
    }
    if connection.capabilities().key_ttl {
        let config = StoreConfig::new().key_ttl(true);
        let store = connection.store_with_config(&unique("bad-input"), config).await.unwrap();
        let (ttl, hour) = (store.ttl().unwrap(), Duration::from_secs(3600));
        for case in &invalid_keys() {
            let key = case.0.as_str();
            assert_invalid_key(ttl.put(key, "x", hour).await, case, "put with ttl");
            assert_invalid_key(ttl.create(key, "x", hour).await, case, "create with ttl");
            assert_invalid_key(ttl.update(key, "x", version, hour).await, case, "update with ttl");
        }
        assert_eq!(store.keys(WatchScope::All).try_collect().await.unwrap().len(), 0);
    }
    let keys = store.keys(WatchScope::All).try_collect().await.unwrap();
    assert_eq!(keys, ["good"], "nothing was written");
    assert_eq!(store.get("good").await.unwrap().unwrap().version, version);
}

/// A record whose key is whatever string it is given.
#[derive(Debug, PartialEq, KeyValue)]
struct Note(#[kv(key)] String, #[kv(value)] String);

async fn an_invalid_key_is_refused_by_every_typed_operation(connection: Arc<dyn Connection>) {
    let store = new_store(&connection).await;
    let version = store.put("good", "x").await.unwrap();
    for case in &invalid_keys() {
        let key = case.0.as_str();
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
        assert_invalid_key(written(Note::write_many(&store, [&note]).await.remove(0)), case, "write_many");
        assert_invalid_key(written(Note::delete_anyway(&store, key).await), case, "delete_anyway");
        let deleted = Note::delete_atomically(&store, key, version).await;
        assert_invalid_key(written(deleted), case, "delete_atomically");
        assert_invalid_key(written(Note::purge(&store, key).await), case, "purge");
        let modified = Note::modify(&store, key, |_| panic!("there is nothing to change")).await;
        assert_invalid_key(modified.map_err(store_error), case, "modify");
    }
    assert_eq!(store.keys(WatchScope::All).try_collect().await.unwrap(), ["good"]);
}

async fn one_invalid_key_among_many_refuses_the_read_and_only_its_own_write(connection: Arc<dyn Connection>) {
    let store = new_store(&connection).await;
    let invalid = invalid_keys();
    let items = invalid.iter().enumerate().flat_map(|(i, case)| [format!("k{i}"), case.0.clone()]);
    let answers = store.put_many(items.map(|key| (key, "x"))).await;
    assert_eq!(answers.len(), 2 * invalid.len());
    for (pair, case) in answers.chunks(2).zip(&invalid) {
        assert!(pair[0].is_ok(), "{:?}", pair[0]);
        assert_invalid_key(pair[1].clone(), case, "put_many");
    }
    assert_eq!(store.keys(WatchScope::All).try_collect().await.unwrap().len(), invalid.len());
    assert_invalid_key(store.get_many(["k0", "a..b", "k1"]).await, &invalid[0], "get_many");
}

async fn the_longest_key_works(connection: Arc<dyn Connection>) {
    let store = new_store(&connection).await;
    let keys = ["a".repeat(1024), "b.".repeat(511) + "cc"];
    for key in &keys {
        assert_eq!(key.len(), 1024);
        let version = store.create(key, "x").await.unwrap();
        assert_eq!(store.get(key).await.unwrap().unwrap().version, version);
    }
    assert_eq!(store.get_many(&keys).await.unwrap().iter().flatten().count(), 2);
    assert_eq!(store.keys(WatchScope::prefix("b.")).try_collect().await.unwrap(), [keys[1].as_str()]);
    store.delete(&keys[0]).await.unwrap();
}

async fn a_prefix_that_is_no_key_selects_nothing(connection: Arc<dyn Connection>) {
    let store = new_store(&connection).await;
    store.put("ab.c", "x").await.unwrap();
    store.put("a_b", "x").await.unwrap();
    for (prefix, ..) in invalid_keys().into_iter().filter(|(prefix, ..)| !prefix.is_empty()) {
        for scope in [WatchScope::prefix(&prefix), WatchScope::prefixes([&prefix, "nothing"])] {
            assert_eq!(
                store.keys(scope.clone()).try_collect().await.unwrap(),
                Vec::<Key>::new(),
                "{scope:?}"
            );
            assert_eq!(store.scan(scope.clone()).try_collect().await.unwrap(), [], "{scope:?}");
            let first = store.watch(scope.clone()).await.unwrap().next().await;
            assert_eq!(first.unwrap().unwrap(), KvUpdate::CaughtUp, "{scope:?}");
        }
    }
}

#[track_caller]
fn assert_too_large<T: Debug>(result: Result<T, KvError>, wanted: (&str, usize, usize), operation: &str) {
    let error = result.expect_err(operation);
    let text = error.to_string();
    match &error {
        KvError::ValueTooLarge { key, size, limit } => {
            assert_eq!((key.as_str(), *size, *limit), wanted, "{operation}: {text}");
        }
        _ => panic!("{operation}: {error:?}"),
    }
    assert!(text.contains(&wanted.1.to_string()) && text.contains(&wanted.2.to_string()), "{text}");
    assert!(text.len() < 200, "an error does not show the value: {text}");
    assert!(!error.is_retryable() && !error.is_conflict(), "{text}");
}

async fn a_value_over_the_limit_is_refused_by_every_write(connection: Arc<dyn Connection>) {
    let store = new_store(&connection).await;
    let version = store.put("here", "x").await.unwrap();
    let limit = store.max_value_size();
    for size in [limit + 1, limit + 4096, 2 * limit] {
        let value = "v".repeat(size);
        let wanted = |key| (key, size, limit);
        assert_too_large(store.put("new", value.clone()).await, wanted("new"), "put");
        assert_too_large(store.create("new", value.clone()).await, wanted("new"), "create");
        assert_too_large(store.put("here", value.clone()).await, wanted("here"), "put");
        assert_too_large(store.update("here", value.clone(), version).await, wanted("here"), "update");
        let many = store.put_many([("new", value.clone())]).await.remove(0);
        assert_too_large(many, wanted("new"), "put_many");
        let note = Note("new".to_owned(), value);
        let typed = note.write_to_anyway(&store).await.map_err(store_error);
        assert_too_large(typed, wanted("new"), "write_to_anyway");
        let typed = note.create_write(&store).await.map_err(store_error);
        assert_too_large(typed, wanted("new"), "create_write");
    }
    assert_eq!(store.entry("new").await.unwrap(), None, "nothing was written");
    let here = store.get("here").await.unwrap().unwrap();
    assert_eq!((&here.value[..], here.version), (&b"x"[..], version), "nothing was written");
}

async fn a_value_of_exactly_the_limit_works(connection: Arc<dyn Connection>) {
    let store = new_store(&connection).await;
    let limit = store.max_value_size();
    assert!(limit > 512 * 1024, "{limit}");
    let value = |letter: &str| letter.repeat(limit);
    // The longest key and the most headers are what adds to a value.
    let key = "k".repeat(1024);
    let version = store.create(&key, value("a")).await.unwrap();
    let version = store.update(&key, value("b"), version).await.unwrap();
    store.put(&key, value("c")).await.unwrap();
    store.put_many([(&key, value("d"))]).await.remove(0).unwrap();
    let entry = store.get(&key).await.unwrap().unwrap();
    assert_ne!(entry.version, version);
    assert!(entry.value == value("d"), "{entry:?}");
    assert!(store.scan(WatchScope::All).try_collect().await.unwrap()[0].value == value("d"));
    if connection.capabilities().key_ttl {
        let config = StoreConfig::new().key_ttl(true);
        let store = connection.store_with_config(&unique("bad-input"), config).await.unwrap();
        let (ttl, long) = (store.ttl().unwrap(), Duration::from_secs(1_000_000_000));
        let version = ttl.create(&key, value("e"), long).await.unwrap();
        ttl.update(&key, value("f"), version, long).await.unwrap();
    }
}

async fn the_configured_limit_holds(connection: Arc<dyn Connection>) {
    let config = StoreConfig::new().max_value_size(1000);
    let name = unique("bad-input");
    let store = connection.store_with_config(&name, config).await.unwrap();
    // Also for a handle that did not ask for it.
    for store in [store, connection.store(&name).await.unwrap()] {
        assert_eq!(store.max_value_size(), 1000);
        store.put("fits", "v".repeat(1000)).await.unwrap();
        store.put("fits", "").await.unwrap();
        assert_too_large(store.put("not", "v".repeat(1001)).await, ("not", 1001, 1000), "put");
        assert_too_large(
            store.create("not", "v".repeat(1_000_000)).await,
            ("not", 1_000_000, 1000),
            "create",
        );
        assert_eq!(store.entry("not").await.unwrap(), None);
        assert_eq!(store.get("fits").await.unwrap().unwrap().value.len(), 0);
    }
}

async fn one_value_over_the_limit_refuses_only_its_own_write(connection: Arc<dyn Connection>) {
    let config = StoreConfig::new().max_value_size(10);
    let store = connection.store_with_config(&unique("bad-input"), config).await.unwrap();
    let items = [("a", 10), ("b", 11), ("c", 0), ("d", 100), ("e", 1)];
    let answers = store.put_many(items.map(|(key, size)| (key, "v".repeat(size)))).await;
    assert_eq!(answers.len(), items.len());
    for ((key, size), answer) in items.into_iter().zip(answers) {
        let stored = store.get(key).await.unwrap();
        if size > 10 {
            assert_too_large(answer, (key, size, 10), "put_many");
            assert_eq!(stored, None, "{key}");
        } else {
            assert_eq!(answer.unwrap(), stored.unwrap().version, "{key}");
        }
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonByteSer, JsonByteDes, StaticKeyIndexedValue)]
#[kv(key = "config.database")]
#[serde(deny_unknown_fields)]
struct Database {
    url: String,
    password: String,
    connections: u32,
    #[serde(default)]
    mode: Mode,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Pool,
    Single,
}

impl Database {
    fn good(connections: u32) -> Self {
        Self { url: "db:5432".to_owned(), password: SECRET.to_owned(), connections, mode: Mode::Pool }
    }
}

/// Values that are no [`Database`], each with the line where that shows.
fn bad_values() -> Vec<(Vec<u8>, usize)> {
    let texts = [
        (r#"{"url":"u","password":"hunter2","connections":"hunter2"}"#, 1),
        ("{\n\"url\": \"u\",\n\"password\": \"hunter2\",\n\"connections\": \"hunter2\"}", 4),
        (r#"{"url":"u","password":"hunter2","connections":-77072}"#, 1),
        (r#"{"url":"u","password":"hunter2","connections":1,"mode":"hunter2"}"#, 1),
        (r#"{"url":"u","password":"hunter2","connections":1,"hunter2":1}"#, 1),
        (r#"{"url":"u","password":"hunter2"}"#, 1),
        (r#"{"url":"u","password":"hunter2","password":"hunter2"}"#, 1),
        (r#"{"url":"hunter2"#, 1),
        (r#"{"url":"u","password":"hunter2","connections":1} hunter2"#, 1),
        ("hunter2", 1),
        (r#""hunter2""#, 1),
        (r#"["hunter2"]"#, 1),
        ("null", 1),
        ("{}", 1),
        ("", 1),
    ];
    let mut values = texts.map(|(text, line)| (text.as_bytes().to_vec(), line)).to_vec();
    values.push((b"{\"url\":\"hunter2\xff\xfe\"}".to_vec(), 1));
    values.push((b"\xff\x00hunter2".to_vec(), 1));
    values
}

/// Everything an error shows, its sources included.
fn shown(error: &dyn Error) -> String {
    let mut shown = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        shown.push_str(&format!("{error}\n{error:?}\n{error:#?}\n"));
        next = error.source();
    }
    shown
}

#[track_caller]
fn assert_decode_error(error: &KvReadError, version: VersionToken, wanted_line: usize) {
    match error {
        KvReadError::Decode { type_name, key, version: found, source, .. } => {
            assert_eq!((*type_name, key.as_str(), *found), ("Database", "config.database", version));
            let (line, _) = source.line_and_column().unwrap_or_else(|| panic!("without a position: {error}"));
            assert_eq!(line, wanted_line, "{error}");
        }
        _ => panic!("{error:?}"),
    }
    let text = error.to_string();
    for part in ["Database", "config.database", &version.to_string(), &format!("line {wanted_line}")] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    assert!(error.source().is_some(), "{error:?}");
    let shown = shown(error);
    assert!(!shown.contains(SECRET) && !shown.contains("77072"), "{shown}");
    assert!(!error.is_retryable());
}

async fn a_value_that_does_not_decode_is_a_typed_error_without_its_content(connection: Arc<dyn Connection>) {
    let config = StoreConfig::new().history(2);
    let store = connection.store_with_config(&unique("bad-input"), config).await.unwrap();
    for (value, line) in bad_values() {
        let version = store.put(Database::key(), value).await.unwrap();
        for error in [
            Database::read(&store).await.unwrap_err(),
            Database::read_from(&store, Database::key()).await.unwrap_err(),
            Database::atomic_read(&store).await.unwrap_err(),
            Database::atomic_read_from(&store, Database::key()).await.unwrap_err(),
            Database::history_read_from(&store, Database::key()).await.unwrap().pop().unwrap().unwrap_err(),
            Database::list(&store).next().await.unwrap().unwrap_err(),
            Database::watch_value(&store).await.unwrap().next().await.unwrap().unwrap_err(),
        ] {
            assert_decode_error(&error, version, line);
        }
    }
}

async fn a_value_that_does_not_decode_hides_none_of_the_others(connection: Arc<dyn Connection>) {
    #[derive(Debug, PartialEq, Serialize, Deserialize, JsonByteSer, JsonByteDes)]
    struct Count(u64);

    #[derive(Debug, PartialEq, KeyValue)]
    struct Counter(#[kv(key)] String, #[kv(value)] Count);

    let store = new_store(&connection).await;
    for (key, value) in [("a", "1"), ("b", "\"hunter2\""), ("c", "3"), ("d", "{"), ("e", "5")] {
        store.put(key, value).await.unwrap();
    }
    let read = ["a", "b", "absent", "c", "d", "e"];
    let many = Counter::read_many(&store, read).await.unwrap();
    let many: Vec<_> =
        many.into_iter().map(|one| one.map(|counter| counter.map(|counter| counter.1.0)).ok()).collect();
    assert_eq!(many, [Some(Some(1)), None, Some(None), Some(Some(3)), None, Some(Some(5))]);

    let mut scan = Counter::list_scope(&store, WatchScope::All);
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    while let Some(item) = scan.next().await {
        match item {
            Ok(entry) => good.push(entry.value.1.0),
            Err(KvReadError::Decode { key, .. }) => bad.push(key.to_string()),
            Err(error) => panic!("{error:?}"),
        }
    }
    good.sort_unstable();
    bad.sort_unstable();
    assert_eq!((good, bad), (vec![1, 3, 5], vec!["b".to_owned(), "d".to_owned()]));
}

async fn a_value_that_does_not_decode_does_not_stop_a_watch(connection: Arc<dyn Connection>) {
    let store = new_store(&connection).await;
    let (value, line) = bad_values().swap_remove(1);
    let version = store.put(Database::key(), value.clone()).await.unwrap();
    let watch = Database::watch_value(&store).await.unwrap();
    assert_decode_error(&watch.next().await.unwrap().unwrap_err(), version, line);
    assert!(matches!(watch.next().await, Some(Ok(TypedUpdate::CaughtUp))));
    for connections in 1..4 {
        Database::good(connections).write_to_anyway(&store).await.unwrap();
        let update = watch.next().await.unwrap().unwrap();
        assert_eq!(update.into_entry().unwrap().value, Database::good(connections));
        let version = store.put(Database::key(), value.clone()).await.unwrap();
        assert_decode_error(&watch.next().await.unwrap().unwrap_err(), version, line);
    }
}

async fn a_value_that_does_not_decode_is_not_modified(connection: Arc<dyn Connection>) {
    let store = new_store(&connection).await;
    let (value, line) = bad_values().swap_remove(0);
    let version = store.put(Database::key(), value.clone()).await.unwrap();
    match Database::modify_value(&store, |_| panic!("there is nothing to change")).await.unwrap_err() {
        KvWriteError::Read(error) => assert_decode_error(&error, version, line),
        error => panic!("{error:?}"),
    }
    let entry = store.get(Database::key()).await.unwrap().unwrap();
    assert_eq!((entry.version, &entry.value[..]), (version, &value[..]));
    // Who wants to get rid of it still can.
    Database::good(1).write_to_atomically(&store, version).await.unwrap();
    assert_eq!(Database::read(&store).await.unwrap(), Some(Database::good(1)));
}

#[track_caller]
fn assert_mismatch(error: &KvError, wanted: (&str, VersionToken, Option<VersionToken>)) {
    match error {
        KvError::RevisionMismatch { key, expected, found } => {
            assert_eq!((key.as_str(), *expected, *found), wanted, "{error}");
        }
        _ => panic!("{error:?}"),
    }
    let text = error.to_string();
    assert!(text.contains(wanted.0) && text.contains(&wanted.1.to_string()), "{text}");
    assert!(error.is_conflict() && !error.is_retryable(), "{text}");
}

/// Versions that a key at `version` does not have.
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

/// Every write that compares, with a version that must not match.
async fn assert_swaps_lose(store: &Store, key: &str, expected: VersionToken, found: Option<VersionToken>) {
    let updated = store.update(key, SECRET, expected).await.unwrap_err();
    let deleted = store.delete_with_version(key, expected).await.unwrap_err();
    let note = Note(key.to_owned(), SECRET.to_owned());
    let written = note.write_to_atomically(store, expected).await.unwrap_err();
    assert!(written.is_conflict());
    let removed = Note::delete_atomically(store, key, expected).await.unwrap_err();
    assert!(removed.is_conflict());
    for error in [updated, deleted, store_error(written), store_error(removed)] {
        // A version that the backend cannot have given out need not be sent to be refused.
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
        let tombstone = if purge { store.purge(key).await } else { store.delete(key).await }.unwrap();
        assert_ne!(version, tombstone);
        assert_swaps_lose(&store, key, version, Some(tombstone)).await;
        for wrong in other_versions(tombstone) {
            assert_swaps_lose(&store, key, wrong, Some(tombstone)).await;
        }
        assert_eq!(store.get(key).await.unwrap(), None);
        assert_eq!(store.entry(key).await.unwrap().unwrap().version, tombstone, "nothing was written");
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
                KvError::AlreadyExists { key, found } => {
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

async fn a_name_that_is_none_is_refused(connection: Arc<dyn Connection>) {
    let too_long = "a".repeat(65);
    for name in ["a b", "a.b", "", ">", "*", "a>", &too_long, "ä", "a/b", "a\\b", "a\0", "a\r\n", "$KV", " a"]
    {
        for error in [
            connection.store(name).await.unwrap_err(),
            connection.store_with_config(name, StoreConfig::new().must_exist()).await.unwrap_err(),
            connection.delete_store(name).await.unwrap_err(),
        ] {
            match &error {
                KvError::InvalidStoreName { name: shown, reason } => {
                    assert_eq!(shown, name);
                    assert!(error.to_string().contains(reason), "{error}");
                }
                _ => panic!("{name:?}: {error:?}"),
            }
            assert!(!error.is_retryable(), "{error}");
        }
    }
    // The longest one that is a name; no other test makes one that long.
    let longest = format!("{:a<64}", unique("long"));
    connection.store(&longest).await.unwrap().put("key", "x").await.unwrap();
    let names = connection.list_stores().try_collect().await.unwrap();
    assert!(names.contains(&longest), "{names:?}");
    assert!(names.iter().all(|name| !name.is_empty() && name.len() <= 64), "{names:?}");
    connection.delete_store(&longest).await.unwrap();
}

async fn a_setting_that_cannot_work_is_refused_and_nothing_is_made(connection: Arc<dyn Connection>) {
    let new = StoreConfig::new;
    let name = unique("bad-input");
    for (field, config) in [
        ("history", new().history(0)),
        ("history", new().history(65)),
        ("history", new().history(255)),
        ("max_value_size", new().max_value_size(0)),
        ("max_value_size", new().max_value_size(usize::MAX)),
        ("max_bytes", new().max_bytes(0)),
        ("max_bytes", new().max_bytes(u64::MAX)),
        ("max_age", new().max_age(Duration::ZERO)),
        ("max_age", new().max_age(Duration::from_millis(99))),
        ("max_age", new().max_age(Duration::MAX)),
        ("replicas", new().replicas(0)),
        ("replicas", new().replicas(6)),
        ("key_ttl", new().key_ttl(true).history(2)),
        ("deadline", new().deadline(Duration::ZERO)),
    ] {
        for config in [config.clone(), config.clone().reconcile(), config.clone().must_exist()] {
            let error = connection.store_with_config(&name, config.clone()).await.unwrap_err();
            match &error {
                KvError::InvalidConfig { field: named, reason } => {
                    assert_eq!(*named, field, "{config:?}: {error}");
                    assert!(!reason.is_empty() && error.to_string().contains(field), "{error}");
                }
                _ => panic!("{config:?}: {error:?}"),
            }
            assert!(!error.is_retryable());
        }
    }
    let names = connection.list_stores().try_collect().await.unwrap();
    assert!(!names.contains(&name), "{names:?}");
}

async fn a_config_mismatch_names_each_field_with_wanted_and_found(connection: Arc<dyn Connection>) {
    let name = unique("bad-input");
    let minutes = |n: u64| Duration::from_secs(60 * n);
    let there = StoreConfig::new()
        .description("as it is")
        .history(3)
        .max_value_size(1000)
        .max_age(minutes(60))
        .storage(StorageType::Memory);
    let store = connection.store_with_config(&name, there.clone()).await.unwrap();
    let version = store.put("key", "x").await.unwrap();

    let wanted = StoreConfig::new()
        .description("as it should be")
        .history(4)
        .max_value_size(2000)
        .max_bytes(1 << 20)
        .max_age(minutes(30))
        .storage(StorageType::File)
        .replicas(3);
    let error = connection.store_with_config(&name, wanted).await.unwrap_err();
    let KvError::ConfigMismatch { store: named, differences } = &error else { panic!("{error:?}") };
    assert_eq!(*named, name);
    let shown = |d: &ConfigDifference| (d.field, d.wanted.clone(), d.found.clone());
    let mut differences: Vec<_> = differences.iter().map(shown).collect();
    differences.sort();
    let wanted = [
        ("description", "\"as it should be\"", "\"as it is\""),
        ("history", "4", "3"),
        ("max_age", "1800s", "3600s"),
        ("max_bytes", "1048576", "not set"),
        ("max_value_size", "2000", "1000"),
        ("replicas", "3", "1"),
        ("storage", "File", "Memory"),
    ];
    assert_eq!(
        differences,
        wanted.map(|(field, wanted, found)| (field, wanted.to_owned(), found.to_owned()))
    );
    let text = error.to_string();
    for (field, wanted, found) in wanted {
        let part = format!("{field}: wanted {wanted}, found {found}");
        assert!(text.contains(&part), "{part:?} is not in: {text}");
    }
    assert!(text.contains(&name) && !error.is_retryable(), "{text}");

    // A field alone is the only one that is named.
    let error = connection.store_with_config(&name, StoreConfig::new().history(5)).await.unwrap_err();
    let KvError::ConfigMismatch { differences, .. } = &error else { panic!("{error:?}") };
    assert_eq!(differences.iter().map(|d| d.field).collect::<Vec<_>>(), ["history"]);

    if connection.capabilities().key_ttl {
        let plain = unique("bad-input");
        connection.store(&plain).await.unwrap();
        let error = connection.store_with_config(&plain, StoreConfig::new().key_ttl(true)).await.unwrap_err();
        assert!(error.to_string().contains("key_ttl: wanted true, found false"), "{error}");
    }

    // The store is as it was.
    let store = connection.store_with_config(&name, there).await.unwrap();
    assert_eq!(store.get("key").await.unwrap().unwrap().version, version);
    assert_eq!(store.max_value_size(), 1000);
}

async fn a_store_that_must_exist_is_not_made(connection: Arc<dyn Connection>) {
    let name = unique("bad-input");
    for error in [
        connection.store_with_config(&name, StoreConfig::new().must_exist()).await.unwrap_err(),
        connection
            .store_with_config(&name, StoreConfig::new().must_exist().history(2).reconcile())
            .await
            .unwrap_err(),
        connection.delete_store(&name).await.unwrap_err(),
    ] {
        assert!(matches!(&error, KvError::StoreNotFound { store } if *store == name), "{error:?}");
        assert!(error.to_string().contains(&name) && !error.is_retryable(), "{error}");
    }
    assert!(!connection.list_stores().try_collect().await.unwrap().contains(&name));
}

async fn a_time_to_live_that_cannot_be_kept_is_refused(connection: Arc<dyn Connection>) {
    if !connection.capabilities().key_ttl {
        let config = StoreConfig::new().key_ttl(true);
        let error = connection.store_with_config(&unique("bad-input"), config).await.unwrap_err();
        assert!(
            matches!(&error, KvError::Unsupported { reason, .. } if reason.contains("2.11")),
            "{error:?}"
        );
        return;
    }
    assert!(new_store(&connection).await.ttl().is_none(), "nobody asked for it");
    let config = StoreConfig::new().key_ttl(true);
    let store = connection.store_with_config(&unique("bad-input"), config).await.unwrap();
    let ttl = store.ttl().unwrap();
    let version = store.put("here", "x").await.unwrap();
    for bad in [Duration::ZERO, ttl.granularity() - Duration::from_nanos(1), Duration::MAX] {
        for error in [
            ttl.put("key", "x", bad).await.unwrap_err(),
            ttl.create("key", "x", bad).await.unwrap_err(),
            ttl.update("here", "y", version, bad).await.unwrap_err(),
        ] {
            assert!(
                matches!(&error, KvError::InvalidConfig { field: "time to live", .. }),
                "{bad:?}: {error:?}"
            );
        }
    }
    assert_eq!(store.entry("key").await.unwrap(), None);
    assert_eq!(store.get("here").await.unwrap().unwrap().version, version);
}

async fn a_deadline_without_end_is_a_deadline(connection: Arc<dyn Connection>) {
    let config = StoreConfig::new().deadline(Duration::MAX);
    let store = connection.store_with_config(&unique("bad-input"), config).await.unwrap();
    let version = store.create("key", "x").await.unwrap();
    let version = store.update("key", "y", version).await.unwrap();
    assert!(store.put_many([("a", "x"), ("b", "x")]).await.iter().all(Result::is_ok));
    assert_eq!(store.get("key").await.unwrap().unwrap().version, version);
    assert_eq!(store.get_many(["key", "a", "b", "c", "d"]).await.unwrap().iter().flatten().count(), 3);
    assert_eq!(store.keys(WatchScope::All).try_collect().await.unwrap().len(), 3);
    assert_eq!(store.history("key").unwrap().try_collect().await.unwrap().len(), 1);
    assert!(store.watch(WatchScope::All).await.unwrap().next().await.unwrap().is_ok());
    store.delete("key").await.unwrap();
}

#[tokio::test]
async fn more_replicas_than_servers_are_refused_with_the_servers_reason() {
    let connection = connect(&NatsServer::shared().url()).await.unwrap();
    let error =
        connection.store_with_config(&unique("bad-input"), StoreConfig::new().replicas(3)).await.unwrap_err();
    assert!(error.to_string().contains("replicas"), "{error}");
    assert!(!error.is_retryable(), "{error:?}");
}

#[tokio::test]
async fn a_url_with_an_unknown_scheme_is_told_the_known_ones() {
    for url in [
        "http://app:hunter2@host",
        "https://app:hunter2@host:4222/bucket",
        "redis://:hunter2@host:6379/0",
        "postgres://app:hunter2@host/db?password=hunter2",
        "mem://",
        "jetstream://hunter2@host",
        "file:./x",
        "file:///hunter2/data",
        "NATS//host",
        "nats//app:hunter2@host",
        "app:hunter2@host:4222",
        "host:4222",
        "localhost",
        "",
        " ",
        ":",
        "://",
        "//app:hunter2@host",
        "://app:hunter2@host",
    ] {
        let error = connect(url).await.unwrap_err();
        assert!(
            matches!(error, KvError::InvalidUrl { .. } | KvError::Unsupported { .. }),
            "{url:?}: {error:?}"
        );
        let text = error.to_string();
        for known in ["memory:", "nats://", "tls://"] {
            assert!(text.contains(known), "{known} is not in the error for {url:?}: {text}");
        }
        assert!(!shown(&error).contains(SECRET), "{url:?}: {error:?}");
        assert!(!error.is_retryable(), "{url:?}: {error:?}");
    }
}

#[tokio::test]
async fn what_stands_where_a_scheme_belongs_is_shown_only_if_it_looks_like_one() {
    for url in [
        "hunter2@nats://host",
        "app:hunter2@nats://host",
        "nats hunter2://host",
        "hunter2=//host",
        "ä://hunter2@host",
    ] {
        let error = connect(url).await.unwrap_err();
        assert!(error.to_string().contains("known are memory:, nats://, tls://"), "{url:?}: {error:?}");
        assert!(!shown(&error).contains(SECRET), "{url:?}: {error:?}");
    }
}

#[tokio::test]
async fn a_malformed_url_is_told_what_is_wrong_with_it() {
    for (url, reason) in [
        ("memory:x", "nothing may follow"),
        ("memory://", "nothing may follow"),
        ("memory://app:hunter2@host", "nothing may follow"),
        ("memory:?hunter2", "nothing may follow"),
        ("nats:", "nats://HOST:PORT"),
        ("nats:host", "nats://HOST:PORT"),
        ("nats:/app:hunter2@host", "nats://HOST:PORT"),
        ("tls:app:hunter2@host", "nats://HOST:PORT"),
        ("nats://", "host is missing"),
        ("tls://", "host is missing"),
        ("nats:///", "host is missing"),
        ("nats://:4222", "host is missing"),
        ("nats://app:hunter2@", "host is missing"),
        ("nats://app:hunter2@:4222", "host is missing"),
        ("nats://app:hunter2@one,,two", "host is missing"),
        ("nats://app:hunter2@one,", "host is missing"),
        ("nats://@host", "empty"),
        ("nats://app:hunter2@host:0", "port"),
        ("nats://app:hunter2@host:65536", "port"),
        ("nats://app:hunter2@host:-1", "port"),
        ("nats://app:hunter2@host:", "port"),
        ("nats://app:hunter2@host:4222/bucket", "path"),
        ("nats://app:hunter2@one,other:hunter2@two", "different users"),
        ("nats://app:hunter2@host?nonsense=1", "unknown option"),
        ("nats://app:hunter2@host?name", "no value"),
        ("nats://app:hunter2@host?deadline_ms=soon", "milliseconds"),
        ("nats://app:hunter2@host?connect_timeout_ms=-1", "milliseconds"),
        ("nats://app:hunter2@host?tls_first=yes", "true or false"),
        ("nats://app:hunter2@host?tls_cert=hunter2", "together"),
        ("nats://app:hunter2@host?creds=/tmp/hunter2", "more than one kind"),
        ("nats://app:hunter2%ff@host", "UTF-8"),
    ] {
        let error = connect(url).await.unwrap_err();
        assert!(matches!(error, KvError::InvalidUrl { .. }), "{url:?}: {error:?}");
        assert!(error.to_string().contains(reason), "{url:?}: {error}");
        assert!(!shown(&error).contains(SECRET), "{url:?}: {error:?}");
        assert!(!error.is_retryable(), "{url:?}: {error:?}");
    }
    // An address that only the client library finds fault with.
    for url in ["nats://app:hunter2@a host", "nats://app:hunter2@[::1", "nats://app:hunter2@]"] {
        let error = connect(url).await.unwrap_err();
        assert!(
            matches!(error, KvError::InvalidUrl { .. } | KvError::InvalidConfig { .. }),
            "{url:?}: {error:?}"
        );
        assert!(!shown(&error).contains(SECRET), "{url:?}: {error:?}");
    }
}

/// Set for a test of this file that runs once more, in a process of its own, with the environment that it is about.
const CHILD: &str = "SHIZUKU_BAD_INPUT_CHILD";

/// What `connect_from_env` says in a process with this value of its variable.
fn from_env(value: Option<&OsStr>) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let test = "the_variable_is_read_and_its_faults_are_named";
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, "1").stdin(Stdio::null());
    match value {
        Some(value) => command.env(URL_VARIABLE, value),
        None => command.env_remove(URL_VARIABLE),
    };
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let (_, after) = text.split_once("from the environment: ").unwrap_or_else(|| panic!("{text}"));
    after.lines().next().unwrap().to_owned()
}

#[tokio::test]
async fn the_variable_is_read_and_its_faults_are_named() {
    if std::env::var_os(CHILD).is_some() {
        match connect_from_env().await {
            Ok(connection) => println!("from the environment: {connection:?}"),
            Err(error) => println!("from the environment: {error} / {error:?}"),
        }
        return;
    }
    assert_eq!(URL_VARIABLE, "SHIZUKU_KV_URL");
    assert!(from_env(Some("memory:".as_ref())).contains("MemoryConnection"));
    let server = NatsServer::shared();
    assert!(from_env(Some(server.url().as_ref())).contains("NatsConnection"));

    let unset = from_env(None);
    assert!(unset.contains("SHIZUKU_KV_URL is not set") && unset.contains("InvalidUrl"), "{unset}");
    for url in ["", "redis://app:hunter2@host", "app:hunter2@host"] {
        let refused = from_env(Some(url.as_ref()));
        assert!(refused.contains("known are memory:, nats://, tls://"), "{url:?}: {refused}");
        assert!(!refused.contains(SECRET), "{refused}");
    }
}

#[test]
fn a_variable_that_is_no_text_is_not_called_unset() {
    let no_text = from_env(Some(&OsString::from_vec(b"nats://app:hunter2\xff@host".to_vec())));
    assert!(no_text.contains("SHIZUKU_KV_URL") && !no_text.contains("not set"), "{no_text}");
    assert!(!no_text.contains(SECRET), "{no_text}");
}
