//! Values that do not decode: a typed error with the position, without the content.

use std::error::Error;
use std::fmt::Debug;

use serde::{Deserialize, Serialize};
use shizuku_kv::{
    JsonByteDes, JsonByteSer, KeyValue, KeyValueRead, KvReadError, KvWriteError,
    StaticKeyIndexedValue, TypedUpdate, VersionToken, WatchScope,
};

use super::{SECRET, memory_store, shown};

#[derive(
    Debug, PartialEq, Serialize, Deserialize, JsonByteSer, JsonByteDes, StaticKeyIndexedValue,
)]
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
        Self {
            url: "db:5432".to_owned(),
            password: SECRET.to_owned(),
            connections,
            mode: Mode::Pool,
        }
    }
}

/// Returns values that are not a [`Database`], each with the line of the fault.
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

#[track_caller]
fn assert_decode_error(error: &KvReadError, version: VersionToken, wanted_line: usize) {
    match error {
        KvReadError::Decode { type_name, key, version: found, source, .. } => {
            assert_eq!(
                (*type_name, key.as_str(), *found),
                ("Database", "config.database", version)
            );
            let (line, _) =
                source.line_and_column().unwrap_or_else(|| panic!("without a position: {error}"));
            assert_eq!(line, wanted_line, "{error}");
        }
        _ => panic!("{error:?}"),
    }
    let text = error.to_string();
    for part in
        ["Database", "config.database", &version.to_string(), &format!("line {wanted_line}")]
    {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    assert!(error.source().is_some(), "{error:?}");
    let shown = shown(error);
    assert!(!shown.contains(SECRET) && !shown.contains("77072"), "{shown}");
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn undecodable_value_is_typed_error_without_content() {
    let store = memory_store().await;
    for (value, line) in bad_values() {
        let version = store.put(Database::key(), value).await.unwrap();
        for error in [
            Database::read(&store).await.unwrap_err(),
            Database::read_from(&store, Database::key()).await.unwrap_err(),
            Database::atomic_read(&store).await.unwrap_err(),
            Database::atomic_read_from(&store, Database::key()).await.unwrap_err(),
            Database::history_read_from(&store, Database::key())
                .await
                .unwrap()
                .pop()
                .unwrap()
                .unwrap_err(),
            Database::list(&store).next().await.unwrap().unwrap_err(),
            Database::watch_value(&store).await.unwrap().next().await.unwrap().unwrap_err(),
        ] {
            assert_decode_error(&error, version, line);
        }
    }
}

#[tokio::test]
async fn undecodable_value_hides_none_of_the_others() {
    #[derive(Debug, PartialEq, Serialize, Deserialize, JsonByteSer, JsonByteDes)]
    struct Count(u64);

    #[derive(Debug, PartialEq, KeyValue)]
    struct Counter(#[kv(key)] String, #[kv(value)] Count);

    let store = memory_store().await;
    for (key, value) in [("a", "1"), ("b", "\"hunter2\""), ("c", "3"), ("d", "{"), ("e", "5")] {
        store.put(key, value).await.unwrap();
    }
    let read = ["a", "b", "absent", "c", "d", "e"];
    let many = Counter::read_many(&store, read).await.unwrap();
    let many: Vec<_> = many
        .into_iter()
        .map(|one| one.map(|counter| counter.map(|counter| counter.1.0)).ok())
        .collect();
    assert_eq!(many, [Some(Some(1)), None, Some(None), Some(Some(3)), None, Some(Some(5))]);

    let scan = Counter::list_scope(&store, WatchScope::All);
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    while let Some(item) = scan.next().await {
        match item {
            Ok(entry) => good.push(entry.1.0),
            Err(KvReadError::Decode { key, .. }) => bad.push(key.to_string()),
            Err(error) => panic!("{error:?}"),
        }
    }
    good.sort_unstable();
    bad.sort_unstable();
    assert_eq!((good, bad), (vec![1, 3, 5], vec!["b".to_owned(), "d".to_owned()]));
}

#[tokio::test]
async fn undecodable_value_does_not_stop_a_watch() {
    let store = memory_store().await;
    let (value, line) = bad_values().swap_remove(1);
    let version = store.put(Database::key(), value.clone()).await.unwrap();
    let watch = Database::watch_value(&store).await.unwrap();
    assert_decode_error(&watch.next().await.unwrap().unwrap_err(), version, line);
    assert!(matches!(watch.next().await, Some(Ok(TypedUpdate::CaughtUp))));
    for connections in 1..4 {
        Database::good(connections).write_to_anyway(&store).await.unwrap();
        let update = watch.next().await.unwrap().unwrap();
        assert_eq!(*update.into_entry().unwrap(), Database::good(connections));
        let version = store.put(Database::key(), value.clone()).await.unwrap();
        assert_decode_error(&watch.next().await.unwrap().unwrap_err(), version, line);
    }
}

#[tokio::test]
async fn undecodable_value_is_not_modified() {
    let store = memory_store().await;
    let (value, line) = bad_values().swap_remove(0);
    let version = store.put(Database::key(), value.clone()).await.unwrap();
    match Database::modify_value(&store, |_| -> Option<_> { panic!("there is nothing to change") })
        .await
        .unwrap_err()
    {
        KvWriteError::Read(error) => assert_decode_error(&error, version, line),
        error => panic!("{error:?}"),
    }
    let entry = store.get(Database::key()).await.unwrap().unwrap();
    assert_eq!((entry.version, &entry.value[..]), (version, &value[..]));
    // A writer that wants to replace it still can.
    Database::good(1).write_to_atomically(&store, version).await.unwrap();
    assert_eq!(Database::read(&store).await.unwrap(), Some(Database::good(1)));
}
