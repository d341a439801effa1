//! The same bucket created by both clients with the same settings, in either order: neither client
//! reports a difference. The server compares the streams field by field, and answers 10058 if they
//! differ.

use std::time::Duration;

use async_nats::jetstream::{kv, stream};
use serde_json::{Value, json};
use shizuku_kv::{StorageType, StoreConfig};

use super::World;

const HOUR: Duration = Duration::from_secs(3600);
const NANOS: u64 = 3_600_000_000_000;

/// Lifetime of the markers in our buckets with a maximum age or times to live
/// (`docs/reliability.md`).
const MARKERS: Option<Duration> = Some(HOUR);

/// One set of settings in the terms of each client.
struct Row {
    name: &'static str,
    ours: StoreConfig,
    theirs: kv::Config,
    /// Changes to the stream that nats.go creates for a bucket without settings.
    go: Value,
    /// Metadata that only nats.go can give.
    metadata: Option<Value>,
}

fn rows(has_markers: bool) -> Vec<Row> {
    let plain = kv::Config::default;
    let row = |name, ours, theirs, go| Row { name, ours, theirs, go, metadata: None };
    let mut rows = vec![
        row("default", StoreConfig::new(), plain(), json!({})),
        row(
            "history",
            StoreConfig::new().history(5),
            kv::Config { history: 5, ..plain() },
            json!({ "max_msgs_per_subject": 5 }),
        ),
        row(
            "max_value_size",
            StoreConfig::new().max_value_size(1000),
            kv::Config { max_value_size: 1000, ..plain() },
            json!({ "max_msg_size": 1000 }),
        ),
        row(
            "max_bytes",
            StoreConfig::new().max_bytes(1 << 20),
            kv::Config { max_bytes: 1 << 20, ..plain() },
            json!({ "max_bytes": 1 << 20 }),
        ),
        row(
            "no limits",
            StoreConfig::new().max_age(None).max_bytes(None).max_value_size(None),
            plain(),
            json!({}),
        ),
        row(
            "memory",
            StoreConfig::new().storage(StorageType::Memory),
            kv::Config { storage: stream::StorageType::Memory, ..plain() },
            json!({ "storage": "memory" }),
        ),
        row(
            "description",
            StoreConfig::new().description("flags"),
            kv::Config { description: "flags".to_owned(), ..plain() },
            json!({ "description": "flags" }),
        ),
    ];
    let aged = |history: u8, age: Duration| {
        let nanos = u64::try_from(age.as_nanos()).unwrap();
        let theirs = kv::Config { max_age: age, history: i64::from(history), ..plain() };
        let mut go = json!({
            "max_age": nanos,
            "max_msgs_per_subject": history,
            "duplicate_window": nanos.min(120_000_000_000),
        });
        let ours = StoreConfig::new().max_age(age).history(history);
        if !has_markers {
            return row("max_age", ours, theirs, go);
        }
        go["allow_msg_ttl"] = json!(true);
        go["subject_delete_marker_ttl"] = json!(NANOS);
        row("max_age", ours, kv::Config { limit_markers: MARKERS, ..theirs }, go)
    };
    rows.extend([aged(1, HOUR), aged(5, HOUR), aged(1, Duration::from_secs(30))]);
    if has_markers {
        let go = json!({ "allow_msg_ttl": true, "subject_delete_marker_ttl": NANOS });
        let theirs = kv::Config { limit_markers: MARKERS, ..plain() };
        rows.push(row("key_ttl", StoreConfig::new().key_ttl(true), theirs, go));
        let both = aged(1, HOUR);
        rows.push(Row {
            name: "key_ttl and max_age",
            ours: both.ours.key_ttl(true),
            metadata: Some(json!({ "shizuku-kv.key-ttl": "true" })),
            ..both
        });
    }
    rows
}

impl World {
    /// Returns the stream that nats.go requests for this bucket, with the changes applied.
    fn of_go(&self, row: &Row) -> Value {
        let mut stream = json!({
            "name": self.stream(),
            "subjects": [format!("$KV.{}.>", self.bucket)],
            "retention": "limits",
            "max_consumers": -1,
            "max_msgs": -1,
            "max_bytes": -1,
            "discard": "new",
            "max_age": 0,
            "max_msgs_per_subject": 1,
            "max_msg_size": -1,
            "storage": "file",
            "num_replicas": 1,
            "duplicate_window": 120_000_000_000_u64,
            "compression": "none",
            "deny_delete": true,
            "deny_purge": false,
            "allow_rollup_hdrs": true,
            "allow_direct": true,
            "mirror_direct": false,
        });
        for (field, value) in row.go.as_object().unwrap() {
            stream[field] = value.clone();
        }
        if let Some(metadata) = &row.metadata {
            stream["metadata"] = metadata.clone();
        }
        stream
    }

    async fn create_as_go(&self, stream: &Value) -> Result<(), Value> {
        let mut answer = self.api(&format!("STREAM.CREATE.{}", self.stream()), stream).await;
        match answer.get_mut("error") {
            Some(error) => Err(error.take()),
            None => Ok(()),
        }
    }

    /// Creates the bucket in each other client's way, with the same settings.
    async fn create_as_others(&self, row: &Row) -> Result<(), String> {
        if row.metadata.is_none() {
            let theirs = kv::Config { bucket: self.bucket.clone(), ..row.theirs.clone() };
            let created = self.context.create_key_value(theirs).await;
            created.map_err(|error| format!("async-nats: {error:?}"))?;
        }
        self.create_as_go(&self.of_go(row)).await.map_err(|error| format!("nats.go: {error}"))
    }
}

#[tokio::test]
async fn buckets_of_both_clients_are_created_again_by_the_other() {
    let mut failures = Vec::new();
    let has_markers = World::new().await.server.is_at_least(2, 11);
    for row in rows(has_markers) {
        let Row { name, ours, .. } = &row;
        let world = World::new().await;
        world.connection.store_with_config(&world.bucket, ours.clone()).await.unwrap();
        let before = world.raw_config().await;
        if let Err(error) = world.create_as_others(&row).await {
            failures.push(format!("{name}: after us, {error}"));
        }
        assert_eq!(world.raw_config().await, before, "{name}");

        let world = World::new().await;
        if let Err(error) = world.create_as_others(&row).await {
            failures.push(format!("{name}: alone, {error}"));
        }
        let before = world.raw_config().await;
        match world.connection.store_with_config(&world.bucket, ours.clone()).await {
            Ok(store) => assert_eq!(store.ttl().is_some(), ours.key_ttl == Some(true), "{name}"),
            Err(error) => failures.push(format!("{name}: after them, {error}")),
        }
        assert_eq!(world.raw_config().await, before, "{name}");
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// Expiry is visible to watches only with markers, which the other client does not request on its
/// own. README names the setting. It opens such a bucket, and we open a bucket without markers.
#[tokio::test]
async fn maximum_age_without_markers_differs_for_the_server() {
    let aged = kv::Config { max_age: HOUR, ..kv::Config::default() };
    let ours = || StoreConfig::new().max_age(HOUR);
    let (world, _, theirs) = World::made_by_us(ours()).await;
    theirs.put("k", "x".into()).await.unwrap();
    let created =
        world.context.create_key_value(kv::Config { bucket: world.bucket.clone(), ..aged.clone() });
    match created.await {
        Ok(_) => assert!(!world.server.is_at_least(2, 11)),
        Err(error) => {
            assert!(world.server.is_at_least(2, 11), "{error:?}");
            assert!(format!("{error:?}").contains("10058"), "{error:?}");
        }
    }
    let (world, store, _) = World::made_by_them(aged).await;
    assert!(!store.capabilities().expiry_events);
    world.connection.store_with_config(&world.bucket, ours()).await.unwrap();
}

/// Compression is a setting that only the other client has.
#[tokio::test]
async fn settings_that_we_do_not_have_are_no_difference() {
    let compressed = kv::Config { compression: true, ..kv::Config::default() };
    let (world, ..) = World::made_by_them(compressed.clone()).await;
    let before = world.raw_config().await;
    assert_eq!(before["compression"], "s2");
    world.connection.store_with_config(&world.bucket, StoreConfig::new().history(1)).await.unwrap();
    assert_eq!(world.raw_config().await, before);
    let again = kv::Config { bucket: world.bucket.clone(), ..compressed };
    world.context.create_key_value(again).await.unwrap();

    let row = Row {
        name: "metadata",
        ours: StoreConfig::new(),
        theirs: kv::Config::default(),
        go: json!({ "compression": "s2" }),
        metadata: Some(json!({ "owner": "billing" })),
    };
    let world = World::new().await;
    world.create_as_go(&world.of_go(&row)).await.unwrap();
    let before = world.raw_config().await;
    world.connection.store_with_config(&world.bucket, row.ours.clone()).await.unwrap();
    assert_eq!(world.raw_config().await, before);
    world.create_as_go(&world.of_go(&row)).await.unwrap();
}

/// A request for times to live is recorded only if the server's switches do not show it.
#[tokio::test]
async fn times_to_live_of_an_aged_bucket_are_for_those_who_ask() {
    let (world, plain, _) = World::made_by_us(StoreConfig::new().max_age(HOUR)).await;
    if !world.server.is_at_least(2, 11) {
        return;
    }
    let open = async |config| world.connection.store_with_config(&world.bucket, config).await;
    assert!(plain.ttl().is_none() && !plain.capabilities().key_ttl);
    let asking = open(StoreConfig::new().key_ttl(true)).await.unwrap();
    asking.ttl().unwrap().put("k", "x", Duration::from_secs(60)).await.unwrap();
    asking.refresh().await.unwrap();
    asking.ttl().unwrap().put("k", "y", Duration::from_secs(60)).await.unwrap();
    assert!(world.raw_config().await["metadata"].get("shizuku-kv.key-ttl").is_none());
    // `reconcile` makes it a setting of the store, for every handle.
    open(StoreConfig::new().key_ttl(true).reconcile()).await.unwrap();
    plain.refresh().await.unwrap();
    assert!(plain.ttl().is_some());
    open(StoreConfig::new().key_ttl(false).reconcile()).await.unwrap();
    plain.refresh().await.unwrap();
    assert!(plain.ttl().is_none());
    // With a history no times to live can be requested.
    open(StoreConfig::new().history(2).reconcile()).await.unwrap();
    let refused = open(StoreConfig::new().key_ttl(true)).await;
    assert!(matches!(refused, Err(shizuku_kv::KvError::ConfigMismatch { .. })), "{refused:?}");
}
