//! Creating the same bucket with two clients: the second client accepts the bucket of the first.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{self, kv, stream};
use shizuku_kv::{Connection, KvError, StorageType, StoreConfig, connect};
use shizuku_kv_tests::{NatsServer, unique};

async fn world() -> (&'static NatsServer, Arc<dyn Connection>, jetstream::Context) {
    let server = NatsServer::shared();
    let connection = connect(&server.url()).await.unwrap();
    (server, connection, jetstream::new(server.client().await))
}

/// The same settings for both clients.
fn settings() -> Vec<(&'static str, StoreConfig, kv::Config)> {
    let ours = || StoreConfig::new().description("");
    let theirs = || kv::Config { history: 1, ..kv::Config::default() };
    vec![
        ("nothing", ours(), theirs()),
        ("history", ours().history(7), kv::Config { history: 7, ..theirs() }),
        (
            "description",
            ours().description("rates"),
            kv::Config { description: "rates".to_owned(), ..theirs() },
        ),
        (
            "max_value_size",
            ours().max_value_size(1000),
            kv::Config { max_value_size: 1000, ..theirs() },
        ),
        ("max_bytes", ours().max_bytes(1 << 20), kv::Config { max_bytes: 1 << 20, ..theirs() }),
        (
            "storage",
            ours().storage(StorageType::Memory),
            kv::Config { storage: stream::StorageType::Memory, ..theirs() },
        ),
        ("replicas", ours().replicas(1), kv::Config { num_replicas: 1, ..theirs() }),
    ]
}

/// A maximum age, with which the library turns on markers on servers that support them.
fn ages() -> Vec<(&'static str, StoreConfig, kv::Config)> {
    [10, 3600]
        .map(|seconds| {
            let age = Duration::from_secs(seconds);
            let theirs = kv::Config { history: 1, max_age: age, ..kv::Config::default() };
            ("max_age", StoreConfig::new().description("").max_age(age), theirs)
        })
        .into()
}

#[tokio::test]
async fn bucket_of_ours_is_created_again_by_another_client() {
    let (server, connection, context) = world().await;
    let aged = if server.is_at_least(2, 11) { Vec::new() } else { ages() };
    for (setting, ours, theirs) in settings().into_iter().chain(aged) {
        let bucket = unique("ours");
        connection.store_with_config(&bucket, ours.clone()).await.unwrap();
        let config = kv::Config { bucket: bucket.clone(), ..theirs };
        let created = context.create_key_value(config).await;
        assert!(created.is_ok(), "{setting}: {created:?}");
        connection.store_with_config(&bucket, ours).await.unwrap();
    }
}

#[tokio::test]
async fn bucket_of_another_client_is_opened_with_the_same_settings() {
    let (_, connection, context) = world().await;
    for (setting, ours, theirs) in settings().into_iter().chain(ages()) {
        let bucket = unique("theirs");
        let config = kv::Config { bucket: bucket.clone(), ..theirs };
        context.create_key_value(config.clone()).await.unwrap();
        let opened = connection.store_with_config(&bucket, ours).await;
        assert!(opened.is_ok(), "{setting}: {opened:?}");
        context.create_key_value(config).await.unwrap();
    }
}

#[tokio::test]
async fn value_that_another_client_may_write_is_written_back() {
    let (_, connection, context) = world().await;
    for limit in [64_usize, 300, 1000, 100_000] {
        let bucket = unique("limit");
        let max_value_size = i32::try_from(limit).unwrap();
        let config = kv::Config { bucket: bucket.clone(), max_value_size, ..kv::Config::default() };
        let theirs = context.create_key_value(config).await.unwrap();
        let store = connection.store(&bucket).await.unwrap();
        assert_eq!(store.max_value_size(), limit);
        theirs.put("key", vec![1; limit].into()).await.unwrap();
        let found = store.get("key").await.unwrap().unwrap();
        let version = store.put("key", found.value.clone()).await.unwrap();
        assert_eq!(store.put_many([("many", found.value.clone())]).await.len(), 1);
        // An expected version reduces the room for the value, for every client.
        let theirs_too = theirs.update("key", found.value.clone(), version.as_u64().unwrap()).await;
        assert!(theirs_too.is_err());
        let error = store.update("key", found.value.clone(), version).await.unwrap_err();
        let KvError::ValueTooLarge { size, limit: room, .. } = error else { panic!("{error:?}") };
        assert!(size == limit && room < limit && limit - room < 70, "{size} {room} {limit}");
        let version = store.update("key", vec![2; room], version).await.unwrap();
        assert_eq!(theirs.get("key").await.unwrap().unwrap().len(), room);
        store
            .delete_with_version("key", version)
            .await
            .map(drop)
            .or_else(|error| {
                // The limit is too small for the headers of such a deletion.
                (limit < 100 && matches!(error, KvError::LimitReached { .. }))
                    .then_some(())
                    .ok_or(error)
            })
            .unwrap();
        store.delete("key").await.unwrap();
        let over = store.put("key", vec![3; limit + 1]).await.unwrap_err();
        assert!(
            matches!(over, KvError::ValueTooLarge { limit: found, .. } if found == limit),
            "{over:?}"
        );
    }
}

#[tokio::test]
async fn lowered_limit_holds_for_the_next_write_of_an_open_handle() {
    let (_, connection, _) = world().await;
    let bucket = unique("lowered");
    let open = connection
        .store_with_config(&bucket, StoreConfig::new().max_value_size(1000))
        .await
        .unwrap();
    open.put("key", vec![1; 1000]).await.unwrap();
    let lowered = StoreConfig::new().max_value_size(500).reconcile();
    connection.store_with_config(&bucket, lowered).await.unwrap();
    let error = open.put("key", vec![2; 501]).await.unwrap_err();
    assert!(matches!(error, KvError::ValueTooLarge { size: 501, limit: 500, .. }), "{error:?}");
    // This value fits only without our headers. The handle learns the new limit from the server.
    let lowered = StoreConfig::new().max_value_size(400).reconcile();
    connection.store_with_config(&bucket, lowered).await.unwrap();
    let version = open.put("key", vec![3; 390]).await.unwrap();
    assert_eq!(open.get("key").await.unwrap().unwrap().version, version);
}
