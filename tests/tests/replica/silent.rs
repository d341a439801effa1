//! What goes without anybody being told: a comparison with the whole bucket finds it.

use std::time::Duration;

use async_nats::jetstream::{self, kv};
use shizuku_kv::replica::Replica;
use shizuku_kv::{BatchConfig, Store, StoreConfig, WatchScope, connect};
use shizuku_kv_tests::{NatsServer, eventually, unique};

use crate::disk::Disk;
use crate::script::{Script, cursor};
use crate::support::{Follower, memory, settle, write};

/// A bucket of another client, whose values expire without a marker.
async fn silent(age: Duration) -> (String, Store) {
    let server = NatsServer::shared();
    let name = unique("silent");
    let config = kv::Config { bucket: name.clone(), max_age: age, ..kv::Config::default() };
    jetstream::new(server.client().await).create_key_value(config).await.unwrap();
    let store = connect(&server.url()).await.unwrap().store(&name).await.unwrap();
    (name, store)
}

#[tokio::test]
async fn only_a_bucket_without_markers_expires_in_silence() {
    let (_, store) = silent(Duration::from_secs(7)).await;
    assert_eq!(store.silent_expiry(), Some(Duration::from_secs(7)));
    let server = NatsServer::shared();
    let connection = connect(&server.url()).await.unwrap();
    assert_eq!(connection.store(&unique("told")).await.unwrap().silent_expiry(), None);
    let config = StoreConfig::new().max_age(Duration::from_secs(7));
    let ours = connection.store_with_config(&unique("told"), config.clone()).await.unwrap();
    assert_eq!(ours.silent_expiry().is_none(), server.is_at_least(2, 11));
    let memory = connect("memory:").await.unwrap().store_with_config("told", config).await.unwrap();
    assert_eq!(memory.silent_expiry(), None);
}

#[tokio::test]
async fn what_expires_in_silence_vanishes() {
    let (_, store) = silent(Duration::from_secs(2)).await;
    let disk = Disk::new();
    write(&store, &["a=1", "b=1"]).await;
    let replica = Replica::new(&store, WatchScope::All).storage(disk.clone());
    let mut follower = Follower::start(replica.reconcile_every(Duration::from_secs(1)));
    assert_eq!(follower.asks.up_to(".").await, ["a=1", "b=1", "."]);
    follower.current().await;
    let mut all = Vec::new();
    while !["~a", "~b"].iter().all(|word| all.iter().any(|told| told == word)) {
        all.extend(follower.asks.done().await);
    }
    assert!(!all.iter().any(|word| word.contains('=')), "{all:?}");
    follower.asks.up_to(".").await;
    eventually("it is kept", async || disk.words().is_empty()).await;
    assert!(follower.monitor.progress().repairs >= 1);
    // And what comes afterwards comes.
    write(&store, &["c=1"]).await;
    assert!(follower.asks.up_to("c=1").await.iter().all(|word| ["c=1", "."].contains(&word.as_str())));
    follower.stop().await;
}

#[tokio::test]
async fn what_an_operator_takes_out_by_hand_vanishes() {
    let server = NatsServer::shared();
    let name = unique("by-hand");
    let store = connect(&server.url()).await.unwrap().store(&name).await.unwrap();
    let disk = Disk::new();
    write(&store, &["a=1", "b=1", "c=1"]).await;
    let replica = Replica::new(&store, WatchScope::All).storage(disk.clone());
    let mut follower = Follower::start(replica.reconcile_every(Duration::from_secs(1)));
    follower.asks.up_to(".").await;
    // By its subject: nothing is left of it, and no tombstone either.
    let stream = jetstream::new(server.client().await).get_stream(format!("KV_{name}")).await.unwrap();
    stream.purge().filter(format!("$KV.{name}.b")).await.unwrap();
    let told = follower.asks.up_to("~b").await;
    assert!(told.iter().all(|word| ["~b", "."].contains(&word.as_str())), "{told:?}");
    follower.asks.up_to(".").await;
    follower.current().await;
    follower.stop().await;
    assert_eq!(disk.words(), ["a=1", "c=1"]);
}

/// On the clock of the test.
#[tokio::test(start_paused = true)]
async fn the_bucket_is_compared_as_often_as_was_asked() {
    let (_connection, store) = memory().await;
    write(&store, &["a=1", "b=1"]).await;
    let replica = Replica::new(&store, WatchScope::All).storage(Disk::new());
    let mut follower = Follower::start(replica.reconcile_every(Duration::from_secs(60)));
    follower.asks.up_to(".").await;
    follower.current().await;
    let mut last = tokio::time::Instant::now();
    for round in 1..=3 {
        // Nothing is told but that it is complete.
        assert_eq!(follower.asks.done().await, ["."]);
        assert_eq!(follower.monitor.progress().repairs, round);
        assert!(last.elapsed() >= Duration::from_secs(59), "{:?}", last.elapsed());
        last = tokio::time::Instant::now();
    }
    follower.stop().await;

    // Not at all unless it was asked for.
    let mut follower = Follower::start(Replica::new(&store, WatchScope::All));
    follower.asks.up_to(".").await;
    tokio::time::sleep(Duration::from_secs(1_000_000)).await;
    assert!(follower.asks.ready().is_none());
    follower.stop().await;
}

/// A state that takes longer than the interval is not begun again and again.
#[tokio::test(start_paused = true)]
async fn the_interval_begins_when_the_state_is_complete() {
    for held in [false, true] {
        let mut script = Script::new();
        let disk = Disk::new();
        let replica = Replica::new(&script.store, WatchScope::All).storage(disk.clone());
        let mut replica = replica.reconcile_every(Duration::from_secs(10));
        if held {
            let mut follower = Follower::start(replica);
            script.accept().await.all(1, &["old=1", "."]);
            follower.asks.up_to(".").await;
            replica = follower.stop().await.0;
            disk.lose_place();
        }
        let mut follower = Follower::start(replica.batch(BatchConfig::new().max_updates(1)));
        let feed = script.accept().await;
        for n in 1..=20 {
            feed.say(n, &format!("a.{n}=1"));
            follower.asks.done().await;
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        feed.say(30, ".");
        follower.asks.up_to(".").await;
        // And then it is time once.
        let opening = script.opening().await;
        assert_eq!(opening.from, None);
        opening.accept().say(31, ".");
        assert_eq!(follower.asks.up_to(".").await.len(), 21);
        assert_eq!(follower.monitor.progress().repairs, 1 + u64::from(held));
        follower.stop().await;
    }
}

/// A watch that breaks now and then does not put the comparison off for ever.
#[tokio::test(start_paused = true)]
async fn the_interval_goes_on_over_an_outage() {
    let mut script = Script::new();
    let replica = Replica::new(&script.store, WatchScope::All).storage(Disk::new());
    let mut follower = Follower::start(replica.reconcile_every(Duration::from_secs(100)));
    let mut feed = script.accept().await;
    feed.all(1, &["a=1", "."]);
    follower.asks.up_to(".").await;
    let mut outages = 0;
    let opening = loop {
        tokio::time::sleep(Duration::from_secs(30)).await;
        feed.end(crate::script::away());
        let opening = script.opening().await;
        if opening.from.is_none() {
            break opening;
        }
        outages += 1;
        assert!(outages < 10, "it is never compared");
        assert_eq!(opening.from, Some(cursor(2)));
        feed = opening.accept();
        feed.say(2, ".");
        follower.asks.up_to(".").await;
    };
    assert!((2..=4).contains(&outages), "{outages}");
    opening.accept().say(1, "a=1").say(3, ".");
    assert_eq!(follower.asks.up_to(".").await, ["."]);
    follower.stop().await;
}

/// What has come when it is time is applied and kept before.
#[tokio::test(start_paused = true)]
async fn what_has_come_is_kept_before_the_comparison() {
    let mut script = Script::new();
    let disk = Disk::new();
    let replica = Replica::new(&script.store, WatchScope::All).storage(disk.clone());
    let replica = replica.reconcile_every(Duration::from_secs(10));
    let mut follower = Follower::start(replica.batch(BatchConfig::new().window(Duration::from_secs(60))));
    let feed = script.accept().await;
    feed.all(1, &["a=1", ".", "b=1"]);
    assert_eq!(follower.asks.done().await, ["a=1", "."]);
    let batch = follower.asks.next().await.done();
    assert_eq!((crate::support::told(&batch), batch.cursor()), (vec!["b=1".to_owned()], Some(cursor(3))));
    let opening = script.opening().await;
    assert_eq!(opening.from, None);
    feed.left().await;
    opening.accept().say(3, "b=1").say(4, ".");
    assert_eq!(follower.asks.up_to(".").await, ["~a", "."]);
    follower.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_interval_that_no_clock_can_express_never_ends() {
    let (_connection, store) = memory().await;
    let mut follower = Follower::start(Replica::new(&store, WatchScope::All).reconcile_every(Duration::MAX));
    follower.asks.up_to(".").await;
    settle().await;
    follower.stop().await;
}
