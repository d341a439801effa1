//! Buckets with other settings: opened unchanged, created like others create them, and preserved by
//! reconciling.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::jetstream::{kv, stream};
use bytes::Bytes;
use serde_json::{Value, json};
use shizuku_kv::{KvError, StorageType, StoreConfig};
use shizuku_kv_tests::{NatsServer, eventually};

use super::{World, has_ttl, names, scanned, with_markers};

#[tokio::test]
async fn bucket_with_other_settings_opens_without_any() {
    let (world, ours, theirs) = World::made_by_them(kv::Config {
        description: "for other clients".to_owned(),
        history: 8,
        max_age: Duration::from_secs(3600),
        max_bytes: 1 << 20,
        max_value_size: 4096,
        storage: stream::StorageType::Memory,
        ..kv::Config::default()
    })
    .await;
    let before = world.raw_config().await;
    theirs.put("k", "theirs".into()).await.unwrap();
    assert_eq!(ours.get("k").await.unwrap().unwrap().value, "theirs");
    ours.put("k", "ours").await.unwrap();
    assert_eq!(theirs.get("k").await.unwrap().unwrap(), "ours");

    let same = StoreConfig::new()
        .description("for other clients")
        .history(8)
        .max_age(Duration::from_secs(3600))
        .max_bytes(1 << 20)
        .storage(StorageType::Memory)
        .replicas(1)
        .must_exist();
    world.connection.store_with_config(&world.bucket, same).await.unwrap();
    let other = StoreConfig::new().history(3).storage(StorageType::File).max_bytes(1 << 20);
    let refused = world.connection.store_with_config(&world.bucket, other).await.unwrap_err();
    let KvError::ConfigMismatch { differences, .. } = &refused else { panic!("{refused:?}") };
    let fields: BTreeSet<_> =
        differences.iter().map(|difference| difference.field.to_owned()).collect();
    assert_eq!(fields, names(["history", "storage"]));
    assert_eq!(world.raw_config().await, before, "opening changes nothing");
}

#[tokio::test]
async fn bucket_with_key_ttl_has_it_for_other_client() {
    let world = World::new().await;
    if !has_ttl(&world).await {
        return;
    }
    let (world, ours, theirs) = World::made_by_us(StoreConfig::new().key_ttl(true)).await;
    let stream = world.context.get_stream(world.stream()).await.unwrap();
    let config = &stream.cached_info().config;
    assert!(config.allow_message_ttl);
    assert!(config.subject_delete_marker_ttl.is_some_and(|ttl| ttl >= Duration::from_secs(1)));
    assert_eq!(config.max_messages_per_subject, 1);
    theirs.create_with_ttl("k", "x".into(), Duration::from_secs(1)).await.unwrap();
    eventually("the value expires", async || ours.get("k").await.unwrap().is_none()).await;
}

#[tokio::test]
async fn bucket_without_direct_gets_is_read() {
    let (_world, ours) =
        World::made_as_stream(|config| config["allow_direct"] = json!(false)).await;
    let keys: Vec<_> = (0..20).map(|n| format!("k.{n}")).collect();
    let binary = Bytes::from_static(b"\x00\r\n\xff");
    for answer in ours.put_many(keys.iter().map(|key| (key, binary.clone()))).await {
        answer.unwrap();
    }
    ours.put("empty", "").await.unwrap();
    let deleted = ours.delete("k.3").await.unwrap();
    assert_eq!(ours.get("k.0").await.unwrap().unwrap().value, binary);
    assert_eq!(ours.get("empty").await.unwrap().unwrap().value, "");
    assert_eq!(ours.get("k.3").await.unwrap(), None);
    assert_eq!(ours.entry("k.3").await.unwrap().unwrap().version, deleted);
    assert_eq!(ours.get("never").await.unwrap(), None);
    let many = ours.get_many(&keys).await.unwrap();
    assert_eq!(many.iter().flatten().count(), 19);
    assert!(many[3].is_none());
    assert_eq!(scanned(&ours).await.len(), 20);
}

#[tokio::test]
async fn reconciling_keeps_the_settings_of_others() {
    let server = NatsServer::shared();
    let (world, ours) = World::made_as_stream(|config| {
        config["description"] = json!("for other clients");
        config["metadata"] = json!({ "owner": "billing", "tier": "gold" });
        config["compression"] = json!("s2");
        config["republish"] = json!({ "src": ">", "dest": "audit.>" });
        config["placement"] = json!({ "cluster": "", "tags": ["ssd"] });
        config["consumer_limits"] = json!({ "inactive_threshold": 300_000_000_000_u64 });
        config["duplicate_window"] = json!(30_000_000_000_u64);
        config["max_bytes"] = json!(1 << 20);
        // Settings that this library does not know. A server rejects those that it does not know
        // itself.
        if server.is_at_least(2, 12) {
            config["allow_atomic"] = json!(true);
        }
        if server.is_at_least(2, 14) {
            config["allow_batched"] = json!(true);
        }
    })
    .await;
    ours.put("k", "kept").await.unwrap();
    let before = world.raw_config().await;
    assert_eq!(before["compression"], "s2");
    assert_eq!(before["metadata"]["owner"], "billing");
    assert!(!server.is_at_least(2, 12) || before["allow_atomic"] == true);
    assert!(!server.is_at_least(2, 14) || before["allow_batched"] == true);

    let wanted = StoreConfig::new().history(5).max_value_size(1000).reconcile();
    let ours = world.connection.store_with_config(&world.bucket, wanted).await.unwrap();
    let after = world.raw_config().await;
    assert_eq!(after["max_msgs_per_subject"], 5);
    assert_eq!(after["metadata"]["owner"], "billing");
    let changed = ["max_msgs_per_subject", "max_msg_size"];
    assert_eq!(but(changed, after), but(changed, before));
    assert_eq!(ours.get("k").await.unwrap().unwrap().value, "kept");
}

/// Returns the configuration without the changed fields, and without the notes that the server and
/// this library store in the metadata.
fn but<const N: usize>(fields: [&str; N], mut config: Value) -> Value {
    let object = config.as_object_mut().unwrap();
    for field in fields {
        object.remove(field);
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|name, _| !name.starts_with("_nats.") && !name.starts_with("shizuku-kv."));
        if metadata.is_empty() {
            object.remove("metadata");
        }
    }
    config
}

#[tokio::test]
async fn reconciling_a_maximum_age_keeps_the_window_for_duplicates() {
    let (world, _) =
        World::made_as_stream(|config| config["duplicate_window"] = json!(30_000_000_000_u64))
            .await;
    let before = world.raw_config().await;
    let wanted = StoreConfig::new().max_age(Duration::from_secs(3600)).reconcile();
    world.connection.store_with_config(&world.bucket, wanted).await.unwrap();
    let after = world.raw_config().await;
    assert_eq!(after["max_age"], 3_600_000_000_000_u64);
    // A maximum age turns on markers.
    let changed = ["max_age", "allow_msg_ttl", "subject_delete_marker_ttl"];
    assert_eq!(but(changed, after), but(changed, before));

    // The server requires that an age below the duplicate window shortens the window too.
    let wanted = StoreConfig::new().max_age(Duration::from_secs(10)).reconcile();
    world.connection.store_with_config(&world.bucket, wanted).await.unwrap();
    assert_eq!(world.raw_config().await["duplicate_window"], 10_000_000_000_u64);
}

#[tokio::test]
async fn reconcile_of_other_setting_keeps_maximum_age() {
    let config = kv::Config { max_age: Duration::from_secs(3600), ..kv::Config::default() };
    let (world, ..) = World::made_by_them(config).await;
    let before = world.raw_config().await;
    let wanted = StoreConfig::new().history(3).reconcile();
    world.connection.store_with_config(&world.bucket, wanted).await.unwrap();
    let after = world.raw_config().await;
    assert_eq!(after["max_msgs_per_subject"], 3);
    assert_eq!(but(["max_msgs_per_subject"], after), but(["max_msgs_per_subject"], before));
}

#[tokio::test]
async fn reconciling_keeps_the_age_of_markers_that_others_chose() {
    let world = World::new().await;
    if !has_ttl(&world).await {
        return;
    }
    let (world, ..) = World::made_by_them(with_markers()).await;
    let wanted = StoreConfig::new().key_ttl(true).description("ours now").reconcile();
    let ours = world.connection.store_with_config(&world.bucket, wanted).await.unwrap();
    assert!(ours.ttl().is_some());
    let config = world.raw_config().await;
    assert_eq!(config["description"], "ours now");
    assert_eq!(config["subject_delete_marker_ttl"], 60_000_000_000_u64);
}

#[tokio::test]
async fn value_that_fits_bucket_of_small_values_is_written() {
    for limit in [64, 128, 300, 1000, 100_000] {
        println!("limit {limit}");
        let config = kv::Config { max_value_size: limit, ..kv::Config::default() };
        let (_world, ours, theirs) = World::made_by_them(config).await;
        // We read everything that the other client may write.
        let whole = vec![7; usize::try_from(limit).unwrap()];
        theirs.put("theirs", whole.clone().into()).await.unwrap();
        assert_eq!(ours.get("theirs").await.unwrap().unwrap().value, whole);

        // The server accepts everything up to our reported limit. With an expected version the
        // limit is lower, as for other clients.
        let most = ours.max_value_size();
        assert_eq!(most, whole.len());
        let refused = ours.create("ours", vec![1; most]).await.unwrap_err();
        let KvError::ValueTooLarge { limit: room, .. } = refused else { panic!("{refused:?}") };
        let version = ours.create("ours", vec![1; room]).await.unwrap();
        ours.update("ours", vec![2; room.saturating_sub(5)], version).await.unwrap();
        ours.put("ours", vec![2; most]).await.unwrap();
        let refused = ours.put("ours", vec![3; most + 1]).await.unwrap_err();
        assert!(matches!(refused, KvError::ValueTooLarge { .. }), "{refused:?}");
        assert_eq!(theirs.get("ours").await.unwrap().unwrap().len(), most);
        ours.delete("ours").await.unwrap();
        ours.purge("ours").await.unwrap();
    }
}
