//! Entries that leave the store without a message: a comparison with the store finds them.

use std::time::Duration;

use async_nats::jetstream::{self, kv, stream};
use shizuku_kv::replica::Replica;
use shizuku_kv::{Store, WatchScope, connect};
use shizuku_kv_tests::{NatsServer, eventually, unique};

use crate::disk::Disk;
use crate::support::{Follower, write};

const LONG: Duration = Duration::from_secs(3600);

/// A bucket of another client, whose values expire without a marker. Only a comparison finds an
/// entry that left it, because no watch of it compares figures (ADR 0064).
async fn silent(age: Duration) -> (String, Store) {
    let server = NatsServer::shared();
    let name = unique("silent");
    let config = kv::Config { bucket: name.clone(), max_age: age, ..kv::Config::default() };
    jetstream::new(server.client().await).create_key_value(config).await.unwrap();
    let store = connect(&server.url()).await.unwrap().store(&name).await.unwrap();
    (name, store)
}

#[tokio::test]
async fn key_expired_without_message_vanishes() {
    let (_, store) = silent(Duration::from_secs(2)).await;
    let disk = Disk::new();
    write(&store, &["a=1", "b=1"]).await;
    let replica = Replica::new(&store, WatchScope::All).storage(disk.clone());
    let mut follower = Follower::start(replica.compare_every(Duration::from_secs(1)));
    assert_eq!(follower.asks.up_to(".").await, ["a=1", "b=1", "."]);
    follower.current().await;
    let mut all = Vec::new();
    while !["~a", "~b"].iter().all(|word| all.iter().any(|told| told == word)) {
        all.extend(follower.asks.done().await);
    }
    assert!(!all.iter().any(|word| word.contains('=')), "{all:?}");
    follower.asks.up_to(".").await;
    eventually("it is kept", async || disk.words().is_empty()).await;
    assert!(follower.monitor.progress().resyncs >= 1);
    // Later updates still come.
    write(&store, &["c=1"]).await;
    assert!(
        follower.asks.up_to("c=1").await.iter().all(|word| ["c=1", "."].contains(&word.as_str()))
    );
    follower.stop().await;
}

/// Follows a scope with short intervals of comparison. `remove` removes one key without a message.
async fn vanishes(
    store: &Store,
    scope: WatchScope,
    remove: impl Future<Output = ()>,
    (vanished, left): (&str, &[&str]),
) {
    let disk = Disk::new();
    let replica = Replica::new(store, scope).storage(disk.clone());
    let mut follower = Follower::start(replica.compare_every(Duration::from_secs(1)));
    follower.asks.up_to(".").await;
    remove.await;
    let told = follower.asks.up_to(vanished).await;
    assert!(!left.iter().any(|word| told.contains(&(*word).to_owned())), "{told:?}");
    follower.asks.up_to(".").await;
    follower.current().await;
    follower.stop().await;
    assert_eq!(disk.words(), left);
}

/// A purge by subject leaves nothing, and no tombstone either.
#[tokio::test]
async fn key_removed_by_operator_vanishes() {
    let (name, store) = silent(LONG).await;
    write(&store, &["a=1", "b=1", "c=1"]).await;
    vanishes(&store, WatchScope::All, purge(&name, "b"), ("~b", &["a=1", "c=1"])).await;
}

/// The removal of entries outside the scope is ignored.
#[tokio::test]
async fn prefix_is_compared_by_its_own_count() {
    let (name, store) = silent(LONG).await;
    write(&store, &["a.x=1", "a.y=1", "a.z=1", "-a.z", "b.x=1"]).await;
    let remove = async {
        purge(&name, "b.x").await;
        purge(&name, "a.x").await;
    };
    vanishes(&store, WatchScope::prefix("a."), remove, ("~a.x", &["a.y=1"])).await;
}

/// The bucket has an age limit too, so that no watch of it compares figures.
#[tokio::test]
async fn expiry_of_one_value_is_found() {
    if !NatsServer::shared().is_at_least(2, 11) {
        return;
    }
    let limits = |config: &mut stream::Config| {
        (config.allow_message_ttl, config.max_age) = (true, LONG);
    };
    let (name, store) = bucket(limits).await;
    write(&store, &["a=1", "b=1"]).await;
    vanishes(&store, WatchScope::All, expire(&name, &store, "b"), ("~b", &["a=1"])).await;
}

/// Returns a bucket of another client with a changed configuration of its stream.
async fn bucket(change: impl FnOnce(&mut stream::Config)) -> (String, Store) {
    let server = NatsServer::shared();
    let name = unique("silent");
    let context = jetstream::new(server.client().await);
    let mut config = stream::Config {
        name: format!("KV_{name}"),
        subjects: vec![format!("$KV.{name}.>")],
        max_messages_per_subject: 1,
        allow_rollup: true,
        deny_delete: true,
        allow_direct: true,
        ..stream::Config::default()
    };
    change(&mut config);
    context.create_stream(config).await.unwrap();
    let store = connect(&server.url()).await.unwrap().store(&name).await.unwrap();
    (name, store)
}

async fn purge(name: &str, key: &str) {
    let context = jetstream::new(NatsServer::shared().client().await);
    let stream = context.get_stream(format!("KV_{name}")).await.unwrap();
    stream.purge().filter(format!("$KV.{name}.{key}")).await.unwrap();
}

/// Follows a bucket, stops while `remove` removes `b`, and is started again with the default
/// interval.
async fn away_while(store: &Store, scope: &WatchScope, remove: impl Future<Output = ()>) {
    let disk = Disk::new();
    write(store, &["a=1", "b=1", "c=1", "-c"]).await;
    let mut follower = Follower::start(Replica::new(store, scope.clone()).storage(disk.clone()));
    follower.asks.up_to(".").await;
    follower.current().await;
    follower.stop().await;
    remove.await;
    let mut follower = Follower::start(Replica::new(store, scope.clone()).storage(disk.clone()));
    let told = follower.asks.up_to("~b").await;
    assert!(!follower.monitor.progress().is_current(), "it is not current before: {told:?}");
    follower.asks.up_to(".").await;
    follower.current().await;
    assert_eq!(follower.monitor.progress().resyncs, 1);
    follower.stop().await;
    assert!(disk.words().iter().all(|word| !word.starts_with("b=")), "{:?}", disk.words());
    // The next comparison finds no difference.
    let mut follower = Follower::start(Replica::new(store, scope.clone()).storage(disk.clone()));
    follower.asks.up_to(".").await;
    follower.current().await;
    assert_eq!(follower.monitor.progress().resyncs, 0);
    follower.stop().await;
}

#[tokio::test]
async fn purge_by_an_operator_while_away_is_found() {
    for scope in [WatchScope::All, WatchScope::prefix(""), WatchScope::prefixes(["a", "b", "c"])] {
        let (name, store) = bucket(|_| {}).await;
        away_while(&store, &scope, purge(&name, "b")).await;
    }
}

#[tokio::test]
async fn tombstone_purged_while_away_is_found() {
    let (name, store) = bucket(|_| {}).await;
    let remove = async {
        write(&store, &["-b"]).await;
        purge(&name, "b").await;
    };
    away_while(&store, &WatchScope::All, remove).await;
}

#[tokio::test]
async fn eviction_while_away_is_found() {
    let (_, store) = bucket(|config| {
        config.max_messages = 3;
        config.discard = stream::DiscardPolicy::Old;
    })
    .await;
    // Without another write, `a` would be evicted for `d`.
    let remove = async { write(&store, &["a=2", "d=1"]).await };
    away_while(&store, &WatchScope::All, remove).await;
}

/// Another client replaces a value by one with a time to live, and waits until it has expired.
async fn expire(name: &str, store: &Store, key: &str) {
    let context = jetstream::new(NatsServer::shared().client().await);
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-TTL", "1s");
    let sent = context.publish_with_headers(format!("$KV.{name}.{key}"), headers, "2".into()).await;
    sent.unwrap().await.unwrap();
    eventually("it expires", async || store.entry(key).await.unwrap().is_none()).await;
}

/// The watch rejects the checkpoint too, because tombstones of other clients can vanish as well.
#[tokio::test]
async fn expiry_of_one_value_while_away_is_found() {
    if !NatsServer::shared().is_at_least(2, 11) {
        // Times to live of single messages came with 2.11.
        return;
    }
    let (name, store) = bucket(|config| config.allow_message_ttl = true).await;
    away_while(&store, &WatchScope::All, expire(&name, &store, "b")).await;
}

/// The comparison has to list the keys of the scope, but the stream has no room for another
/// consumer.
#[tokio::test]
async fn comparison_without_room_for_its_listing_is_no_proof() {
    let (name, store) = bucket(|config| config.max_consumers = 2).await;
    let scope = WatchScope::prefixes(["a", "b", "c"]);
    let disk = Disk::new();
    write(&store, &["a=1", "b=1", "c=1"]).await;
    let mut follower = Follower::start(Replica::new(&store, scope.clone()).storage(disk.clone()));
    follower.asks.up_to(".").await;
    follower.current().await;
    follower.stop().await;
    purge(&name, "b").await;
    let server = NatsServer::shared();
    eventually("its consumers are gone", async || server.consumers(&name).await.is_empty()).await;
    let other = store.watch(WatchScope::All).await.unwrap();
    let store = store.with_deadline(Duration::from_secs(1));
    let mut follower = Follower::start(Replica::new(&store, scope).storage(disk.clone()));
    follower.asks.up_to(".").await;
    let mut monitor = follower.monitor.clone();
    let reason = loop {
        let progress = monitor.progress();
        assert!(!progress.is_current(), "it still holds b: {:?}", disk.words());
        match progress.comparison_error {
            Some(error) => break error.to_string(),
            None => drop(crate::support::real(monitor.changed()).await.expect("a change")),
        }
    };
    assert!(reason.contains("consumer"), "{reason}");
    drop(other);
    follower.asks.up_to("~b").await;
    follower.asks.up_to(".").await;
    follower.current().await;
    follower.stop().await;
    assert_eq!(disk.words(), ["a=1", "c=1"]);
}
