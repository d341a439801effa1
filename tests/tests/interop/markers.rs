//! Values that expire, and their markers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_nats::jetstream::kv;
use bytes::Bytes;
use futures_util::TryStreamExt;
use serde_json::json;
use shizuku_kv::{KvOperation, KvUpdate, StoreConfig, WatchScope};
use shizuku_kv_tests::eventually;

use super::{
    World, has_ttl, history_of, listed, names, next, next_entry, next_of_theirs, revision, scanned,
    state, with_markers,
};

#[tokio::test]
async fn value_of_other_client_expires_for_us() {
    let world = World::new().await;
    if !has_ttl(&world).await {
        return;
    }
    let (world, ours, theirs) = World::made_by_them(with_markers()).await;
    assert!(ours.capabilities().key_ttl && ours.capabilities().expiry_events);
    let mut watch = ours.watch(WatchScope::All).await.unwrap();
    assert_eq!(next(&mut watch).await, KvUpdate::CaughtUp);
    let put = theirs.create_with_ttl("lease", "held".into(), Duration::from_secs(1)).await.unwrap();
    theirs.put("stays", "here".into()).await.unwrap();

    let entry = next_entry(&mut watch).await;
    assert_eq!((revision(entry.version), entry.operation), (put, KvOperation::Put));
    assert_eq!(next_entry(&mut watch).await.key, "stays");
    let KvUpdate::Delete(expired) = next(&mut watch).await else { panic!("no expiry") };
    assert_eq!((expired.key.as_str(), expired.operation), ("lease", KvOperation::Expire));

    for store in [&ours, &world.open_with_leader_reads().await] {
        assert_eq!(store.get("lease").await.unwrap(), None);
        let entry = store.entry("lease").await.unwrap().unwrap();
        assert_eq!((entry.operation, entry.version), (KvOperation::Expire, expired.version));
        let many = store.get_many(["lease", "stays", "never", "lease", "stays"]).await.unwrap();
        assert_eq!(
            many.iter().map(Option::is_some).collect::<Vec<_>>(),
            [false, true, false, false, true]
        );
    }
    assert_eq!(listed(&ours).await, names(["stays"]));
    assert_eq!(scanned(&ours).await.len(), 1);
    assert_eq!(
        history_of(&ours, "lease").await,
        [(revision(expired.version), KvOperation::Expire, Bytes::new())]
    );
    let mut fresh = ours.watch(WatchScope::All).await.unwrap();
    let state = state(&mut fresh).await;
    assert!(
        state.get("lease").is_none_or(|entry| entry.operation == KvOperation::Expire),
        "{state:?}"
    );

    // The marker makes room for a new value, without a time to live.
    let created = ours.create("lease", "mine").await.unwrap();
    assert_eq!(theirs.get("lease").await.unwrap().unwrap(), "mine");
    assert_eq!(theirs.entry("lease").await.unwrap().unwrap().revision, revision(created));
}

#[tokio::test]
async fn value_of_ours_expires_for_other_client() {
    let world = World::new().await;
    if !has_ttl(&world).await {
        return;
    }
    let (_world, ours, theirs) = World::made_by_us(StoreConfig::new().key_ttl(true)).await;
    let mut watch = theirs.watch(">").await.unwrap();
    let (ttl, second) = (ours.ttl().unwrap(), Duration::from_secs(1));
    let created = ttl.create("created", "x", second).await.unwrap();
    let put = ttl.put("put", "", second).await.unwrap();
    ours.put("renewed", "x").await.unwrap();
    let version = ours.get("renewed").await.unwrap().unwrap().version;
    let updated = ttl.update("renewed", "y", version, second).await.unwrap();
    ours.put("stays", "x").await.unwrap();

    let mut puts = BTreeMap::new();
    let mut expired = BTreeSet::new();
    while expired.len() < 3 {
        let entry = next_of_theirs(&mut watch).await;
        match entry.operation {
            kv::Operation::Put => {
                puts.insert(entry.key, entry.revision);
            }
            // The other client has one word for a purge and for an expiry.
            kv::Operation::Purge => {
                expired.insert(entry.key);
            }
            kv::Operation::Delete => panic!("{entry:?}"),
        }
    }
    assert_eq!(expired, names(["created", "put", "renewed"]));
    assert_eq!(puts["created"], revision(created));
    assert_eq!(puts["put"], revision(put));
    assert_eq!(puts["renewed"], revision(updated));
    let keys: Vec<String> = theirs.keys().await.unwrap().try_collect().await.unwrap();
    assert_eq!(keys, ["stays"]);
    for key in ["created", "put", "renewed"] {
        assert_eq!(theirs.get(key).await.unwrap(), None, "{key}");
        assert_eq!(ours.entry(key).await.unwrap().unwrap().operation, KvOperation::Expire, "{key}");
    }
    theirs.create("created", "theirs".into()).await.unwrap();
    assert_eq!(ours.get("created").await.unwrap().unwrap().value, "theirs");
}

#[tokio::test]
async fn purge_whose_marker_expires_leaves_the_key_absent() {
    let world = World::new().await;
    if !has_ttl(&world).await {
        return;
    }
    let (_world, ours, theirs) = World::made_by_them(with_markers()).await;
    theirs.put("k", "x".into()).await.unwrap();
    let mut watch = ours.watch(WatchScope::All).await.unwrap();
    assert_eq!(next_entry(&mut watch).await.value, "x");
    assert_eq!(next(&mut watch).await, KvUpdate::CaughtUp);
    theirs.purge_with_ttl("k", Duration::from_secs(1)).await.unwrap();
    let purged = next_entry(&mut watch).await;
    assert_eq!(purged.operation, KvOperation::Purge);
    eventually("the marker is gone or was replaced", async || {
        assert_eq!(ours.get("k").await.unwrap(), None);
        ours.entry("k").await.unwrap().is_none_or(|entry| entry.version != purged.version)
    })
    .await;
    assert_eq!(listed(&ours).await, names([]));
    ours.create("k", "new").await.unwrap();
    assert_eq!(theirs.get("k").await.unwrap().unwrap(), "new");
    let entry = loop {
        let entry = next_entry(&mut watch).await;
        if !entry.is_tombstone() {
            break entry;
        }
    };
    assert_eq!(entry.value, "new");
}

#[tokio::test]
async fn maximum_age_set_by_other_client_applies() {
    // The values live until they are read.
    let age = Duration::from_secs(3);
    let config = kv::Config { max_age: age, ..kv::Config::default() };
    let (world, ours, theirs) = World::made_by_them(config).await;
    // The other client requested no markers, so that expiry is silent.
    assert!(!ours.capabilities().expiry_events);
    theirs.put("k", "x".into()).await.unwrap();
    assert_eq!(ours.get("k").await.unwrap().unwrap().value, "x");
    eventually("the value expires", async || ours.get("k").await.unwrap().is_none()).await;
    assert_eq!(listed(&ours).await, names([]));
    ours.create("k", "y").await.unwrap();
    assert_eq!(theirs.get("k").await.unwrap().unwrap(), "y");
    let wanted = StoreConfig::new().max_age(age);
    world.connection.store_with_config(&world.bucket, wanted).await.unwrap();
}

#[tokio::test]
async fn history_above_one_offers_no_times_to_live() {
    let world = World::new().await;
    if !has_ttl(&world).await {
        return;
    }
    // With more than one version, the previous one comes back when the newest expires.
    for history in [2, 64, 300, -1] {
        let (_world, ours) = World::made_as_stream(|config| {
            config["max_msgs_per_subject"] = json!(history);
            config["allow_msg_ttl"] = json!(true);
            config["subject_delete_marker_ttl"] = json!(60_000_000_000_u64);
        })
        .await;
        assert!(!ours.capabilities().key_ttl, "{history} versions");
        assert!(ours.ttl().is_none(), "{history} versions");
        ours.put("k", "one").await.unwrap();
        ours.put("k", "two").await.unwrap();
        assert_eq!(history_of(&ours, "k").await.len(), 2, "{history} versions");
    }
}
