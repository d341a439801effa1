//! Values over the limit, and of exactly the limit.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use shizuku_kv::{Connection, KeyValue, KeyValueWrite, KvError, StoreConfig, WatchScope};
use shizuku_kv_tests::unique;

use super::{Note, new_store, on_both_backends, store_error};

on_both_backends! {
    a_value_over_the_limit_is_refused_by_every_write,
    a_value_of_exactly_the_limit_works,
    the_configured_limit_holds,
    one_value_over_the_limit_refuses_only_its_own_write,
}

#[track_caller]
fn assert_too_large<T: Debug>(
    result: Result<T, KvError>,
    wanted: (&str, usize, usize),
    operation: &str,
) {
    let error = result.expect_err(operation);
    let text = error.to_string();
    match &error {
        KvError::ValueTooLarge { key, size, limit, .. } => {
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
        assert_too_large(
            store.update("here", value.clone(), version).await,
            wanted("here"),
            "update",
        );
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
    // The longest key and the most headers add the most to a value.
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
    // The limit also applies to a handle that did not request it.
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
