//! Names and settings that are impossible, or differ from those of the existing store.

use std::sync::Arc;
use std::time::Duration;

use shizuku_kv::{
    ConfigDifference, Connection, KvError, StorageType, StoreConfig, WatchScope, connect,
};
use shizuku_kv_tests::{NatsServer, unique};

use super::{new_store, on_both_backends};

on_both_backends! {
    a_name_that_is_none_is_refused,
    a_setting_that_cannot_work_is_refused_and_nothing_is_made,
    a_config_mismatch_names_each_field_with_wanted_and_found,
    a_store_that_must_exist_is_not_made,
    a_time_to_live_that_cannot_be_kept_is_refused,
    a_deadline_without_end_is_a_deadline,
}

async fn a_name_that_is_none_is_refused(connection: Arc<dyn Connection>) {
    let too_long = "a".repeat(65);
    for name in [
        "a b", "a.b", "", ">", "*", "a>", &too_long, "ä", "a/b", "a\\b", "a\0", "a\r\n", "$KV",
        " a",
    ] {
        for error in [
            connection.store(name).await.unwrap_err(),
            connection.store_with_config(name, StoreConfig::new().must_exist()).await.unwrap_err(),
            connection.delete_store(name).await.unwrap_err(),
        ] {
            match &error {
                KvError::InvalidStoreName { name: shown, reason, .. } => {
                    assert_eq!(shown, name);
                    assert!(error.to_string().contains(reason), "{error}");
                }
                _ => panic!("{name:?}: {error:?}"),
            }
            assert!(!error.is_retryable(), "{error}");
        }
    }
    // The longest valid name; no other test creates one of this length.
    let longest = format!("{:a<64}", unique("long"));
    connection.store(&longest).await.unwrap().put("key", "x").await.unwrap();
    let names = connection.list_stores().try_collect().await.unwrap();
    assert!(names.contains(&longest), "{names:?}");
    assert!(names.iter().all(|name| !name.is_empty() && name.len() <= 64), "{names:?}");
    connection.delete_store(&longest).await.unwrap();
}

async fn a_setting_that_cannot_work_is_refused_and_nothing_is_made(
    connection: Arc<dyn Connection>,
) {
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
                KvError::InvalidConfig { field: named, reason, .. } => {
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

    // A single different field is the only one that the error names.
    let error =
        connection.store_with_config(&name, StoreConfig::new().history(5)).await.unwrap_err();
    let KvError::ConfigMismatch { differences, .. } = &error else { panic!("{error:?}") };
    assert_eq!(differences.iter().map(|d| d.field).collect::<Vec<_>>(), ["history"]);

    if connection.capabilities().key_ttl {
        let plain = unique("bad-input");
        connection.store(&plain).await.unwrap();
        let error = connection
            .store_with_config(&plain, StoreConfig::new().key_ttl(true))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("key_ttl: wanted true, found false"), "{error}");
    }

    // The store is unchanged.
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
        assert!(
            matches!(&error, KvError::StoreNotFound { store, .. } if *store == name),
            "{error:?}"
        );
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
    assert_eq!(
        store.get_many(["key", "a", "b", "c", "d"]).await.unwrap().iter().flatten().count(),
        3
    );
    assert_eq!(store.keys(WatchScope::All).try_collect().await.unwrap().len(), 3);
    assert_eq!(store.history("key").unwrap().try_collect().await.unwrap().len(), 1);
    assert!(store.watch(WatchScope::All).await.unwrap().next().await.unwrap().is_ok());
    store.delete("key").await.unwrap();
}

#[tokio::test]
async fn more_replicas_than_servers_are_rejected_with_reason() {
    let connection = connect(&NatsServer::shared().url()).await.unwrap();
    let error = connection
        .store_with_config(&unique("bad-input"), StoreConfig::new().replicas(3))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("replicas"), "{error}");
    assert!(!error.is_retryable(), "{error:?}");
}
