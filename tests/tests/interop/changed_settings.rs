//! Settings that another client changes while a handle is open: each guarantee relies on the
//! newest.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use shizuku_kv::{
    FencingToken, KeyValue, KeyValueWrite, KvEntry, KvError, KvUpdate, KvWriteError, Store,
    StoreConfig, WatchCursor, WatchScope,
};
use shizuku_kv_tests::eventually;

use super::{World, has_ttl, headers, history_of, next, next_entry, within};

const SECOND: u64 = 1_000_000_000;

impl World {
    /// Changes the stream as an operator does.
    async fn change(&self, change: impl FnOnce(&mut serde_json::Value)) {
        let mut config = self.raw_config().await;
        change(&mut config);
        let answer = self.api(&format!("STREAM.UPDATE.{}", self.stream()), &config).await;
        assert!(answer.get("error").is_none(), "{answer}");
    }
}

/// Returns the cursor of a watch that has caught up.
async fn cursor_of(store: &Store, scope: WatchScope) -> WatchCursor {
    let mut watch = store.watch(scope).await.unwrap();
    while next(&mut watch).await != KvUpdate::CaughtUp {}
    watch.cursor().unwrap()
}

async fn has_expired(store: &Store, cursor: WatchCursor) {
    let resumed = store.watch_from(WatchScope::All, cursor).await;
    assert!(matches!(resumed, Err(KvError::CursorExpired { .. })), "{resumed:?}");
}

fn token(number: u64) -> FencingToken {
    FencingToken::from_u64(number)
}

/// The other client requests no markers, so that an expired entry leaves no trace.
#[tokio::test]
async fn maximum_age_of_another_client_admits_no_older_token() {
    let (world, ours, theirs) = World::made_by_us(StoreConfig::new()).await;
    let fenced = ours.fenced().unwrap();
    for key in ["value", "deleted", "kept"] {
        fenced.put(key, "later", token(18)).await.unwrap();
    }
    fenced.delete("deleted", token(18)).await.unwrap();
    let version = fenced.put("kept", "later", token(18)).await.unwrap();
    world
        .change(|config| {
            config["max_age"] = json!(SECOND);
            config["duplicate_window"] = json!(SECOND);
        })
        .await;
    // An existing entry proves on its own that its token is the newest.
    if ours.entry("kept").await.unwrap().is_some_and(|entry| entry.version == version) {
        let late = fenced.put("kept", "late", token(17)).await.unwrap_err();
        assert!(late.is_fenced() || matches!(late, KvError::Unsupported { .. }), "{late:?}");
    }
    for key in ["value", "deleted"] {
        eventually("the entry is gone", async || theirs.entry(key).await.unwrap().is_none()).await;
    }
    for key in ["value", "deleted", "never"] {
        for late in [
            fenced.put(key, "late", token(17)).await,
            fenced.create(key, "late", token(17)).await,
            fenced.delete(key, token(17)).await,
        ] {
            assert!(matches!(late, Err(KvError::Unsupported { .. })), "{key}: {late:?}");
        }
        assert_eq!(ours.get(key).await.unwrap(), None);
    }
    assert!(ours.fenced().is_none(), "the handle knows it by now");
    // The newest settings apply in this direction too.
    world.change(|config| config["max_age"] = json!(0)).await;
    fenced.put("value", "again", token(19)).await.unwrap();
    assert!(ours.fenced().is_some());
}

#[tokio::test]
async fn history_raised_by_another_client_ends_times_to_live() {
    let world = World::new().await;
    if !has_ttl(&world).await {
        return;
    }
    let (world, ours, _) = World::made_by_us(StoreConfig::new().key_ttl(true)).await;
    let ttl = ours.ttl().unwrap();
    let long = Duration::from_secs(3600);
    ttl.put("lease", "held", long).await.unwrap();
    ours.put("deleted", "value").await.unwrap();
    world.change(|config| config["max_msgs_per_subject"] = json!(2)).await;
    // The tombstone's end would bring back the value. Deletions request the settings each time, so
    // this one does not expire.
    ours.delete("deleted").await.unwrap();
    assert!(!world.last_headers("deleted").await.contains("Nats-TTL"));
    assert!(ours.ttl().is_none() && !ours.capabilities().key_ttl);
    let short = ttl.put("lease", "released", Duration::from_secs(1)).await;
    assert!(matches!(short, Err(KvError::Unsupported { .. })), "{short:?}");
    assert_eq!(ours.get("lease").await.unwrap().unwrap().value, "held");
}

#[derive(Clone, Debug, Serialize, Deserialize, KeyValue)]
#[kv(key = "lease.{id}", codec = json, ttl = "60s")]
struct Lease {
    id: u64,
    holder: String,
}

/// The error names the history, and its way out also works for the handle that got the error.
#[tokio::test]
async fn writes_with_a_ttl_name_a_raised_history() {
    let world = World::new().await;
    if !has_ttl(&world).await {
        return;
    }
    let (world, ours, _) = World::made_by_us(StoreConfig::new().key_ttl(true)).await;
    let lease = Lease { id: 1, holder: "a".to_owned() };
    let ttl = ours.ttl().unwrap();
    world.change(|config| config["max_msgs_per_subject"] = json!(5)).await;
    ours.refresh().await.unwrap();
    let many = Lease::write_many(&ours, [lease.clone()]).await.remove(0);
    let untyped =
        ttl.put("lease.1", "a", Duration::from_secs(60)).await.map_err(KvWriteError::from);
    for rejected in
        [lease.write_to_anyway(&ours).await, lease.create_write(&ours).await, many, untyped]
    {
        let Err(KvWriteError::Store(KvError::Unsupported { reason, .. })) = &rejected else {
            panic!("{rejected:?}")
        };
        assert!(reason.contains("has history 5") && !reason.contains("opened without"), "{reason}");
        assert!(
            reason.contains("StoreConfig::new().key_ttl(true).history(1).reconcile()"),
            "{reason}"
        );
    }
    let config = StoreConfig::new().key_ttl(true).history(1).reconcile();
    world.connection.store_with_config(&world.bucket, config).await.unwrap();
    lease.write_to_anyway(&ours).await.unwrap();
    assert!(world.last_headers("lease.1").await.contains("Nats-TTL"));
}

/// Writes with a time to live rely on settings of the last second.
#[tokio::test]
async fn times_to_live_learn_of_a_longer_history_within_a_second() {
    let world = World::new().await;
    if !has_ttl(&world).await {
        return;
    }
    let (world, ours, _) = World::made_by_us(StoreConfig::new().key_ttl(true)).await;
    let ttl = ours.ttl().unwrap();
    ttl.put("lease", "held", Duration::from_secs(60)).await.unwrap();
    world.change(|config| config["max_msgs_per_subject"] = json!(2)).await;
    eventually("the change is noticed", async || {
        matches!(
            ttl.put("lease", "again", Duration::from_secs(60)).await,
            Err(KvError::Unsupported { .. })
        )
    })
    .await;
}

#[tokio::test]
async fn limits_of_another_client_count_for_open_handles() {
    let (world, ours, _) = World::made_by_us(StoreConfig::new().max_value_size(1000)).await;
    world.change(|config| config["max_msg_size"] = json!(2000)).await;
    ours.put("k", vec![1; 2000]).await.unwrap();
    assert_eq!(ours.max_value_size(), 2000);
    world.change(|config| config["max_msg_size"] = json!(500)).await;
    let large = ours.put("k", vec![1; 1000]).await;
    assert!(
        matches!(large, Err(KvError::ValueTooLarge { size: 1000, limit: 500, .. })),
        "{large:?}"
    );
    let many = ours.put_many([("a", vec![1; 500]), ("b", vec![1; 501])]).await;
    assert!(many[0].is_ok(), "{many:?}");
    assert!(matches!(many[1], Err(KvError::ValueTooLarge { limit: 500, .. })), "{many:?}");
    world.change(|config| config["max_msg_size"] = json!(-1)).await;
    ours.refresh().await.unwrap();
    assert!(ours.max_value_size() > 100_000);
}

/// Markers live a second, and were turned on after the cursor was taken.
#[tokio::test]
async fn cursor_from_before_markers_skips_nothing() {
    let world = World::new().await;
    if !has_ttl(&world).await {
        return;
    }
    let (world, ours, _) = World::made_by_us(StoreConfig::new()).await;
    ours.put("k", "x").await.unwrap();
    ours.put("anchor", "x").await.unwrap();
    let cursor = cursor_of(&ours, WatchScope::All).await;
    world
        .change(|config| {
            config["allow_msg_ttl"] = json!(true);
            config["subject_delete_marker_ttl"] = json!(SECOND);
        })
        .await;
    world.publish("k", headers([("Nats-TTL", "1s")]), b"short").await;
    eventually("value and marker are gone", async || ours.entry("k").await.unwrap().is_none())
        .await;
    ours.put("later", "x").await.unwrap();
    has_expired(&ours, cursor).await;
}

/// Without markers a tombstone with a time to live ends without a trace.
#[tokio::test]
async fn cursor_is_strict_if_tombstones_can_vanish() {
    let world = World::new().await;
    if !has_ttl(&world).await {
        return;
    }
    let (_world, ours) =
        World::made_as_stream(|config| config["allow_msg_ttl"] = json!(true)).await;
    let theirs = _world.context.get_key_value(&_world.bucket).await.unwrap();
    ours.put("k", "x").await.unwrap();
    ours.put("anchor", "x").await.unwrap();
    let cursor = cursor_of(&ours, WatchScope::prefix("a")).await;
    ours.put("more", "x").await.unwrap();
    // No message is missing, so the cursor is honoured whatever its age.
    eventually("the cursor is older than a tombstone can be", async || {
        cursor.as_of().elapsed().unwrap() > Duration::from_millis(1200)
    })
    .await;
    let mut resumed = ours.watch_from(WatchScope::All, cursor).await.unwrap();
    assert_eq!(next_entry(&mut resumed).await.key, "more");
    theirs.purge_with_ttl("k", Duration::from_secs(1)).await.unwrap();
    eventually("the tombstone is gone", async || ours.entry("k").await.unwrap().is_none()).await;
    has_expired(&ours, cursor).await;
}

/// Removing a limit invalidates earlier cursors, even if an entry that never ages hides that others
/// have expired.
#[tokio::test]
async fn cursor_from_a_time_with_a_maximum_age_has_expired() {
    let world = World::new().await;
    if !has_ttl(&world).await {
        return;
    }
    let (world, ours) = World::made_as_stream(|config| {
        config["allow_msg_ttl"] = json!(true);
        config["subject_delete_marker_ttl"] = json!(3600 * SECOND);
    })
    .await;
    world.publish("anchor", headers([("Nats-TTL", "never")]), b"x").await;
    ours.put("k", "x").await.unwrap();
    let cursor = cursor_of(&ours, WatchScope::All).await;
    let reconcile = async |age: Option<Duration>| {
        let config = StoreConfig::new().max_age(age).reconcile();
        world.connection.store_with_config(&world.bucket, config).await.unwrap()
    };
    reconcile(Some(Duration::from_millis(500))).await;
    ours.delete("k").await.unwrap();
    eventually("the tombstone is gone", async || ours.entry("k").await.unwrap().is_none()).await;
    let ours = reconcile(None).await;
    ours.put("later", "x").await.unwrap();
    has_expired(&ours, cursor).await;
    // A cursor from now on is valid.
    let later = cursor_of(&ours, WatchScope::All).await;
    ours.put("k", "y").await.unwrap();
    let mut resumed = ours.watch_from(WatchScope::All, later).await.unwrap();
    assert_eq!(within("the change", next_entry(&mut resumed)).await.value, "y");
    assert!(ours.entry("k").await.unwrap().is_some_and(|entry: KvEntry| !entry.is_tombstone()));
}

#[tokio::test]
async fn history_that_another_client_raises_is_listed_whole() {
    let (world, ours, _) = World::made_by_us(StoreConfig::new()).await;
    world.change(|config| config["max_msgs_per_subject"] = json!(5)).await;
    for value in ["1", "2", "3"] {
        ours.put("k", value).await.unwrap();
    }
    let values: Vec<_> =
        history_of(&ours, "k").await.into_iter().map(|(_, _, value)| value).collect();
    assert_eq!(values, ["1", "2", "3"]);
}

/// Observations of a store do not apply to one that is recreated under its name.
#[tokio::test]
async fn new_cursors_of_recreated_store_do_not_expire() {
    let world = World::new().await;
    if !has_ttl(&world).await {
        return;
    }
    let config = StoreConfig::new().key_ttl(true);
    let (world, ours, _) = World::made_by_us(config.clone()).await;
    for _ in 0..20 {
        ours.put("k", "x").await.unwrap();
    }
    world.change(|config| config["subject_delete_marker_ttl"] = json!(7200 * SECOND)).await;
    ours.refresh().await.unwrap();
    world.connection.delete_store(&world.bucket).await.unwrap();
    world.connection.store_with_config(&world.bucket, config).await.unwrap();
    ours.put("a", "x").await.unwrap();
    let cursor = cursor_of(&ours, WatchScope::All).await;
    ours.put("b", "x").await.unwrap();
    let mut resumed = ours.watch_from(WatchScope::All, cursor).await.unwrap();
    assert_eq!(next_entry(&mut resumed).await.key, "b");
}

/// The server keeps a request for messages open only for a while. A later deletion can be forgotten
/// before the reader sends another request.
#[tokio::test]
async fn returning_reader_receives_deletions() {
    let world = World::new().await;
    if !has_ttl(&world).await {
        return;
    }
    tokio::join!(tells_a_reader_of_deletions(false), tells_a_reader_of_deletions(true));
}

/// The reader has waited for a moment, or has not read at all.
async fn tells_a_reader_of_deletions(is_waiting: bool) {
    let (world, ours) = World::made_as_stream(|config| {
        config["allow_msg_ttl"] = json!(true);
        config["subject_delete_marker_ttl"] = json!(SECOND);
    })
    .await;
    ours.put("k", "x").await.unwrap();
    ours.put("anchor", "x").await.unwrap();
    let mut watch = ours.watch(WatchScope::All).await.unwrap();
    while next(&mut watch).await != KvUpdate::CaughtUp {}
    if is_waiting {
        let early = tokio::time::timeout(Duration::from_millis(50), watch.next()).await;
        assert!(early.is_err(), "{early:?}");
    }
    let request = json!({});
    let waiting = format!("CONSUMER.LIST.{}", world.stream());
    eventually("the server has no request for messages", async || {
        let consumers = world.api(&waiting, &request).await;
        consumers["consumers"]
            .as_array()
            .unwrap()
            .iter()
            .all(|consumer| consumer["num_waiting"] == 0)
    })
    .await;
    ours.delete("k").await.unwrap();
    eventually("tombstone and marker are gone", async || ours.entry("k").await.unwrap().is_none())
        .await;
    let told = tokio::time::timeout(Duration::from_secs(7), watch.next()).await;
    match told.expect("the reader is told") {
        Some(Err(KvError::CursorExpired { .. })) => {}
        Some(Ok(KvUpdate::Delete(entry))) if entry.key == "k" => {}
        other => panic!("waited: {is_waiting}: {other:?}"),
    }
}
