//! A stream has as many consumers as it allows. Readers wait for one to end.

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use shizuku_kv::{KvUpdate, Store, WatchLink, WatchScope, connect};
use shizuku_kv_tests::{NatsServer, TcpProxy, unique};

use super::next;

/// Returns a bucket with room for this many consumers.
async fn with_room(consumers: i32) -> (String, Store) {
    let server = NatsServer::shared();
    let name = unique("room");
    let config = stream::Config {
        name: format!("KV_{name}"),
        subjects: vec![format!("$KV.{name}.>")],
        max_messages_per_subject: 1,
        max_consumers: consumers,
        allow_rollup: true,
        allow_direct: true,
        ..Default::default()
    };
    jetstream::new(server.client().await).create_stream(config).await.unwrap();
    let store = connect(&server.url()).await.unwrap().store(&name).await.unwrap();
    (name, store)
}

/// A watch that lost its consumer waits for room, and reports why it receives nothing.
#[tokio::test]
async fn running_watch_waits_for_room_for_its_consumer() {
    let server = NatsServer::shared();
    let (name, direct) = with_room(1).await;
    let proxy = TcpProxy::start(server.port()).await;
    let store = connect(&proxy.url()).await.unwrap().store(&name).await.unwrap();
    let mut watch = store.watch(WatchScope::All).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap(), KvUpdate::CaughtUp);
    proxy.refuse(true);
    proxy.cut();
    let stream =
        jetstream::new(server.client().await).get_stream(format!("KV_{name}")).await.unwrap();
    for consumer in server.consumers(&name).await {
        stream.delete_consumer(&consumer).await.unwrap();
    }
    let other = direct.watch(WatchScope::All).await.unwrap();
    proxy.refuse(false);
    let mut tells = false;
    for _ in 0..200 {
        let _ = tokio::time::timeout(Duration::from_millis(100), watch.next()).await;
        tells =
            matches!(watch.link(), WatchLink::Down { reason, .. } if reason.contains("consumer"));
        if tells {
            break;
        }
    }
    assert!(tells, "{:?}", watch.link());
    drop(other);
    direct.put("key", "value").await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap().into_entry().unwrap().key, "key");
}
