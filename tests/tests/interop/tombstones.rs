//! Tombstones that expire, and checks that no expiry brings a value back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{self, kv};
use futures_util::StreamExt;
use serde_json::json;
use shizuku_kv::rw_lock::{DistroRwLock, LeaderElection, LockOptions};
use shizuku_kv::{
    Connection, FencingToken, KvOperation, KvUpdate, ReadConsistency, Store, StoreConfig,
    WatchScope, connect,
};
use shizuku_kv_tests::{NatsCluster, NatsServer, eventually};

use super::{World, has_ttl, next, within};

const SECOND: u64 = 1_000_000_000;

impl World {
    /// Returns the headers of the newest message of a key.
    pub(super) async fn last_headers(&self, key: &str) -> String {
        let stream = self.context.get_stream(self.stream()).await.unwrap();
        let message = stream.get_last_raw_message_by_subject(&self.subject(key)).await.unwrap();
        shown(&message.headers)
    }
}

fn shown(headers: &async_nats::HeaderMap) -> String {
    headers.iter().map(|(name, values)| format!("{name}: {values:?}\n")).collect()
}

/// Deletes in each way, and returns whether the tombstones expire.
async fn ends(world: &World, store: &Store) -> bool {
    let mut found = BTreeSet::new();
    for way in ["delete", "delete_with_version", "purge"] {
        let version = store.put(way, "value").await.unwrap();
        match way {
            "delete" => store.delete(way).await.unwrap(),
            "delete_with_version" => store.delete_with_version(way, version).await.unwrap(),
            _ => store.purge(way).await.unwrap(),
        };
        let headers = world.last_headers(way).await;
        let ends = headers.contains("Nats-TTL");
        // A rollup that expires brings back the purged values, if the server is killed after that.
        assert!(!ends || !headers.contains("Nats-Rollup"), "{headers}");
        assert_eq!(way == "purge" && !ends, headers.contains("Nats-Rollup"), "{way}: {headers}");
        assert_eq!(store.get(way).await.unwrap(), None);
        found.insert(ends);
    }
    // A store with fenced writes can have locks and sessions too.
    if let Some(fenced) = store.fenced() {
        fenced.delete("fenced", FencingToken::from_u64(1)).await.unwrap();
        assert!(!world.last_headers("fenced").await.contains("Nats-TTL"));
    }
    for key in ["rw_lock.job", "rw_lock_session.0", "rw_lock_leader.job"] {
        store.put(key, "value").await.unwrap();
        store.delete(key).await.unwrap();
        assert!(!world.last_headers(key).await.contains("Nats-TTL"), "{key}");
        store.purge(key).await.unwrap();
        assert!(!world.last_headers(key).await.contains("Nats-TTL"), "{key}");
    }
    assert_eq!(found.len(), 1, "all ways are alike");
    found.contains(&true)
}

#[tokio::test]
async fn tombstone_expires_only_without_bringing_a_value_back() {
    let server_has_ttl = NatsServer::shared().is_at_least(2, 11);
    let hour = Duration::from_secs(3600);
    let mut configs = vec![
        (StoreConfig::new(), false),
        (StoreConfig::new().history(5), false),
        (StoreConfig::new().max_age(hour), server_has_ttl),
        (StoreConfig::new().max_age(hour).history(2), false),
    ];
    if server_has_ttl {
        configs.push((StoreConfig::new().key_ttl(true), true));
        configs.push((StoreConfig::new().key_ttl(true).max_age(hour), true));
    }
    for (config, expected) in configs {
        let (world, store, _) = World::made_by_us(config.clone()).await;
        assert_eq!(ends(&world, &store).await, expected, "{config:?}");
    }
    if server_has_ttl {
        for (history, marker, expected) in
            [(1, 0, false), (1, 60, true), (2, 60, false), (-1, 60, false)]
        {
            let (world, store) = World::made_as_stream(|config| {
                config["allow_msg_ttl"] = json!(true);
                config["max_msgs_per_subject"] = json!(history);
                config["subject_delete_marker_ttl"] = json!(marker * SECOND);
            })
            .await;
            assert_eq!(
                ends(&world, &store).await,
                expected,
                "history {history}, markers {marker} s"
            );
        }
    }
}

#[tokio::test]
async fn lock_and_election_records_leave_lasting_tombstones() {
    let world = World::new().await;
    if !has_ttl(&world).await {
        return;
    }
    let (world, store, _) = World::made_by_us(StoreConfig::new().key_ttl(true)).await;
    let options = || LockOptions::new().lease(Duration::from_secs(2));
    let lock = DistroRwLock::with_options(&store, "job", options()).unwrap();
    lock.write().await.unwrap().release().await.unwrap();
    let election = LeaderElection::with_options(&store, "leader", "here", options()).unwrap();
    election.campaign().await.unwrap().resign().await.unwrap();
    world.connection.shutdown().await.unwrap();
    let stream = world.context.get_stream(world.stream()).await.unwrap();
    let consumer =
        stream.create_consumer(jetstream::consumer::pull::OrderedConfig::default()).await.unwrap();
    let mut messages = consumer.messages().await.unwrap();
    let pending = stream.get_info().await.unwrap().state.messages;
    assert!(pending > 0);
    for _ in 0..pending {
        let message = messages.next().await.unwrap().unwrap();
        let headers = message.headers.as_ref().map(shown).unwrap_or_default();
        assert!(message.subject.contains(".rw_lock"), "{}", message.subject);
        assert!(!headers.contains("Nats-TTL"), "{}: {headers}", message.subject);
    }
}

fn short_markers() -> kv::Config {
    kv::Config { limit_markers: Some(Duration::from_secs(1)), ..kv::Config::default() }
}

/// The server leaves a marker when our tombstone expires, which is not a change.
#[tokio::test]
async fn end_of_a_tombstone_is_not_delivered() {
    let world = World::new().await;
    if !has_ttl(&world).await {
        return;
    }
    // Long enough for a read to find a marker, and for a reader to be behind.
    let lifetime = Some(Duration::from_secs(3));
    let config = kv::Config { limit_markers: lifetime, ..kv::Config::default() };
    let (_world, ours, _) = World::made_by_them(config).await;
    let mut watch = ours.watch(WatchScope::All).await.unwrap();
    assert_eq!(next(&mut watch).await, KvUpdate::CaughtUp);
    // Reads continuously, because tombstones that live some seconds allow no reader to be behind
    // by more.
    let (read, mut updates) = tokio::sync::mpsc::unbounded_channel();
    let reader = tokio::spawn(async move {
        loop {
            if read.send(watch.next().await.unwrap().unwrap().into_entry().unwrap()).is_err() {
                return;
            }
        }
    });
    let mut update = async || within("an update", updates.recv()).await.unwrap();
    for key in ["deleted", "purged"] {
        ours.put(key, "x").await.unwrap();
        assert_eq!(update().await.value, "x");
    }
    let deleted = ours.delete("deleted").await.unwrap();
    let purged = ours.purge("purged").await.unwrap();
    for version in [deleted, purged] {
        let entry = update().await;
        assert_eq!((entry.version, entry.operation), (version, KvOperation::Delete));
    }
    let mut markers = 0;
    eventually("tombstones and markers are gone", async || {
        let left = ours.entry("deleted").await.unwrap();
        markers +=
            usize::from(left.as_ref().is_some_and(|entry| entry.operation == KvOperation::Expire));
        left.is_none() && ours.entry("purged").await.unwrap().is_none()
    })
    .await;
    assert!(markers > 0, "a marker was there");
    ours.put("deleted", "y").await.unwrap();
    let entry = update().await;
    assert_eq!((entry.key.as_str(), entry.value.as_ref()), ("deleted", b"y".as_slice()));
    // A later expiry is a change.
    ours.ttl().unwrap().put("deleted", "z", Duration::from_secs(1)).await.unwrap();
    assert_eq!(update().await.value, "z");
    assert_eq!(update().await.operation, KvOperation::Expire);
    reader.abort();
}

/// Returns the number of deleted keys with a value.
async fn came_back(store: &Store) -> usize {
    let keys: Vec<_> = (0..50).map(|number| format!("k.{number}")).collect();
    let values = store.get_many(&keys).await.unwrap();
    let listed = store.keys(WatchScope::prefix("k.")).try_collect().await.unwrap();
    values.iter().flatten().count().max(listed.len())
}

/// Deletes 50 keys and waits until tombstones and markers are gone.
async fn delete_and_wait(store: &Store) {
    let keys: Vec<_> = (0..50).map(|number| format!("k.{number}")).collect();
    for round in 0..3 {
        for answer in store.put_many(keys.iter().map(|key| (key.clone(), format!("{round}")))).await
        {
            answer.unwrap();
        }
    }
    store.put("anchor", "x").await.unwrap();
    for (number, key) in keys.iter().enumerate() {
        match number % 3 {
            0 => store.delete(key).await.unwrap(),
            1 => store.purge(key).await.unwrap(),
            _ => {
                let version = store.entry(key).await.unwrap().unwrap().version;
                store.delete_with_version(key, version).await.unwrap()
            }
        };
    }
    store.put("anchor", "y").await.unwrap();
    for key in &keys {
        eventually("tombstone and marker are gone", async || {
            store.entry(key).await.unwrap().is_none()
        })
        .await;
    }
}

async fn bucket_with_short_markers(client: async_nats::Client, replicas: usize) {
    let config = kv::Config { bucket: "b".to_owned(), num_replicas: replicas, ..short_markers() };
    jetstream::new(client).create_key_value(config).await.unwrap();
}

#[tokio::test]
async fn nothing_deleted_comes_back_after_a_kill() {
    let mut server = NatsServer::start();
    if !server.is_at_least(2, 11) {
        return;
    }
    bucket_with_short_markers(server.client().await, 1).await;
    let connection = connect(&server.url()).await.unwrap();
    delete_and_wait(&connection.store("b").await.unwrap()).await;
    server.kill();
    server.restart();
    let store = connect(&server.url()).await.unwrap().store("b").await.unwrap();
    assert_eq!(came_back(&store).await, 0, "values that came back");
    assert_eq!(store.get("anchor").await.unwrap().unwrap().value, "y");
}

/// Kills all servers at once, then each as the leader.
#[tokio::test]
async fn nothing_deleted_comes_back_after_a_kill_of_a_cluster() {
    let cluster = NatsCluster::start().await;
    if !cluster.node(0).is_at_least(2, 11) {
        return;
    }
    bucket_with_short_markers(cluster.client().await, 3).await;
    cluster.wait_until_healthy("b").await;
    let connection = connect(&cluster.url()).await.unwrap();
    let config = || StoreConfig::new().consistency(ReadConsistency::Leader);
    let store = connection.store_with_config("b", config()).await.unwrap();
    delete_and_wait(&store).await;
    for node in cluster.nodes() {
        node.kill();
    }
    for node in cluster.nodes() {
        node.restart();
    }
    cluster.wait_until_healthy("b").await;
    let mut leaders = BTreeSet::new();
    for _ in 0..10 {
        leaders.insert(cluster.leader_of("b").await);
        for node in cluster.nodes() {
            let connection: Arc<dyn Connection> = connect(&node.url()).await.unwrap();
            for config in [StoreConfig::new(), config()] {
                let store = connection.store_with_config("b", config).await.unwrap();
                assert_eq!(came_back(&store).await, 0, "values that came back");
            }
        }
        if leaders.len() == 3 {
            break;
        }
        cluster.step_down("b").await;
        cluster.wait_until_healthy("b").await;
    }
}
