//! Watches and listings on NATS, impeded by the server, its limits or other clients.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "tests report by panicking, and their names say what they show"
)]

mod away;
mod by_name;
mod counted;
mod dropped;
mod limits;
mod mirrors;
mod opening;
mod purged;
mod recreated;
mod removed;
mod resumed;

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::TryStreamExt;
use shizuku_kv::{KvError, KvUpdate, StoreConfig, Watch, WatchScope, connect};
use shizuku_kv_tests::{NatsServer, PATIENCE, TcpProxy, eventually, unique};

async fn next(watch: &mut Watch) -> Result<KvUpdate, KvError> {
    let next = tokio::time::timeout(PATIENCE, watch.next());
    next.await.expect("an update in time").expect("the watch goes on")
}

/// Pauses the only consumer of a bucket, and returns its name. The consumer then sends heartbeats,
/// and delivers nothing, like one that has lost count of its pending messages.
async fn pause_consumer(server: &NatsServer, bucket: &str) -> String {
    let mut consumers = server.consumers(bucket).await;
    assert_eq!(consumers.len(), 1, "{consumers:?}");
    let consumer = consumers.remove(0);
    let subject = format!("$JS.API.CONSUMER.PAUSE.KV_{bucket}.{consumer}");
    let pause = r#"{"pause_until": "2199-01-01T00:00:00Z"}"#;
    let answer = server.client().await.request(subject, pause.into()).await.unwrap();
    assert!(String::from_utf8_lossy(&answer.payload).contains("\"paused\":true"), "{answer:?}");
    consumer
}

#[tokio::test]
async fn watch_heals_behind_a_message_that_is_not_an_entry() {
    let server = NatsServer::start();
    let proxy = TcpProxy::start(server.port()).await;
    let store = connect(&proxy.url()).await.unwrap().store("b").await.unwrap();
    let mut watch = store.watch(WatchScope::All).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap(), KvUpdate::CaughtUp);
    let direct = connect(&server.url()).await.unwrap().store("b").await.unwrap();
    direct.put("a", "1").await.unwrap();
    next(&mut watch).await.unwrap();
    server.client().await.publish("$KV.b._kv.x", "theirs".into()).await.unwrap();
    direct.put("b", "2").await.unwrap();
    next(&mut watch).await.unwrap();
    let cursor = watch.cursor().unwrap();
    for round in 0..3 {
        server.client().await.publish("$KV.b._kv.x", "theirs".into()).await.unwrap();
        proxy.cut();
        direct.put("c", round.to_string()).await.unwrap();
        assert_eq!(next(&mut watch).await.unwrap().into_entry().unwrap().value, round.to_string());
    }
    assert!(direct.watch_from(WatchScope::All, cursor).await.is_ok());
}

/// Delivered subjects leave the stream, so that counting them would hide others.
#[tokio::test]
async fn keys_that_age_do_not_hide_keys_that_live() {
    let server = NatsServer::start();
    let context = async_nats::jetstream::new(server.client().await);
    let aging = async_nats::jetstream::kv::Config {
        bucket: "b".to_owned(),
        max_age: Duration::from_secs(4),
        ..Default::default()
    };
    context.create_key_value(aging).await.unwrap();
    let store = connect(&server.url()).await.unwrap().store("b").await.unwrap();
    let cold = (0..2_000).map(|n| (format!("cold.{n}"), "x"));
    assert!(store.put_many(cold).await.iter().all(Result::is_ok));
    let hot: BTreeSet<_> = (0..20).map(|n| format!("hot.{n}")).collect();
    let write = async || {
        let items = hot.iter().map(|key| (key.as_str(), "x"));
        assert!(store.put_many(items).await.iter().all(Result::is_ok));
    };
    write().await;
    let mut watch = store.watch(WatchScope::All).await.unwrap();
    // The reader is slow: its delivered keys have aged before it continues.
    next(&mut watch).await.unwrap();
    eventually("the cold keys are gone", async || {
        write().await;
        store.get("cold.1999").await.unwrap().is_none()
    })
    .await;
    let mut seen = BTreeSet::new();
    loop {
        match next(&mut watch).await {
            Ok(KvUpdate::CaughtUp) => break,
            Ok(update) => seen.extend(update.into_entry().map(|entry| entry.key.to_string())),
            // This is correct too, because forgotten entries cannot be delivered.
            Err(KvError::CursorExpired { .. }) => return,
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(hot.is_subset(&seen), "{:?}", hot.difference(&seen));
}

#[tokio::test]
async fn history_is_bounded_while_the_key_is_written() {
    let server = NatsServer::start();
    let connection = connect(&server.url()).await.unwrap();
    let store = connection.store_with_config("b", StoreConfig::new().history(2)).await.unwrap();
    store.put("key", "first").await.unwrap();
    let writes = async {
        loop {
            store.put("key", "next").await.unwrap();
        }
    };
    let reads = async {
        for _ in 0..20 {
            let history = store.history("key").unwrap().try_collect().await.unwrap();
            assert!((1..=2).contains(&history.len()), "{history:?}");
        }
    };
    tokio::select! {
        () = writes => {}
        () = reads => {}
    }
}

#[tokio::test]
async fn dropped_shutdown_still_ends_everything() {
    let mut server = NatsServer::start();
    let connection = connect(&server.url()).await.unwrap();
    let store = connection.store("b").await.unwrap();
    let mut watch = store.watch(WatchScope::All).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap(), KvUpdate::CaughtUp);
    server.pause();
    let write = tokio::spawn({
        let store = store.clone();
        async move { store.put("key", "value").await }
    });
    let dropped = tokio::time::timeout(Duration::from_millis(300), connection.shutdown()).await;
    server.resume();
    assert!(dropped.is_err() || dropped.is_ok_and(|ended| ended.is_ok()));
    connection.shutdown().await.unwrap();
    let ended = next(&mut watch).await.unwrap_err();
    assert!(matches!(ended, KvError::Closed { .. }), "{ended:?}");
    assert!(matches!(store.get("key").await, Err(KvError::Closed { .. })));
    // The write ended one way or the other.
    let _ = write.await.unwrap();
}

/// A deletion without a trace cannot be delivered, but the watch reports that it may be missing.
/// Messages in the watch's queue do not prove that it was connected.
#[tokio::test]
async fn watch_away_longer_than_tombstones_live_ends() {
    tokio::join!(away_longer_than_tombstones_live(false), away_longer_than_tombstones_live(true));
}

async fn away_longer_than_tombstones_live(queued: bool) {
    let server = NatsServer::start();
    if !server.is_at_least(2, 11) {
        return;
    }
    let context = async_nats::jetstream::new(server.client().await);
    let config = async_nats::jetstream::kv::Config {
        bucket: "b".to_owned(),
        limit_markers: Some(Duration::from_secs(1)),
        ..Default::default()
    };
    context.create_key_value(config).await.unwrap();
    let proxy = TcpProxy::start(server.port()).await;
    let behind = connect(&proxy.url()).await.unwrap().store("b").await.unwrap();
    let direct = connect(&server.url()).await.unwrap().store("b").await.unwrap();
    // The key must live until the watch is cut off.
    direct.ttl().unwrap().put("a", "x", Duration::from_secs(4)).await.unwrap();
    direct.put("kept", "x").await.unwrap();
    let mut watch = behind.watch(WatchScope::All).await.unwrap();
    while next(&mut watch).await.unwrap() != KvUpdate::CaughtUp {}
    if queued {
        // Left unread. The server reports the delivery, and an answer follows on the same
        // connection.
        direct.put("queued", "x").await.unwrap();
        let stream = context.get_stream("KV_b").await.unwrap();
        eventually("the message is delivered", async || {
            let consumers: Vec<_> = stream.consumers().try_collect().await.unwrap();
            consumers.iter().any(|consumer| consumer.delivered.consumer_sequence == 3)
        })
        .await;
        behind.get("queued").await.unwrap();
    }
    proxy.refuse(true);
    proxy.cut();
    eventually("nothing is left of the key", async || direct.entry("a").await.unwrap().is_none())
        .await;
    direct.put("later", "x").await.unwrap();
    proxy.refuse(false);
    // The connection is back before the watch continues, so that the wait for it does not count.
    behind.get("later").await.unwrap();
    let end = loop {
        match next(&mut watch).await {
            Ok(update) => {
                let key = update.entry().map(|entry| entry.key.as_str());
                assert_ne!(key, Some("later"), "a message is queued: {queued}");
            }
            Err(error) => break error,
        }
    };
    let forgotten =
        matches!(&end, KvError::CursorExpired { reason, .. } if reason.contains("forgotten"));
    assert!(forgotten, "a message is queued: {queued}: {end:?}");
}

/// Servers can lose count of the pending messages of a consumer, and then deliver them only after
/// another message has come.
#[tokio::test]
async fn consumer_that_delivers_nothing_is_replaced() {
    let server = NatsServer::shared();
    if !server.is_at_least(2, 11) {
        println!("consumers cannot be paused on nats-server {}", server.version());
        return;
    }
    let name = unique("left_out");
    let store = connect(&server.url()).await.unwrap().store(&name).await.unwrap();
    let mut watch = store.watch(WatchScope::All).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap(), KvUpdate::CaughtUp);
    let consumer = pause_consumer(server, &name).await;
    let version = store.put("key", "value").await.unwrap();
    let update = tokio::time::timeout(Duration::from_secs(60), watch.next()).await;
    let update = update.expect("it comes all the same").unwrap().unwrap();
    assert_eq!(update.into_entry().unwrap().version, version);
    assert!(watch.link().is_up());
    assert_ne!(server.consumers(&name).await, [consumer]);
}

/// Servers that purge one of the subjects of a consumer move the consumer behind that position,
/// even if messages of its other subjects are still pending (nats-server #8571).
#[tokio::test]
async fn a_purge_of_one_key_hides_nothing_of_others() {
    let server = NatsServer::shared();
    let connection = connect(&server.url()).await.unwrap();
    let store = connection.store(&unique("purges")).await.unwrap();
    let scopes = [
        WatchScope::keys(["blob", "changed", "gone"]).unwrap(),
        WatchScope::prefixes(["blob", "changed", "gone"]),
        WatchScope::All,
    ];
    let mut watches = Vec::new();
    for scope in scopes {
        let mut watch = store.watch(scope).await.unwrap();
        assert_eq!(next(&mut watch).await.unwrap(), KvUpdate::CaughtUp);
        watches.push(watch);
    }
    // More than one request of messages, so that later ones wait on the server.
    let blob = vec![b'x'; 900 * 1024];
    for _ in 0..12 {
        store.put("blob", blob.clone()).await.unwrap();
    }
    let changed = store.put("changed", "value").await.unwrap();
    store.put("gone", "value").await.unwrap();
    store.purge("gone").await.unwrap();
    // The marker of the purge itself does not stay either.
    let last = store.put("gone", "again").await.unwrap();
    for watch in &mut watches {
        let mut seen = Vec::new();
        loop {
            let entry = next(watch).await.unwrap().into_entry().expect("the marker came before");
            let is_last = entry.version == last;
            seen.push(entry.version);
            if is_last {
                break;
            }
        }
        assert!(seen.contains(&changed), "{seen:?}");
    }
}
