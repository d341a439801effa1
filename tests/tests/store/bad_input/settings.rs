//! Names and settings that are impossible, or differ from those of the existing store.

use std::sync::Arc;
use std::time::Duration;

use shizuku_kv::{
    ConfigDifference, Connection, KvError, StorageType, StoreConfig, WatchScope, connect,
};
use shizuku_kv_tests::unique;

on_each_backend! {
    config_mismatch_names_each_field_with_wanted_and_found,
    deadline_without_end_is_a_deadline,
}

#[tokio::test]
async fn limit_that_cannot_be_counted_is_rejected() {
    let connection = connect("memory:").await.unwrap();
    for (field, config) in [
        ("max_value_size", StoreConfig::new().max_value_size(usize::MAX)),
        ("max_bytes", StoreConfig::new().max_bytes(0)),
        ("max_bytes", StoreConfig::new().max_bytes(u64::MAX)),
    ] {
        let error = connection.store_with_config("store", config).await.unwrap_err();
        let KvError::InvalidConfig { field: named, reason, .. } = &error else {
            panic!("{field}: {error:?}")
        };
        assert_eq!(*named, field, "{error}");
        assert!(!reason.is_empty() && error.to_string().contains(field), "{error}");
        assert!(!error.is_retryable());
    }
}

async fn config_mismatch_names_each_field_with_wanted_and_found(connection: Arc<dyn Connection>) {
    let name = unique("bad-input");
    let minutes = |n: u64| Duration::from_secs(60 * n);
    let there = StoreConfig::new()
        .description("as it is")
        .history(3)
        .max_value_size(1000)
        .max_age(minutes(60))
        .storage(StorageType::Memory);
    connection.store_with_config(&name, there).await.unwrap();

    let wanted = StoreConfig::new()
        .description("as it should be")
        .history(4)
        .max_value_size(2000)
        .max_bytes(1 << 20)
        .max_age(minutes(30))
        .storage(StorageType::File)
        .replicas(3);
    let error = connection.store_with_config(&name, wanted).await.unwrap_err();
    let KvError::ConfigMismatch { store: named, differences, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(*named, name);
    let shown = |d: &ConfigDifference| (d.field, d.wanted.clone(), d.found.clone());
    let mut differences: Vec<_> = differences.iter().map(shown).collect();
    differences.sort();
    let wanted = [
        ("description", "\"as it should be\"", "\"as it is\""),
        ("history", "4", "3"),
        ("max_age", "1800s", "3600s"),
        ("max_bytes", "1048576", "no limit"),
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

    if connection.capabilities().key_ttl {
        let plain = unique("bad-input");
        connection.store(&plain).await.unwrap();
        let error = connection
            .store_with_config(&plain, StoreConfig::new().key_ttl(true))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("key_ttl: wanted true, found false"), "{error}");
    }
}

async fn deadline_without_end_is_a_deadline(connection: Arc<dyn Connection>) {
    let config = StoreConfig::new().deadline(Duration::MAX);
    let store = connection.store_with_config(&unique("bad-input"), config).await.unwrap();
    let version = store.create("key", "x").await.unwrap();
    let version = store.update("key", "y", version).await.unwrap();
    assert!(store.put_many([("a", "x"), ("b", "x")]).await.iter().all(Result::is_ok));
    assert_eq!(store.get("key").await.unwrap().unwrap().version, version);
    assert_eq!(
        store.get_many(["key", "a", "b", "c", "d"]).await.unwrap().iter().flatten().count(),
        3
    );
    assert_eq!(store.keys(WatchScope::All).try_collect().await.unwrap().len(), 3);
    assert_eq!(store.history("key").unwrap().try_collect().await.unwrap().len(), 1);
    assert!(store.watch(WatchScope::All).await.unwrap().next().await.unwrap().is_ok());
    store.delete("key").await.unwrap();
}
